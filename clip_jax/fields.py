"""Checks the fields of a frozen config against their declared types and largest values.

A config may come from a file that somebody else wrote. So every value is checked when the config is made: a wrong type,
a number that is not finite or an absurd size is a UserError that names the field, not a failure deep inside.
"""

import dataclasses
import functools
import math
import types
import typing
from typing import Any, Literal, get_args, get_origin

from clip_jax.errors import UserError

# The largest value of every field that determines array sizes: well above all published models, and small enough that
# a damaged config cannot fill the memory before it is compared with its weights.
LIMITS = {
    "width": 1 << 16, "layers": 1024, "heads": 1 << 12, "mlp_width": 1 << 20, "image_size": 1 << 14,
    "resize_to": 1 << 14, "patch_size": 1 << 12, "channels": 1 << 12, "stem": 1 << 16, "rope_grid": 1 << 14,
    "vocab_size": 1 << 24, "context_length": 1 << 20, "max_positions": 1 << 20, "type_vocab_size": 1 << 16,
    "embed_dim": 1 << 16,
}  # fmt: skip


def check_types(config: Any) -> None:
    """Checks the type and range of every field of a config.

    Args:
        config: a dataclass instance.

    Raises:
        UserError: If a value is not of its declared type, not finite, or out of range; the message names the field.
    """
    for name, kind in _declared(type(config)).items():  # type: ignore[arg-type]
        wrong = _fault(getattr(config, name), kind, LIMITS.get(name))
        if wrong:
            raise UserError(f"{type(config).__name__}.{name} is {brief(getattr(config, name))}: {wrong}")


def brief(value: Any, limit: int = 60) -> str:
    """The `repr` of a value on one line, cut to `limit` characters."""
    text = " ".join(repr(value).split())
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


@functools.cache
def _declared(kind: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _fault(value: Any, kind: Any, limit: int | None) -> str:
    """What is wrong with a value, as the end of a sentence; empty when nothing is."""
    if kind is Any or dataclasses.is_dataclass(kind):
        return ""
    if isinstance(kind, types.UnionType):
        if value is None and type(None) in get_args(kind):
            return ""
        (kind,) = (part for part in get_args(kind) if part is not type(None))
    if get_origin(kind) is Literal:
        known = get_args(kind)
        fits = any(type(value) is type(choice) and value == choice for choice in known)
        return "" if fits else f"choose one of {', '.join(map(str, known))}"
    if get_origin(kind) is tuple:
        return _tuple_fault(value, get_args(kind), limit)
    if kind is bool:
        return "" if isinstance(value, bool) else "it must be true or false"
    if kind is int:
        if isinstance(value, bool) or not isinstance(value, int):
            return "it must be an integer"
        if limit is not None and not 1 <= value <= limit:
            return f"it must be an integer of at least 1 and at most {limit}"
        return ""
    if kind is float:
        fits = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        return "" if fits else "it must be a finite number"
    raise TypeError(f"fields of type {kind} are not checked")


def _tuple_fault(value: Any, parts: tuple[Any, ...], limit: int | None) -> str:
    kind = "integers" if parts[0] is int else "numbers"
    fixed_length = parts[-1] is not Ellipsis
    if not isinstance(value, tuple | list) or (fixed_length and len(value) != len(parts)):
        return f"it must be {len(parts)} {kind}" if fixed_length else f"it must be a list of {kind}"
    return next((f"each of its {kind}: {wrong}" for part in value if (wrong := _fault(part, parts[0], limit))), "")
