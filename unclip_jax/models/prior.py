"""The diffusion prior (Ramesh et al. 2022, §2.2): a causal transformer that denoises a CLIP image embedding.

The sequence is [text encodings (L), text embedding, time, noised image embedding, learned query]; the prediction is
read at the query. The prior works on standardised embeddings, and the mean and deviation it was trained with are
parameters of the checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp

from clip_jax.config import TransformerConfig
from clip_jax.layers import LayerNorm, Transformer, scaled_init
from unclip_jax.conditioning import EMPTY_CAPTION, Cond, with_empty_captions
from unclip_jax.models.embeddings import TimestepMLP

EXTRA_TOKENS = 4  # text embedding, time, noised image embedding, query


@dataclass(frozen=True)
class PriorConfig:
    """Architecture of a diffusion prior.

    Attributes:
      embed_dim: width D of the CLIP embeddings.
      text_width: width C of the text encodings.
      context_length: L, tokens of the text encodings.
      width, layers, heads: of the transformer.
      time_token: the sequence holds the time. Without it the network is no diffusion model, but draws in one step.
      empty_caption: a dropped caption is the empty one, whose features by CLIP are parameters of the checkpoint; else
        it is one learned token and a learned embedding.
      dtype: of the matrix products; parameters, norms, softmax and the time are float32 whatever it is.
    """

    embed_dim: int
    text_width: int
    context_length: int
    width: int
    layers: int
    heads: int
    time_token: bool = True
    empty_caption: bool = False
    dtype: str = "float32"

    @property
    def extra_tokens(self) -> int:
        """Tokens behind those of the text."""
        return EXTRA_TOKENS if self.time_token else EXTRA_TOKENS - 1

    @property
    def transformer(self) -> TransformerConfig:
        """The stack of blocks; checks that the heads divide the width."""
        return TransformerConfig(width=self.width, layers=self.layers, heads=self.heads, activation="gelu")


class DiffusionPrior(nn.Module):
    """(x_t [B, D], t int [B], cond) -> [B, D], in the standardised space of ``standardise``."""

    config: PriorConfig

    def setup(self) -> None:
        config = self.config
        self.embed_mean = self.param("embed_mean", nn.initializers.zeros, (config.embed_dim,))
        self.embed_std = self.param("embed_std", nn.initializers.ones, (config.embed_dim,))
        small, dtype = nn.initializers.normal(0.02), config.dtype
        if config.empty_caption:
            self.null_text_encodings = self.param("null_text_encodings", small, (EMPTY_CAPTION, config.text_width))
            self.null_text_embed = self.param("null_text_embed", small, (config.embed_dim,))
        else:
            self.null_text_token = self.param("null_text_token", small, (config.width,))
            self.null_text_embed = self.param("null_text_embed", small, (config.width,))
        self.query = self.param("query", small, (config.width,))
        places = config.context_length + config.extra_tokens
        self.positions = self.param("positional_embedding", small, (places, config.width))
        self.encodings_proj = nn.Dense(config.width, dtype=dtype)
        self.text_embed_proj = nn.Dense(config.width, dtype=dtype)
        self.image_embed_proj = nn.Dense(config.width, dtype=dtype)
        if config.time_token:
            self.time_embedding = TimestepMLP(config.width, config.width)
        self.transformer = Transformer(config.transformer, scaled_init(config.transformer), dtype)
        self.norm_out = LayerNorm()
        self.out_proj = nn.Dense(config.embed_dim, dtype=dtype)

    def standardise(self, image_embed: jax.Array) -> jax.Array:
        """CLIP image embedding -> what the diffusion runs on: zero mean and unit deviation per dimension."""
        return (image_embed - self.embed_mean) / self.embed_std

    def restore(self, x0: jax.Array) -> jax.Array:
        """Inverse of ``standardise``."""
        return x0 * self.embed_std + self.embed_mean

    def text_tokens(self, cond: Cond) -> tuple[jax.Array, jax.Array, jax.Array]:
        """What the sequence holds of the captions: encodings [B, L, W], embedding [B, W], mask [B, L]."""
        if self.config.empty_caption:
            cond = with_empty_captions(cond, self.null_text_encodings, self.null_text_embed)
            return self.encodings_proj(cond.text_encodings), self.text_embed_proj(cond.text_embed), cond.text_mask
        keep = cond.keep_text[:, None]  # [B, 1]
        encodings = jnp.where(keep[..., None], self.encodings_proj(cond.text_encodings), self.null_text_token)
        text_embed = jnp.where(keep, self.text_embed_proj(cond.text_embed), self.null_text_embed)
        # A dropped caption is one learned token; the padding behind a caption is never read.
        return encodings, text_embed, jnp.where(keep, cond.text_mask, jnp.arange(encodings.shape[1]) == 0)

    def __call__(self, x_t: jax.Array, t: jax.Array, cond: Cond, *, train: bool = False) -> jax.Array:
        config = self.config
        batch, length = cond.text_encodings.shape[:2]
        encodings, text_embed, text_mask = self.text_tokens(cond.with_keep(batch))
        extra = [
            text_embed,
            *([self.time_embedding(t)] if config.time_token else []),
            self.image_embed_proj(x_t),
            jnp.broadcast_to(self.query, text_embed.shape),
        ]
        h = jnp.concatenate([encodings, jnp.stack(extra, axis=1)], axis=1)  # [B, L + 4, W]
        h = (h + self.positions).astype(config.dtype)

        readable = jnp.concatenate([text_mask, jnp.ones((batch, config.extra_tokens), bool)], axis=1)
        causal = jnp.tril(jnp.ones((length + config.extra_tokens,) * 2, bool))
        h = self.transformer(h, causal & readable[:, None, None, :])
        return self.out_proj(self.norm_out(h[:, -1])).astype(x_t.dtype)
