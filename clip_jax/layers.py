"""The blocks both transformers are made of.

Parameters carry OpenAI's names, and the fused `in_proj` keeps OpenAI's [q; k; v] order, so that converting a
published checkpoint is a transposition per matrix. Parameters are float32; `dtype` is the dtype of the matrix products.
Norms and softmax are always computed in float32, as OpenAI's are even in its float16 models.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

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


class LayerNorm(nn.Module):
    """LayerNorm over the last axis, in float32 whatever comes in; returns the input's dtype."""

    eps: float = 1e-5

    @nn.compact
    def __call__(self, x: Float[Array, "*B C"]) -> Float[Array, "*B C"]:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        h = x.astype(jnp.float32)
        h = h - h.mean(-1, keepdims=True)  # centred before squaring: E[x²] − E[x]² loses digits
        h = h * jax.lax.rsqrt(jnp.square(h).mean(-1, keepdims=True) + self.eps)
        return (h * scale + bias).astype(x.dtype)


class Attention(nn.Module):
    """Multi-head self-attention with one fused projection [C, 3C] in the order q, k, v.

    `mask` is True where a query (next-to-last axis) may look at a key (last axis).
    """

    config: TransformerConfig
    inits: BlockInit
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B L C"], mask: Bool[Array, "*M L L"] | None = None) -> Float[Array, "B L C"]:
        width, heads = self.config.width, self.config.heads
        qkv = nn.Dense(3 * width, kernel_init=self.inits.in_proj, dtype=self.dtype, name="in_proj")(x)
        qkv = qkv.reshape(*x.shape[:2], 3, heads, width // heads)
        q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]  # [B, L, N, K]
        logits = jnp.einsum("bqnk,bsnk->bnqs", q * (width // heads) ** -0.5, k, preferred_element_type=jnp.float32)
        if mask is not None:
            logits = jnp.where(mask, logits, jnp.finfo(jnp.float32).min)
        weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
        out = jnp.einsum("bnqs,bsnk->bqnk", weights, v).reshape(x.shape)
        return nn.Dense(width, kernel_init=self.inits.out_proj, dtype=self.dtype, name="out_proj")(out)


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
    """x + attn(ln_1(x)), then x + mlp(ln_2(x))."""

    config: TransformerConfig
    inits: BlockInit
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B L C"], mask: Bool[Array, "*M L L"] | None = None) -> Float[Array, "B L C"]:
        eps = self.config.ln_eps
        x = x + Attention(self.config, self.inits, self.dtype, name="attn")(LayerNorm(eps, name="ln_1")(x), mask)
        return x + MLP(self.config, self.inits, self.dtype, name="mlp")(LayerNorm(eps, name="ln_2")(x))


class Transformer(nn.Module):
    """The stack: `resblocks_0`, `resblocks_1`…; with `scan_layers` one `resblocks` with a leading layer axis."""

    config: TransformerConfig
    inits: BlockInit
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B L C"], mask: Bool[Array, "*M L L"] | None = None) -> Float[Array, "B L C"]:
        block = nn.remat(ResidualAttentionBlock) if self.config.remat else ResidualAttentionBlock
        if self.config.scan_layers:
            scan = nn.scan(
                lambda layer, h, _: (layer(h, mask), None),
                variable_axes={"params": 0},
                split_rngs={"params": True},
                length=self.config.layers,
            )
            return scan(block(self.config, self.inits, self.dtype, name="resblocks"), x, None)[0]
        for i in range(self.config.layers):
            x = block(self.config, self.inits, self.dtype, name=f"resblocks_{i}")(x, mask)
        return x


def stack_layers(params: dict[str, Any]) -> dict[str, Any]:
    """Parameters of an unrolled `Transformer` -> those of the scanned one."""
    blocks = [params[f"resblocks_{i}"] for i in range(len(params))]
    return {"resblocks": jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)}


def unstack_layers(params: dict[str, Any]) -> dict[str, Any]:
    """Parameters of a scanned `Transformer` -> those of the unrolled one."""
    layers = jax.tree.leaves(params)[0].shape[0]
    return {f"resblocks_{i}": jax.tree.map(lambda leaf, i=i: leaf[i], params["resblocks"]) for i in range(layers)}
