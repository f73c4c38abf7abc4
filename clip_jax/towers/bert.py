"""BERT (Devlin et al. 2018) and RoBERTa (Liu et al. 2019), the text towers of Chinese-CLIP and ResNet50+BERT.

Post-norm and bidirectional; padding is masked. Parameters have the names of Hugging Face's checkpoints.
"""

import functools
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int, Shaped

from clip_jax.arrays import AnyArray
from clip_jax.config import BertConfig
from clip_jax.towers.attention import Implementation, attend, join_heads, split_heads
from clip_jax.towers.layers import ACTIVATIONS, LayerNorm, make_blocks, run_blocks
from clip_jax.towers.text import TextFeatures, check_tokens

NORMAL = nn.initializers.normal(0.02)


class Embeddings(nn.Module):
    """Sum of the word, position and token type 0 embeddings, normalised."""

    config: BertConfig
    dtype: Any

    @nn.compact
    def __call__(self, tokens: Int[AnyArray, "B L"]) -> Float[Array, "B L C"]:
        """Tokens [B, L] -> embeddings [B, L, C]."""
        config = self.config

        def embed(name: str, size: int, ids: AnyArray) -> Array:
            return nn.Embed(size, config.width, embedding_init=NORMAL, name=f"{name}_embeddings")(ids)

        places = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
        if config.positions == "roberta":  # counts text tokens only, from pad_id + 1; padding has position pad_id
            text = (tokens != config.pad_id).astype(jnp.int32)
            places = text.cumsum(-1) * text + config.pad_id
        x = embed("word", config.vocab_size, tokens) + embed("position", config.max_positions, places)
        x = x + embed("token_type", config.type_vocab_size, jnp.zeros_like(places))
        return LayerNorm(config.ln_eps, name="LayerNorm")(x).astype(self.dtype)


class SelfAttention(nn.Module):
    """Multi-head self-attention with separate query, key and value projections."""

    config: BertConfig
    dtype: Any
    implementation: Implementation | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "B L C"], mask: Bool[AnyArray, "B 1 1 L"]) -> Float[Array, "B L C"]:
        """Attends to the tokens where `mask` is True; no output projection, which is in `Output`."""

        def project(name: str) -> Array:
            y = nn.Dense(self.config.width, kernel_init=NORMAL, dtype=self.dtype, name=name)(x)
            return split_heads(y, self.config.heads)

        q, k, v = project("query"), project("key"), project("value")
        return join_heads(attend(q, k, v, mask, implementation=self.implementation))


class Output(nn.Module):
    """LayerNorm(x + dense(h))."""

    config: BertConfig
    dtype: Any

    @nn.compact
    def __call__(self, h: Float[Array, "B L H"], x: Float[Array, "B L C"]) -> Float[Array, "B L C"]:
        """The dense layer on `h` [B, L, H], added to `x` and normalised."""
        h = nn.Dense(self.config.width, kernel_init=NORMAL, dtype=self.dtype, name="dense")(h)
        return LayerNorm(self.config.ln_eps, name="LayerNorm")(x + h)


class AttentionLayer(nn.Module):
    """Self-attention, then `Output`."""

    config: BertConfig
    dtype: Any
    implementation: Implementation | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "B L C"], mask: Bool[AnyArray, "B 1 1 L"]) -> Float[Array, "B L C"]:
        """Hidden states [B, L, C] -> the same, attended and normalised."""
        h = SelfAttention(self.config, self.dtype, self.implementation, name="self")(x, mask)
        return Output(self.config, self.dtype, name="output")(h, x)


class Dense(nn.Module):
    """activation(dense(x)): `intermediate` and `pooler`."""

    width: int
    activation: Any
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "*B C"]) -> Float[Array, "*B H"]:
        """The dense layer on the last axis."""
        return self.activation(nn.Dense(self.width, kernel_init=NORMAL, dtype=self.dtype, name="dense")(x))


class Layer(nn.Module):
    """Attention, then the MLP, each followed by its norm (post-norm)."""

    config: BertConfig
    dtype: Any
    implementation: Implementation | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "B L C"], mask: Bool[AnyArray, "B 1 1 L"]) -> Float[Array, "B L C"]:
        """Hidden states [B, L, C] -> those of the next layer."""
        config, dtype = self.config, self.dtype
        x = AttentionLayer(config, dtype, self.implementation, name="attention")(x, mask)
        activation = ACTIVATIONS[config.activation]
        h = Dense(config.mlp_width or 4 * config.width, activation, dtype, name="intermediate")(x)
        return Output(config, dtype, name="output")(h, x)


class Encoder(nn.Module):
    """The stack of layers."""

    config: BertConfig
    dtype: Any
    implementation: Implementation | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "B L C"], mask: Bool[AnyArray, "B 1 1 L"], *, hidden_states: bool
    ) -> tuple[Float[Array, "B L C"], ...]:
        """The hidden states of all layers, the input first, with `hidden_states`; else the last one alone."""
        layer = nn.remat(Layer) if self.config.remat else Layer
        layer = functools.partial(layer, self.config, self.dtype, self.implementation)
        blocks = make_blocks(layer, "layer", self.config)
        return run_blocks(blocks, self.config, x, mask, hidden_states=hidden_states)


class BertTower(nn.Module):
    """Tokens -> `TextFeatures`, whose `mask` is True for all tokens but padding."""

    config: BertConfig
    embed_dim: int | None  # None: no projection
    dtype: Any = jnp.float32
    implementation: Implementation | None = None

    @nn.compact
    def __call__(self, tokens: Shaped[AnyArray, "*N L"] | Any, *, hidden_states: bool = False) -> TextFeatures:
        """Encodes texts.

        Args:
            tokens: integers [B, L].
            hidden_states: whether to return the hidden states of all layers.

        Raises:
            UserError: If the tokens do not fit the model, see `check_tokens`.
        """
        config, dtype = self.config, self.dtype
        tokens = check_tokens(tokens, config.context_length, config.vocab_size)
        mask = tokens != config.pad_id
        x = Embeddings(config, dtype, name="embeddings")(tokens)
        encoder = Encoder(config, dtype, self.implementation, name="encoder")
        states = encoder(x, mask[:, None, None], hidden_states=hidden_states)
        embed = states[-1][:, 0]
        if config.pool == "pooler":
            embed = Dense(config.width, jnp.tanh, dtype, name="pooler")(embed)
        if self.embed_dim is not None:
            init = nn.initializers.normal(config.width**-0.5)
            projection = nn.Dense(
                self.embed_dim, use_bias=config.projection_bias, kernel_init=init, dtype=dtype, name="text_projection"
            )
            embed = projection(embed)
        return TextFeatures(embed, states[-1], mask, states if hidden_states else None)
