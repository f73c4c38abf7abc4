"""A decorator that traces a function under JAX's default settings, whatever the calling program has set.

With `JAX_ENABLE_X64` constants and tables would be float64, and a seed would draw other pictures.
`JAX_NUMPY_RANK_PROMOTION=raise` and `JAX_NUMPY_DTYPE_PROMOTION=strict` are checks that a program sets for its own code,
which the functions here do not pass. Decorated functions compute in float32 and broadcast as numpy does; the settings
of the calling program are left as they are.
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
    """Traces `function` with JAX's default dtypes and promotions; 64-bit arrays in its arguments become 32-bit."""

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
