"""What is said of arrays that may be arrays of JAX or of NumPy: `Float[AnyArray, "B D"]`, and what is asked of them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Array

from clip_jax.errors import UserError

AnyArray = Array | np.ndarray
Features = AnyArray | Sequence[Any]  # [N, D], also as lists of numbers
ROWS = 65_536  # are looked at at once, so that features mapped from a file need not fit the memory


def check_is_array(name: str, array: Any) -> None:
    """Raises UserError, which names the argument, for what is no array of JAX or NumPy, as a list or torch's tensor."""
    if not isinstance(array, AnyArray):
        kind = type(array)
        raise UserError(f"{name}: got {kind.__module__}.{kind.__name__}, not an array: give numpy.asarray({name})")


def check_features(name: str, features: Any) -> AnyArray:
    """Features [N, D] as an array.

    A feature of NaN compares with nothing, and would rank anywhere: that of a damaged picture must not count as a hit.

    Raises:
        UserError: it names the argument; for another shape, for what are no numbers, and for rows with NaN or Inf,
            which it counts.
    """
    try:
        array: Any = features if hasattr(features, "dtype") and hasattr(features, "ndim") else np.asarray(features)
    except ValueError:
        raise UserError(f"{name}: its rows are not of one length: features are [N, D]") from None
    if array.ndim != 2:
        raise UserError(f"{name}: the shape is {list(array.shape)}, not [N, D]: for one row give it as [1, D]")
    if (
        not any(np.issubdtype(array.dtype, kind) for kind in (np.floating, np.integer))
        and array.dtype.name != "bfloat16"
    ):
        raise UserError(f"{name}: the dtype is {array.dtype}: features are floats")
    bad, first = 0, None
    for start in range(0, len(array), ROWS):
        rows = np.asarray(array[start : start + ROWS])
        with np.errstate(over="ignore"):  # in float32, as they are compared
            wrong = ~np.isfinite(rows.astype(np.float32)).all(1)
        if first is None and wrong.any():
            first = start + int(wrong.argmax())
        bad += int(wrong.sum())
    if bad:
        raise UserError(
            f"{name}: {bad} of {len(array)} rows are not finite, the first is row {first}: "
            "is a picture or a weight damaged? leave them out"
        )
    return array


def check_ks(ks: Any, name: str = "ks") -> tuple[int, ...]:
    """Numbers of best ones as ints. Raises UserError, which names the argument, for none, or one below 1."""
    found = tuple(ks) if isinstance(ks, Sequence | np.ndarray) else (ks,)
    wrong = [k for k in found if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1]
    if wrong or not found:
        raise UserError(f"{name} is {wrong[0] if wrong else 'empty'}: it must be an integer from 1")
    return tuple(int(k) for k in found)


def check_labels(name: str, labels: Any, count: int) -> np.ndarray:
    """Integers, one for each of `count` rows. Raises UserError, which names the argument, for anything else."""
    array = np.asarray(labels)
    if array.shape != (count,):
        raise UserError(f"{name}: the shape is {list(array.shape)}, but there are {count} rows: give one for each")
    if count and not np.issubdtype(array.dtype, np.integer):
        raise UserError(f"{name}: the dtype is {array.dtype}: give integers, the index of each one's class")
    return array
