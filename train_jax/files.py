"""What a run directory needs of the file system: files that appear whole, and one writer at a time."""

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
    """Write `text` so that a reader, or a rerun after kill -9, finds the old file or the new one and never a half."""
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp's files are for their owner alone
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
    """Hold the directory's lock, creating the directory if need be.

    The kernel drops the lock with the process, so a killed run leaves nothing to clean up.

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
        for leftover in directory.glob(".*.tmp"):  # a killed run was writing it
            leftover.unlink(missing_ok=True)
        yield
