"""Converts the rows of a table of any format to a `Source`: recognises the columns and validates their values."""

import json
import math
import os
import re
import unicodedata
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from image_text.base import Files, Source, as_file_name, labelled, quoted, some
from image_text.errors import UserError

# Known names of the columns, compared after `normal` (case, spaces and hyphens do not matter).
IMAGE = frozenset(
    {
        "image",
        "image_path",
        "image_name",
        "image_file",
        "image_file_name",
        "image_filename",
        "image_filepath",
        "img",
        "img_path",
    }
    | {"file", "file_name", "filename", "file_path", "filepath", "path", "picture"}
)
CAPTION = frozenset(
    {"caption", "captions", "text", "texts", "title", "sentence", "sentences"}
    | {"comment", "description", "alt_text", "raw"}
)
LABEL = frozenset(
    {"label", "labels", "label_name", "class", "classes", "class_name", "classname", "category", "category_name"}
)
LINK = frozenset({"url", "urls", "image_url", "img_url", "link"})

NOTHING = ("", "\\N")  # an empty cell, and how MySQL and PostgreSQL write one

ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://|data:")
_LIST = re.compile(r"""\[\s*(["']).*\1\s*,?\s*\]""", re.DOTALL)


class Columns(NamedTuple):
    """The names of the three columns, as spelled in the table; None for a column that is absent."""

    image: str | None
    caption: str | None
    label: str | None


def normal(name: str) -> str:
    """The normal form of a column's name: "Image Path" and "image-path" become "image_path"."""
    return re.sub(r"[\s_-]+", "_", name.strip().strip("\ufeff").casefold())


def columns_of(names: Sequence[str], where: str) -> Columns:
    """Recognises the columns of pictures, captions and labels by their names.

    Args:
        names: the names of all columns.
        where: how an error names the table.

    Raises:
        UserError: several columns could be the same one.
    """

    def one(known: frozenset[str], what: str) -> str | None:
        fitting = [name for name in names if normal(name) in known]
        if len(fitting) > 1:
            raise UserError(f"{where}: columns {some(fitting)} could each be the {what}: keep one, rename the others")
        return fitting[0] if fitting else None

    return Columns(one(IMAGE, "picture"), one(CAPTION, "caption"), one(LABEL, "label"))


def read_rows(
    path: Path,
    rows: Iterable[tuple[int, Mapping[str, Any]]],
    *,
    folders: Sequence[Path],
    unit: str = "line",
    without_pictures: bool = False,
) -> Source:
    """Converts the rows of a table to a `Source`.

    Args:
        path: the table, for errors.
        rows: (line number, {column: value}); a value is a text or any JSON value.
        folders: directories that may hold the pictures; the first one with the first picture is used for all.
        unit: how errors name a row ("line 3", "item 3").
        without_pictures: whether a table with only a column of captions is accepted.

    Raises:
        UserError: the table has no rows or no column of pictures; or a value is missing or not valid, or a picture does
            not exist: the error names the row.
    """
    names: list[str] = []
    captions: list[str] = []
    words: list[str] = []
    first: Columns | None = None
    folder, before = folders[0], None
    for where, row, columns in _with_columns(path, rows, unit):
        if first is None:
            first = columns
            _check_columns(columns, list(row), path, without_pictures)
        texts = _captions(row[columns.caption], where) if columns.caption else [""]
        captions += texts
        if columns.label:
            words += [_label(row[columns.label], where)] * len(texts)
        if columns.image:
            name = _name(row[columns.image], where)
            if before is None:
                folder = _folder_with(name, folders)
            if name != before:
                name = _there(name, folder, where)
            names += [name] * len(texts)
            before = name
    if first is None:
        raise UserError(f"{path}: it has no rows")
    labels, classes = labelled(words) if first.label else (None, None)
    return Source(names, Files(folder, names), captions if first.caption else None, labels, classes)


