"""The text tower of CLIP: a causal transformer whose output at the end-of-text token is the sentence
(Radford et al. 2021 §2.4), and its relatives, which differ in what a token sees and in where they pool.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from clip_jax.arrays import AnyArray
from clip_jax.config import TextConfig
from clip_jax.errors import UserError
from clip_jax.layers import LayerNorm, Transformer, scaled_init, sinusoids


class TextFeatures(NamedTuple):
    """What the text tower knows about a batch of prompts."""

    embed: Float[Array, "B D"]  # in the joint space, not normalised
    encodings: Float[Array, "B L C"]  # per-token states after the last norm
    mask: Bool[AnyArray, "B L"]  # True where there is text: up to and including the end-of-text token
    hidden_states: tuple[Float[Array, "B L C"], ...] | None = None  # on request: the input of the first block, then
    # the output of each, before the last norm: layers + 1 of them, in the order of Hugging Face


def eot_index(tokens: Int[AnyArray, "B L"], eos_id: int | None) -> Int[AnyArray, " B"]:
    """Position of the first end-of-text token; with `eos_id` None, of the highest id (the same in CLIP's layout)."""
    return (tokens if eos_id is None else tokens == eos_id).argmax(-1)


def check_length(tokens: Int[AnyArray, "B L"], context_length: int) -> None:
    """Raises UserError for rows that are longer than the model's positions."""
    if tokens.shape[1] > context_length:
        raise UserError(
            f"tokens are {tokens.shape[1]} long, context_length is {context_length}: use the model's tokenize"
        )


class TextTransformer(nn.Module):
    """Tokens -> `TextFeatures`. Rows may be shorter than `context_length`, but for pooling at the last position.

    CLIP has no padding mask: causality already hides everything after the end-of-text token from the pooled output,
    and the states behind it are marked by `mask`. SigLIP has none either: there padding is part of what is pooled.
    """

    config: TextConfig
    embed_dim: int | None  # None: no projection
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, tokens: Int[AnyArray, "B L"], *, hidden_states: bool = False) -> TextFeatures:
        config, length = self.config, tokens.shape[1]
        check_length(tokens, config.context_length)
        normal = nn.initializers.normal
        embedding = nn.Embed(config.vocab_size, config.width, embedding_init=normal(0.02), name="token_embedding")
        if config.positions == "learned":
            positions = self.param("positional_embedding", normal(0.01), (config.context_length, config.width))
        else:
            positions = jnp.asarray(sinusoids(config.context_length, config.width))

        place, end = jnp.arange(length), eot_index(tokens, config.eos_id)  # [L], [B]
        seen = None
        if config.attention == "causal":
            seen = jnp.tril(jnp.ones((length, length), bool))
        elif config.attention == "text":
            seen = (place <= end[:, None])[:, None, None]  # [B, 1, 1, L]
        x = (embedding(tokens) + positions[:length]).astype(self.dtype)
        transformer = Transformer(config, scaled_init(config), self.dtype, name="transformer")
        states = transformer(x, seen, hidden_states=True) if hidden_states else (transformer(x, seen),)
        encodings = LayerNorm(config.ln_eps, name="ln_final")(states[-1])

        if config.pool == "last":
            pooled, mask = encodings[:, -1], tokens != config.pad_id
        else:
            pooled, mask = jnp.take_along_axis(encodings, end[:, None, None], axis=1)[:, 0], place <= end[:, None]
        if self.embed_dim is not None:
            projection = self.param("text_projection", normal(config.width**-0.5), (config.width, self.embed_dim))
            pooled = pooled @ projection.astype(self.dtype)
        if self.embed_dim is not None and config.projection_bias:
            bias = self.param("text_projection_bias", nn.initializers.zeros, (self.embed_dim,))
            pooled = pooled + bias.astype(self.dtype)
        return TextFeatures(pooled, encodings, mask, states if hidden_states else None)
