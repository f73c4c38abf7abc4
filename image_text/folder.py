"""Reads a folder of pictures as a `Source`: classes from subfolders, captions from files beside the pictures."""

import os
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from image_text.base import Files, Source, in_words, labelled, some
from image_text.errors import UserError
from image_text.kinds import OTHER_PICTURES, suffixes_of_pictures
from image_text.lines import words_of
from image_text.table import read_table

# Files and folders of operating systems and programs, ignored like all names that begin with a dot.
NO_DATA = frozenset(
    {"__macosx", "__pycache__", "thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir", "$recycle.bin", "lost+found"}
)
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.tsv", "metadata.parquet")  # as in Hugging Face's imagefolder
TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl")
SIDECARS = (".txt", ".caption")
SPLITS = frozenset({"train", "training", "test", "testing", "val", "valid", "validation", "dev"})
MOST_LINKS_TO_ONE = 100  # links between folders can make the number of paths exponential

_NUMBERS = re.compile(r"[0-9]+( +[0-9.eE+-]+){4,}")  # a line of a YOLO file with bounding boxes


class Found(NamedTuple):
    """The files of a folder by kind; names are relative to the folder and sorted."""

    pictures: list[str]
    captions: dict[str, str]  # name of a picture without its suffix -> name of the text beside it
    metadata: list[str]
    other: Counter[str]  # suffixes of pictures that Pillow does not read, with their number
    tables: list[str]  # other tables in the folder itself, which are not read


def read_folder(folder: Path) -> Source:
    """Reads the pictures of a folder and its subfolders. Links are followed.

    Captions or labels come from a `metadata.csv` (or .tsv, .jsonl) beside the pictures, in the folder or subfolders.
    Without one, captions come from a text file beside each picture (`a.png`, `a.txt`), one caption per line. Without
    metadata, if every picture lies in a subfolder, the names of the top-level subfolders are the classes; if these are
    splits (`train`, `test`, `val`), the names of the folders within them.

    Raises:
        UserError: there is no picture; links form a cycle; only some pictures have captions; or a folder has two
            metadata files.
    """
    found = _walk(folder)
    if found.other:
        parts = ", ".join(f"{count} {suffix}" for suffix, count in sorted(found.other.items()))
        warnings.warn(f"{folder}: left out, as Pillow does not read them here: {parts}; convert them", stacklevel=2)
    if found.metadata:
        return _with_metadata(folder, found)
    if found.tables:
        warnings.warn(
            f"{folder}: {some(found.tables, 3)} in it is not read; if it has the captions or labels, name it instead",
            stacklevel=2,
        )
    if not found.pictures:
        kinds = sorted(suffixes_of_pictures() & {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".avif"})
        raise UserError(f"{folder}: there is no picture in it ({', '.join(kinds)} and others that Pillow reads)")
    if found.captions:
        return _with_sidecars(folder, found)
    return Source(_printable(found.pictures), Files(folder, found.pictures), None, *_classes(found.pictures))


def _walk(folder: Path) -> Found:
    suffixes = suffixes_of_pictures()
    pictures: list[str] = []
    texts: dict[str, str] = {}
    metadata: list[str] = []
    other: Counter[str] = Counter()
    tables: list[str] = []
    for name in _files(folder):
        stem, suffix = os.path.splitext(name)
        suffix = suffix.lower()
        if suffix in suffixes:
            pictures.append(name)
        elif os.path.basename(name).lower() in METADATA:
            metadata.append(name)
        elif "/" not in name and (suffix in TABLE_SUFFIXES or name.lower() == "captions.txt"):
            tables.append(name)
        elif suffix in SIDECARS:
            texts[stem] = name
        elif suffix in OTHER_PICTURES:
            other[suffix] += 1
    pictures.sort(key=lambda name: name.split("/"))
    stems = {os.path.splitext(name)[0] for name in pictures} if texts else set()
    captions = {stem: name for stem, name in texts.items() if stem in stems}
    return Found(pictures, captions, sorted(metadata), other, sorted(tables))


