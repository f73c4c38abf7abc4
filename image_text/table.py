"""Reads tables as a `Source`: delimited text (.csv, .tsv, .txt), JSON lines, and JSON documents (COCO, lists)."""

import csv
import json
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from image_text.base import Source, quoted, some
from image_text.columns import CAPTION, IMAGE, LABEL, normal, read_rows
from image_text.errors import UserError
from image_text.kinds import refuse, what_it_is
from image_text.lines import LONGEST_LINE, lines_of

TABLES = frozenset({".csv", ".tsv", ".txt", ".token", ".jsonl", ".ndjson", ".json"})
LARGEST_JSON = 2**30  # bytes of a JSON document, which is read into memory

Rows = Iterator[tuple[int, Mapping[str, Any]]]

_TOKEN = re.compile(r"(?P<name>[^\t]+)#[0-9]+\t(?P<caption>.*)", re.DOTALL)  # Flickr8k.token.txt, without a header
_SEPARATORS = "\t;|,"


def read_table(path: Path, *, without_pictures: bool = False) -> Source:
    """Reads a table as a `Source`.

    Names of pictures are relative to the directory of the table, or to its only subfolder with the first picture, or to
    COCO's directories (`annotations/captions_val2017.json`, `val2017/`).

    Args:
        path: a file with a suffix in `TABLES`.
        without_pictures: whether a table with only a column of captions is accepted.

    Raises:
        UserError: the file is not a table, or a row is not valid; the error names the row or the columns.
    """
    if what := what_it_is(path):
        raise UserError(f"{path} is {what}")
    suffix, folders, unit = path.suffix.lower(), [path.parent], "line"
    if suffix == ".json":
        rows, unit = _document(path), "item"
        stem = path.stem.partition("_")[2]  # captions_val2017
        folders += [path.parent.parent / stem, path.parent.parent / "images" / stem, path.parent / "images"]
    elif suffix in (".jsonl", ".ndjson"):
        rows = _json_lines(path)
    else:
        rows = _delimited(path)
    return read_rows(path, rows, folders=folders, unit=unit, without_pictures=without_pictures)


def _delimited(path: Path) -> Rows:
    lines = lines_of(path)
    header = next((line for line in lines if line.strip()), "")
    start = 1
    if found := re.fullmatch(r"sep=(.)\s*", header):  # Excel's declaration of the separator
        header, start = next(lines, ""), 2
    if _TOKEN.fullmatch(header):
        yield from _token(path)
        return
    separator = found[1] if found else _separator(header, path)
    # If the header has spaces after its separators, the rows have them too, before the quotation marks.
    spaced = any(cell[:1] == " " for cell in header.split(separator)[1:])
    options: dict[str, Any] = {"delimiter": separator, "skipinitialspace": spaced, "strict": True}
    if separator == "|":  # Flickr30k's results.csv, where quotation marks are part of the text
        options["quoting"] = csv.QUOTE_NONE
    try:
        names = [name.strip() for name in next(csv.reader([header], **options), [])]
    except csv.Error as error:
        raise UserError(f"{path}: the header cannot be read: {error}") from None
    if path.suffix.lower() in (".txt", ".token") and not any(normal(name) in IMAGE for name in names):
        raise refuse(path)
    _check_header(names, path)
    yield from _cells(path, lines, names, start, options)


def _cells(path: Path, lines: Iterator[str], names: list[str], start: int, options: dict[str, Any]) -> Rows:
    """Yields the rows after the header, which ends in line `start`."""
    csv.field_size_limit(max(csv.field_size_limit(), LONGEST_LINE))  # a setting of the whole process: never lowered
    reader = csv.reader(lines, **options)
    spaced, empty = options["skipinitialspace"], dict.fromkeys(names)
    while True:
        line = start + reader.line_num + 1
        try:
            row = next(reader, None)
        except csv.Error as error:
            quotes = '"' in str(error) or "end of data" in str(error)
            hint = "; is a quotation mark not closed, or not doubled?" if quotes else ""
            raise UserError(f"{path}: line {line}: {error}{hint}") from None
        if row is None:
            return
        if not any(cell.strip() for cell in row):
            continue
        if len(row) > len(names) and any(cell.strip() for cell in row[len(names) :]):
            raise UserError(
                f"{path}: line {line} has {len(row)} fields, the header {len(names)} ({some(names)}): "
                f"put quotation marks around text with {options['delimiter']!r} in it"
            )
        cells = (cell.strip() for cell in row) if spaced else row
        yield line, empty | dict(zip(names, cells, strict=False))


