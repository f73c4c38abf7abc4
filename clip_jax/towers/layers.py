"""The blocks the transformers are made of.

Parameters carry OpenAI's names, and the fused `in_proj` keeps OpenAI's [q; k; v] order, so that converting a
published checkpoint is a transposition per matrix. Parameters are float32; `dtype` is the dtype of the matrix products.
Norms and softmax are always computed in float32, as OpenAI's are even in its float16 models.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from clip_jax.arrays import AnyArray
from clip_jax.config import TransformerConfig

Initializer = Callable[..., Array]


def quick_gelu(x: Array) -> Array:
    """x · sigmoid(1.702 x): up to 0.02 away from the true GELU, and what OpenAI's models were trained with."""
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "quick_gelu": quick_gelu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),  # flax and jax default to the tanh form; torch to this one
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
}


def fan_in_uniform(fan_in: int) -> Initializer:
    """U(±1/√fan_in): what torch gives the weight and the bias of a Linear or a convolution."""
    bound = 1 / math.sqrt(fan_in)
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


class BlockInit(NamedTuple):
    """Initialisers of the four matrices of a block."""

    in_proj: Initializer
    out_proj: Initializer
    c_fc: Initializer
    c_proj: Initializer


def torch_init(config: TransformerConfig) -> BlockInit:
    """torch's own defaults, which OpenAI leaves in place for the image tower."""
    return BlockInit(
        in_proj=nn.initializers.xavier_uniform(),
        out_proj=fan_in_uniform(config.width),
        c_fc=fan_in_uniform(config.width),
        c_proj=fan_in_uniform(config.mlp_width or 4 * config.width),
    )


def scaled_init(config: TransformerConfig) -> BlockInit:
    """OpenAI's text tower: residual branches start smaller the deeper the stack is."""
    normal = nn.initializers.normal
    residual = normal(config.width**-0.5 * (2 * config.layers) ** -0.5)
    return BlockInit(
        in_proj=normal(config.width**-0.5), out_proj=residual, c_fc=normal((2 * config.width) ** -0.5), c_proj=residual
    )


def per_channel(v: Float[AnyArray, " C"], x: Float[AnyArray, "*B C"]) -> Float[Array, "*ones C"]:
    """A vector with the axes of `x`, all but the last of size 1: JAX can be told to refuse other ranks."""
    return jnp.reshape(v, (1,) * (x.ndim - 1) + v.shape)


class LayerNorm(nn.Module):
    """LayerNorm over the last axis, in float32 whatever comes in; returns the input's dtype."""

    eps: float = 1e-5

    @nn.compact
    def __call__(self, x: Float[Array, "*B C"]) -> Float[Array, "*B C"]:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],), jnp.float32)
        h = x.astype(jnp.float32)
        h = h - h.mean(-1, keepdims=True)  # centred before squaring: E[x²] − E[x]² loses digits
        h = h * jax.lax.rsqrt(jnp.square(h).mean(-1, keepdims=True) + self.eps)
        return (h * per_channel(scale, x) + per_channel(bias, x)).astype(x.dtype)


def attend(
    q: Float[Array, "B Q N K"],
    k: Float[Array, "B S N K"],
    v: Float[Array, "B S N K"],
    mask: Bool[AnyArray, "*M #Q S"] | None = None,
) -> Float[Array, "B Q C"]:
    """softmax(q kᵀ / √K) v for each head, heads joined: C = N · K. `mask` is True where a query may look at a key."""
    logits = jnp.einsum("bqnk,bsnk->bnqs", q * q.shape[-1] ** -0.5, k, preferred_element_type=jnp.float32)
    if mask is not None:
        logits = jnp.where(mask, logits, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    out = jnp.einsum("bnqs,bsnk->bqnk", weights, v)
    return out.reshape(*out.shape[:2], out.shape[2] * out.shape[3])


class KeysValues(NamedTuple):
    """What an attention layer has read of a sequence: its keys and values, with room for what is still to come.

    A token that is not there yet holds zeros, and the mask must hide it.
    """

    keys: Float[Array, "B S N K"]
    values: Float[Array, "B S N K"]


Memory = tuple[KeysValues, ...] | KeysValues
"""`KeysValues` of every layer of a `Transformer`; with `scan_layers` they are one, with a leading layer axis."""


def empty_memory(config: TransformerConfig, batch: int, length: int, dtype: Any = jnp.float32) -> Memory:
    """The memory of a `Transformer` that has read nothing yet of `batch` sequences of `length` tokens."""
    shape = batch, length, config.heads, config.width // config.heads
    if config.scan_layers:
        return KeysValues(*(jnp.zeros((config.layers, *shape), dtype) for _ in range(2)))
    return tuple(KeysValues(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)) for _ in range(config.layers))


