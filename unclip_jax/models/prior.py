"""The diffusion prior (Ramesh et al. 2022, §2.2): a causal transformer that denoises a CLIP image embedding.

The sequence is [text encodings (L), text embedding, timestep, noised image embedding, learned query]; the prediction is
read at the query. The prior works on standardised embeddings; the mean and standard deviation that it was trained with
are statistics in the checkpoint. Without the timestep it is the one-step prior of ECLIPSE (Patel et al. 2023,
arXiv:2312.04655), which maps noise to the embedding in one forward pass.

The caption comes first and attention is causal, so a sampler reads a caption once into a KV cache (`encode_prefix`).
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, Self

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from clip_jax.config import CLIPConfig, TransformerConfig
from clip_jax.errors import UserError
from clip_jax.towers.attention import KVCaches, empty_caches
from clip_jax.towers.layers import LayerNorm, Transformer, scaled_init
from unclip_jax.conditioning import EMPTY_CAPTION, Cond, need, with_empty_captions
from unclip_jax.model import Reader, Role, joint_width
from unclip_jax.models.embeddings import TimestepMLP
from unclip_jax.ranges import DEPTH, WIDTH, check_dtype, check_ranges
from unclip_jax.variables import Variables, measured

EXTRA_TOKENS = 4  # text embedding, timestep, noised image embedding, query


@dataclass(frozen=True)
class CaptionConfig(ABC):
    """Base class of the configs of all priors: a transformer that reads a caption first.

    Attributes:
        embed_dim: width D of the CLIP embeddings.
        text_width: width C of the text encodings.
        context_length: L, tokens of the text encodings.
        width, layers, heads: sizes of the transformer.
        empty_caption: a dropped caption is replaced by the empty caption, whose features by CLIP are statistics in the
            checkpoint; otherwise by one learned token and a learned embedding.
        dtype: dtype of the matrix products; parameters, norms, softmax and the timestep embedding are always float32.

    Raises:
        UserError: a size or the dtype is out of range.
    """

    embed_dim: int
    text_width: int
    context_length: int
    width: int
    layers: int
    heads: int
    empty_caption: bool = field(default=False, kw_only=True)
    dtype: str = field(default="float32", kw_only=True)

    role: ClassVar[Role] = "prior"

    def __post_init__(self) -> None:
        names = ("embed_dim", "text_width", "context_length", "width", "heads")
        check_ranges(self, **dict.fromkeys(names, WIDTH), layers=DEPTH)
        check_dtype(self)

    @property
    def transformer(self) -> TransformerConfig:
        """Config of the transformer; checks that the heads divide the width."""
        return TransformerConfig(width=self.width, layers=self.layers, heads=self.heads, activation="gelu")

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample: [D]."""
        return (self.embed_dim,)

    @property
    def prefix_length(self) -> int:
        """Tokens of the caption in the sequence: its L encodings and its embedding."""
        return self.context_length + 1

    def blank_cond(self, batch_size: int = 1) -> Cond:
        """A `Cond` of zeros with the fields and shapes that a prior reads."""
        return Cond(
            text_embed=jnp.zeros((batch_size, self.embed_dim)),
            text_encodings=jnp.zeros((batch_size, self.context_length, self.text_width)),
            text_mask=jnp.ones((batch_size, self.context_length), bool),
        )

    def fitted(self, clip: CLIPConfig) -> Self:
        """The same config with the widths of this CLIP.

        Raises:
            UserError: the CLIP has no text tower.
        """
        if clip.text is None:
            raise UserError("the CLIP has no text tower, which a prior reads its captions from")
        return dataclasses.replace(
            self, embed_dim=joint_width(clip), text_width=clip.text.width, context_length=clip.text.context_length
        )

    @property
    @abstractmethod
    def length(self) -> int:
        """Tokens of the whole sequence."""


@dataclass(frozen=True)
class PriorConfig(CaptionConfig):
    """Architecture of a diffusion prior, or of a one-step prior.

    Attributes:
        time_token: whether the sequence has a token for the timestep; a one-step prior has none.
        scale: standard deviation of the embeddings that the diffusion runs on (`standardise`). The paper multiplies
            embeddings by 17.2 without standardising them.
        skip: the output is x_t times a gate learned from t, plus what is read at the query. The optimal estimate for
            Gaussian data has this form, and at low noise a narrow transformer need not carry x_t through its blocks.
        self_condition: x_t is read together with the previous estimate of x0, at first zeros (Chen et al. 2022).

    Raises:
        UserError: a value is out of range, or skip or self-conditioning is set without a timestep.
    """

    time_token: bool = True
    scale: float = 1.0
    skip: bool = False
    self_condition: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, scale=(1e-6, 1e6))
        if self.skip and not self.time_token:
            raise UserError("skip is True and time_token False: the gate of the skip is learned of the time")
        if self.self_condition and not self.time_token:
            raise UserError("self_condition is True and time_token False: one step has no estimate before it")

    learned_variance: ClassVar[bool] = False
    reads_level: ClassVar[bool] = False

    @property
    def length(self) -> int:
        """Tokens of the whole sequence."""
        return self.context_length + EXTRA_TOKENS - (not self.time_token)

    @property
    def reads_time(self) -> bool:
        """Whether the network reads the timestep."""
        return self.time_token

    def network(self) -> DiffusionPrior:
        """The linen module."""
        return DiffusionPrior(self)

    def read(self, module: Any, variables: Variables, cond: Cond) -> Reader:
        """Reads the captions into a KV cache, and returns the network as a function of what follows them."""
        prefix = module.apply(variables, cond, method="encode_prefix")

        def after_prefix(
            x_t: Float[Array, "B D"], t: Int[Array, " B"] | None, *given: Float[Array, "B D"]
        ) -> Float[Array, "B D"]:
            return module.apply(variables, x_t, t, prefix, *given, method="after_prefix")

        return after_prefix

    def restore(self, module: Any, variables: Variables, x0: Float[Array, "B D"]) -> Float[Array, "B D"]:
        """Maps standardised embeddings [B, D] to CLIP image embeddings."""
        return module.apply(variables, x0, method="restore")


