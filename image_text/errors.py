"""The one error a caller can provoke with bad input, and the boundary at which it is made of others.

A file that somebody else wrote may be damaged or hostile. Readers check what they know of; what they did not think of
must still end as a `UserError` with the file's name, not as a traceback: they read inside `with reading(path):`.
"""

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

MAX_LINE = 2000  # characters: names and values in an error come from files, where they may be megabytes long


class UserError(ValueError):
    """Bad input, told in one line: what is wrong, the values, what to do. Command lines print it and exit with 2.

    The line is always printable, as it quotes files: line breaks become spaces, control characters (terminal escapes
    among them) are spelled out, and what is longer than `MAX_LINE` characters is cut in the middle.
    """

    def __init__(self, message: object = ""):
        super().__init__(printable(message))


def printable(text: object, limit: int = MAX_LINE) -> str:
    """A text as one line that is safe to print, with its middle left out where it is longer than `limit`."""
    line = text if isinstance(text, str) else str(text)
    if len(line) > limit:
        line = f"{line[: limit * 2 // 3]} … {line[-limit // 3 :]}"
    if line.isprintable():
        return line
    return "".join(c if c.isprintable() else " " if c.isspace() else repr(c)[1:-1] for c in line)


def one_line(error: object, limit: int = 300) -> str:
    """An error's text on one line, short enough to stand inside another error."""
    return " ".join(printable(error, limit).split()) or type(error).__name__


@contextlib.contextmanager
def reading(path: str | os.PathLike, what: str = "weights") -> Iterator[None]:
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
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # of libraries written in Rust, which made it no Exception
            raise
        raise UserError(f"cannot read {what} from {path}: {one_line(error)}") from error


def names_its_file(read: Callable[P, T]) -> Callable[P, T]:
    """Decorator of a reader of a config, `read(data, …, where)`: it runs inside `reading(where)`."""

    @functools.wraps(read)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        with reading(str(kwargs.get("where", args[-1] if args else "")), "the config"):
            return read(*args, **kwargs)

    return wrapped
