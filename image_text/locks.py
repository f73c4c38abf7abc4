"""File locks between processes, on POSIX and Windows. The system releases a lock when its process ends."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

try:
    import fcntl
except ImportError:  # not POSIX
    fcntl = None  # type: ignore[assignment]
try:
    import msvcrt
except ImportError:  # not Windows
    msvcrt = None  # type: ignore[assignment]

__all__ = ["lock", "locked"]

log = logging.getLogger(__name__)

WAIT_SECONDS = 0.2  # between two attempts on Windows, whose lock call does not wait


@contextmanager
def locked(path: Path, *, wait: bool) -> Iterator[None]:
    """Holds a lock on the file `path` during a block.

    Args:
        path: the lock file, created if it is absent; it is empty and never removed.
        wait: whether to wait while another process holds it.

    Raises:
        BlockingIOError: another process holds it, and `wait` is False.
    """
    with open(path, "a") as file:
        lock(file, path, wait=wait)
        yield


def lock(file: IO[Any], path: Path, *, wait: bool) -> None:
    """Locks an open file until it is closed. On a system without locks, logs a warning instead.

    Args:
        file: the file, open for writing.
        path: its path, for the warning.
        wait: whether to wait while another process holds it.

    Raises:
        BlockingIOError: another process holds it, and `wait` is False.
    """
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    elif msvcrt is not None:
        _lock_bytes(file, wait=wait)
    else:
        log.warning("%s: this system locks no files; let no second process write here", path.parent)


def _lock_bytes(file: IO[Any], *, wait: bool) -> None:
    """Locks the first byte of the file on Windows; closing the file releases the lock."""
    while True:
        try:
            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
            return
        except OSError:
            if not wait:
                raise BlockingIOError from None
            time.sleep(WAIT_SECONDS)
