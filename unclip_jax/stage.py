"""A diffusion stage (a network with its noise schedule, parametrisation and loss weight): its loss and its sampling.

Training and sampling read the same `Stage`, which is saved beside the weights, so that they cannot disagree on the
schedule. A diffusion prior is a stage over vectors, a decoder a stage over pictures, and an upsampler a stage over
pictures that is conditioned on smaller pictures.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from clip_jax.errors import UserError
from unclip_jax.conditioning import Cond, need
from unclip_jax.degrade import add_level
from unclip_jax.diffusion.guidance import (
    CondDenoiser,
    Decorator,
    GuidanceScale,
    classifier_free,
    clip_x0,
    dynamic_threshold,
    is_off,
)
from unclip_jax.diffusion.keys import fold_in_each, normal
from unclip_jax.diffusion.losses import Noised, Simple, Weight, add_noise, diffusion_loss, noised, variational_bound
from unclip_jax.diffusion.predict import PREDICTIONS, Denoiser, denoiser, per_sample, split_output
from unclip_jax.diffusion.samplers import DPMpp2M, Sampler, SamplerSpec, sample, self_conditioned
from unclip_jax.diffusion.schedule import SCHEDULES, NoiseSchedule
from unclip_jax.model import Model, Reader
from unclip_jax.ranges import GUIDANCE, TIMES, check_ranges
from unclip_jax.settings import standard_settings
from unclip_jax.variables import STATISTICS, Variables

X0_ERROR = "x0_error"  # name in the collection `statistics`
LAST = "last"  # name of the subtree of every collection with the variables of the second network


@dataclass(frozen=True)
class Sampling:
    """Defaults for sampling a stage.

    Attributes:
        sampler: the sampler with its grid of timesteps.
        num_steps: S, steps of the sampler. A step is one denoiser call, two with `Heun`; with guidance a denoiser call
            is two network evaluations.
        guidance_scale: scale of classifier-free guidance. 1.0 is off unless the caller gives a scale; with None a scale
            of the caller is ignored, and the unconditional branch is never run.
        clip: the estimate of x0 is clipped to ±clip after guidance; None is off.
        threshold: percentile (above 0, up to 100; 99.5, for example) of Imagen's dynamic thresholding, which replaces
            `clip`; None is off.
        low_res_level: level of the noise that is mixed into the input of an upsampler that reads its level
            (`degrade.add_level`), 0 to 1.
    """

    sampler: SamplerSpec = DPMpp2M()  # noqa: RUF009 - a frozen value
    num_steps: int = 16
    guidance_scale: float | None = None
    clip: float | None = 1.0
    threshold: float | None = None
    low_res_level: float = 0.0


@dataclass(frozen=True)
class Stage:
    """Network, noise schedule, parametrisation, loss weight and sampling of one stage of the cascade.

    Attributes:
        model: config of the network.
        sampling: defaults of its sampling.
        prediction: what the network predicts, a row of `PREDICTIONS`.
        schedule: noise schedule, a row of `SCHEDULES`.
        num_timesteps: T.
        weight: weight of each noise level in the loss.
        x0_error: whether the statistics hold the result of `measure_x0_error`, which `DDPM("analytic")` needs.
        last_network: whether the variables hold, under "last", a second network of the same architecture for the last
            sampling step (Karlo's upsampler). `loss` trains the first network only.

    Raises:
        UserError: a name is not in its table, a number is out of range, or the sampling does not fit the network or the
            schedule.
    """

    model: Model
    sampling: Sampling
    prediction: str = "eps"
    schedule: str = "cosine"
    num_timesteps: int = 1000
    weight: Weight = Simple()  # noqa: RUF009 - a frozen value
    x0_error: bool = False
    last_network: bool = False

    def __post_init__(self) -> None:
        sampling = self.sampling
        check_ranges(self, num_timesteps=TIMES)
        steps = (1, self.num_timesteps)
        check_ranges(sampling, "sampling.", num_steps=steps, guidance_scale=GUIDANCE, clip=(1e-6, 1e6))
        names: tuple[tuple[str, str, Mapping[str, Any]], ...] = (
            ("prediction", self.prediction, PREDICTIONS),
            ("schedule", self.schedule, SCHEDULES),
        )
        for field, value, table in names:
            if value not in table:
                raise UserError(f"{field} is {value!r}; choose one of {', '.join(table)}")
        variance = getattr(sampling.sampler, "variance", None)
        if variance == "analytic" and not self.x0_error:
            raise UserError(
                "sampling.sampler DDPM('analytic') needs the x0_error of this stage, which was not measured"
            )
        if variance == "learned" and not self.model.learned_variance:
            raise UserError("sampling.sampler DDPM('learned') needs a network with learned_variance; use another")
        if not self.model.reads_time:
            raise UserError("model.time_token is False: a diffusion prior has to know the time; set it to True")
        if sampling.threshold is not None and not 0 < sampling.threshold <= 100:
            raise UserError(f"sampling.threshold is {sampling.threshold}; give a percentile above 0 and up to 100")
        if not 0 <= sampling.low_res_level <= 1:
            raise UserError(f"sampling.low_res_level is {sampling.low_res_level}; give 0 (none) to 1 (noise alone)")
        if sampling.low_res_level and not self.model.reads_level:
            raise UserError("sampling.low_res_level: this network was not trained to be told one; leave it 0")
        try:
            timesteps(self)
        except ValueError as error:
            raise UserError(f"sampling.sampler.grid {type(sampling.sampler.grid).__name__}: {error}") from error

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample: [D] for a prior, [H, W, C] for pictures."""
        return self.model.sample_shape

    def init(self, key: Key[Array, ""]) -> Variables:
        """Initialises the variables; see `init`."""
        return init(self, key)

    def sample(
        self,
        variables: Variables,
        cond: Cond,
        keys: Key[Array, " B"],
        *,
        guidance_scale: GuidanceScale | None = None,
    ) -> Float[Array, "B ..."]:
        """Samples in the space of the data (CLIP image embeddings or pictures): the result of `run`, restored."""
        x0 = run(self, variables, cond, keys, guidance_scale=guidance_scale)
        return self.model.restore(network(self), variables, x0)


def network(stage: Stage) -> nn.Module:
    """The linen module of a stage: `apply(variables, x_t, t, cond, train=False)`."""
    return stage.model.network()


def noise_schedule(stage: Stage) -> NoiseSchedule:
    """The noise schedule of a stage."""
    return SCHEDULES[stage.schedule](stage.num_timesteps)


def timesteps(stage: Stage) -> Int[np.ndarray, " S"]:
    """The timesteps that a stage is sampled at: int32 [S], decreasing."""
    return stage.sampling.sampler.grid(noise_schedule(stage), stage.sampling.num_steps)


@standard_settings
def init(stage: Stage, key: Key[Array, ""]) -> Variables:
    """Initialises the variables of a stage.

    Args:
        stage: the stage.
        key: one PRNG key.

    Returns:
        {"params": …} and, if the stage has any, {"statistics": …}: nested dicts of float32 arrays.
    """

    def fresh(key: Key[Array, ""]) -> Variables:
        x_t, t = jnp.zeros((1, *stage.sample_shape)), jnp.zeros((1,), jnp.int32)
        return network(stage).init(key, x_t, t, stage.model.blank_cond())

    variables = fresh(key)
    if stage.last_network:
        last = fresh(jax.random.fold_in(key, 1))
        variables = {name: {**tree, LAST: last[name]} for name, tree in variables.items()}
    if stage.x0_error:
        statistics = {**variables.get(STATISTICS, {}), X0_ERROR: jnp.ones(stage.num_timesteps)}
        variables = {**variables, STATISTICS: statistics}
    return variables


def conditional_denoiser(
    stage: Stage, variables: Variables, cond: Cond, *, guidance_scale: GuidanceScale | None = None
) -> Denoiser:
    """The network as a denoiser for samplers: with its condition bound, guided and clipped (or thresholded).

    A prior reads its captions into a KV cache here, once for all steps.

    Args:
        stage: the stage.
        variables: variables of its network, as `init` returns them.
        cond: the condition of B samples.
        guidance_scale: replaces the scale of the stage; a scalar or [B], may be traced. Ignored by a stage without
            guidance. With the Python float 1.0, here or in the stage, the unconditional branch is not run.
    """
    sampling, module = stage.sampling, network(stage)

    def bind(cond: Cond) -> Denoiser:
        read = stage.model.read(module, variables, cond)
        if stage.last_network:
            read = _with_last_network(stage, read, stage.model.read(module, _of_last_network(variables), cond))
        return denoiser(
            read,
            noise_schedule(stage),
            stage.prediction,
            learned_variance=stage.model.learned_variance,
            x0_error=variables[STATISTICS][X0_ERROR] if stage.x0_error else None,
        )

    guided: CondDenoiser = bind
    if sampling.guidance_scale is not None:
        scale = sampling.guidance_scale if guidance_scale is None else guidance_scale
        if not is_off(scale):
            guided = classifier_free(scale)(bind)
    denoise = guided(cond)
    if sampling.threshold is not None:
        denoise = dynamic_threshold(sampling.threshold)(denoise)
    elif sampling.clip is not None:
        denoise = clip_x0(-sampling.clip, sampling.clip)(denoise)
    return denoise


def _of_last_network(variables: Variables) -> Variables:
    """The variables of the second network alone."""
    return {name: tree[LAST] for name, tree in variables.items() if LAST in tree}


def _with_last_network(stage: Stage, first: Reader, second: Reader) -> Reader:
    """Runs the second network in the last sampling step, and the first network in all others."""
    last = int(timesteps(stage)[-1])

    def read(x_t: Float[Array, "B ..."], t: Int[Array, " B"], *given: Float[Array, "B ..."]) -> Float[Array, "B ..."]:
        # In sampling the whole batch is at the same timestep; `cond` runs only one of the two networks.
        return jax.lax.cond(t[0] <= last, second, first, x_t, t, *given)

    return read


@standard_settings
def starting_noise(stage: Stage, keys: Key[Array, " B"]) -> Float[Array, "B ..."]:
    """The noise x_T that sampling starts from: keys [B] -> float32 [B, *sample_shape]."""
    # `sample` folds the timesteps 0 … T−1 into the keys; T is free for the starting noise.
    return normal(fold_in_each(keys, stage.num_timesteps), stage.sample_shape)


def with_level(stage: Stage, cond: Cond, keys: Key[Array, " B"]) -> Cond:
    """Mixes noise of `sampling.low_res_level` into the low-resolution input of an upsampler that reads its level.

    Args:
        stage: the stage.
        cond: the condition; returned unchanged if it has a level, or if the network does not read one.
        keys: [B], one per sample.
    """
    if not stage.model.reads_level or cond.low_res_level is not None:
        return cond
    level = jnp.full(keys.shape, stage.sampling.low_res_level)
    # `sample` folds 0 … T−1 into the keys, `starting_noise` folds T.
    low_res = need(cond.low_res, "low_res")
    noise = normal(fold_in_each(keys, stage.num_timesteps + 1), low_res.shape[1:])
    return cond.replace(low_res=add_level(low_res, level, noise), low_res_level=level)


@standard_settings
def run(
    stage: Stage,
    variables: Variables,
    cond: Cond,
    keys: Key[Array, " B"],
    *,
    guidance_scale: GuidanceScale | None = None,
    x_T: Float[Array, "B ..."] | None = None,
    times: Int[np.ndarray, " S"] | None = None,
    sampler: Sampler | None = None,
    decorate: Decorator | None = None,
) -> Float[Array, "B ..."]:
    """Samples a stage, in the space of the diffusion.

    Args:
        stage: the stage.
        variables: variables of its network, as `init` returns them.
        cond: the condition of B samples.
        keys: [B]; sample i depends on its own key and condition alone.
        guidance_scale: replaces the scale of the stage; a scalar or [B], may be traced. Ignored by a stage without
            guidance.
        x_T: [B, *sample_shape], samples at the first timestep to start from in place of noise.
        times: int [S], decreasing, replaces the timesteps of the stage.
        sampler: replaces the sampler of the stage.
        decorate: decorator of the denoiser, applied after guidance and clipping.

    Returns:
        x0 [B, *sample_shape], float32: standardised embeddings for a prior, pictures in [−1, 1] otherwise.
    """
    cond = with_level(stage, cond, keys)
    denoise = conditional_denoiser(stage, variables, cond, guidance_scale=guidance_scale)
    denoise = denoise if decorate is None else decorate(denoise)
    x_T = starting_noise(stage, keys) if x_T is None else x_T
    sampler = stage.sampling.sampler() if sampler is None else sampler
    sampler = self_conditioned(sampler) if stage.model.self_condition else sampler
    times = timesteps(stage) if times is None else times
    return sample(denoise, noise_schedule(stage), times, sampler, x_T, keys)


@standard_settings
def measure_x0_error(
    stage: Stage, variables: Variables, x0: Float[Array, "N ..."], cond: Cond, key: Key[Array, ""], times: int = 50
) -> Float[Array, " T"]:
    """Measures the mean squared error of the estimate of x0 at every timestep, for `ddpm("analytic")`.

    This is the Γ of Bao et al. 2022 (analytic-DPM), who measure it on eps. The result is to be stored as
    `variables["statistics"]["x0_error"]` of a stage with `x0_error`.

    Args:
        stage: the stage.
        variables: variables of its trained network.
        x0: clean data in the space of the diffusion, [N, ...].
        cond: the condition of the N samples.
        key: one PRNG key, for the noise.
        times: number of evenly spaced timesteps that are measured; the others are interpolated in the log-SNR.

    Returns:
        float32 [T].
    """
    schedule, denoise = noise_schedule(stage), conditional_denoiser(stage, variables, cond)
    measured = jnp.round(jnp.linspace(0, stage.num_timesteps - 1, times)).astype(jnp.int32)

    def error(t):
        noised_at = jnp.broadcast_to(t, x0.shape[:1])
        eps = jax.random.normal(jax.random.fold_in(key, t), x0.shape, jnp.float32)
        return jnp.square(denoise(add_noise(schedule, x0, noised_at, eps), noised_at).x0 - x0).mean()

    errors = jax.lax.map(error, measured)
    # Logarithms are interpolated, because the errors span many orders of magnitude.
    log_snr = schedule.log_snr(jnp.arange(stage.num_timesteps))
    return jnp.exp(jnp.interp(-log_snr, -log_snr[measured], jnp.log(jnp.maximum(errors, 1e-20))))


@standard_settings
def loss(
    stage: Stage,
    variables: Variables,
    x0: Float[Array, "B ..."],
    cond: Cond,
    key: Key[Array, ""],
    *,
    train: bool = True,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Diffusion loss of a batch; with a learned variance, plus the variational bound.

    Args:
        stage: the stage.
        variables: variables of its network.
        x0: clean data in the space of the diffusion, as `run` returns it, [B, ...].
        cond: the condition of the B samples.
        key: one PRNG key, for timesteps, noise, dropout and self-conditioning.
        train: whether dropout is on.

    Returns:
        (scalar loss, metrics).
    """
    key_noise, key_dropout, key_coin = jax.random.split(key, 3)
    schedule = noise_schedule(stage)
    at = noised(schedule, x0, key_noise)
    given = [own_estimate(stage, variables, at, cond, key_coin)] if stage.model.self_condition else []
    output = network(stage).apply(variables, at.x_t, at.t, cond, *given, train=train, rngs={"dropout": key_dropout})
    prediction, var_frac = split_output(output, stage.model.learned_variance)
    error = diffusion_loss(prediction, x0, at, schedule, prediction=stage.prediction, weight=stage.weight)
    mean = error.mean()
    if var_frac is None:
        return mean, {}
    alpha, sigma = (per_sample(f(at.t), x0) for f in (schedule.alpha, schedule.sigma))
    x0_hat = PREDICTIONS[stage.prediction].to_x0(prediction, at.x_t, alpha, sigma)
    # The weight of the bound, a sum of T terms, is 1/1000 (Nichol & Dhariwal 2021, eq. 16); one term is drawn here.
    bound = variational_bound(x0_hat, var_frac, x0, at, schedule).mean()
    return mean + bound * stage.num_timesteps / 1000.0, {"mean_squared_error": mean, "bound_bits": bound}


def own_estimate(
    stage: Stage, variables: Variables, at: Noised, cond: Cond, key: Key[Array, ""]
) -> Float[Array, "B ..."]:
    """The x0_hat that a self-conditioned network reads in training (Chen et al. 2022, algorithm 1).

    For each sample it is, with probability 1/2 each, zeros or the network's estimate of x0 (itself made with zeros).
    The estimate is clipped as in sampling, but not guided, and no gradient flows through it.

    Args:
        stage: the stage.
        variables: variables of its network.
        at: the noised batch.
        cond: its condition.
        key: one PRNG key.

    Returns:
        [B, ...], in the shape of x_t.
    """
    denoise = conditional_denoiser(stage, variables, cond, guidance_scale=1.0)
    coin = per_sample(jax.random.bernoulli(key, 0.5, at.t.shape), at.x_t)
    return jax.lax.stop_gradient(jnp.where(coin, denoise(at.x_t, at.t, jnp.zeros_like(at.x_t)).x0, 0.0))