def _with_columns(
    path: Path, rows: Iterable[tuple[int, Mapping[str, Any]]], unit: str
) -> Iterator[tuple[str, Mapping[str, Any], Columns]]:
    """(place, row, columns) of each row; raises UserError unless every row has values in the columns of the first."""
    first: Columns | None = None
    known: dict[tuple[str, ...], Columns] = {}
    table = f"{path}: {unit}"
    for number, row in rows:
        where, keys = f"{table} {number}", tuple(row)
        if keys not in known:  # rows of a JSON table may differ in other columns
            if len(known) >= 100:
                known.clear()
            known[keys] = columns_of(keys, where)
        first = first or known[keys]
        for column in first:
            value = None if column is None else row.get(column)
            if column is not None and (value is None or (isinstance(value, str) and value.strip() in NOTHING)):
                raise UserError(f"{where} has no {column.strip()}")
        if known[keys] != first:
            others = [name for name in known[keys] if name not in first]
            raise UserError(f"{where} has a column {some(others)} that the first has not: give it to all or to none")
        yield where, row, first


def _check_columns(columns: Columns, names: list[str], path: Path, without_pictures: bool) -> None:
    listed = some(name.strip() for name in names)
    if columns.image is None and not (without_pictures and columns.caption and len(names) == 1):
        if addresses := [name for name in names if normal(name) in LINK]:
            hint = f"{addresses[0]} names what has to be downloaded first"
        else:
            hint = "call it 'image'"
        raise UserError(f"{path}: it has no column for pictures; {hint}; columns: {listed}")
    others = [name for name in names if normal(name) and name != columns.image]
    if columns.caption is None and columns.label is None and others:
        warnings.warn(
            f"{path}: no column is called caption or label, so there are none; columns: {listed}", stacklevel=2
        )


def _name(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise UserError(f"{where}: the picture is {quoted(value)}, not the name of a file")
    if ADDRESS.match(value):
        raise UserError(f"{where} names {quoted(value)}: an address, not a file; download the pictures first")
    return value.strip()


def _folder_with(name: str, folders: Sequence[Path]) -> Path:
    """The first folder with the picture; else the only subfolder of the first folder with it (Flickr8k)."""
    for folder in folders:
        if _exists(folder, name) or _exists(folder, name.replace("\\", "/")):
            return folder
    with os.scandir(folders[0]) as entries:
        inside = [folders[0] / entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir()]
    having = [folder for folder in inside if _exists(folder, name)]
    return having[0] if len(having) == 1 else folders[0]


def _there(name: str, folder: Path, where: str) -> str:
    """The name of an existing file: as written, with / for backslashes, or in another Unicode normal form (macOS)."""
    if _exists(folder, name):
        return name
    slashed = name.replace("\\", "/")
    for other in (slashed, unicodedata.normalize("NFC", slashed), unicodedata.normalize("NFD", slashed)):
        if other != name and _exists(folder, other):
            return other
    raise UserError(f"{where} names {folder / name}, which is not there")


def _exists(folder: Path, name: str) -> bool:
    return os.path.isfile(os.path.join(folder, as_file_name(name)))  # called once per row: a Path would be slow


def _captions(value: Any, where: str) -> list[str]:
    """The captions in a value: one text, a list of texts, or a text that holds a JSON list of texts."""
    if isinstance(value, str) and _LIST.fullmatch(value.strip()):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise UserError(f"{where}: the caption {quoted(value)} looks like a list, but is no JSON") from None
    texts = value if isinstance(value, list) else [value]
    if not texts or not all(isinstance(text, str) for text in texts):
        raise UserError(f"{where}: the caption is {quoted(value)}, neither text nor a list of texts")
    if not all(text.strip() for text in texts):
        raise UserError(f"{where} has an empty caption among {len(texts)}")
    for text in texts:
        if not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):
            raise UserError(f"{where}: the caption {quoted(text)} holds half of a character (a lone surrogate)")
    return texts


def _label(value: Any, where: str) -> str:
    if isinstance(value, float) and math.isfinite(value) and value.is_integer():
        return str(int(value))
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise UserError(f"{where}: the label is {quoted(value)}, neither text nor an integer")
    return str(value).strip()
