"""Range checks of the numbers in a config, before any array is allocated.

A config may come from a damaged or hostile file: a schedule of ten million timesteps or a guidance scale of NaN is
refused here, with the name of the field.
"""

from __future__ import annotations

import dataclasses
import numbers
from typing import Any

from clip_jax.errors import UserError

WIDTH = (1, 65_536)
"""Range of the sizes of a layer."""
DEPTH = (1, 256)
"""Range of the number of layers or blocks in a stack."""
SIDE = (1, 4_096)
"""Range of the side of a square picture, in pixels."""
TIMES = (1, 100_000)
"""Range of the timesteps of a noise schedule (1,000 is usual)."""
GUIDANCE = (0.0, 100.0)
"""Range of the scale of classifier-free guidance; 1.0 is off."""
DTYPES = ("float32", "bfloat16", "float16")


def check_ranges(config: Any, where: str = "", /, **ranges: tuple[float, float]) -> None:
    """Checks that fields of a config are finite numbers within their ranges.

    Args:
        config: a dataclass; a field whose type allows None may be None.
        where: prefix of the names of the fields in the message, "sampling." for example.
        ranges: field -> (lowest, highest), both included. A field of type int takes whole numbers only.

    Raises:
        UserError: a field is no number, NaN, or out of range; the message names it.
    """
    types = {field.name: str(field.type) for field in dataclasses.fields(config)}
    for name, (low, high) in ranges.items():
        value, whole = getattr(config, name), types[name].startswith("int")
        if value is None and "None" in types[name]:
            continue
        kind: Any = numbers.Integral if whole else numbers.Real
        if isinstance(value, bool) or not isinstance(value, kind) or not low <= value <= high:  # NaN is in no range
            which = ", a whole number" if whole else ""
            raise UserError(f"{where}{name} is {str(value)[:40]}; give {low} to {high}{which}")


def check_dtype(config: Any) -> None:
    """Checks that `config.dtype` is one of `DTYPES`.

    Raises:
        UserError: it is another value.
    """
    if config.dtype not in DTYPES:
        raise UserError(f"dtype is {str(config.dtype)[:40]!r}; choose one of {', '.join(DTYPES)}")
