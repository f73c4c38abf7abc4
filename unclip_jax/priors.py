"""The three priors, each from a caption to an image embedding: one way to initialise and to sample any of them.

A diffusion prior is a `Stage` like the decoder. The autoregressive prior samples the embedding token by token (Ramesh
et al. 2022, §2.2), the one-step prior makes it of noise in one forward pass (ECLIPSE, Patel et al. 2023,
arXiv:2312.04655); neither has a noise schedule, so each has a config of its own here.
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
        """Fresh variables."""
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
        guidance_scale: of classifier-free guidance, on the logits; 1.0 is off, None never runs the unconditional
            branch.
    """

    guidance_scale: float | None = None


@dataclass(frozen=True)
class ARStage:
    """An autoregressive prior and how it is sampled."""

    model: ARPriorConfig
    sampling: ARSampling = ARSampling()

    def __post_init__(self) -> None:
        check_ranges(self.sampling, "sampling.", guidance_scale=GUIDANCE)

    def init(self, key: Key[Array, ""]) -> Variables:
        """Fresh variables, with buckets that nothing was measured for."""
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

    def init(self, key: Key[Array, ""]) -> Variables:
        """Fresh variables."""
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
        """Image embeddings [B, D] of noise, in one forward pass; there is no guidance."""
        module = self.model.network()
        embed = module.apply(variables, normal(keys, self.model.sample_shape), None, cond)
        return self.model.restore(module, variables, embed)


KINDS: dict[str, type[Any]] = {"diffusion": Stage, "autoregressive prior": ARStage, "one-step prior": OneStepStage}
"""What `config.json` calls each; decoders and upsamplers are diffusion too."""


@standard_settings
def init(prior: Prior, key: Key[Array, ""]) -> Variables:
    """Fresh variables of a prior of any kind, or of any other stage.

    Args:
        prior: its config.
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
    """Image embeddings [B, D], as CLIP's image tower gives them, for captions.

    Args:
        prior: of any kind.
        variables: of its network, as `init` gives them.
        cond: text_embed, text_encodings and text_mask of B captions.
        keys: [B] keys; sample i depends on its own key and caption alone.
        guidance_scale: instead of the prior's own; may be traced, a scalar or [B]. Ignored by a prior without guidance,
            as a one-step prior is.
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
    """Samples the tokens of embeddings in one `lax.scan` with a KV cache, so that nothing is read twice.

    Args:
        prior: its config.
        variables: of its network.
        cond: B captions.
        keys: [B].
        guidance_scale: instead of the prior's own, on the logits; ignored by a prior without guidance.

    Returns:
        The buckets of the coordinates, int32 [B, K]; the similarity, which is sampled first, is left out.
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
        place, own = inputs
        both = token if is_off(scale) else jnp.concatenate([token, token])
        logits, prefix = module.apply(variables, both, place, prefix, method="next_logits")
        token = jax.vmap(jax.random.categorical)(own, guided(logits))
        return (prefix, token), token

    # Token j is drawn with j folded into the keys.
    own_keys = jax.vmap(partial(fold_in_each, keys))(jnp.arange(config.components + 1))
    logits, prefix = module.apply(variables, cond, method="first_logits")
    similarity = from_top_half(own_keys[0], guided(logits))
    places = config.prefix_length + jnp.arange(config.components)
    _, coordinates = jax.lax.scan(step, (prefix, similarity), (places, own_keys[1:]))
    return coordinates.T


def from_top_half(keys: Key[Array, " B"], logits: Float[Array, "B buckets"]) -> Int[Array, " B"]:
    """Draws from the upper half of each distribution over ordered buckets: [B] keys, [B, buckets] -> int32 [B].

    The upper half of the probability, that is; the bucket of the median is drawn for its share above the median.
    """
    below = jnp.cumsum(jax.nn.softmax(logits), axis=-1)
    level = jax.vmap(lambda key: jax.random.uniform(key, (), jnp.float32, minval=0.5))(keys)
    return jnp.minimum((below <= level[:, None]).sum(axis=-1), logits.shape[-1] - 1)


@standard_settings
def ar_loss(prior: ARStage, variables: Variables, image_embed: Float[Array, "B D"], cond: Cond) -> Loss:
    """Cross-entropy in nats, the mean over all tokens of embeddings [B, D]; also of the similarity token alone."""
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
    """Squared error + λ · contrastive loss (Patel et al. 2023).

    The contrastive loss asks which of the batch's captions belongs to each predicted embedding.

    Args:
        prior: its config.
        variables: of its network.
        x0: [B, D], standardised image embeddings.
        cond: text_embed, text_encodings and text_mask of their B captions.
        key: for the noise that the embeddings are made of.
        logit_scale: the CLIP's logarithm of the inverse temperature, a scalar.
        targets: bool [B, B], which captions count as right for each embedding, see `clip_jax.clip_loss`; None: its own.
    """
    module = prior.model.network()
    predicted = module.apply(variables, jax.random.normal(key, x0.shape, jnp.float32), None, cond)
    error = jnp.square(predicted - x0).mean()
    restored = prior.model.restore(module, variables, predicted)
    features = unit_norm(restored), unit_norm(need(cond.text_embed, "text_embed"))
    contrastive, found = clip_loss(*features, logit_scale, targets, direction="image_to_text")
    metrics = {"mean_squared_error": error, "contrastive": contrastive, "accuracy": found["accuracy"]}
    return error + prior.contrastive_weight * contrastive, metrics
