"""Layers of the transformers: layer norm, attention, MLP, residual blocks, and the stack with its KV cache.

Parameters have OpenAI's names, and the fused `in_proj` keeps OpenAI's [q; k; v] order, so that converting a published
checkpoint is a transposition per matrix. Parameters are float32; `dtype` is the dtype of the matrix products. Norms and
softmax are always computed in float32, as in OpenAI's float16 models.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from clip_jax.arrays import AnyArray
from clip_jax.config import TransformerConfig
from clip_jax.towers.attention import Implementation, KVCache, KVCaches, attend, join_heads

Initializer = Callable[..., Array]


def quick_gelu(x: Array) -> Array:
    """QuickGELU, x · sigmoid(1.702 x), the activation of OpenAI's models; it differs from GELU by up to 0.02."""
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "quick_gelu": quick_gelu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),  # torch's default; Flax and JAX default to tanh
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
}


def fan_in_uniform(fan_in: int) -> Initializer:
    """U(−1/√fan_in, 1/√fan_in), torch's default for weights and biases of linear layers and convolutions."""
    bound = 1 / math.sqrt(fan_in)
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


class BlockInit(NamedTuple):
    """Initialisers of the four weight matrices of a block."""

    in_proj: Initializer
    out_proj: Initializer
    c_fc: Initializer
    c_proj: Initializer


def torch_init(config: TransformerConfig) -> BlockInit:
    """The default initialisation of torch, which OpenAI uses in the image tower."""
    return BlockInit(
        in_proj=nn.initializers.xavier_uniform(),
        out_proj=fan_in_uniform(config.width),
        c_fc=fan_in_uniform(config.width),
        c_proj=fan_in_uniform(config.mlp_width or 4 * config.width),
    )


def scaled_init(config: TransformerConfig) -> BlockInit:
    """OpenAI's initialisation of the text tower: matrices that end a residual branch shrink with `layers`."""
    normal = nn.initializers.normal
    residual = normal(config.width**-0.5 * (2 * config.layers) ** -0.5)
    return BlockInit(
        in_proj=normal(config.width**-0.5), out_proj=residual, c_fc=normal((2 * config.width) ** -0.5), c_proj=residual
    )


def per_channel(v: Float[AnyArray, " C"], x: Float[AnyArray, "*B C"]) -> Float[Array, "*ones C"]:
    """Reshapes a vector [C] to [1, …, 1, C], the rank of `x`, so that `jax_numpy_rank_promotion="raise"` accepts it."""
    return jnp.reshape(v, (1,) * (x.ndim - 1) + v.shape)


class LayerNorm(nn.Module):
    """Layer norm over the last axis, computed in float32; returns the input's dtype."""

    eps: float = 1e-5

    @nn.compact
    def __call__(self, x: Float[Array, "*B C"]) -> Float[Array, "*B C"]:
        """Normalises the last axis."""
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],), jnp.float32)
        h = x.astype(jnp.float32)
        h = h - h.mean(-1, keepdims=True)  # centred before squaring: E[x²] − E[x]² loses digits
        h = h * jax.lax.rsqrt(jnp.square(h).mean(-1, keepdims=True) + self.eps)
        return (h * per_channel(scale, x) + per_channel(bias, x)).astype(x.dtype)


