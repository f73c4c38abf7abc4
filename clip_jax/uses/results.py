"""Writes the results of the commands to .npz or .parquet, atomically, and reads text columns back."""

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
PADDING = 8  # largest size of a fixed-width array of texts, as a multiple of the texts' own size
SMALL = 2**24  # bytes up to which any padding is accepted


def check_output(path: Path) -> None:
    """Checks that the file of --out can be written, before anything is computed. It leaves no file behind.

    Raises:
        UserError: If the suffix is unknown, the directory is missing or not writable, or pyarrow is not installed.
    """
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
    """Checks that the disk has room for --out: twice `size` bytes, as OUT.part and the output exist at the same time.

    Raises:
        UserError: If less is free.
    """
    free = shutil.disk_usage(path.absolute().parent).free
    if 2 * size > free:
        raise UserError(f"--out: {path} takes some {2 * size:,} bytes, and {free:,} are free in {path.parent}")


def pyarrow() -> Any:
    """The package `pyarrow`, with `pyarrow.parquet`.

    Raises:
        UserError: If it is not installed.
    """
    with optional("pyarrow", needed_by="--out: .parquet (.npz needs nothing)", extra="parquet"):
        import pyarrow.parquet
    return pyarrow


def write(path: Path, columns: Mapping[str, np.ndarray | list[str]]) -> None:
    """Writes columns to a file, atomically.

    Args:
        path: with the suffix .npz or .parquet.
        columns: arrays, or lists of texts. In .npz texts are stored as `text_arrays` says; in .parquet an array with
            several axes is a column of lists.

    Raises:
        UserError: If pyarrow is needed and not installed.
    """
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
                np.savez(file, **arrays)  # type: ignore[arg-type] # mypy takes a column for its keyword `allow_pickle`


def text_arrays(name: str, texts: list[str]) -> dict[str, np.ndarray]:
    """Texts as arrays that can be read without pickle; `read_texts` reads them back.

    Args:
        name: of the column.
        texts: N of them.

    Returns:
        {name: array of str [N]}, of fixed width. If that would take more than 16 MiB and more than eight times the size
        of the texts, instead {name_utf8: uint8, the UTF-8 of all texts concatenated; name_ends: int64 [N], the offset
        of the end of each}.
    """
    encoded = [text.encode("utf-8", "backslashreplace") for text in texts]
    ends = np.cumsum([len(text) for text in encoded], dtype=np.int64)
    width = 4 * max(map(len, texts), default=0)
    if len(texts) * width <= max(SMALL, PADDING * (int(ends[-1]) if len(ends) else 0)):
        return {name: np.array(texts, dtype=np.str_)}
    return {f"{name}_utf8": np.frombuffer(b"".join(encoded), np.uint8), f"{name}_ends": ends}


def read_texts(path: str | os.PathLike, name: str) -> list[str]:
    """The texts of a column of an .npz that `embed` or `classify` wrote, in either form of `text_arrays`.

    Args:
        path: the .npz file.
        name: of the column.

    Raises:
        UserError: If there is no such column.
    """
    with np.load(path) as file:
        if name in file:
            return file[name].tolist()
        if f"{name}_ends" not in file:
            raise UserError(f"{os.fspath(path)} has no column {name}; it has {', '.join(file)}")
        data, ends = file[f"{name}_utf8"].tobytes(), file[f"{name}_ends"].tolist()
    return [data[start:end].decode() for start, end in zip([0, *ends[:-1]], ends, strict=True)]
