"""Numbers of a config, checked before anything is built of them.

A config may come from a file that is damaged or hostile: a schedule of ten million times or a guidance scale of NaN is
refused by the field's name here, before an array is made.
"""

from __future__ import annotations

import dataclasses
import numbers
from typing import Any

from clip_jax.errors import UserError

WIDTH = (1, 65_536)
"""Sizes of a layer."""
DEPTH = (1, 256)
"""Layers or blocks on top of each other."""
SIDE = (1, 4_096)
"""Pixels of a square picture along one side."""
TIMES = (1, 100_000)
"""Steps of a noise schedule (1,000 is usual)."""
GUIDANCE = (0.0, 100.0)
"""Scales of classifier-free guidance."""
DTYPES = ("float32", "bfloat16", "float16")


def check_ranges(config: Any, where: str = "", /, **ranges: tuple[float, float]) -> None:
    """Raises UserError for a field that is not a finite number within its range, both ends included.

    Args:
        config: a dataclass; a field whose type says so may also be None.
        where: what comes before the names of the fields, "sampling." say.
        ranges: of each field. A field of type int takes whole numbers only.
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
    """Raises UserError unless `config.dtype` names a type of matrix products."""
    if config.dtype not in DTYPES:
        raise UserError(f"dtype is {str(config.dtype)[:40]!r}; choose one of {', '.join(DTYPES)}")
