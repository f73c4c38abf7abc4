"""The integrity of files that we wrote ourselves: their SHA-256 stands in the `config.json` beside them.

A flipped bit of a weight is a valid weight, and a tokenizer of another run reads every caption as another one: without
a digest neither is noticed. It is of the bytes and not of the arrays: that covers the header and the tokenizer in the
same way, needs no knowledge of the format, and takes a second or two per gigabyte.
"""

import hashlib
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from clip_jax.errors import UserError

DIGESTS = "digests"  # the field of a `config.json` that holds those of the files beside it

log = logging.getLogger(__name__)


def file_digest(path: str | os.PathLike) -> str:
    """SHA-256 of a file's bytes, in hex. Raises UserError when it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


def check_digest(path: str | os.PathLike, digest: str | None) -> None:
    """Raises UserError unless the file has this `file_digest`; None, of what was saved without one, takes any."""
    if digest is None:
        log.debug("%s has no digest in its config.json: it was saved by an older version, and is taken as it is", path)
    elif file_digest(path) != digest:
        raise UserError(
            f"{path} is not the file that was saved: its SHA-256 differs from the one in config.json; "
            "it was damaged or exchanged, copy it again"
        )


def digests(directory: str | os.PathLike, names: Iterable[str]) -> dict[str, str]:
    """{name: `file_digest`} of those of the files that are in the directory."""
    return {name: file_digest(Path(directory, name)) for name in names if Path(directory, name).is_file()}


def read_digests(value: Any, field: str, names: Iterable[str]) -> dict[str, str]:
    """The digests of a `config.json`: {} where the field is absent (None), as older versions left it.

    Raises:
        UserError: it names the field; it is anything but {name: SHA-256 in hex} of these names.
    """
    if value is None:
        return {}
    known = set(names)
    if not isinstance(value, dict) or not value or not value.keys() <= known:
        raise UserError(f"{field} is {str(value)[:80]!r}: it holds the SHA-256 of {' and '.join(sorted(known))}")
    for name, digest in value.items():
        if not isinstance(digest, str) or len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
            raise UserError(f"{field}.{name} is {str(digest)[:80]!r}: a SHA-256 has 64 digits 0-9 and a-f")
    return dict(value)
