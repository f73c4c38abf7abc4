"""Fingerprints of arrays: a 32-bit checksum, computed on the devices and independent of their number.

The checksum is a sum of hashed elements. Integer addition is exact in any order, so mesh and reduction order do not
matter. The hash is a bijection of each element's bits, so a change of one element is always detected; several changes
go unnoticed with probability 2^-32.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from train_jax.sharding import leaf_path
from train_jax.task import PyTree

__all__ = ["Print", "fingerprints"]


class Print(NamedTuple):
    """Fingerprint of an array, and whether all its values are finite."""

    value: int  # in [0, 2^32)
    finite: bool  # no NaN, no infinity


def fingerprints(tree: PyTree) -> dict[str, Print]:
    """The fingerprint of every leaf, by its path "a/b/c"; leaves may have any shape and dtype, typed PRNG keys too."""
    # One small program per shape: a single program over several hundred leaves would take minutes to compile.
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    names = [leaf_path(path) for path, _ in leaves]
    prints = jax.device_get([_print(leaf) for _, leaf in leaves])
    return {name: Print(int(value), bool(finite)) for name, (value, finite) in zip(names, prints, strict=True)}


@jax.jit
def _print(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    finite = jnp.isfinite(x).all()
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        x = jnp.stack([x.real, x.imag], axis=-1)
    if x.dtype == jnp.bool_:
        x = x.astype(jnp.uint8)
    width = {1: jnp.uint8, 2: jnp.uint16}.get(x.dtype.itemsize, jnp.uint32)  # an 8-byte number becomes a pair
    bits = jax.lax.bitcast_convert_type(x, width).astype(jnp.uint32)
    # The index is built from one iota per axis: flattening a sharded array would gather it.
    index = jnp.uint32(0)
    for axis in range(bits.ndim):
        stride = jnp.uint32(math.prod(bits.shape[axis + 1 :]) % 2**32)
        index = index + jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis) * stride
    return jnp.sum(_mix(bits ^ _mix(index + jnp.uint32(0x9E3779B9))), dtype=jnp.uint32), finite


def _mix(x: jax.Array) -> jax.Array:
    """MurmurHash3's finaliser, a bijection of uint32."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