def _separator(header: str, path: Path) -> str:
    """The separator that gives the header the most known column names; on a tie, that of the file's suffix."""
    usual = "\t" if path.suffix.lower() == ".tsv" else ","

    def known(separator: str) -> int:
        return sum(normal(cell.strip(' "\r\n')) in IMAGE | CAPTION | LABEL for cell in header.split(separator))

    return max(_SEPARATORS, key=lambda separator: (known(separator), separator == usual))


def _check_header(names: list[str], path: Path) -> None:
    twice = {name for name in names if names.count(name) > 1 and normal(name) in IMAGE | CAPTION | LABEL}
    if twice:
        raise UserError(f"{path}: the column {some(sorted(twice))} is there twice: keep one, rename the others")


def _token(path: Path) -> Rows:
    for line, text in enumerate(lines_of(path), 1):
        if text.strip():
            if not (found := _TOKEN.fullmatch(text.rstrip("\r\n"))):
                raise UserError(f"{path}: line {line} is not like the first, `picture.jpg#0<TAB>caption`")
            yield line, {"image": found["name"], "caption": found["caption"].strip()}


def _json_lines(path: Path) -> Rows:
    for line, text in enumerate(lines_of(path), 1):
        if text.strip():
            row = _json(text, f"{path}: line {line}")
            if not isinstance(row, dict):
                raise UserError(f"{path}: line {line} is not an object: {{...}}")
            yield line, row


def _document(path: Path) -> Rows:
    size = path.stat().st_size
    if size > LARGEST_JSON:
        raise UserError(f"{path}: a JSON document of {size:,} bytes is too large to be read at once: make it a .jsonl")
    data = _json("".join(lines_of(path)), str(path))
    if isinstance(data, list):
        for number, row in enumerate(data, 1):
            if not isinstance(row, dict):
                raise UserError(f"{path}: item {number} is not an object: {{...}}")
            yield number, row
    elif isinstance(data, dict) and isinstance(data.get("images"), list) and isinstance(data.get("annotations"), list):
        yield from _coco(path, data)
    else:
        raise UserError(f"{path}: it is neither COCO's captions nor a list of objects; write .csv or .jsonl")


def _coco(path: Path, data: dict[str, Any]) -> Rows:
    """Yields one row per annotation of COCO: the `file_name` of its picture and its `caption`."""
    names: dict[Any, str] = {}
    for number, image in enumerate(data["images"], 1):
        if not isinstance(image, dict) or not isinstance(image.get("file_name"), str):
            raise UserError(f"{path}: image {number} has no file_name")
        if not isinstance(image.get("id"), int | str) or image["id"] in names:
            raise UserError(f"{path}: image {number} has no id of its own")
        names[image["id"]] = image["file_name"]
    without = names.keys() - {a.get("image_id") for a in data["annotations"] if isinstance(a, dict)}
    if without and len(without) < len(names):
        warnings.warn(f"{path}: {len(without)} of {len(names)} images have no caption and are left out", stacklevel=2)
    for number, annotation in enumerate(data["annotations"], 1):
        if not isinstance(annotation, dict) or "caption" not in annotation:
            raise UserError(f"{path}: annotation {number} has no caption; COCO's captions are in captions_*.json")
        identity = annotation.get("image_id")
        if not isinstance(identity, int | str) or identity not in names:
            raise UserError(f"{path}: annotation {number} is of the image {quoted(identity)}, which is not listed")
        yield number, {"image": names[identity], "caption": annotation["caption"]}


def _json(text: str, where: str) -> Any:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        data: dict[str, Any] = {}
        for key, value in pairs:
            if key in data:
                raise UserError(f"{where} has {quoted(key)} twice")
            data[key] = value
        return data

    try:
        return json.loads(text.lstrip("\ufeff"), object_pairs_hook=once)
    except UserError:
        raise
    except RecursionError:
        raise UserError(f"{where} is nested too deeply") from None
    except json.JSONDecodeError as error:
        hint = "; is it an object per line? call it .jsonl" if error.msg == "Extra data" else ""
        raise UserError(f"{where} is not JSON: {error}{hint}") from None
    except ValueError as error:  # an integer of thousands of digits
        raise UserError(f"{where} is not JSON: {error}") from None
