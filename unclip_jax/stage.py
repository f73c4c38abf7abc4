"""A stage: one network with the schedule, parametrisation and sampling it is used with.

Training and sampling share this one object and it is saved beside the weights, so the two cannot disagree on a
schedule. A prior is a stage over vectors, a decoder a stage over pictures, an upsampler a stage over pictures whose
condition holds a smaller one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from clip_jax.errors import UserError
from unclip_jax.conditioning import Cond
from unclip_jax.diffusion.guidance import classifier_free, clip_x0
from unclip_jax.diffusion.losses import WEIGHTS, diffusion_loss, noised, variational_bound
from unclip_jax.diffusion.predict import PREDICTIONS, denoiser, per_sample, split_output
from unclip_jax.diffusion.samplers import SAMPLERS, fold_in_each, normal, sample
from unclip_jax.diffusion.schedule import SCHEDULES, NoiseSchedule, spaced_timesteps
from unclip_jax.models.prior import DiffusionPrior, PriorConfig
from unclip_jax.models.unet import UNet, UNetConfig


@dataclass(frozen=True)
class Sampling:
    """How a stage is sampled unless the caller says otherwise.

    Attributes:
      sampler: row of ``SAMPLERS``.
      num_steps: S, denoiser calls (twice the network evaluations under guidance).
      guidance_scale: of classifier-free guidance, 1.0 is off; None never runs the unconditional branch.
      clip: the estimate of x0 is clamped to ±clip after guidance; None leaves it.
    """

    sampler: str = "dpmpp_2m"
    num_steps: int = 16
    guidance_scale: float | None = None
    clip: float | None = 1.0


@dataclass(frozen=True)
class Stage:
    """Network, noise schedule, parametrisation, loss weight and sampling of one step of the cascade.

    Raises:
      UserError: a name that is no row of its table, or more sampling steps than the schedule has.
    """

    model: PriorConfig | UNetConfig
    sampling: Sampling
    prediction: str = "eps"
    schedule: str = "cosine"
    num_timesteps: int = 1000
    weight: str = "simple"

    def __post_init__(self):
        rows = (("prediction", PREDICTIONS), ("schedule", SCHEDULES), ("weight", WEIGHTS))
        for field, value, table in [(name, getattr(self, name), table) for name, table in rows] + [
            ("sampling.sampler", self.sampling.sampler, SAMPLERS)
        ]:
            if value not in table:
                raise UserError(f"{field} is {value!r}; choose one of {', '.join(table)}")
        if not 1 <= self.sampling.num_steps <= self.num_timesteps:
            raise UserError(
                f"sampling.num_steps is {self.sampling.num_steps}; give 1 to {self.num_timesteps} (num_timesteps)"
            )

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample: [D] for a prior, [H, W, C] for pictures."""
        if isinstance(self.model, PriorConfig):
            return (self.model.embed_dim,)
        return (self.model.image_size, self.model.image_size, self.model.channels)


def network(stage: Stage) -> nn.Module:
    """The linen module of a stage: ``apply(variables, x_t, t, cond, train=False)``."""
    return DiffusionPrior(stage.model) if isinstance(stage.model, PriorConfig) else UNet(stage.model)


def noise_schedule(stage: Stage) -> NoiseSchedule:
    return SCHEDULES[stage.schedule](stage.num_timesteps)


def blank_cond(stage: Stage, batch_size: int = 1) -> Cond:
    """A ``Cond`` of zeros with the fields and shapes that the stage's network reads."""
    model = stage.model
    if isinstance(model, PriorConfig):
        return Cond(
            text_embed=jnp.zeros((batch_size, model.embed_dim)),
            text_encodings=jnp.zeros((batch_size, model.context_length, model.text_width)),
            text_mask=jnp.ones((batch_size, model.context_length), bool),
        )
    cond = Cond(keep_text=jnp.ones((batch_size,), bool))
    if model.image_embed_dim is not None:
        cond = cond.replace(image_embed=jnp.zeros((batch_size, model.image_embed_dim)))
    if model.text_width is not None:
        # The U-Net reads any number of text tokens; one is enough to know its parameters.
        cond = cond.replace(
            text_encodings=jnp.zeros((batch_size, 1, model.text_width)), text_mask=jnp.ones((batch_size, 1), bool)
        )
    if model.low_res:
        cond = cond.replace(low_res=jnp.zeros((batch_size, *stage.sample_shape)))
    return cond


