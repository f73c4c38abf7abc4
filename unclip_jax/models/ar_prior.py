"""The autoregressive prior (Ramesh et al. 2022, §2.2): an image embedding written down as a row of discrete tokens.

The embedding is projected on its first K principal components, in the order of their eigenvalues, and each coordinate
falls into one of a number of equal buckets. A causal transformer reads

    text encodings (L), text embedding, similarity of z_i and z_t, coordinate 1, …, coordinate K − 1

and says at each place from the text embedding on what the next token is. The similarity comes first so that a sample
can be asked to be close to its caption. Components and buckets are measured on the training set and are data of the
checkpoint (`Quantiser`), not trained.
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

FLOOR = 1e-6  # least half-width of the range of a value that is quantised


@dataclass(frozen=True)
class ARPriorConfig(CaptionConfig):
    """Architecture of an autoregressive prior.

    Attributes:
        components: K, principal components that are written down (the paper: 319 of 1,024).
        buckets: values a token can take.

    Raises:
        UserError: more components than dimensions, or fewer than two buckets.
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
        """Tokens of the whole sequence; the last coordinate is predicted and read by nobody."""
        return self.prefix_length + self.components

    def network(self) -> ARPrior:
        """The linen module."""
        return ARPrior(self)

    def fitted(self, clip: CLIPConfig) -> Self:
        """The same config with the widths of this CLIP, and no more components than its embeddings have dimensions."""
        fewer = replace(self, components=min(self.components, joint_width(clip)))
        return super(ARPriorConfig, fewer).fitted(clip)


class Quantiser(nn.Module):
    """Between embeddings and tokens int32 [B, K + 1]: the similarity, then the coordinates.

    Value j lies in offset_j ± scale_j, in `buckets` parts of equal width; what lies outside falls into the first or
    the last. A token stands for the centre of its bucket, so within the range the error is at most half a bucket.
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
        """Embeddings [B, D] of pictures and of their captions -> tokens int32 [B, K + 1]."""
        fraction = 0.5 * ((_values(self.pca, image_embed, text_embed) - self.offset) / self.scale + 1.0)
        last = self.config.buckets - 1
        return jnp.clip(jnp.floor(fraction * self.config.buckets), 0, last).astype(jnp.int32)

    def restore(self, coordinates: Int[Array, "B K"]) -> Float[Array, "B D"]:
        """The coordinates among the tokens, int32 [B, K] -> image embeddings [B, D]."""
        centres = (coordinates + 0.5) * (2.0 / self.config.buckets) - 1.0
        return reconstruct(self.pca, self.offset[1:] + self.scale[1:] * centres)


class ARPrior(CaptionReader):
    """(image_embed [B, D], cond) -> (logits [B, K + 1, buckets], tokens int32 [B, K + 1]), all tokens at once.

    Logits j belong to token j and have seen the caption and the tokens before it. A sampler calls `first_logits` and
    `next_logits` instead, which keep what was read in a KV cache.
    """

    config: ARPriorConfig

    def setup(self) -> None:
        """Declares the measured values."""
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
        """Logits [B, K + 1, buckets] of tokens int32 [B, K + 1], each given those before it."""
        caption, readable = self.caption_tokens(cond)
        sequence = jnp.concatenate([caption, self.bucket_embed(tokens[:, :-1])], axis=1)
        states = self.all_at_once(sequence, readable)[:, self.config.context_length :]
        return self.to_logits(states)

    def first_logits(self, cond: Cond) -> tuple[Float[Array, "B buckets"], Prefix]:
        """Reads captions into a KV cache: (logits of the similarity [B, buckets], the captions read)."""
        state, prefix = self.prefill(cond)
        return self.to_logits(state), prefix

    def next_logits(
        self, token: Int[Array, " B"], place: int | Int[Array, ""], prefix: Prefix
    ) -> tuple[Float[Array, "B buckets"], Prefix]:
        """Reads one more token.

        Args:
            token: int32 [B].
            place: of the token in the sequence.
            prefix: what was read before it.

        Returns:
            (logits of the token after it [B, buckets], what was read with it).
        """
        states, caches = self.with_cache(self.bucket_embed(token)[:, None], prefix, place)
        return self.to_logits(states[:, 0]), prefix._replace(caches=caches)

    def restore(self, coordinates: Int[Array, "B K"]) -> Float[Array, "B D"]:
        """Coordinates int32 [B, K] -> image embeddings [B, D]."""
        return self.quantiser.restore(coordinates)

    def to_logits(self, states: Float[Array, "*B W"]) -> Float[Array, "*B buckets"]:
        """States [..., W] -> logits over the buckets, float32."""
        return self.logits_proj(self.norm_out(states)).astype(jnp.float32)


def measure(
    config: ARPriorConfig, image_embeds: Float[np.ndarray, "N D"], text_embeds: Float[np.ndarray, "N D"]
) -> dict[str, np.ndarray]:
    """The parameters of a `Quantiser` for the embeddings [N, D] of training pictures and of their captions.

    The range of a value is what it reaches on these; one that hardly moves gets ± `FLOOR`, as it would be divided by
    zero, and a line of the log says how many do.
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
    """What is quantised, [B, K + 1]: the cosine of the two embeddings, and the coordinates of the first."""
    cosine = jnp.sum(unit_norm(image_embed) * unit_norm(text_embed), axis=-1, keepdims=True)
    return jnp.concatenate([cosine, project(pca, image_embed)], axis=-1)