def _files(folder: Path) -> Iterator[str]:
    """The names of the files that may be data, relative to `folder`, with / as separator."""
    pending: list[tuple[str, tuple[tuple[int, int], ...]]] = [("", (_identity(folder),))]
    times: Counter[tuple[int, int]] = Counter()
    while pending:
        inside, above = pending.pop()
        with os.scandir(folder / inside) as entries:
            for entry in entries:
                name = f"{inside}{entry.name}"
                if entry.name.startswith(".") or entry.name.lower() in NO_DATA:
                    continue
                try:
                    if not entry.is_dir():
                        if entry.is_file():  # False for a broken link
                            yield name
                        continue
                    here = _identity(folder / name)
                except OSError as error:  # a link to itself
                    raise UserError(f"{folder / name}: {error.strerror}: remove it") from None
                times[here] += 1
                if here in above:
                    raise UserError(f"{folder / name}: this link goes in a circle: remove it")
                if times[here] > MOST_LINKS_TO_ONE:
                    raise UserError(f"{folder / name}: more than {MOST_LINKS_TO_ONE} links go to this one folder")
                pending.append((f"{name}/", (*above, here)))


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _printable(names: list[str]) -> list[str]:
    return [in_words(name) for name in names]


def _classes(names: list[str]) -> tuple[np.ndarray | None, list[str] | None]:
    """(labels, classes) by subfolder (below a split, if all are in splits); (None, None) if a picture is in none."""
    parts = [name.split("/") for name in names]
    if all(len(part) > 1 and part[0].lower() in SPLITS for part in parts):
        parts = [part[1:] for part in parts]
    if min(map(len, parts)) < 2:
        return None, None
    labels, folders = labelled([part[0] for part in parts])
    return labels, [in_words(name).replace("_", " ") for name in folders]


def _with_sidecars(folder: Path, found: Found) -> Source:
    without = [name for name in found.pictures if os.path.splitext(name)[0] not in found.captions]
    if without:
        raise UserError(
            f"{folder}: {len(without)} of {len(found.pictures)} pictures have no text beside them as the others do, "
            f"the first {in_words(without[0])}: write one for each, or move all texts away"
        )
    names: list[str] = []
    captions: list[str] = []
    for name in found.pictures:
        path = folder / found.captions[os.path.splitext(name)[0]]
        lines = words_of(path)
        if all(_NUMBERS.fullmatch(line) for line in lines):
            raise UserError(f"{path}: it holds numbers, no caption (boxes?): move such files away")
        captions += lines
        names += [name] * len(lines)
    return Source(_printable(names), Files(folder, names), captions, *_classes(names))


def _with_metadata(folder: Path, found: Found) -> Source:
    """The source of the metadata tables of the folder and its subfolders, concatenated."""
    places = [os.path.dirname(name) for name in found.metadata]
    if len(set(places)) < len(places):
        raise UserError(f"{folder}: there are {some(found.metadata)} beside each other: keep one for each folder")
    parts = [(place, read_table(folder / name)) for place, name in zip(places, found.metadata, strict=True)]
    for what, there in (
        ("captions", [part.captions is not None for _, part in parts]),
        ("labels", [part.labels is not None for _, part in parts]),
    ):
        if any(there) and not all(there):
            raise UserError(
                f"{folder / found.metadata[there.index(False)]} has no {what}, "
                f"but {found.metadata[there.index(True)]} has: give them to all or to none"
            )
    names = [f"{place}/{name}".lstrip("/") for place, part in parts for name in part.names]
    if rest := set(found.pictures) - {os.path.normpath(name) for name in names}:
        warnings.warn(
            f"{folder}: {len(rest)} pictures that {some(found.metadata, 2)} does not name are left out, "
            f"the first {in_words(min(rest))}",
            stacklevel=2,
        )
    captions = [text for _, part in parts for text in part.captions or ()]
    words: list[str] = []
    for _, part in parts:
        if part.labels is not None and part.classes is not None:
            words += [part.classes[label] for label in part.labels]
    labels, classes = labelled(words) if words else (None, None)
    return Source(_printable(names), Files(folder, names), captions or None, labels, classes)
