"""Atomic file writes, and a lock that lets one process at a time train in a run directory."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from image_text.locks import locked
from train_jax.errors import UserError

__all__ = ["hold", "write_atomically"]


def write_atomically(path: Path, text: str) -> None:
    """Write `text` to `path` atomically: a reader, even after kill -9, finds the old file or the new one, whole."""
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp makes files that only their owner may read
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


@contextmanager
def hold(directory: Path) -> Iterator[None]:
    """Context manager that holds the lock of a run directory, created if need be.

    The kernel releases the lock when the process ends, so a killed run leaves no stale lock.

    Raises:
        UserError: another process holds it, or the path is a file.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UserError(f"{directory}: it is a file, not a directory; choose another") from None
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(locked(directory / ".lock", wait=False))
        except BlockingIOError:
            raise UserError(f"{directory}: another process is training here; wait for it or choose another") from None
        for leftover in directory.glob(".*.tmp"):  # of a `write_atomically` that was killed
            leftover.unlink(missing_ok=True)
        yield
