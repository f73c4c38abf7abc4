"""Types of arrays of JAX or NumPy, `Float[AnyArray, "B D"]`, and checks of array arguments."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Array

from clip_jax.errors import UserError

AnyArray = Array | np.ndarray
Features = AnyArray | Sequence[Any]  # [N, D], also as lists of numbers
ROWS = 65_536  # checked at a time, so that memory-mapped features need not fit in memory


def check_is_array(name: str, array: Any) -> None:
    """Checks that an argument is an array of JAX or NumPy.

    Raises:
        UserError: If it is anything else, such as a list or a tensor of torch; the message names the argument.
    """
    if not isinstance(array, AnyArray):
        kind = type(array)
        raise UserError(f"{name}: got {kind.__module__}.{kind.__name__}, not an array: give numpy.asarray({name})")


def check_features(name: str, features: Any) -> AnyArray:
    """Features [N, D] as an array, checked to be finite.

    A NaN is neither smaller nor larger than any similarity, so its row could rank anywhere and count as a hit.

    Args:
        name: of the argument, for errors.
        features: array [N, D], or N lists of D numbers.

    Raises:
        UserError: If the shape is not [N, D], the values are not numbers, or rows have NaN or Inf; the message names
            the argument and counts these rows.
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
        with np.errstate(over="ignore"):  # float32 as in the comparison, where a large float64 becomes Inf
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
    """The k of top-k or recall@k, one or several, as a tuple of ints.

    Raises:
        UserError: If there is none, or one is not an integer of at least 1; the message names the argument.
    """
    values = tuple(ks) if isinstance(ks, Sequence | np.ndarray) else (ks,)
    wrong = [k for k in values if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1]
    if wrong or not values:
        raise UserError(f"{name} is {wrong[0] if wrong else 'empty'}: it must be an integer from 1")
    return tuple(int(k) for k in values)


def check_labels(name: str, labels: Any, count: int) -> np.ndarray:
    """Integer labels as an array. Their range is not checked.

    Args:
        name: of the argument, for errors.
        labels: `count` integers.
        count: number of rows that they label.

    Raises:
        UserError: If the shape is not [count], or they are not integers; the message names the argument.
    """
    array = np.asarray(labels)
    if array.shape != (count,):
        raise UserError(f"{name}: the shape is {list(array.shape)}, but there are {count} rows: give one for each")
    if count and not np.issubdtype(array.dtype, np.integer):
        raise UserError(f"{name}: the dtype is {array.dtype}: give integers, the index of each one's class")
    return array
