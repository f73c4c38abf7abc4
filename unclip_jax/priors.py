"""The three priors, each from a caption to an image embedding: one way to make and to sample any of them.

A diffusion prior is a ``Stage`` like the decoder. The autoregressive prior writes the embedding down token by token
(Ramesh et al. 2022, §2.2), the one-step prior makes it of noise in one forward pass (ECLIPSE, Patel et al. 2023,
arXiv:2312.04655); neither has a noise schedule, so each has a config of its own here.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Key

from clip_jax.errors import UserError
from clip_jax.losses import clip_loss
from clip_jax.model import unit_norm
from unclip_jax import stage as stages
from unclip_jax.conditioning import Cond, concatenate
from unclip_jax.diffusion.guidance import GuidanceScale
from unclip_jax.diffusion.keys import fold_in_each, normal
from unclip_jax.diffusion.predict import per_sample
from unclip_jax.models.ar_prior import ARPrior, ARPriorConfig
from unclip_jax.models.prior import DiffusionPrior, PriorConfig, blank_caption
from unclip_jax.ranges import GUIDANCE, check_ranges
from unclip_jax.settings import standard_settings
from unclip_jax.stage import Stage

Params = dict[str, Any]
Loss = tuple[Float[Array, ""], dict[str, Float[Array, ""]]]


@dataclass(frozen=True)
class ARSampling:
    """How an autoregressive prior is sampled unless the caller says otherwise.

    Attributes:
      guidance_scale: of classifier-free guidance, on the logits; 1.0 is off, None never runs the unconditional branch.
    """

    guidance_scale: float | None = None


@dataclass(frozen=True)
class ARStage:
    """An autoregressive prior and how it is sampled."""

    model: ARPriorConfig
    sampling: ARSampling = ARSampling()

    def __post_init__(self) -> None:
        check_ranges(self.sampling, "sampling.", guidance_scale=GUIDANCE)


@dataclass(frozen=True)
class OneStepStage:
    """A prior of one forward pass and what it is trained for.

    Attributes:
      model: has no time token.
      contrastive_weight: λ of the contrastive loss beside the squared error (the paper: 0.2).

    Raises:
      UserError: the model has a time token, or the weight is negative.
    """

    model: PriorConfig
    contrastive_weight: float = 0.2

    def __post_init__(self) -> None:
        if self.model.time_token:
            raise UserError("model.time_token is True: a one-step prior has no time; set it to False")
        check_ranges(self, contrastive_weight=(0.0, 1e6))


Prior = Stage | ARStage | OneStepStage

KINDS: dict[str, type[Any]] = {"diffusion": Stage, "autoregressive prior": ARStage, "one-step prior": OneStepStage}
"""What ``config.json`` calls each; decoders and upsamplers are diffusion too."""


@standard_settings
def init(prior: Prior, key: Key[Array, ""]) -> Params:
    """Fresh parameters of a prior, or of any other stage: a nested dict of float32 arrays."""
    if isinstance(prior, Stage):
        return stages.init(prior, key)
    embed, cond = jnp.zeros((1, prior.model.embed_dim)), blank_caption(prior.model)
    if isinstance(prior, ARStage):
        return ARPrior(prior.model).init(key, embed, cond)["params"]
    return DiffusionPrior(prior.model).init(key, embed, None, cond)["params"]


@standard_settings
def sample(
    prior: Prior,
    params: Params,
    cond: Cond,
    keys: Key[Array, " B"],
    *,
    guidance_scale: GuidanceScale | None = None,
) -> Float[Array, "B D"]:
    """Image embeddings [B, D], as CLIP's image tower gives them, for captions.

    Args:
      cond: text_embed, text_encodings and text_mask of B captions.
      keys: [B] keys; sample i depends on its own key and caption alone.
      guidance_scale: instead of the prior's own; may be traced, a scalar or [B]. Ignored by a prior without guidance,
        as a one-step prior is.
    """
    if isinstance(prior, Stage):
        x0 = stages.run(prior, params, cond, keys, guidance_scale=guidance_scale)
        return stages.network(prior).apply({"params": params}, x0, method="restore")
    if isinstance(prior, ARStage):
        return write_down(prior, params, cond, keys, guidance_scale=guidance_scale)
    module, variables = DiffusionPrior(prior.model), {"params": params}
    noise = normal(keys, (prior.model.embed_dim,))
    return module.apply(variables, module.apply(variables, noise, None, cond), method="restore")


def write_down(
    prior: ARStage,
    params: Params,
    cond: Cond,
    keys: Key[Array, " B"],
    *,
    guidance_scale: GuidanceScale | None = None,
) -> Float[Array, "B D"]:
    """``sample`` of an autoregressive prior: token by token in one ``lax.scan``, nothing read twice."""
    module, variables, config = ARPrior(prior.model), {"params": params}, prior.model
    scale: GuidanceScale | None = prior.sampling.guidance_scale
    if scale is not None and guidance_scale is not None:
        scale = guidance_scale
    guided = not (scale is None or (isinstance(scale, float) and scale == 1.0))
    cond = cond.with_keep(len(keys))
    cond = concatenate(cond, cond.null()) if guided else cond

    def guide(logits: Float[Array, "*B buckets"]) -> Float[Array, "B buckets"]:
        if not guided:
            return logits
        conditional, unconditional = jnp.split(logits, 2)
        own = per_sample(jnp.broadcast_to(scale, len(keys)), conditional)
        return unconditional + own * (conditional - unconditional)

    def step(carry, inputs):
        prefix, token = carry
        place, own = inputs
        both = jnp.concatenate([token, token]) if guided else token
        logits, prefix = module.apply(variables, both, place, prefix, method="advance")
        token = jax.vmap(jax.random.categorical)(own, guide(logits))
        return (prefix, token), token

    # Token j is drawn with j folded into the keys.
    own_keys = jax.vmap(partial(fold_in_each, keys))(jnp.arange(config.components + 1))
    logits, prefix = module.apply(variables, cond, method="begin")
    similarity = from_top_half(own_keys[0], guide(logits))
    places = config.prefix_length + jnp.arange(config.components)
    _, coordinates = jax.lax.scan(step, (prefix, similarity), (places, own_keys[1:]))
    return module.apply(variables, coordinates.T, method="restore")


def from_top_half(keys: Key[Array, " B"], logits: Float[Array, "B buckets"]) -> Int[Array, " B"]:
    """Draws from the upper half of each distribution over ordered buckets: [B] keys, [B, buckets] -> int32 [B].

    The upper half of the probability, that is; the bucket of the median is drawn for its share above the median.
    """
    below = jnp.cumsum(jax.nn.softmax(logits), axis=-1)
    level = jax.vmap(lambda key: jax.random.uniform(key, (), jnp.float32, minval=0.5))(keys)
    return jnp.minimum((below <= level[:, None]).sum(axis=-1), logits.shape[-1] - 1)


@standard_settings
def ar_loss(prior: ARStage, params: Params, image_embed: Float[Array, "B D"], cond: Cond) -> Loss:
    """Cross-entropy in nats, the mean over all tokens of embeddings [B, D]; also of the similarity token alone."""
    logits, tokens = ARPrior(prior.model).apply({"params": params}, image_embed, cond)
    errors = optax.softmax_cross_entropy_with_integer_labels(logits, tokens)
    return errors.mean(), {"similarity_cross_entropy": errors[:, 0].mean()}


@standard_settings
def one_step_loss(
    prior: OneStepStage,
    params: Params,
    x0: Float[Array, "B D"],
    cond: Cond,
    key: Key[Array, ""],
    *,
    logit_scale: Float[Array, ""],
    targets: Bool[Array, "B B"] | None = None,
) -> Loss:
    """Squared error + λ · contrastive loss (Patel et al. 2023).

    The contrastive loss asks which of the batch's captions belongs to each predicted embedding.

    Args:
      x0: [B, D], standardised image embeddings.
      logit_scale, targets: the CLIP's log scale and which captions count as right, see ``clip_jax.clip_loss``.
    """
    module, variables = DiffusionPrior(prior.model), {"params": params}
    predicted = module.apply(variables, jax.random.normal(key, x0.shape, jnp.float32), None, cond)
    error = jnp.square(predicted - x0).mean()
    # The statistics it is restored with are data.
    restored = module.apply(jax.lax.stop_gradient(variables), predicted, method="restore")
    features = unit_norm(restored), unit_norm(cond.text_embed)
    contrastive, found = clip_loss(*features, logit_scale, targets, direction="image_to_text")
    metrics = {"mean_squared_error": error, "contrastive": contrastive, "accuracy": found["accuracy"]}
    return error + prior.contrastive_weight * contrastive, metrics
