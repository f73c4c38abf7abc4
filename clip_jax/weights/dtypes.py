"""The floating-point types that weights are stored and computed in: float32, float16 and bfloat16."""

from typing import Any

import ml_dtypes
import numpy as np

from clip_jax.errors import UserError

DTYPES = {name: np.dtype(kind) for name, kind in
          {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}.items()}  # fmt: skip


def stored_dtype(dtype: Any) -> np.dtype | None:
    """A dtype given by name ("bfloat16") or as a numpy or JAX dtype; None stays None.

    Raises:
        UserError: the dtype is none of float32, float16 and bfloat16.
    """
    if dtype is None:
        return None
    try:
        kind = DTYPES.get(dtype) if isinstance(dtype, str) else np.dtype(dtype)
    except TypeError:
        kind = None
    if kind not in DTYPES.values():
        raise UserError(f"dtype is {dtype!r}: choose one of {', '.join(DTYPES)}")
    return kind
