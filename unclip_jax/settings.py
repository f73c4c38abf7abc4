"""The settings of JAX that our functions are traced under, whatever the program around them is set to.

`JAX_ENABLE_X64` turns constants and tables to float64 and with them the pictures of a seed to others;
`JAX_NUMPY_RANK_PROMOTION=raise` and `JAX_NUMPY_DTYPE_PROMOTION=strict` are checks that a program wants for its own
code. Functions with this decorator compute in float32 and broadcast as numpy does; what is around them is not touched.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import jax
import numpy as np

P = ParamSpec("P")
R = TypeVar("R")

NARROW = {np.dtype(wide): np.dtype(narrow) for wide, narrow in (("f8", "f4"), ("i8", "i4"), ("u8", "u4"))}


def standard_settings(function: Callable[P, R]) -> Callable[P, R]:
    """`function`, traced with JAX's default types and promotions; 64-bit arrays among its arguments become 32-bit."""

    @functools.wraps(function)
    def under_them(*args: P.args, **kwargs: P.kwargs) -> R:
        if any(map(_wide, jax.tree.leaves((args, kwargs)))):
            args, kwargs = jax.tree.map(_narrowed, (args, kwargs))
        with (
            jax.enable_x64(False),
            jax.numpy_rank_promotion("allow"),
            jax.numpy_dtype_promotion("standard"),
        ):
            return function(*args, **kwargs)

    return under_them


def _wide(leaf: Any) -> bool:
    return isinstance(leaf, np.ndarray | np.generic | jax.Array) and leaf.dtype in NARROW


def _narrowed(leaf: Any) -> Any:
    return leaf.astype(NARROW[leaf.dtype]) if _wide(leaf) else leaf
