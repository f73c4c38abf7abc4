"""Recognises files by suffix and first bytes: which are pictures, and what the others are, for errors."""

from pathlib import Path

from PIL import Image

from image_text.decode import NOT_DECODED
from image_text.errors import UserError

# Suffixes of pictures that Pillow does not read, or not in every build: a warning names those that are left out.
OTHER_PICTURES = frozenset(
    {".heic", ".heif", ".hif", ".avif", ".avifs", ".webp", ".jp2", ".jxl", ".svg", ".svgz", ".eps", ".ps", ".pdf"}
    | {".raw", ".cr2", ".cr3", ".nef", ".arw", ".dng", ".orf", ".rw2", ".raf", ".psb", ".xcf", ".exr", ".hdr"}
)

_BY_SUFFIX = {
    ".tar": "a tar (of WebDataset?), which is not read yet: unpack it into a folder",
    ".tgz": "a packed tar: unpack it into a folder",
    ".parquet": "a Parquet table, which is not read yet: save it as .csv or .jsonl",
    ".arrow": "an Arrow table: save it as .csv or .jsonl",
    ".feather": "an Arrow table: save it as .csv or .jsonl",
    ".xlsx": "an Excel sheet: save it as CSV (UTF-8)",
    ".xls": "an Excel sheet: save it as CSV (UTF-8)",
    ".zip": "a zip: unpack it into a folder",
    ".gz": "packed by gzip: unpack it",
    ".tfrecord": "a TFRecord: name its dataset, tfds:NAME:SPLIT",
}
_BY_START = (
    (b"PAR1", ".parquet"),
    (b"ARROW1", ".arrow"),
    (b"PK\x03\x04", ".zip"),
    (b"\x1f\x8b", ".gz"),
)
_OTHER_STARTS = (
    (b"version https://git-lfs", "a Git LFS pointer: run `git lfs pull`"),
    (b"\x89HDF\r\n\x1a\n", "HDF5: save it as .csv or .jsonl"),
    (b"SQLite format 3\0", "an SQLite database: save it as .csv or .jsonl"),
    (b"<!DOCTYPE html", "a web page: the download went wrong"),
    (b"<html", "a web page: the download went wrong"),
)


def suffixes_of_pictures() -> frozenset[str]:
    """The suffixes, in lower case, of pictures that Pillow decodes with the plugins that are registered now."""
    Image.init()
    known = Image.registered_extensions().items()
    return frozenset(suffix for suffix, kind in known if kind in Image.OPEN and kind not in NOT_DECODED)


def what_it_is(path: Path) -> str | None:
    """What a file is, if it is of a known kind that is not a table: by its first bytes, else by its suffix."""
    with path.open("rb") as file:
        start = file.read(512)
    for mark, suffix in _BY_START:
        if start.startswith(mark):
            actual = path.suffix.lower()
            return _BY_SUFFIX[actual if actual in (".xlsx", ".tgz") else suffix]
    for mark, what in _OTHER_STARTS:
        if start[: len(mark)].lower() == mark.lower():
            return what
    return _BY_SUFFIX[".tar"] if start[257:262] == b"ustar" else _BY_SUFFIX.get(path.suffix.lower())


def refuse(path: Path) -> UserError:
    """The error, to be raised, for a file that is not a source of pictures."""
    if what := what_it_is(path):
        return UserError(f"{path} is {what}")
    if path.suffix.lower() in OTHER_PICTURES:
        return UserError(f"{path} is a picture that Pillow does not read here: convert it to PNG")
    return UserError(f"{path} is neither a folder nor a table (.csv, .tsv, .jsonl, .json) nor tfds:NAME:SPLIT")
