"""SHA-256 digests of saved files: `config.json` holds those of the weights and the tokenizer beside it.

Without a digest, a flipped bit in a weight or the tokenizer of another run would go unnoticed. The digest is of the
bytes of the file, not of its arrays, so it covers headers and tokenizers too; it takes one or two seconds per gigabyte.
"""

import hashlib
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from clip_jax.errors import UserError

DIGESTS = "digests"  # the field of `config.json`: {file name: SHA-256}

log = logging.getLogger(__name__)


def file_digest(path: str | os.PathLike) -> str:
    """SHA-256 of a file's bytes, as 64 hexadecimal digits.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


def check_digest(path: str | os.PathLike, digest: str | None) -> None:
    """Checks the `file_digest` of a file; None (a file saved by a version without digests) accepts any file.

    Raises:
        UserError: the digest differs.
    """
    if digest is None:
        log.debug("%s has no digest in its config.json: it was saved by an older version, and is taken as it is", path)
    elif file_digest(path) != digest:
        raise UserError(
            f"{path} is not the file that was saved: its SHA-256 differs from the one in config.json; "
            "it was damaged or exchanged, copy it again"
        )


def digests(directory: str | os.PathLike, names: Iterable[str]) -> dict[str, str]:
    """{name: `file_digest`} of the files in a directory; names without a file are left out."""
    return {name: file_digest(Path(directory, name)) for name in names if Path(directory, name).is_file()}


def read_digests(value: Any, field: str, names: Iterable[str]) -> dict[str, str]:
    """The digests in a `config.json`.

    Args:
        value: the value of the field; None (a file of a version without digests) gives {}.
        field: how an error names the field.
        names: the file names that may have a digest.

    Raises:
        UserError: the value is not {name: SHA-256 as 64 hexadecimal digits} of these names.
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
