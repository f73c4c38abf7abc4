"""The text tower of CLIP: a causal transformer, pooled at the end-of-text token (Radford et al. 2021 §2.4).

SigLIP's and other variants differ in the attention mask and in the pooling, see `TextConfig`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int, Num, Shaped

from clip_jax.arrays import AnyArray, check_is_array
from clip_jax.config import TextConfig
from clip_jax.errors import UserError
from clip_jax.towers.attention import Implementation
from clip_jax.towers.layers import LayerNorm, Transformer, scaled_init, sinusoids


class TextFeatures(NamedTuple):
    """Output of a text tower.

    Attributes:
        embed: text embeddings in the joint space, not normalised, [B, D].
        encodings: per-token hidden states after the last norm, [B, L, C].
        mask: [B, L], False for padding. With pooling at the end-of-text token it is True up to and including that
            token; else it is True where the id is not `pad_id`, so SigLIP, which pads with its end token, has False
            there.
        hidden_states: on request, the input of the first block and the output of each block, before the last norm:
            layers + 1 states in Hugging Face's order.
    """

    embed: Float[Array, "B D"]
    encodings: Float[Array, "B L C"]
    mask: Bool[AnyArray, "B L"]
    hidden_states: tuple[Float[Array, "B L C"], ...] | None = None


def eot_index(tokens: Int[AnyArray, "B L"], eos_id: int | None) -> Int[AnyArray, " B"]:
    """Position of the first end-of-text token; with `eos_id` None that of the highest id, CLIP's end-of-text token."""
    return (tokens if eos_id is None else tokens == eos_id).argmax(-1).astype(jnp.int32)


def check_tokens(tokens: Shaped[AnyArray, "*N L"] | Any, context_length: int, vocab_size: int) -> Int[Array, "B L"]:
    """The tokens as int32 [B, L], checked against the model.

    Args:
        tokens: integers [B, L].
        context_length: the largest L.
        vocab_size: ids are 0 to vocab_size − 1.

    Raises:
        UserError: If the tokens are not integers [B, L], L exceeds `context_length`, or an id is not in the vocabulary;
            under `jit` values are unknown, and ids are not checked.
    """
    check_is_array("tokens", tokens)
    if tokens.ndim != 2 or not tokens.shape[1]:
        raise UserError(f"tokens have the shape {list(tokens.shape)}, not [B, L]: for one text give tokens[None]")
    if not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise UserError(f"tokens are {tokens.dtype}: they must be integers, as tokenize gives them")
    if tokens.shape[1] > context_length:
        raise UserError(
            f"tokens are {tokens.shape[1]} long, context_length is {context_length}: use the model's tokenize"
        )
    if tokens.size and not isinstance(tokens, jax.core.Tracer) and getattr(tokens, "is_fully_addressable", True):
        values = np.asarray(tokens)  # np, as jnp would trace a constant that a jitted function closes over
        low, high = int(values.min()), int(values.max())
        if low < 0 or high >= vocab_size:
            raise UserError(
                f"tokens: there is an id {low if low < 0 else high}, the model has 0 to {vocab_size - 1}: "
                "use the model's tokenize"
            )
    return jnp.asarray(tokens, jnp.int32)


def _placed(positions: AnyArray, ids: Int[AnyArray, "#B L"]) -> Float[Array, "#B L C"]:
    """Looks up position embeddings. Raises UserError for ids out of range, unless `jit` hides their values."""
    if not isinstance(ids, jax.core.Tracer) and ids.size:
        values = np.asarray(ids)
        if not 0 <= int(values.min()) <= int(values.max()) < len(positions):
            raise UserError(f"position_ids: there is one that is not from 0 to {len(positions) - 1}")
    return jnp.take(positions, jnp.asarray(ids, jnp.int32), axis=0)


class TextTransformer(nn.Module):
    """Text transformer: tokens -> `TextFeatures`.

    Rows of tokens may be shorter than `context_length`, except with `pool="last"`. CLIP has no padding mask: causal
    attention already hides the padding from the end-of-text token, and the `mask` of the output marks it. SigLIP has
    none either: its last position attends to padding, as in its training.
    """

    config: TextConfig
    embed_dim: int | None  # None: no projection
    dtype: Any = jnp.float32
    implementation: Implementation | None = None

    @nn.compact
    def __call__(
        self,
        tokens: Shaped[AnyArray, "*N L"] | Any,
        *,
        hidden_states: bool = False,
        attention_mask: Num[AnyArray, "B L"] | Bool[AnyArray, "B L"] | None = None,
        position_ids: Int[AnyArray, "#B L"] | None = None,
    ) -> TextFeatures:
        """Encodes texts.

        Args:
            tokens: integers [B, L].
            hidden_states: whether to return the hidden states of all layers.
            attention_mask: [B, L], 0 at tokens that are not attended to, as in transformers. None: all are, as in
                CLIP's training.
            position_ids: position of each token, [B, L] or [1, L]. None: 0 to L − 1.

        Raises:
            UserError: If tokens or positions do not fit the model.
        """
        config = self.config
        tokens = check_tokens(tokens, config.context_length, config.vocab_size)
        length = tokens.shape[1]
        normal = nn.initializers.normal
        embedding = nn.Embed(config.vocab_size, config.width, embedding_init=normal(0.02), name="token_embedding")
        if config.positions == "learned":
            positions = self.param(
                "positional_embedding", normal(0.01), (config.context_length, config.width), jnp.float32
            )
        else:
            positions = jnp.asarray(sinusoids(config.context_length, config.width))

        place, end = jnp.arange(length, dtype=jnp.int32)[None], eot_index(tokens, config.eos_id)  # [1, L], [B]
        attended = None
        if config.attention == "causal":
            attended = jnp.tril(jnp.ones((length, length), bool))
        elif config.attention == "text":
            attended = (place <= end[:, None])[:, None, None]  # [B, 1, 1, L]
        if attention_mask is not None:
            visible = (jnp.asarray(attention_mask) != 0)[:, None, None]  # [B, 1, 1, L]
            attended = (
                visible if attended is None else visible & attended.reshape((1,) * (4 - attended.ndim) + attended.shape)
            )
        placed = positions[None, :length] if position_ids is None else _placed(positions, position_ids)
        x = (embedding(tokens) + placed).astype(self.dtype)
        transformer = Transformer(config, scaled_init(config), self.dtype, self.implementation, name="transformer")
        states = transformer.hidden_states(x, attended) if hidden_states else (transformer(x, attended),)
        encodings = LayerNorm(config.ln_eps, name="ln_final")(states[-1])

        if config.pool == "last":
            pooled, mask = encodings[:, -1], tokens != config.pad_id
        else:
            pooled, mask = jnp.take_along_axis(encodings, end[:, None, None], axis=1)[:, 0], place <= end[:, None]
        if self.embed_dim is not None:
            projection = self.param(
                "text_projection", normal(config.width**-0.5), (config.width, self.embed_dim), jnp.float32
            )
            pooled = pooled @ projection.astype(self.dtype)
        if self.embed_dim is not None and config.projection_bias:
            bias = self.param("text_projection_bias", nn.initializers.zeros, (self.embed_dim,), jnp.float32)
            pooled = pooled + bias[None].astype(self.dtype)
        return TextFeatures(pooled, encodings, mask, states if hidden_states else None)
