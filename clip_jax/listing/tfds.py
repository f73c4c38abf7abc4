"""Many pictures by name, with captions and labels where there are some: a folder, a table, or a TFDS split.

photos/                    every picture in it; in subfolders, their names are the classes
captions.csv, .tsv, .jsonl a row per picture: `image`, and `caption` or `label` or both; paths are relative to it
tfds:cifar10:test          a split that is prepared already, read without TensorFlow
"""

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np

from clip_jax.errors import UserError, reading
from clip_jax.images import Picture

PICTURES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".jp2", ".avif"}
TABLES = {".csv": ",", ".tsv": "\t", ".jsonl": ""}

# What others call the columns, the usual one first.
IMAGE = ("image", "file_name", "filepath", "filename", "path", "img")
CAPTION = ("caption", "text", "title", "sentence")
LABEL = ("label", "class", "category")


class Listing(NamedTuple):
    """Pictures are opened when they are asked for. `labels` index `classes`; both are None where there are none."""

    names: list[str]
    pictures: Sequence[Picture]
    captions: list[str] | None = None
    labels: np.ndarray | None = None  # int [N]
    classes: list[str] | None = None


def read_listing(source: str, *, data_dir: str | Path | None = None) -> Listing:
    """The pictures of `source`, as the module says.

    Args:
        data_dir: where TFDS keeps its data; None: where it usually does.

    Raises: UserError when there is nothing there, a row is incomplete or a picture of a table is missing.
    """
    if source.startswith("tfds:"):
        return _tfds(source, data_dir)
    path = Path(source)
    if path.is_dir():
        return _folder(path)
    if not path.is_file():
        raise UserError(f"{source}: there is no such file or folder")
    if path.suffix.lower() not in TABLES:
        raise UserError(f"{source} is neither a folder nor a table ({', '.join(TABLES)}) nor tfds:NAME:SPLIT")
    with reading(path, "a table"):
        return _table(path)


def _folder(folder: Path) -> Listing:
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in PICTURES and p.is_file())
    if not paths:
        raise UserError(f"{folder}: there is no picture in it ({', '.join(sorted(PICTURES))})")
    parts = [p.relative_to(folder).parts for p in paths]
    names = ["/".join(part) for part in parts]
    if min(map(len, parts)) < 2:  # some lie in the folder itself: it is not one of classes
        return Listing(names, paths)
    classes = sorted({part[0] for part in parts})
    labels = np.array([classes.index(part[0]) for part in parts])
    return Listing(names, paths, labels=labels, classes=[name.replace("_", " ") for name in classes])


def _table(path: Path) -> Listing:
    rows = list(_rows(path))
    if not rows:
        raise UserError(f"{path}: it has no rows")
    image, caption, label = (_column(rows[0][1], names) for names in (IMAGE, CAPTION, LABEL))
    if image is None:
        raise UserError(f"{path}: it has no column for pictures: call it {IMAGE[0]!r}")
    columns: dict[str, list[Any]] = {name: [] for name in (image, caption, label) if name}
    for line, row in rows:
        for name, values in columns.items():
            value = row.get(name)
            if value is None or (isinstance(value, str) and not value.strip()):
                raise UserError(f"{path}: line {line} has no {name}")
            values.append(value)
    names = [str(name) for name in columns[image]]
    paths = [path.parent / name for name in names]
    for (line, _), picture in zip(rows, paths, strict=True):
        if not picture.is_file():
            raise UserError(f"{path}: line {line} names {picture}, which is not there")
    captions = [str(text) for text in columns[caption]] if caption else None
    if label is None:
        return Listing(names, paths, captions)
    words = [str(value) for value in columns[label]]
    classes = sorted(set(words))
    return Listing(names, paths, captions, np.array([classes.index(word) for word in words]), classes)


def _rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """(number of the line, what is in it)."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if delimiter := TABLES[path.suffix.lower()]:
                reader = csv.DictReader(file, delimiter=delimiter)
                for row in reader:
                    yield reader.line_num, row
                return
            for number, line in enumerate(file, 1):
                if line.strip():
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise UserError(f"{path}: line {number} is not an object: {{...}}")
                    yield number, row
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8: save it as UTF-8") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: line {number} is not JSON: {error}") from error
    except csv.Error as error:
        raise UserError(f"{path}: {error}") from error


def _column(row: Mapping[str, Any], names: Sequence[str]) -> str | None:
    return next((name for name in names if name in row), None)


class _Records(Sequence[Picture]):
    """One field of a random-access source, decoded by whoever reads it."""

    def __init__(self, records: Any, field: str):
        self._records, self._field = records, field

    def __len__(self) -> int:
        return len(self._records)

    @overload
    def __getitem__(self, index: int) -> Picture: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Picture]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return self._records[index % len(self)][self._field]


def _tfds(source: str, data_dir: str | Path | None) -> Listing:
    try:
        import tensorflow_datasets as tfds
    except ImportError:
        raise UserError(f"{source} needs the package tensorflow-datasets: pip install tensorflow-datasets") from None
    _, _, rest = source.partition(":")
    name, _, split = rest.partition(":")
    if not name or not split:
        raise UserError(f"{source}: write tfds:NAME:SPLIT, as in tfds:cifar10:test")
    try:
        builder = tfds.core.read_only_builder.builder_from_files(name, data_dir=data_dir)
    except Exception as error:  # of several kinds, one per way not to be there
        where = data_dir or tfds.core.constants.DATA_DIR
        raise UserError(
            f"{source}: {name} is not prepared in {where}; prepare it with tfds once, or name its folder by --data-dir"
        ) from error
    if split.partition("[")[0] not in builder.info.splits:
        raise UserError(f"{source}: {name} has no split {split!r}; choose one of {', '.join(builder.info.splits)}")
    features = builder.info.features

    def first(kind: type) -> str | None:
        return next((key for key in features if isinstance(features[key], kind)), None)

    kinds = tfds.features.Image, tfds.features.ClassLabel, tfds.features.Text
    image, label, caption = map(first, kinds)
    if image is None:
        raise UserError(f"{source}: {name} has no pictures")
    # Encoded: TFDS's own decoding leaves palettes and transparency as they are.
    records = builder.as_data_source(split, decoders={image: tfds.decode.SkipDecoding()})
    labels, captions = [], []
    for i in range(len(records)) if label or caption else ():
        record = records[i]
        if label:
            labels.append(int(record[label]))
        if caption:
            text = record[caption]
            captions.append(text.decode() if isinstance(text, bytes) else str(text))
    return Listing(
        names=[f"{split}/{i}" for i in range(len(records))],
        pictures=_Records(records, image),
        captions=captions if caption else None,
        labels=np.array(labels) if label else None,
        classes=[word.replace("_", " ") for word in features[label].names] if label else None,
    )