class Attention(nn.Module):
    """Multi-head attention with one fused projection [C, 3C] in the order q, k, v."""

    config: TransformerConfig
    inits: BlockInit
    dtype: Any = jnp.float32
    implementation: Implementation | None = None

    def setup(self) -> None:
        """Makes the projections `in_proj` and `out_proj`."""
        width = self.config.width
        self.in_proj = nn.Dense(3 * width, kernel_init=self.inits.in_proj, dtype=self.dtype)
        self.out_proj = nn.Dense(width, kernel_init=self.inits.out_proj, dtype=self.dtype)

    def __call__(
        self,
        x: Float[Array, "B L C"],
        mask: Bool[AnyArray, "*M #Q S"] | None = None,
        query: Float[Array, "B Q C"] | None = None,
    ) -> Float[Array, "B Q C"]:
        """Attends to `x`.

        Args:
            x: keys and values come from it.
            mask: True where a query (next-to-last axis) attends to a key (last axis), see `attend`.
            query: the queries come from it; None: from `x` (self-attention).
        """
        q, k, v = self._project(x)
        if query is not None:
            q = self._project(query)[0]
        return self.out_proj(join_heads(attend(q, k, v, mask, implementation=self.implementation)))

    def decode(
        self, x: Float[Array, "B Q C"], cache: KVCache, mask: Bool[AnyArray, "*M #Q S"] | None, start: int | Array
    ) -> tuple[Float[Array, "B Q C"], KVCache]:
        """Attends from Q more tokens to the KV cache.

        Args:
            x: the tokens.
            cache: KV cache of S places.
            mask: True where a token attends to a place; it has to hide the places that are not written yet.
            start: place of the first token; may be traced.

        Returns:
            (output, cache with these tokens).
        """
        q, k, v = self._project(x)
        cache = cache.update(k, v, start)
        return self.out_proj(join_heads(cache.attend(q, mask, implementation=self.implementation))), cache

    def _project(self, x: Float[Array, "B L C"]) -> tuple[Array, Array, Array]:
        width, heads = self.config.width, self.config.heads
        qkv = self.in_proj(x).reshape(*x.shape[:2], 3, heads, width // heads)
        return qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]


class MLP(nn.Module):
    """c_proj(activation(c_fc(x)))."""

    config: TransformerConfig
    inits: BlockInit
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*B C"]) -> Float[Array, "*B C"]:
        """The MLP on the last axis."""
        width, hidden = self.config.width, self.config.mlp_width or 4 * self.config.width
        h = nn.Dense(
            hidden, kernel_init=self.inits.c_fc, bias_init=fan_in_uniform(width), dtype=self.dtype, name="c_fc"
        )(x)
        h = ACTIVATIONS[self.config.activation](h)
        return nn.Dense(
            width, kernel_init=self.inits.c_proj, bias_init=fan_in_uniform(hidden), dtype=self.dtype, name="c_proj"
        )(h)


class ResidualAttentionBlock(nn.Module):
    """x + attn(ln_1(x)), then x + mlp(ln_2(x))."""

    config: TransformerConfig
    inits: BlockInit
    dtype: Any = jnp.float32
    implementation: Implementation | None = None

    def setup(self) -> None:
        """Makes the norms, attention and MLP, under OpenAI's names."""
        eps = self.config.ln_eps
        self.ln_1, self.ln_2 = LayerNorm(eps), LayerNorm(eps)
        self.attn = Attention(self.config, self.inits, self.dtype, self.implementation)
        self.mlp = MLP(self.config, self.inits, self.dtype)

    def __call__(
        self, x: Float[Array, "B L C"], mask: Bool[AnyArray, "*M #L S"] | None = None
    ) -> Float[Array, "B L C"]:
        """Applies the block to whole sequences; `mask` as of `Attention`."""
        x = x + self.attn(self.ln_1(x), mask)
        return x + self.mlp(self.ln_2(x))

    def decode(
        self, x: Float[Array, "B Q C"], cache: KVCache, mask: Bool[AnyArray, "*M #Q S"] | None, start: int | Array
    ) -> tuple[Float[Array, "B Q C"], KVCache]:
        """Applies the block to Q more tokens with a KV cache, as `Attention.decode`."""
        attended, cache = self.attn.decode(self.ln_1(x), cache, mask, start)
        x = x + attended
        return x + self.mlp(self.ln_2(x)), cache


def run_blocks(
    blocks: Sequence[nn.Module] | nn.Module | Any,
    config: TransformerConfig,
    x: Float[Array, "B L C"],
    *args: Any,
    hidden_states: bool = False,
) -> tuple[Float[Array, "B L C"], ...]:
    """Applies a stack of blocks, `x = block(x, *args)`; call it in a method of the module that owns them.

    Args:
        blocks: one per layer; with `scan_layers` a single one, whose parameters get a leading axis of layers.
        config: number of layers, and whether they are scanned.
        x: input of the first block.
        args: further arguments of each block.
        hidden_states: whether to return the states of all layers.

    Returns:
        With `hidden_states` the input and the output of each block, layers + 1 states; else the last one alone.
    """
    if config.scan_layers:
        scan = nn.scan(
            lambda layer, h, _: ((h := layer(h, *args)), h if hidden_states else None),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=config.layers,
        )
        last, states = scan(blocks, x, None)
        return (x, *states) if hidden_states else (last,)
    states = [x]
    for block in blocks:
        states.append(block(states[-1], *args))
    return tuple(states) if hidden_states else (states[-1],)