def init(stage: Stage, key: jax.Array) -> dict[str, Any]:
    """Fresh parameters, a nested dict of float32 arrays."""
    x_t = jnp.zeros((1, *stage.sample_shape))
    return network(stage).init(key, x_t, jnp.zeros((1,), jnp.int32), blank_cond(stage))["params"]


def learned_variance(stage: Stage) -> bool:
    return isinstance(stage.model, UNetConfig) and stage.model.learned_variance


def run(
    stage: Stage,
    params: dict[str, Any],
    cond: Cond,
    keys: jax.Array,
    *,
    guidance_scale: float | jax.Array | None = None,
) -> jax.Array:
    """Samples the stage.

    Args:
      params: parameters, as ``init`` gives them.
      cond: conditioning of B samples.
      keys: [B] keys; sample i depends on its own key and condition alone.
      guidance_scale: instead of the stage's own; may be traced. Ignored by a stage without guidance.

    Returns:
      x0 [B, *sample_shape], float32: standardised embeddings for a prior, pictures in [−1, 1] otherwise.
    """
    schedule, module, sampling = noise_schedule(stage), network(stage), stage.sampling

    def apply(x_t, t, cond):
        return module.apply({"params": params}, x_t, t, cond)

    denoise = denoiser(apply, schedule, stage.prediction, learned_variance=learned_variance(stage))
    if sampling.guidance_scale is not None:
        denoise = classifier_free(sampling.guidance_scale if guidance_scale is None else guidance_scale)(denoise)
    if sampling.clip is not None:
        denoise = clip_x0(-sampling.clip, sampling.clip)(denoise)

    # The loop folds times 0 … T−1 into the keys; T itself is free for the starting noise.
    x_T = normal(fold_in_each(keys, stage.num_timesteps), stage.sample_shape)
    timesteps = spaced_timesteps(stage.num_timesteps, sampling.num_steps)
    return sample(lambda x_t, t: denoise(x_t, t, cond), schedule, timesteps, SAMPLERS[sampling.sampler](), x_T, keys)


def loss(
    stage: Stage, params: dict[str, Any], x0: jax.Array, cond: Cond, key: jax.Array, *, train: bool = True
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Diffusion loss of a batch x0 [B, ...] (in the space ``run`` returns): (scalar, metrics)."""
    key_noise, key_dropout = jax.random.split(key)
    schedule = noise_schedule(stage)
    at = noised(schedule, x0, key_noise)
    output = network(stage).apply({"params": params}, at.x_t, at.t, cond, train=train, rngs={"dropout": key_dropout})
    prediction, var_frac = split_output(output, learned_variance(stage))
    mean = diffusion_loss(prediction, x0, at, schedule, prediction=stage.prediction, weight=stage.weight).mean()
    if var_frac is None:
        return mean, {}
    alpha, sigma = (per_sample(f(at.t), x0) for f in (schedule.alpha, schedule.sigma))
    x0_hat = PREDICTIONS[stage.prediction].to_x0(prediction, at.x_t, alpha, sigma)
    # The bound of all T steps weighs 1/1000 (Nichol & Dhariwal 2021, eq. 16): T/1000 for the one step drawn.
    bound = variational_bound(x0_hat, var_frac, x0, at, schedule).mean()
    return mean + bound * stage.num_timesteps / 1000.0, {"mean_squared_error": mean, "bound_bits": bound}
