"""Attention of all networks, softmax(q kᵀ / √K) v (Vaswani et al. 2017 §3.2.1), and the KV cache.

Every tower, the U-Net, MoVQ and the priors call `attend`, which uses cuDNN's flash attention
(`jax.nn.dot_product_attention`) or plain XLA operations. The implementation is an argument and not part of a model's
config: the same weights run with either.
"""

import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from clip_jax.arrays import AnyArray
from clip_jax.config import TransformerConfig
from clip_jax.errors import UserError

Implementation = Literal["xla", "cudnn"]
MOST_CHANNELS = 128  # of a head, for cuDNN on every supported GPU; Hopper takes 256
LEAST_CAPABILITY = 8.0  # compute capability of Ampere


def attend(
    q: Float[Array, "B Q N K"],
    k: Float[Array, "B S N K"],
    v: Float[Array, "B S N K"],
    mask: Bool[AnyArray, "*M #Q S"] | None = None,
    *,
    implementation: Implementation | None = None,
) -> Float[Array, "B Q N K"]:
    """Multi-head attention, softmax(q kᵀ / √K) v for each head. Logits and softmax are float32 for every dtype.

    Args:
        q: queries [B, Q, N, K].
        k: keys [B, S, N, K].
        v: values [B, S, N, K].
        mask: True where a query attends to a key, broadcast to [B, N, Q, S]. A query whose row has no True attends to
            all keys equally. None: no mask.
        implementation: "cudnn" is flash attention, on NVIDIA GPUs only; "xla" runs on all devices; None: cuDNN where it
            is supported (see `cudnn_lacks`), else XLA.

    Returns:
        [B, Q, N, K] in the dtype of `v`.

    Raises:
        UserError: If the implementation is unknown, or "cudnn" does not support these arguments or this device.
    """
    if implementation not in (None, "xla", "cudnn"):
        raise UserError(f"implementation is {implementation!r}: choose xla or cudnn, or None for what fits")
    lacks = "" if implementation == "xla" else cudnn_lacks(q, k, mask)
    if implementation == "cudnn" and lacks:
        raise UserError(f'implementation is "cudnn", which {lacks}: leave it out, or give "xla"')
    if mask is not None:
        mask = jnp.reshape(mask, (1,) * (4 - mask.ndim) + mask.shape)
    if implementation != "xla" and not lacks:
        return jax.nn.dot_product_attention(q, k, v, mask=mask, implementation="cudnn")
    # Heads before positions, as XLA's matrix products are slower on a CPU in the other order, which is that of
    # `jax.nn.dot_product_attention(implementation="xla")`.
    q, k, v = (x.transpose(0, 2, 1, 3) for x in (q, k, v))
    logits = jnp.einsum("bnqk,bnsk->bnqs", q * q.shape[-1] ** -0.5, k, preferred_element_type=jnp.float32)
    if mask is not None:
        logits = jnp.where(mask, logits, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    return jnp.einsum("bnqs,bnsk->bnqk", weights, v).transpose(0, 2, 1, 3)


def cudnn_lacks(q: Float[Array, "B Q N K"], k: Float[Array, "B S N K"], mask: AnyArray | None) -> str:
    """Why cuDNN's flash attention does not support this call, as the end of a sentence; empty if it does.

    The conditions are those of `jax/_src/cudnn/fused_attention_stablehlo.py`. With a mask only the gradient needs even
    numbers of queries and keys; whether there will be a gradient is unknown here, so they are always required.

    Args:
        q: queries [B, Q, N, K].
        k: keys [B, S, N, K].
        mask: as of `attend`.
    """
    if q.dtype not in (jnp.bfloat16, jnp.float16):
        return f"takes bfloat16 and float16, and not {q.dtype}"
    if q.shape[-1] % 8 or q.shape[-1] > MOST_CHANNELS:
        return f"takes heads of a multiple of 8 channels up to {MOST_CHANNELS}, and not {q.shape[-1]}"
    if mask is not None and (q.shape[1] % 2 or k.shape[1] % 2):
        return f"takes a mask over even numbers of queries and keys, and not {q.shape[1]} and {k.shape[1]}"
    device = jax.devices()[0]
    if device.platform != "gpu" or "cuda" not in device.client.platform_version.lower():
        return f"needs an NVIDIA GPU, and not {device.platform}"
    capability = float(getattr(device, "compute_capability", 0.0))
    return "" if capability >= LEAST_CAPABILITY else f"needs compute capability {LEAST_CAPABILITY}, not {capability}"


def split_heads(x: Float[Array, "B L C"], heads: int) -> Float[Array, "B L N K"]:
    """Splits C channels into N heads of K = C / N channels."""
    return x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads)


def join_heads(x: Float[Array, "B L N K"]) -> Float[Array, "B L C"]:
    """The inverse of `split_heads`."""
    return x.reshape(*x.shape[:-2], math.prod(x.shape[-2:]))


class KVCache(NamedTuple):
    """KV cache of one layer, preallocated to S tokens.

    Attributes:
        keys: [B, S, N, K]; zeros at the places of later tokens, which the mask must hide. With `scan_layers` a leading
            axis of layers.
        values: as `keys`.
    """

    keys: Float[Array, "*layers B S N K"]
    values: Float[Array, "*layers B S N K"]

    def update(self, k: Float[Array, "B Q N K"], v: Float[Array, "B Q N K"], start: int | Array) -> "KVCache":
        """Writes the keys and values of Q more tokens to the places from `start` on, which may be traced.

        JAX moves a start beyond S − Q back to S − Q without an error.
        """
        keys, values = (
            jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), start, axis=1)
            for old, new in ((self.keys, k), (self.values, v))
        )
        return KVCache(keys, values)

    def attend(
        self,
        q: Float[Array, "B Q N K"],
        mask: Bool[AnyArray, "*M #Q S"] | None,
        *,
        implementation: Implementation | None = None,
    ) -> Float[Array, "B Q N K"]:
        """`attend` to all S places of the cache."""
        return attend(q, self.keys, self.values, mask, implementation=implementation)


KVCaches = tuple[KVCache, ...] | KVCache
"""One `KVCache` per layer; with `scan_layers` a single one with a leading axis of layers."""


def empty_caches(config: TransformerConfig, batch: int, length: int, dtype: Any = jnp.float32) -> KVCaches:
    """Zeroed KV caches of a `Transformer`.

    Args:
        config: of the transformer.
        batch: number of sequences B.
        length: number of places S, the most tokens of a sequence.
        dtype: of keys and values.
    """
    shape = batch, length, config.heads, config.width // config.heads
    if config.scan_layers:
        return KVCache(*(jnp.zeros((config.layers, *shape), dtype) for _ in range(2)))
    return tuple(KVCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)) for _ in range(config.layers))
