"""What a run directory needs of the file system: files that appear whole, one writer at a time, a config that stays."""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from train_jax.errors import UserError

__all__ = ["hold", "keep_config", "write_atomically"]


def write_atomically(path: Path, text: str) -> None:
    """Write `text` so that a reader, or a rerun after kill -9, finds the old file or the new one and never a half."""
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


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
    with open(directory / ".lock", "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{directory}: another process is training here; wait for it or choose another") from None
        yield


def keep_config(path: Path, config: Mapping[str, Any], *, begun: bool) -> None:
    """Write `config` to `path`; if the run has `begun`, check instead that what is written there says the same.

    Raises:
        UserError: the file differs; the message lists the changed keys.
    """
    wanted = json.loads(json.dumps(config))  # as it will come back: tuples become lists
    if not (begun and path.exists()):
        write_atomically(path, json.dumps(wanted, indent=2) + "\n")
        return
    try:
        written = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise UserError(f"{path}: it is not JSON; restore it or choose another directory") from None
    old, new = dict(_flat(written)), dict(_flat(wanted))
    missing = "(absent)"
    changed = [key for key in sorted(old.keys() | new.keys()) if old.get(key, missing) != new.get(key, missing)]
    if changed:
        shown = [f"{key} {old.get(key, missing)!r} → {new.get(key, missing)!r}" for key in changed[:5]]
        more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
        what = f"{', '.join(shown)}{more}"
        raise UserError(f"{path.parent}: its run has another config ({what}); choose another directory")


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{prefix}.{key}" if prefix else key)
    else:
        yield prefix, value
