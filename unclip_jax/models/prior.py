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
from unclip_jax.conditioning import Cond
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
      scale: deviation of the embeddings that the diffusion runs on (``standardise``). The paper multiplies by 17.2 what
        has no mean and deviation taken away.
      skip: the output is x_t times a gate learned of t, plus what is read at the query. The best estimate of Gaussian
        data has this form, and where little noise is left a narrow transformer need not carry x_t through its blocks.
    """

    embed_dim: int
    text_width: int
    context_length: int
    width: int
    layers: int
    heads: int
    scale: float = 1.0
    skip: bool = False

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
        small = nn.initializers.normal(0.02)
        self.null_text_token = self.param("null_text_token", small, (config.width,))
        self.null_text_embed = self.param("null_text_embed", small, (config.width,))
        self.query = self.param("query", small, (config.width,))
        self.positions = self.param("positional_embedding", small, (config.context_length + EXTRA_TOKENS, config.width))
        self.encodings_proj = nn.Dense(config.width)
        self.text_embed_proj = nn.Dense(config.width)
        self.image_embed_proj = nn.Dense(config.width)
        self.time_embedding = TimestepMLP(config.width, config.width)
        self.transformer = Transformer(config.transformer, scaled_init(config.transformer))
        self.norm_out = LayerNorm()
        self.out_proj = nn.Dense(config.embed_dim)
        if config.skip:
            self.skip_gate = nn.Dense(config.embed_dim, kernel_init=nn.initializers.zeros)

    def standardise(self, image_embed: jax.Array) -> jax.Array:
        """CLIP image embedding -> what the diffusion runs on: zero mean and deviation ``scale`` per dimension."""
        return (image_embed - self.embed_mean) * (self.config.scale / self.embed_std)

    def restore(self, x0: jax.Array) -> jax.Array:
        """Inverse of ``standardise``."""
        return x0 * (self.embed_std / self.config.scale) + self.embed_mean

    def __call__(self, x_t: jax.Array, t: jax.Array, cond: Cond, *, train: bool = False) -> jax.Array:
        batch, length = cond.text_encodings.shape[:2]
        cond = cond.with_keep(batch)
        keep = cond.keep_text[:, None]  # [B, 1]

        encodings = jnp.where(keep[..., None], self.encodings_proj(cond.text_encodings), self.null_text_token)
        text_embed = jnp.where(keep, self.text_embed_proj(cond.text_embed), self.null_text_embed)
        time = self.time_embedding(t)
        extra = [
            text_embed,
            time,
            self.image_embed_proj(x_t),
            jnp.broadcast_to(self.query, text_embed.shape),
        ]
        h = jnp.concatenate([encodings, jnp.stack(extra, axis=1)], axis=1)  # [B, L + 4, W]
        h = h + self.positions

        # A dropped caption is one learned token; the padding behind a caption is never read.
        text_mask = jnp.where(keep, cond.text_mask, jnp.arange(length) == 0)
        readable = jnp.concatenate([text_mask, jnp.ones((batch, EXTRA_TOKENS), bool)], axis=1)
        causal = jnp.tril(jnp.ones((length + EXTRA_TOKENS,) * 2, bool))
        h = self.transformer(h, causal & readable[:, None, None, :])
        out = self.out_proj(self.norm_out(h[:, -1]))
        return out + self.skip_gate(nn.silu(time)) * x_t if self.config.skip else out