def split_heads(x: Float[Array, "B L C"], heads: int) -> Float[Array, "B L N K"]:
    return x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads)


class Attention(nn.Module):
    """Multi-head attention with one fused projection [C, 3C] in the order q, k, v.

    `mask` is True where a query (next-to-last axis) may look at a key (last axis). The queries come from `x` itself,
    or from `query` [B, Q, C].

    With a `memory` the keys are those it holds, with those of `x` written from place `start` (may be traced) on, and
    the result is (output, memory).
    """

    config: TransformerConfig
    inits: BlockInit
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B L C"],
        mask: Bool[AnyArray, "*M #Q S"] | None = None,
        query: Float[Array, "B Q C"] | None = None,
        memory: KeysValues | None = None,
        start: int | Array = 0,
    ) -> Any:
        width, heads = self.config.width, self.config.heads
        in_proj = nn.Dense(3 * width, kernel_init=self.inits.in_proj, dtype=self.dtype, name="in_proj")

        def project(x: Array) -> Array:
            return in_proj(x).reshape(*x.shape[:2], 3, heads, width // heads)

        qkv = project(x)
        q = (qkv if query is None else project(query))[:, :, 0]  # [B, Q, N, K]
        keys_values = KeysValues(qkv[:, :, 1], qkv[:, :, 2])
        if memory is not None:
            write = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=start, axis=1)
            keys_values = KeysValues(*map(write, memory, keys_values))
        out = attend(q, *keys_values, mask)
        out = nn.Dense(width, kernel_init=self.inits.out_proj, dtype=self.dtype, name="out_proj")(out)
        return out if memory is None else (out, keys_values)


class MLP(nn.Module):
    """c_proj(activation(c_fc(x)))."""

    config: TransformerConfig
    inits: BlockInit
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*B C"]) -> Float[Array, "*B C"]:
        width, hidden = self.config.width, self.config.mlp_width or 4 * self.config.width
        h = nn.Dense(
            hidden, kernel_init=self.inits.c_fc, bias_init=fan_in_uniform(width), dtype=self.dtype, name="c_fc"
        )(x)
        h = ACTIVATIONS[self.config.activation](h)
        return nn.Dense(
            width, kernel_init=self.inits.c_proj, bias_init=fan_in_uniform(hidden), dtype=self.dtype, name="c_proj"
        )(h)


class ResidualAttentionBlock(nn.Module):
    """x + attn(ln_1(x)), then x + mlp(ln_2(x)); with a `memory`, as `Attention` has it, (x, memory)."""

    config: TransformerConfig
    inits: BlockInit
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B L C"],
        mask: Bool[AnyArray, "*M #L S"] | None = None,
        memory: KeysValues | None = None,
        start: int | Array = 0,
    ) -> Any:
        eps = self.config.ln_eps
        attention = Attention(self.config, self.inits, self.dtype, name="attn")
        read = attention(LayerNorm(eps, name="ln_1")(x), mask, memory=memory, start=start)
        if memory is not None:
            read, memory = read
        x = x + read
        x = x + MLP(self.config, self.inits, self.dtype, name="mlp")(LayerNorm(eps, name="ln_2")(x))
        return x if memory is None else (x, memory)