class Prefix(NamedTuple):
    """Captions that a prior has read, as KV caches that further tokens attend to.

    Attributes:
        caches: KV caches, one per layer, preallocated to the S tokens of a sequence; the caption's are filled in.
        readable: [B, S] bool, False for the padding of a caption.
    """

    caches: KVCaches
    readable: Bool[Array, "B S"]


class CaptionReader(nn.Module):
    """Base class of the prior networks: the transformer and the embedding of captions."""

    config: Any  # a CaptionConfig

    def setup(self) -> None:
        """Declares the parameters and the measured values."""
        config = self.config
        small, dtype = nn.initializers.normal(0.02), config.dtype
        if config.empty_caption:
            self.null_text_encodings = measured(self, "null_text_encodings", small, (EMPTY_CAPTION, config.text_width))
            self.null_text_embed = measured(self, "null_text_embed", small, (config.embed_dim,))
        else:
            self.null_text_token = self.param("null_text_token", small, (config.width,))
            self.null_text_embed = self.param("null_text_embed", small, (config.width,))
        self.positions = self.param("positional_embedding", small, (config.length, config.width))
        self.encodings_proj = nn.Dense(config.width, dtype=dtype)
        self.text_embed_proj = nn.Dense(config.width, dtype=dtype)
        self.transformer = Transformer(config.transformer, scaled_init(config.transformer), dtype)
        self.norm_out = LayerNorm()

    def caption_tokens(self, cond: Cond) -> tuple[Float[Array, "B P W"], Bool[Array, "B S"]]:
        """Embeds captions.

        Returns:
            (tokens [B, L + 1, W] without positions, which of all S tokens may be attended to, bool [B, S]).
        """
        batch, length = need(cond.text_encodings, "text_encodings").shape[:2]
        cond = cond.with_keep(batch)
        if self.config.empty_caption:
            cond = with_empty_captions(cond, self.null_text_encodings, self.null_text_embed)
        encodings = self.encodings_proj(need(cond.text_encodings, "text_encodings"))
        text_embed = self.text_embed_proj(need(cond.text_embed, "text_embed"))
        text_mask = need(cond.text_mask, "text_mask")
        if not self.config.empty_caption:
            keep = need(cond.keep_text, "keep_text")[:, None]  # [B, 1]
            encodings = jnp.where(keep[..., None], encodings, self.null_text_token)
            text_embed = jnp.where(keep, text_embed, self.null_text_embed)
            # A dropped caption is one learned token; padding is never attended to.
            text_mask = jnp.where(keep, text_mask, jnp.arange(length) == 0)
        rest = jnp.ones((batch, self.config.length - length), bool)
        return jnp.concatenate([encodings, text_embed[:, None]], axis=1), jnp.concatenate([text_mask, rest], axis=1)

    def encode_prefix(self, cond: Cond) -> Prefix:
        """Reads captions into a KV cache, which `with_cache` continues."""
        return self.prefill(cond)[1]

    def prefill(self, cond: Cond) -> tuple[Float[Array, "B W"], Prefix]:
        """Reads captions into a KV cache: (state at the text embedding, the last token, [B, W]; the prefix)."""
        tokens, readable = self.caption_tokens(cond)
        empty = empty_caches(self.config.transformer, len(tokens), self.config.length, self.config.dtype)
        states, caches = self.with_cache(tokens, Prefix(empty, readable), 0)
        return states[:, -1], Prefix(caches, readable)

    def with_cache(
        self, tokens: Float[Array, "B Q W"], prefix: Prefix, start: int | Int[Array, ""]
    ) -> tuple[Float[Array, "B Q W"], KVCaches]:
        """Reads further tokens after those in the KV caches.

        Args:
            tokens: [B, Q, W], without positions.
            prefix: the tokens read before.
            start: position of the first of the new tokens in the sequence.

        Returns:
            (states [B, Q, W], the caches with the new tokens added).
        """
        length = tokens.shape[1]
        positions = jax.lax.dynamic_slice_in_dim(self.positions, start, length)
        causal = jnp.arange(self.config.length) <= start + jnp.arange(length)[:, None]  # [Q, S]
        mask = causal & prefix.readable[:, None, None, :]
        tokens = (tokens + positions).astype(self.config.dtype)
        return self.transformer.decode(tokens, prefix.caches, mask, start)

    def all_at_once(self, tokens: Float[Array, "B S W"], readable: Bool[Array, "B S"]) -> Float[Array, "B S W"]:
        """Reads whole sequences without a KV cache, as in training: tokens [B, S, W] -> states [B, S, W]."""
        causal = jnp.tril(jnp.ones((tokens.shape[1],) * 2, bool))
        tokens = (tokens + self.positions).astype(self.config.dtype)
        return self.transformer(tokens, causal & readable[:, None, None, :])