def make_blocks(block: Callable[..., nn.Module], name: str, config: TransformerConfig) -> Any:
    """Makes the blocks for `run_blocks` in a compact method, named `{name}_0`, `{name}_1`…; `{name}` if scanned."""
    if config.scan_layers:
        return block(name=name)
    return [block(name=f"{name}_{i}") for i in range(config.layers)]


class Transformer(nn.Module):
    """Transformer: a stack of residual attention blocks.

    The parameters are `resblocks_0`, `resblocks_1`…; with `scan_layers` a single `resblocks` with a leading axis of
    layers (see `stack_layers`).
    """

    config: TransformerConfig
    inits: BlockInit
    dtype: Any = jnp.float32
    implementation: Implementation | None = None

    def setup(self) -> None:
        """Makes the blocks, with gradient checkpointing if `config.remat`."""
        block = nn.remat(ResidualAttentionBlock) if self.config.remat else ResidualAttentionBlock
        block = functools.partial(block, self.config, self.inits, self.dtype, self.implementation)
        self.resblocks = block() if self.config.scan_layers else [block() for _ in range(self.config.layers)]

    def __call__(
        self, x: Float[Array, "B L C"], mask: Bool[AnyArray, "*M #L S"] | None = None
    ) -> Float[Array, "B L C"]:
        """The output of the last block for whole sequences; `mask` as of `Attention`."""
        return run_blocks(self.resblocks, self.config, x, mask)[-1]

    def hidden_states(
        self, x: Float[Array, "B L C"], mask: Bool[AnyArray, "*M #L S"] | None = None
    ) -> tuple[Float[Array, "B L C"], ...]:
        """The input and the output of each block: layers + 1 states."""
        return run_blocks(self.resblocks, self.config, x, mask, hidden_states=True)

    def decode(
        self, x: Float[Array, "B Q C"], caches: KVCaches, mask: Bool[AnyArray, "*M #Q S"] | None, start: int | Array
    ) -> tuple[Float[Array, "B Q C"], KVCaches]:
        """Incremental decoding: applies the stack to Q more tokens with KV caches.

        Args:
            x: the tokens.
            caches: from `empty_caches` or an earlier call.
            mask: True where a token attends to one of the S places; it has to hide the places not written yet.
            start: place of the first token; may be traced.

        Returns:
            (output of the last block, caches with these tokens).
        """
        if self.config.scan_layers:
            scan = nn.scan(
                lambda layer, h, cache: layer.decode(h, cache, mask, start),
                variable_axes={"params": 0},
                split_rngs={"params": True},
                length=self.config.layers,
            )
            return scan(self.resblocks, x, caches)
        updated = []
        for block, cache in zip(self.resblocks, caches, strict=True):
            x, cache = block.decode(x, cache, mask, start)
            updated.append(cache)
        return x, tuple(updated)


def sinusoids(length: int, width: int) -> Float[np.ndarray, "L C"]:
    """Sinusoidal position embeddings (Vaswani et al. 2017 §3.5).

    Channel c of position l is sin(l / 10000^(c / C)) for even c, and the cosine of the same angle for c + 1.

    Args:
        length: number of positions L.
        width: number of channels C.
    """
    channel = np.arange(width)
    angles = np.arange(length)[:, None] / 10000 ** ((channel - channel % 2) / width)
    return np.where(channel % 2, np.cos(angles), np.sin(angles)).astype(np.float32)


def stack_layers(params: dict[str, Any]) -> dict[str, Any]:
    """Converts the parameters of a `Transformer` without `scan_layers` to those of one with it."""
    blocks = [params[f"resblocks_{i}"] for i in range(len(params))]
    return {"resblocks": jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)}


def unstack_layers(params: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `stack_layers`."""
    layers = jax.tree.leaves(params)[0].shape[0]
    return {f"resblocks_{i}": jax.tree.map(lambda leaf, i=i: leaf[i], params["resblocks"]) for i in range(layers)}
