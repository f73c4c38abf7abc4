"""The text tower: a causal transformer whose output at the end-of-text token is the sentence (Radford et al. 2021)."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from clip_jax.config import TextConfig
from clip_jax.layers import LayerNorm, Transformer, scaled_init


class TextFeatures(NamedTuple):
    """What the text tower knows about a batch of prompts."""

    embed: Float[Array, "B D"]  # in the joint space, not normalised
    encodings: Float[Array, "B L C"]  # per-token states after `ln_final`
    mask: Bool[Array, "B L"]  # True up to and including the end-of-text token


def eot_index(tokens: Int[Array, "B L"], eos_id: int | None) -> Int[Array, " B"]:
    """Position of the first end-of-text token; with `eos_id` None, of the highest id (the same in CLIP's layout)."""
    return (tokens if eos_id is None else tokens == eos_id).argmax(-1)


class TextTransformer(nn.Module):
    """Tokens -> `TextFeatures`. Rows may be shorter than `context_length`.

    There is no padding mask, as in the original: causality already hides everything after the end-of-text token
    from the pooled output, and the states behind it are marked by `mask`.
    """

    config: TextConfig
    embed_dim: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, tokens: Int[Array, "B L"]) -> TextFeatures:
        config, length = self.config, tokens.shape[1]
        if length > config.context_length:
            raise ValueError(f"tokens are {length} long, context_length is {config.context_length}: use its tokenize")
        normal = nn.initializers.normal
        embedding = nn.Embed(config.vocab_size, config.width, embedding_init=normal(0.02), name="token_embedding")
        positions = self.param("positional_embedding", normal(0.01), (config.context_length, config.width))

        x = (embedding(tokens) + positions[:length]).astype(self.dtype)
        causal = jnp.tril(jnp.ones((length, length), bool))
        x = Transformer(config, scaled_init(config), self.dtype, name="transformer")(x, causal)
        encodings = LayerNorm(config.ln_eps, name="ln_final")(x)

        end = eot_index(tokens, config.eos_id)  # [B]
        pooled = jnp.take_along_axis(encodings, end[:, None, None], axis=1)[:, 0]  # [B, C]
        projection = self.param("text_projection", normal(config.width**-0.5), (config.width, self.embed_dim))
        return TextFeatures(
            embed=pooled @ projection.astype(self.dtype),
            encodings=encodings,
            mask=jnp.arange(length) <= end[:, None],
        )
