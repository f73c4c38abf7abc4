"""Limits of untrusted weights files, shared by all readers: far above what real checkpoints have."""

from collections.abc import Mapping
from typing import Any

from clip_jax.errors import UserError

MAX_NAME = 1000  # characters in the name of an array: the longest of a CLIP has 80
MAX_ARRAYS = 100_000  # a CLIP has some hundreds, a checkpoint with its optimizer some thousands
MAX_HEADER = 1 << 23  # bytes of JSON: 8 MiB describe eighty thousand arrays, and become 200 MiB of objects at worst


def check_names(names: Mapping[str, Any]) -> None:
    """Checks the names of the arrays in a file.

    Raises:
        UserError: there are too many names, or one is too long or not printable.
    """
    if len(names) > MAX_ARRAYS:
        raise UserError(f"it holds {len(names)} arrays, at most {MAX_ARRAYS} are read: it is not a weights file")
    for name in names:
        if len(name) > MAX_NAME:
            raise UserError(f"it holds a name of {len(name)} characters: it is not a weights file")
        if not name.isprintable():
            raise UserError(f"it holds the name {name!r}, with control characters in it: it is not a weights file")
