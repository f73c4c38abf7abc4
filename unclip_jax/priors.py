"""The priors, which map a caption to an image embedding: how each kind is configured, initialised, sampled and trained.

A diffusion prior is a `Stage` like the decoder. The autoregressive prior samples the embedding token by token (Ramesh
et al. 2022, §2.2). The one-step prior maps noise to the embedding in one forward pass (ECLIPSE, Patel et al. 2023,
arXiv:2312.04655). The latter two have no noise schedule and therefore configs of their own, in this module.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Key

from clip_jax.errors import UserError
from clip_jax.losses import clip_loss
from clip_jax.model import unit_norm
from unclip_jax.conditioning import Cond, concatenate, need
from unclip_jax.diffusion.guidance import GuidanceScale, guide, is_off
from unclip_jax.diffusion.keys import fold_in_each, normal
from unclip_jax.model import Network
from unclip_jax.models.ar_prior import ARPriorConfig
from unclip_jax.models.prior import PriorConfig
from unclip_jax.ranges import GUIDANCE, check_ranges
from unclip_jax.settings import standard_settings
from unclip_jax.stage import Stage
from unclip_jax.variables import Variables

Loss = tuple[Float[Array, ""], dict[str, Float[Array, ""]]]


@runtime_checkable
class Prior(Protocol):
    """A prior of any kind, and how it is sampled: a `Stage` over vectors, an `ARStage` or a `OneStepStage`."""

    @property
    def model(self) -> Network:
        """The config of its network."""
        ...

    def init(self, key: Key[Array, ""]) -> Variables:
        """Initialises the variables of the network."""
        ...

    def sample(
        self,
        variables: Variables,
        cond: Cond,
        keys: Key[Array, " B"],
        *,
        guidance_scale: GuidanceScale | None = None,
    ) -> Float[Array, "B D"]:
        """Image embeddings [B, D] for captions; see `priors.sample`."""
        ...


@dataclass(frozen=True)
class ARSampling:
    """How an autoregressive prior is sampled unless the caller says otherwise.

    Attributes:
        guidance_scale: scale of classifier-free guidance on the logits. 1.0 is off unless the caller gives a scale;
            with None a scale of the caller is ignored, and the unconditional branch is never run.
    """

    guidance_scale: float | None = None


@dataclass(frozen=True)
class ARStage:
    """An autoregressive prior and how it is sampled.

    Attributes:
        model: config of the network.
        sampling: defaults of its sampling.

    Raises:
        UserError: the guidance scale is out of range.
    """

    model: ARPriorConfig
    sampling: ARSampling = ARSampling()

    def __post_init__(self) -> None:
        check_ranges(self.sampling, "sampling.", guidance_scale=GUIDANCE)

    def init(self, key: Key[Array, ""]) -> Variables:
        """Initialises the variables of the network; the statistics of the quantiser are blank, not measured."""
        embed = jnp.zeros((1, self.model.embed_dim))
        return self.model.network().init(key, embed, self.model.blank_cond())

    def sample(
        self,
        variables: Variables,
        cond: Cond,
        keys: Key[Array, " B"],
        *,
        guidance_scale: GuidanceScale | None = None,
    ) -> Float[Array, "B D"]:
        """Image embeddings [B, D], token by token; see `sample_tokens`."""
        coordinates = sample_tokens(self, variables, cond, keys, guidance_scale=guidance_scale)
        return self.model.network().apply(variables, coordinates, method="restore")


@dataclass(frozen=True)
class OneStepStage:
    """A one-step prior (ECLIPSE) and the weight of its losses.

    Attributes:
        model: config of the network, without a time token.
        contrastive_weight: weight λ of the contrastive loss that is added to the squared error (0.2 in the paper).

    Raises:
        UserError: the model has a time token, or the weight is out of range.
    """

    model: PriorConfig
    contrastive_weight: float = 0.2

    def __post_init__(self) -> None:
        if self.model.time_token:
            raise UserError("model.time_token is True: a one-step prior has no time; set it to False")
        check_ranges(self, contrastive_weight=(0.0, 1e6))

    def init(self, key: Key[Array, ""]) -> Variables:
        """Initialises the variables of the network."""
        embed = jnp.zeros((1, self.model.embed_dim))
        return self.model.network().init(key, embed, None, self.model.blank_cond())

    def sample(
        self,
        variables: Variables,
        cond: Cond,
        keys: Key[Array, " B"],
        *,
        guidance_scale: GuidanceScale | None = None,
    ) -> Float[Array, "B D"]:
        """Image embeddings [B, D] in one forward pass on noise; `guidance_scale` is ignored."""
        module = self.model.network()
        embed = module.apply(variables, normal(keys, self.model.sample_shape), None, cond)
        return self.model.restore(module, variables, embed)


KINDS: dict[str, type[Any]] = {"diffusion": Stage, "autoregressive prior": ARStage, "one-step prior": OneStepStage}
"""Kinds in `config.json`; decoders and upsamplers are of kind "diffusion" too."""


@standard_settings
def init(prior: Prior, key: Key[Array, ""]) -> Variables:
    """Initialises the variables of a prior of any kind, or of any other stage.

    Args:
        prior: a prior or a stage.
        key: one PRNG key.

    Returns:
        `{"params": …, "statistics": …}`, nested dicts of float32 arrays.
    """
    return prior.init(key)


@standard_settings
def sample(
    prior: Prior,
    variables: Variables,
    cond: Cond,
    keys: Key[Array, " B"],
    *,
    guidance_scale: GuidanceScale | None = None,
) -> Float[Array, "B D"]:
    """Samples image embeddings for captions.

    Args:
        prior: a prior of any kind.
        variables: variables of its network, as `init` returns them.
        cond: text_embed, text_encodings and text_mask of B captions.
        keys: [B]; sample i depends on its own key and caption alone.
        guidance_scale: replaces the scale of the prior; a scalar or [B], may be traced. Ignored by a prior without
            guidance, such as a one-step prior.

    Returns:
        float32 [B, D], not normalised, as CLIP's image tower returns embeddings.
    """
    return prior.sample(variables, cond, keys, guidance_scale=guidance_scale)


def sample_tokens(
    prior: ARStage,
    variables: Variables,
    cond: Cond,
    keys: Key[Array, " B"],
    *,
    guidance_scale: GuidanceScale | None = None,
) -> Int[Array, "B K"]:
    """Samples the tokens of embeddings autoregressively, in one `lax.scan` with a KV cache.

    The first token, the similarity of image and text, is drawn from the upper half of its distribution.

    Args:
        prior: the prior.
        variables: variables of its network.
        cond: the condition of B captions.
        keys: [B], one per sample.
        guidance_scale: replaces the scale of the prior, on the logits; ignored by a prior without guidance.

    Returns:
        The tokens of the K coordinates, int32 [B, K], without the similarity.
    """
    module, config = prior.model.network(), prior.model
    scale: GuidanceScale | None = prior.sampling.guidance_scale
    if scale is not None and guidance_scale is not None:
        scale = guidance_scale
    cond = cond.with_keep(len(keys))
    cond = cond if is_off(scale) else concatenate(cond, cond.null())

    def guided(logits: Float[Array, "*B buckets"]) -> Float[Array, "B buckets"]:
        if scale is None or is_off(scale):
            return logits
        conditional, unconditional = jnp.split(logits, 2)
        return guide(conditional, unconditional, scale)

    def step(carry, inputs):
        prefix, token = carry
        place, token_keys = inputs
        both = token if is_off(scale) else jnp.concatenate([token, token])
        logits, prefix = module.apply(variables, both, place, prefix, method="next_logits")
        token = jax.vmap(jax.random.categorical)(token_keys, guided(logits))
        return (prefix, token), token

    # Token j is drawn with the keys into which j is folded.
    keys_of_tokens = jax.vmap(partial(fold_in_each, keys))(jnp.arange(config.components + 1))
    logits, prefix = module.apply(variables, cond, method="first_logits")
    similarity = from_top_half(keys_of_tokens[0], guided(logits))
    places = config.prefix_length + jnp.arange(config.components)
    _, coordinates = jax.lax.scan(step, (prefix, similarity), (places, keys_of_tokens[1:]))
    return coordinates.T


def from_top_half(keys: Key[Array, " B"], logits: Float[Array, "B buckets"]) -> Int[Array, " B"]:
    """Draws buckets from above the median of each distribution (inverse CDF at a level uniform in [0.5, 1)).

    The bucket that holds the median is drawn with its probability above the median.

    Args:
        keys: [B], one per sample.
        logits: [B, buckets], of ordered buckets.

    Returns:
        Buckets, int32 [B].
    """
    below = jnp.cumsum(jax.nn.softmax(logits), axis=-1)
    level = jax.vmap(lambda key: jax.random.uniform(key, (), jnp.float32, minval=0.5))(keys)
    return jnp.minimum((below <= level[:, None]).sum(axis=-1), logits.shape[-1] - 1)


@standard_settings
def ar_loss(prior: ARStage, variables: Variables, image_embed: Float[Array, "B D"], cond: Cond) -> Loss:
    """Cross-entropy of the autoregressive prior.

    Args:
        prior: the prior.
        variables: variables of its network.
        image_embed: CLIP image embeddings, [B, D].
        cond: the condition of their captions.

    Returns:
        (mean over all tokens, in nats; metrics: that of the similarity token alone).
    """
    logits, tokens = prior.model.network().apply(variables, image_embed, cond)
    errors = optax.softmax_cross_entropy_with_integer_labels(logits, tokens)
    return errors.mean(), {"similarity_cross_entropy": errors[:, 0].mean()}


@standard_settings
def one_step_loss(
    prior: OneStepStage,
    variables: Variables,
    x0: Float[Array, "B D"],
    cond: Cond,
    key: Key[Array, ""],
    *,
    logit_scale: Float[Array, ""],
    targets: Bool[Array, "B B"] | None = None,
) -> Loss:
    """Loss of a one-step prior: squared error + λ · contrastive loss (ECLIPSE, Patel et al. 2023).

    The contrastive loss classifies which caption of the batch belongs to each predicted embedding (image to text only).

    Args:
        prior: the prior.
        variables: variables of its network.
        x0: standardised image embeddings, [B, D].
        cond: text_embed, text_encodings and text_mask of their B captions.
        key: one PRNG key, for the noise that the network reads.
        logit_scale: CLIP's logit scale, the logarithm of the inverse temperature, a scalar.
        targets: bool [B, B], which captions are right for each embedding (see `clip_jax.clip_loss`); None: its own.

    Returns:
        (loss; metrics: mean squared error, contrastive loss and accuracy).

    Raises:
        ValueError: `cond` lacks a field.
    """
    module = prior.model.network()
    predicted = module.apply(variables, jax.random.normal(key, x0.shape, jnp.float32), None, cond)
    error = jnp.square(predicted - x0).mean()
    restored = prior.model.restore(module, variables, predicted)
    features = unit_norm(restored), unit_norm(need(cond.text_embed, "text_embed"))
    contrastive, found = clip_loss(*features, logit_scale, targets, direction="image_to_text")
    metrics = {"mean_squared_error": error, "contrastive": contrastive, "accuracy": found["accuracy"]}
    return error + prior.contrastive_weight * contrastive, metrics
