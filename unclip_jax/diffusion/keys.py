"""Keys of pictures and the noise drawn with them: the same numbers on every machine, under every setting of JAX.

A picture depends on its prompt, its seed and its index alone. JAX draws other numbers from the same seed with another
generator (`JAX_DEFAULT_PRNG_IMPL`), with 64-bit types (`JAX_ENABLE_X64`), or with
`jax_threefry_partitionable=False`; so keys are of threefry here, and noise is asked for as float32.
"""

from __future__ import annotations

import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from clip_jax.errors import UserError

IMPL = "threefry2x32"
LIMIT = 2**32  # seeds and indices are 32 bits: larger ones would be those of others again


def seed_key(seed: int | Any) -> Key[Array, ""]:
    """The key of a seed, 0 to 4294967295, whatever generator JAX is set to.

    Raises:
        UserError: another seed, which would alias one of these.
    """
    try:
        number = operator.index(seed)
    except TypeError:
        raise UserError(f"seed is {seed!r}; give a whole number from 0 to {LIMIT - 1}") from None
    if isinstance(seed, bool) or not 0 <= number < LIMIT:
        raise UserError(f"seed is {seed}; give a whole number from 0 to {LIMIT - 1}")
    return jax.random.key(np.uint32(number), impl=IMPL)


def threefry(keys: Any) -> Key[Array, "..."]:
    """Keys of threefry from keys as JAX's users have them, of any shape; threefry's are returned as they are.

    Typed keys (`jax.random.key`) or raw ones (`jax.random.PRNGKey`, uint32 [..., 2]). A key of "rbg" or
    "unsafe_rbg" is made of threefry's twice, so that `jax.random.key(seed)` is the same key under all three.

    Raises:
        UserError: what is given is no key, or of another generator; or JAX is set to draw other numbers with it
            (`jax_threefry_partitionable=False`).
    """
    if not jax.config.jax_threefry_partitionable:  # type: ignore[attr-defined]
        raise UserError(
            "jax_threefry_partitionable is False, which draws other pictures from the same seed: set it to True"
        )
    dtype = getattr(keys, "dtype", None)
    if dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key):
        impl = str(jax.random.key_impl(keys))
        if impl == IMPL:
            return keys
        if impl not in ("rbg", "unsafe_rbg"):
            raise UserError(f"keys are of the generator {impl}; make them by jax.random.key(seed, impl={IMPL!r})")
        keys = jax.random.key_data(keys)
    elif dtype != jnp.uint32 or not keys.ndim or keys.shape[-1] not in (2, 4):
        what = type(keys).__name__ if dtype is None else f"{dtype} {list(keys.shape)}"
        raise UserError(f"keys are {what}; give those of unclip_jax.sample_keys(jax.random.key(0), indices)")
    return jax.random.wrap_key_data(jnp.asarray(keys)[..., :2], impl=IMPL)


def sample_keys(key: Any, indices: Any) -> Key[Array, " N"]:
    """Keys of the pictures of these indices: `fold_in(key, index)`, the same whatever batch they are drawn in.

    Args:
        key: one key of JAX, `jax.random.key(seed)`; see `threefry`.
        indices: [N] integers from 0 to 4294967295: an array, a list or a range.

    Raises:
        UserError: `key` is not one key, or `indices` are not [N] such integers.
    """
    key = threefry(key)
    if key.shape:
        raise UserError(f"key is {list(key.shape)} keys; give one, jax.random.key(seed)")
    if not hasattr(indices, "dtype"):
        indices = np.asarray(indices if np.ndim(indices) == 0 else list(indices))
        indices = indices.astype(np.int64) if not indices.size else indices
    if not jnp.issubdtype(indices.dtype, jnp.integer) or indices.ndim != 1:
        got = str(indices)[:40] if not indices.ndim else f"{indices.dtype} {list(indices.shape)}"
        raise UserError(f"indices is {got}; give those of the pictures, [N] integers: jnp.arange(4) for the first four")
    if not isinstance(indices, jax.core.Tracer) and indices.size:
        values = np.asarray(indices)  # within jit, jnp would trace what is known
        ends = int(values.min()), int(values.max())
        if ends[0] < 0 or ends[1] >= LIMIT:
            raise UserError(f"indices are from {ends[0]} to {ends[1]}; give 0 to {LIMIT - 1}")
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.asarray(indices).astype(jnp.uint32))


def fold_in_each(keys: Key[Array, " B"], data: int | Int[Array, ""]) -> Key[Array, " B"]:
    """Folds the same number into each of [B] keys."""
    return jax.vmap(lambda key: jax.random.fold_in(key, data))(threefry(keys))


def normal(keys: Key[Array, " B"], shape: tuple[int, ...]) -> Float[Array, "B ..."]:
    """Standard normal noise, one key per sample: [B] keys -> float32 [B, *shape]."""
    return jax.vmap(lambda key: jax.random.normal(key, shape, jnp.float32))(threefry(keys))
