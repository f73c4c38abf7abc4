"""PRNG keys of pictures, and noise drawn with them: the same numbers on every machine and under every JAX setting.

A picture depends on its prompt, its seed and its index alone. But JAX draws other numbers from the same seed with
another generator (`JAX_DEFAULT_PRNG_IMPL`), with 64-bit types (`JAX_ENABLE_X64`), or with
`jax_threefry_partitionable=False`. Therefore keys are always threefry keys here, noise is drawn as float32, and
`jax_threefry_partitionable=False` is refused.
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
LIMIT = 2**32  # seeds and indices have 32 bits; larger ones would alias smaller ones


def seed_key(seed: int | Any) -> Key[Array, ""]:
    """The threefry key of a seed, whatever generator JAX is set to.

    Args:
        seed: whole number from 0 to 4294967295.

    Raises:
        UserError: the seed is not a whole number in this range; a larger one would alias a smaller one.
    """
    try:
        number = operator.index(seed)
    except TypeError:
        raise UserError(f"seed is {seed!r}; give a whole number from 0 to {LIMIT - 1}") from None
    if isinstance(seed, bool) or not 0 <= number < LIMIT:
        raise UserError(f"seed is {seed}; give a whole number from 0 to {LIMIT - 1}")
    return jax.random.key(np.uint32(number), impl=IMPL)


def threefry(keys: Any) -> Key[Array, "..."]:
    """Converts JAX keys of any kind to threefry keys; threefry keys are returned unchanged.

    A key of "rbg" or "unsafe_rbg" is a threefry key repeated twice, of which the first half is taken: so
    `jax.random.key(seed)` becomes the same key under all three generators.

    Args:
        keys: typed keys [...] (`jax.random.key`) or raw keys (`jax.random.PRNGKey`, uint32 [..., 2] or [..., 4]).

    Returns:
        Typed threefry keys [...].

    Raises:
        UserError: `keys` are no keys, or keys of another generator; or `jax_threefry_partitionable` is False, with
            which the same key draws other numbers.
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
    """One key per picture: `fold_in(key, index)`, so that a picture is the same in whatever batch it is drawn.

    Args:
        key: one JAX key, `jax.random.key(seed)`; see `threefry`.
        indices: [N] integers from 0 to 4294967295: an array, a list or a range.

    Returns:
        Threefry keys [N].

    Raises:
        UserError: `key` is not one key, or `indices` are not [N] integers in this range.
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
        values = np.asarray(indices)  # numpy, because jnp would trace even a known array within jit
        ends = int(values.min()), int(values.max())
        if ends[0] < 0 or ends[1] >= LIMIT:
            raise UserError(f"indices are from {ends[0]} to {ends[1]}; give 0 to {LIMIT - 1}")
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.asarray(indices).astype(jnp.uint32))


def fold_in_each(keys: Key[Array, " B"], data: int | Int[Array, ""]) -> Key[Array, " B"]:
    """Folds the same integer into each of [B] keys: threefry keys [B]."""
    return jax.vmap(lambda key: jax.random.fold_in(key, data))(threefry(keys))


def normal(keys: Key[Array, " B"], shape: tuple[int, ...]) -> Float[Array, "B ..."]:
    """Standard normal noise with one key per sample: keys [B] -> float32 [B, *shape]."""
    return jax.vmap(lambda key: jax.random.normal(key, shape, jnp.float32))(threefry(keys))
