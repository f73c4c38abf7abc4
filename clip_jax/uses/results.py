"""What the commands write: .npz or .parquet, a column per array, whole or not at all."""

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from clip_jax.errors import UserError
from clip_jax.weights.native import atomic_path
from image_text.optional import optional

SUFFIXES = (".npz", ".parquet")
PADDING = 8  # times the size of the texts that an array of equally wide ones may take
SMALL = 2**24  # bytes at which it does not matter


def check_output(path: Path) -> None:
    """Refuses, before anything is computed, an --out that cannot be written. Nothing is left there."""
    if path.suffix not in SUFFIXES:
        raise UserError(f"--out: {path} is neither {' nor '.join(SUFFIXES)}")
    parent = path.absolute().parent
    if not parent.is_dir():
        raise UserError(f"--out: {path.parent} is not a directory: make it first")
    if path.is_dir():
        raise UserError(f"--out: {path} is a directory")
    try:
        with tempfile.TemporaryFile(dir=parent):
            pass
    except OSError as error:
        raise UserError(f"--out: nothing can be written in {path.parent}: {error.strerror}") from None
    if path.suffix == ".parquet":
        pyarrow()


def check_space(path: Path, size: int) -> None:
    """Refuses an --out for which the disk has no room: `size` bytes, twice, as they are kept until all are there."""
    free = shutil.disk_usage(path.absolute().parent).free
    if 2 * size > free:
        raise UserError(f"--out: {path} takes some {2 * size:,} bytes, and {free:,} are free in {path.parent}")


def pyarrow() -> Any:
    """The package `pyarrow`, with `pyarrow.parquet`.

    Raises:
        UserError: it is not installed.
    """
    with optional("pyarrow", needed_by="--out: .parquet (.npz needs nothing)", extra="parquet"):
        import pyarrow.parquet
    return pyarrow


def write(path: Path, columns: Mapping[str, np.ndarray | list[str]]) -> None:
    """One array per column, in parquet lists where it has several axes; lists are texts, see `text_arrays`."""
    with atomic_path(path) as temporary:
        if path.suffix == ".parquet":
            arrow = pyarrow()
            lists = {n: c if isinstance(c, list) else list(c) if c.ndim > 1 else c.tolist() for n, c in columns.items()}
            arrow.parquet.write_table(arrow.table(lists), temporary)
        else:
            arrays: dict[str, np.ndarray] = {}
            for name, column in columns.items():
                arrays |= text_arrays(name, column) if isinstance(column, list) else {name: column}
            with open(temporary, "wb") as file:
                np.savez(file, **arrays)  # type: ignore[arg-type] # its first own argument is no column


def text_arrays(name: str, texts: list[str]) -> dict[str, np.ndarray]:
    """Texts as arrays that are read without pickle: an array of str `name`, as wide as the longest of them.

    Where one is so long that this array would be more than eight times as large as the texts (and 16 MiB), they are
    `name_utf8`, uint8, all texts as UTF-8 one after the other, and `name_ends`, int64 [N], where each ends.
    `read_texts` reads both.
    """
    encoded = [text.encode("utf-8", "backslashreplace") for text in texts]
    ends = np.cumsum([len(text) for text in encoded], dtype=np.int64)
    width = 4 * max(map(len, texts), default=0)
    if len(texts) * width <= max(SMALL, PADDING * (int(ends[-1]) if len(ends) else 0)):
        return {name: np.array(texts, dtype=np.str_)}
    return {f"{name}_utf8": np.frombuffer(b"".join(encoded), np.uint8), f"{name}_ends": ends}


def read_texts(path: str | os.PathLike, name: str) -> list[str]:
    """The texts of the column `name` of an .npz that `embed` or `classify` wrote, however long they are."""
    with np.load(path) as file:
        if name in file:
            return file[name].tolist()
        if f"{name}_ends" not in file:
            raise UserError(f"{os.fspath(path)} has no column {name}; it has {', '.join(file)}")
        data, ends = file[f"{name}_utf8"].tobytes(), file[f"{name}_ends"].tolist()
    return [data[start:end].decode() for start, end in zip([0, *ends[:-1]], ends, strict=True)]
