"""The autoregressive prior (Ramesh et al. 2022, §2.2): a transformer that predicts an image embedding token by token.

The embedding is projected on its first K principal components, in the order of decreasing variance, and each coordinate
is quantised to one of a number of equal buckets. A causal transformer reads

    text encodings (L), text embedding, similarity of z_i and z_t, coordinate 1, …, coordinate K − 1

and predicts, from the text embedding on, the next token at each position. The similarity comes first, so that sampling
can choose a high one. Components and bucket ranges are not trained: they are measured on the training set and are
statistics in the checkpoint (`Quantiser`).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Self

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from clip_jax.config import CLIPConfig
from clip_jax.errors import UserError
from clip_jax.model import unit_norm
from unclip_jax.conditioning import Cond, need
from unclip_jax.model import joint_width
from unclip_jax.models.prior import CaptionConfig, CaptionReader, Prefix
from unclip_jax.pca import PCA, principal_components, project, reconstruct
from unclip_jax.ranges import WIDTH, check_ranges
from unclip_jax.variables import measured

log = logging.getLogger(__name__)

FLOOR = 1e-6  # smallest half-width of the range of a quantised value


@dataclass(frozen=True)
class ARPriorConfig(CaptionConfig):
    """Architecture of an autoregressive prior.

    Attributes:
        components: K, principal components that are predicted (319 of 1,024 in the paper).
        buckets: values that a token can take.

    Raises:
        UserError: there are more components than dimensions, fewer than two buckets, or another value is out of range.
    """

    components: int = 319
    buckets: int = 1024

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, components=WIDTH, buckets=(2, WIDTH[1]))
        if self.components > self.embed_dim:
            raise UserError(f"components is {self.components}; give 1 to {self.embed_dim} (embed_dim)")

    @property
    def length(self) -> int:
        """Tokens of the whole sequence; the last coordinate is predicted, but not read."""
        return self.prefix_length + self.components

    def network(self) -> ARPrior:
        """The linen module."""
        return ARPrior(self)

    def fitted(self, clip: CLIPConfig) -> Self:
        """The same config with the widths of a CLIP, and at most as many components as its embeddings have dimensions.

        Raises:
            UserError: the CLIP has no text tower, or no joint space.
        """
        fewer = replace(self, components=min(self.components, joint_width(clip)))
        return super(ARPriorConfig, fewer).fitted(clip)


class Quantiser(nn.Module):
    """Quantises embeddings to tokens int32 [B, K + 1] (the similarity, then the coordinates), and back.

    The range offset_j ± scale_j of value j is divided into `buckets` parts of equal width; values outside fall into the
    first or the last bucket. A token stands for the centre of its bucket, so the error within the range is at most half
    a bucket.
    """

    config: ARPriorConfig

    def setup(self) -> None:
        """Declares the measured values."""
        config, zeros, ones = self.config, nn.initializers.zeros, nn.initializers.ones

        def axes(key: Key[Array, ""], shape: tuple[int, int]) -> Float[Array, "K D"]:
            return jnp.eye(*shape)

        self.mean = measured(self, "mean", zeros, (config.embed_dim,))
        self.components = measured(self, "components", axes, (config.components, config.embed_dim))
        self.variances = measured(self, "variances", ones, (config.components,))
        self.offset = measured(self, "offset", zeros, (config.components + 1,))
        self.scale = measured(self, "scale", ones, (config.components + 1,))

    @property
    def pca(self) -> PCA:
        """The principal components."""
        return PCA(self.mean, self.components, self.variances)

    def quantise(self, image_embed: Float[Array, "B D"], text_embed: Float[Array, "B D"]) -> Int[Array, "B J"]:
        """Quantises embeddings [B, D] of pictures and of their captions to tokens int32 [B, K + 1]."""
        fraction = 0.5 * ((_values(self.pca, image_embed, text_embed) - self.offset) / self.scale + 1.0)
        last = self.config.buckets - 1
        return jnp.clip(jnp.floor(fraction * self.config.buckets), 0, last).astype(jnp.int32)

    def restore(self, coordinates: Int[Array, "B K"]) -> Float[Array, "B D"]:
        """Maps tokens of coordinates, int32 [B, K] without the similarity, to image embeddings [B, D]."""
        centres = (coordinates + 0.5) * (2.0 / self.config.buckets) - 1.0
        return reconstruct(self.pca, self.offset[1:] + self.scale[1:] * centres)


class ARPrior(CaptionReader):
    """The network of an autoregressive prior: (image_embed [B, D], cond) -> (logits [B, K + 1, buckets], tokens).

    Tokens are int32 [B, K + 1]. Logits j predict token j from the caption and the tokens before it; all are computed at
    once (teacher forcing). A sampler calls `first_logits` and then `next_logits`, which use a KV cache.
    """

    config: ARPriorConfig

    def setup(self) -> None:
        """Declares the parameters and the quantiser."""
        super().setup()
        config = self.config
        self.quantiser = Quantiser(config)
        self.bucket_embed = nn.Embed(config.buckets, config.width, embedding_init=nn.initializers.normal(0.02))
        self.logits_proj = nn.Dense(config.buckets, dtype=config.dtype)

    def __call__(
        self, image_embed: Float[Array, "B D"], cond: Cond
    ) -> tuple[Float[Array, "B J buckets"], Int[Array, "B J"]]:
        """Logits and tokens of embeddings [B, D], as in training."""
        tokens = jax.lax.stop_gradient(self.quantiser.quantise(image_embed, need(cond.text_embed, "text_embed")))
        return self.logits(tokens, cond), tokens

    def logits(self, tokens: Int[Array, "B J"], cond: Cond) -> Float[Array, "B J buckets"]:
        """Logits [B, K + 1, buckets] of tokens int32 [B, K + 1], each predicted from those before it."""
        caption, readable = self.caption_tokens(cond)
        sequence = jnp.concatenate([caption, self.bucket_embed(tokens[:, :-1])], axis=1)
        states = self.all_at_once(sequence, readable)[:, self.config.context_length :]
        return self.to_logits(states)

    def first_logits(self, cond: Cond) -> tuple[Float[Array, "B buckets"], Prefix]:
        """Reads captions into a KV cache: (logits of the similarity token [B, buckets], the prefix)."""
        state, prefix = self.prefill(cond)
        return self.to_logits(state), prefix

    def next_logits(
        self, token: Int[Array, " B"], place: int | Int[Array, ""], prefix: Prefix
    ) -> tuple[Float[Array, "B buckets"], Prefix]:
        """Reads one more token into the KV cache.

        Args:
            token: int32 [B].
            place: position of the token in the sequence.
            prefix: the tokens read before.

        Returns:
            (logits of the next token [B, buckets], the prefix with this token added).
        """
        states, caches = self.with_cache(self.bucket_embed(token)[:, None], prefix, place)
        return self.to_logits(states[:, 0]), prefix._replace(caches=caches)

    def restore(self, coordinates: Int[Array, "B K"]) -> Float[Array, "B D"]:
        """Maps tokens of coordinates, int32 [B, K], to image embeddings [B, D]."""
        return self.quantiser.restore(coordinates)

    def to_logits(self, states: Float[Array, "*B W"]) -> Float[Array, "*B buckets"]:
        """Maps states [..., W] to logits over the buckets, float32 [..., buckets]."""
        return self.logits_proj(self.norm_out(states)).astype(jnp.float32)


def measure(
    config: ARPriorConfig, image_embeds: Float[np.ndarray, "N D"], text_embeds: Float[np.ndarray, "N D"]
) -> dict[str, np.ndarray]:
    """Measures the statistics of a `Quantiser`: principal components, and the range of every value.

    The range of a value is from its minimum to its maximum. A half-width below `FLOOR` is raised to it, because values
    are divided by it; the number of such values is logged as a warning.

    Args:
        config: the prior.
        image_embeds: CLIP embeddings of training pictures, [N, D].
        text_embeds: CLIP embeddings of their captions, [N, D].

    Returns:
        Name -> float32 array, as `Quantiser` declares them.

    Raises:
        ValueError: there are fewer than two embeddings.
    """
    pca = principal_components(image_embeds, config.components)
    values = np.asarray(_values(pca, jnp.asarray(image_embeds), jnp.asarray(text_embeds)))
    low, high = values.min(axis=0), values.max(axis=0)
    half = (high - low) / 2
    if floored := int((half < FLOOR).sum()):
        log.warning(
            "%d of the %d values of an embedding hardly move over %d pictures: their range is set to ± %g; "
            "are the pictures all alike, or components more than they need?",
            floored,
            len(half),
            len(image_embeds),
            FLOOR,
        )
    measured = {"offset": (low + high) / 2, "scale": np.maximum(half, FLOOR)}
    return {name: np.asarray(array, np.float32) for name, array in {**pca._asdict(), **measured}.items()}


def _values(pca: PCA, image_embed: Float[Array, "B D"], text_embed: Float[Array, "B D"]) -> Float[Array, "B J"]:
    """The values that are quantised, [B, K + 1]: the cosine of both embeddings, then the coordinates of the image's."""
    cosine = jnp.sum(unit_norm(image_embed) * unit_norm(text_embed), axis=-1, keepdims=True)
    return jnp.concatenate([cosine, project(pca, image_embed)], axis=-1)
