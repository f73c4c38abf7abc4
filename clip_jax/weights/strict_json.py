"""JSON as configs are written: one value per name, and no more of it than a config needs."""

import json
from pathlib import Path
from typing import Any

LARGEST = 1 << 20  # bytes of a config


def parse(text: str) -> Any:
    """As `json.loads`, which takes the last of two values of one name without a word.

    Raises: ValueError when a name stands twice in one object, or the text is no JSON or nested too deeply.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_config(path: Path) -> dict[str, Any]:
    """A JSON object from a file of UTF-8.

    Raises: OSError when it cannot be read; ValueError when it is larger than `LARGEST`, or holds anything else.
    """
    if path.stat().st_size > LARGEST:
        raise ValueError(f"it has more than {LARGEST} bytes")
    data = parse(path.read_text(encoding="utf-8"))
    if not isinstance(data, dict):
        raise ValueError("it is not a JSON object")
    return data


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in data if names.count(name) > 1)
        raise ValueError(f"{twice[:80]!r} stands in it twice")
    return data
