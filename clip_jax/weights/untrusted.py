"""What every reader of a foreign file shares: limits, and the boundary that turns whatever it raises into one line.

A file that somebody else wrote may be damaged or hostile. The readers beside this module check what they know of; what
they did not think of must still end as a `UserError` with the file's name, not as a traceback.
"""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from clip_jax.errors import UserError, one_line

MAX_NAME = 1000  # characters in the name of an array: the longest of a CLIP has 80
MAX_ARRAYS = 100_000  # a CLIP has some hundreds, a checkpoint with its optimizer some thousands
MAX_HEADER = 1 << 23  # bytes of JSON: 8 MiB describe eighty thousand arrays, and become 200 MiB of objects at worst


@contextlib.contextmanager
def reading(path: Path, what: str = "weights") -> Iterator[None]:
    """Turns any exception of the block into a UserError of one line that names `path`.

    A UserError passes as it is if it names the file already.
    """
    try:
        yield
    except UserError as error:
        if str(path) in str(error):
            raise
        raise UserError(f"cannot read {what} from {path}: {error}") from error
    except MemoryError as error:
        raise UserError(f"cannot read {what} from {path}: there is not enough memory for it") from error
    except Exception as error:  # a damaged file can be wrong in every way, and readers raise what they like
        raise UserError(f"cannot read {what} from {path}: {one_line(error)}") from error


def check_names(names: Mapping[str, Any]) -> None:
    """Raises UserError for names of arrays that no program gives: too many, too long, or not printable."""
    if len(names) > MAX_ARRAYS:
        raise UserError(f"it holds {len(names)} arrays, at most {MAX_ARRAYS} are read: it is not a weights file")
    for name in names:
        if len(name) > MAX_NAME:
            raise UserError(f"it holds a name of {len(name)} characters: it is not a weights file")
        if not name.isprintable():
            raise UserError(f"it holds the name {name!r}, with control characters in it: it is not a weights file")