def run_blocks(
    block: Callable[..., nn.Module],
    name: str,
    config: TransformerConfig,
    x: Float[Array, "B L C"],
    *args: Any,
    hidden_states: bool = False,
) -> tuple[Float[Array, "B L C"], ...]:
    """Applies `config.layers` blocks `x = block(name=…)(x, *args)`, from within the compact method of a module.

    Returns all states, the input first, with `hidden_states`; else the last one alone. The blocks are called
    `{name}_0`, `{name}_1`…; with `scan_layers` there is one `{name}` with a leading layer axis in its parameters.
    """
    if config.scan_layers:
        scan = nn.scan(
            lambda layer, h, _: ((h := layer(h, *args)), h if hidden_states else None),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=config.layers,
        )
        last, states = scan(block(name=name), x, None)
        return (x, *states) if hidden_states else (last,)
    states = [x]
    for i in range(config.layers):
        states.append(block(name=f"{name}_{i}")(states[-1], *args))
    return tuple(states) if hidden_states else (states[-1],)


def read_on(
    block: Callable[..., nn.Module],
    name: str,
    config: TransformerConfig,
    x: Float[Array, "B L C"],
    memory: Memory,
    mask: Bool[AnyArray, "*M #L S"] | None,
    start: int | Array,
) -> tuple[Float[Array, "B L C"], Memory]:
    """As `run_blocks`, for blocks `x, memory = block(name=…)(x, mask, memory, start)`."""
    if config.scan_layers:
        scan = nn.scan(
            lambda layer, h, own: layer(h, mask, own, start),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=config.layers,
        )
        return scan(block(name=name), x, memory)
    written = []
    for i, own in enumerate(memory):
        x, own = block(name=f"{name}_{i}")(x, mask, own, start)
        written.append(own)
    return x, tuple(written)


class Transformer(nn.Module):
    """The stack: `resblocks_0`, `resblocks_1`…; with `scan_layers` one `resblocks` with a leading layer axis.

    Returns the last state, or with `hidden_states` a tuple of all of them, the input first.

    A sequence can also be read piece by piece. `memory`, from `empty_memory` or an earlier piece, then holds what came
    before; `x` are the tokens from place `start` on, `mask` says which of the S places of the memory each of them may
    look at, and the result is (last state, memory).
    """

    config: TransformerConfig
    inits: BlockInit
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B L C"],
        mask: Bool[AnyArray, "*M #L S"] | None = None,
        *,
        hidden_states: bool = False,
        memory: Memory | None = None,
        start: int | Array = 0,
    ) -> Any:
        block = nn.remat(ResidualAttentionBlock) if self.config.remat else ResidualAttentionBlock
        block = functools.partial(block, self.config, self.inits, self.dtype)
        if memory is not None:
            return read_on(block, "resblocks", self.config, x, memory, mask, start)
        states = run_blocks(block, "resblocks", self.config, x, mask, hidden_states=hidden_states)
        return states if hidden_states else states[-1]


def sinusoids(length: int, width: int) -> Float[np.ndarray, "L C"]:
    """Fixed positions: sin and cos of l / 10000^(c / C) in turns, c even (Vaswani et al. 2017 §3.5)."""
    channel = np.arange(width)
    angles = np.arange(length)[:, None] / 10000 ** ((channel - channel % 2) / width)
    return np.where(channel % 2, np.cos(angles), np.sin(angles)).astype(np.float32)


def stack_layers(params: dict[str, Any]) -> dict[str, Any]:
    """Parameters of an unrolled `Transformer` -> those of the scanned one."""
    blocks = [params[f"resblocks_{i}"] for i in range(len(params))]
    return {"resblocks": jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)}


def unstack_layers(params: dict[str, Any]) -> dict[str, Any]:
    """Parameters of a scanned `Transformer` -> those of the unrolled one."""
    layers = jax.tree.leaves(params)[0].shape[0]
    return {f"resblocks_{i}": jax.tree.map(lambda leaf, i=i: leaf[i], params["resblocks"]) for i in range(layers)}
