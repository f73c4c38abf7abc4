"""Reading of untrusted JSON: of bounded size, and without duplicate keys."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from clip_jax.errors import UserError, one_line, printable
from clip_jax.weights.untrusted import MAX_HEADER


def parse_json(content: bytes | str) -> Any:
    """The value of a JSON text.

    Raises:
        UserError: the text is not JSON, is nested too deep, or has a duplicate key, whose value is ambiguous.
    """
    try:
        text = content if isinstance(content, str) else content.decode("utf-8-sig")
        return json.loads(text, object_pairs_hook=_object)
    except RecursionError as error:
        raise UserError("it is not JSON of ours: it is nested too deep") from error
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"it is not JSON: {one_line(error)}") from error


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        UserError: the file is absent, larger than `MAX_HEADER` bytes, or holds anything but a JSON object.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_HEADER + 1)
        if len(content) > MAX_HEADER:
            raise UserError(f"it has more than {MAX_HEADER} bytes, which no config has")
        data = parse_json(content)
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file") from None
    except (OSError, UserError) as error:
        raise UserError(f"{path} is not JSON: {one_line(error).removeprefix('it is not JSON: ')}") from error
    if not isinstance(data, dict):
        raise UserError(f"{path} is not a JSON object: it is not a CLIP config, nor an index")
    return data


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) != len(pairs):
        duplicate = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise UserError(f"the key {printable(repr(duplicate), 100)} stands twice in it: keep one of the two")
    return data
