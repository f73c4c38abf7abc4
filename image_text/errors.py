"""`UserError`, the error for bad input, and `reading`, which converts other exceptions to it.

A file may be damaged or hostile. Readers check for the faults that they know; any other exception must also become a
`UserError` with the file's name instead of a traceback, so they read inside `with reading(path):`.
"""

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

MAX_LINE = 2000  # characters of an error: names and values from files may be megabytes long


class UserError(ValueError):
    """The error for bad input, one line: what is wrong, the values, what to do. Commands print it and exit with 2.

    The message is made printable, as it may quote files: line breaks become spaces, control characters (such as
    terminal escapes) are spelled out, and messages above `MAX_LINE` characters lose their middle.
    """

    def __init__(self, message: object = ""):
        super().__init__(printable(message))


def printable(text: object, limit: int = MAX_LINE) -> str:
    """A text as one printable line; a text of more than `limit` characters loses its middle."""
    line = text if isinstance(text, str) else str(text)
    if len(line) > limit:
        line = f"{line[: limit * 2 // 3]} … {line[-limit // 3 :]}"
    if line.isprintable():
        return line
    return "".join(c if c.isprintable() else " " if c.isspace() else repr(c)[1:-1] for c in line)


def one_line(error: object, limit: int = 300) -> str:
    """The message of an error as one line of about `limit` characters, to quote in another error."""
    return " ".join(printable(error, limit).split()) or type(error).__name__


@contextlib.contextmanager
def reading(path: str | os.PathLike, what: str = "weights") -> Iterator[None]:
    """Turns any exception of the block into a UserError of one line that names `path`.

    A UserError that contains `path` is raised unchanged.

    Args:
        path: the file that the block reads.
        what: what the block reads from it.

    Raises:
        UserError: the block raised an exception.
    """
    try:
        yield
    except UserError as error:
        if str(path) in str(error):
            raise
        raise UserError(f"cannot read {what} from {path}: {error}") from error
    except MemoryError as error:
        raise UserError(f"cannot read {what} from {path}: there is not enough memory for it") from error
    except Exception as error:  # readers raise many types for damaged files
        raise UserError(f"cannot read {what} from {path}: {one_line(error)}") from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # a panic of a Rust library (PyO3), which is no Exception
            raise
        raise UserError(f"cannot read {what} from {path}: {one_line(error)}") from error


def names_its_file(read: Callable[P, T]) -> Callable[P, T]:
    """A decorator for readers of configs, `read(data, …, where)`: runs them inside `reading(where)`."""

    @functools.wraps(read)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        with reading(str(kwargs.get("where", args[-1] if args else "")), "the config"):
            return read(*args, **kwargs)

    return wrapped