class DiffusionPrior(CaptionReader):
    """The network of a diffusion prior: (x_t [B, D], t int [B], cond, x0_hat [B, D]) -> prediction [B, D].

    x_t and the prediction are standardised (`standardise`). Without a `time_token` t is not read and may be None;
    without `self_condition` x0_hat is not read. A sampler calls `encode_prefix` once, and `after_prefix` in each step.
    """

    config: PriorConfig

    def setup(self) -> None:
        """Declares the parameters and the measured values."""
        super().setup()
        config = self.config
        self.embed_mean = measured(self, "embed_mean", nn.initializers.zeros, (config.embed_dim,))
        self.embed_std = measured(self, "embed_std", nn.initializers.ones, (config.embed_dim,))
        self.query = self.param("query", nn.initializers.normal(0.02), (config.width,))
        self.image_embed_proj = nn.Dense(config.width, dtype=config.dtype)
        if config.time_token:
            self.time_embedding = TimestepMLP(config.width, config.width)
        self.out_proj = nn.Dense(config.embed_dim, dtype=config.dtype)
        if config.skip:
            self.skip_gate = nn.Dense(config.embed_dim, kernel_init=nn.initializers.zeros)

    def standardise(self, image_embed: Float[Array, "B D"]) -> Float[Array, "B D"]:
        """CLIP image embeddings [B, D] to zero mean and standard deviation `scale` per dimension."""
        return (image_embed - self.embed_mean) * (self.config.scale / self.embed_std)

    def restore(self, x0: Float[Array, "B D"]) -> Float[Array, "B D"]:
        """Inverse of `standardise`."""
        return x0 * (self.embed_std / self.config.scale) + self.embed_mean

    def __call__(
        self,
        x_t: Float[Array, "B D"],
        t: Int[Array, " B"] | None,
        cond: Cond,
        x0_hat: Float[Array, "B D"] | None = None,
        *,
        train: bool = False,
    ) -> Float[Array, "B D"]:
        """The prediction [B, D] for x_t, without a KV cache; `train` has no effect (there is no dropout)."""
        tokens, time = self.noised_tokens(x_t, t, x0_hat)
        caption, readable = self.caption_tokens(cond)
        states = self.all_at_once(jnp.concatenate([caption, tokens], axis=1), readable)
        return self.output(states, x_t, time)

    def after_prefix(
        self,
        x_t: Float[Array, "B D"],
        t: Int[Array, " B"] | None,
        prefix: Prefix,
        x0_hat: Float[Array, "B D"] | None = None,
    ) -> Float[Array, "B D"]:
        """The same prediction with captions from a KV cache."""
        tokens, time = self.noised_tokens(x_t, t, x0_hat)
        states, _ = self.with_cache(tokens, prefix, self.config.prefix_length)
        return self.output(states, x_t, time)

    def noised_tokens(
        self, x_t: Float[Array, "B D"], t: Int[Array, " B"] | None, x0_hat: Float[Array, "B D"] | None
    ) -> tuple[Float[Array, "B Q W"], Float[Array, "B W"] | None]:
        """The tokens after a caption: (timestep, x_t and query [B, Q, W]; the timestep's embedding [B, W])."""
        seen = x_t
        if self.config.self_condition:
            seen = jnp.concatenate([x_t, jnp.zeros_like(x_t) if x0_hat is None else x0_hat], axis=-1)
        image_embed = self.image_embed_proj(seen)
        query = jnp.broadcast_to(self.query, image_embed.shape)
        if not self.config.time_token:
            return jnp.stack([image_embed, query], axis=1), None
        time = self.time_embedding(t)
        return jnp.stack([time, image_embed, query], axis=1), time

    def output(
        self, states: Float[Array, "B Q W"], x_t: Float[Array, "B D"], time: Float[Array, "B W"] | None
    ) -> Float[Array, "B D"]:
        """The prediction [B, D], read at the query, the last token."""
        out = self.out_proj(self.norm_out(states[:, -1])).astype(x_t.dtype)
        return out + self.skip_gate(nn.silu(time)) * x_t if self.config.skip else out
