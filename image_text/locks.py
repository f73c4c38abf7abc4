"""One process at a time in a directory, on whatever the system offers: the kernel drops its locks with the process."""

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

WAIT_SECONDS = 0.2  # between two tries, where the system cannot wait itself


@contextmanager
def locked(path: Path, *, wait: bool) -> Iterator[None]:
    """Holds the lock file `path`, made if need be, in a block.

    Args:
        path: the lock file; it stays there, empty.
        wait: whether to wait while another process holds it.

    Raises:
        BlockingIOError: another process holds it, and `wait` is False.
    """
    with open(path, "a") as file:
        lock(file, path, wait=wait)
        yield


def lock(file: IO[Any], path: Path, *, wait: bool) -> None:
    """Locks an open file until it is closed. Where the system has no locks there is a warning instead.

    Args:
        file: open for writing.
        path: where it lies, for the warning.
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
    """Windows' lock, on the first byte of the file; closing the file drops it."""
    while True:
        try:
            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
            return
        except OSError:
            if not wait:
                raise BlockingIOError from None
            time.sleep(WAIT_SECONDS)
