"""Reads splits of prepared TFDS datasets as a `Source`, without TensorFlow."""

import dataclasses
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from image_text.base import LazySequence, Source, some, stamp_of
from image_text.columns import CAPTION, LABEL, normal
from image_text.decode import NamedBytes
from image_text.errors import UserError, one_line
from image_text.tfds_files import QUOTED, check_description, import_tfds, stored

Key = tuple[str, ...]  # the path of a nested feature, such as ("captions", "text")


class _Pictures(LazySequence):
    """The encoded pictures of a split as `NamedBytes`; an error names the record and its file."""

    def __init__(self, records: Any, field: str, split: str, shards: Any):
        self._records, self._field, self._split = records, field, split
        # `take` is -1 for a shard that is read to its end.
        taken = [shard.take if shard.take >= 0 else shard.examples_in_shard - shard.skip for shard in shards]
        self._ends = np.cumsum(taken)
        self._files = [os.fspath(shard.filename) for shard in shards]

    def __len__(self) -> int:
        return len(self._records)

    def item(self, index: int) -> NamedBytes:
        """The picture at `index`."""
        return NamedBytes(self.record(index)[self._field], f"{self._split}/{index}")

    def record(self, index: int) -> Any:
        """The whole record at `index`."""
        try:
            return self._records[index]
        except Exception as error:  # from ArrayRecord (a flipped bit, a truncated shard) or TFDS's parsers
            raise UserError(
                f"{self._file(index)}: cannot read the record {self._split}/{index}: {one_line(error, QUOTED)}"
            ) from error

    def stamp(self, index: int) -> list[Any] | None:
        """The absolute path, size and modification time of the shard with the record at `index`."""
        return stamp_of(self._file(index))

    def _file(self, index: int) -> str:
        return self._files[int(np.searchsorted(self._ends, index, side="right"))]


def read_tfds(source: str, data_dir: str | Path | None) -> Source:
    """Opens `tfds:NAME:SPLIT` as a `Source`.

    Pictures are the feature `image`, or the only image feature. Captions are the text feature with a known name
    (`image_text.columns.CAPTION`), also in a sequence (COCO's `captions/text`, one row per caption). Labels are the
    class label with a known name, or the first one.

    Args:
        source: such as "tfds:cifar10:test" or "tfds:coco_captions:val[:10%]".
        data_dir: the directory of TFDS's data; None: TFDS's default directory.

    Raises:
        UserError: the dataset is not prepared, names code outside TFDS, or has no such split or no pictures; a record
            cannot be read; or TFDS is not installed.
    """
    tfds = import_tfds(source)
    name, _, split = source.partition(":")[2].partition(":")
    if not name or not split:
        raise UserError(f"{source}: write tfds:NAME:SPLIT, as in tfds:cifar10:test")
    where = str(data_dir or usual_data_dir(source))
    _check_code(Path(where).expanduser(), name)
    try:
        builder = tfds.core.read_only_builder.builder_from_files(name, data_dir=data_dir)
    except Exception as error:  # TFDS raises many types
        if not isinstance(error, tfds.core.DatasetNotFoundError):
            raise UserError(f"{source}: cannot read {name} in {where}: {one_line(error, QUOTED)}") from error
        raise UserError(
            f"{source}: {name} is not prepared in {where}; prepare it with tfds once, or name its folder by --data-dir"
        ) from error
    if split.partition("[")[0] not in builder.info.splits:
        raise UserError(f"{source}: {name} has no split {split!r}; choose one of {', '.join(builder.info.splits)}")
    image, caption, label = _features(source, builder.info.features, tfds)
    return split_source(builder, split, image=image, caption=caption, label=label)


def usual_data_dir(needed_by: str) -> Path:
    """TFDS's default data directory: `TFDS_DATA_DIR`, or a folder in the user's home.

    Args:
        needed_by: the function or option that needs TFDS, for the error.

    Raises:
        UserError: TFDS is not installed.
    """
    return Path(import_tfds(needed_by).core.constants.DATA_DIR)


def split_source(
    builder: Any, split: str, *, image: str, caption: Key | None = None, label: str | None = None
) -> Source:
    """Opens a split of prepared data as a `Source`. Captions and labels are read immediately, pictures lazily.

    Args:
        builder: the `tfds.core.DatasetBuilder` of the data.
        split: such as "train" or "train[:10%]".
        image: the key of the image feature.
        caption: the path of the caption feature, such as ("captions", "text"), or None; a picture with several captions
            has one row per caption.
        label: the key of the class label, or None.

    Raises:
        UserError: a file of the split is missing or damaged, or a caption is missing or not UTF-8.
    """
    try:
        records = stored(builder, split, image=image)
    except UserError:
        raise
    except Exception as error:  # not an ArrayRecord, a wrong slice, another file format
        raise UserError(f"{split}: cannot read {builder.data_dir}: {one_line(error, QUOTED)}") from error
    pictures = _Pictures(records, image, split, builder.info.splits[split].file_instructions)
    rows: list[int] = []
    captions: list[str] = []
    labels: list[int] = []
    for i in range(len(pictures)) if caption or label else ():
        record = pictures.record(i)
        texts = _texts(record, caption, f"{split}/{i}") if caption else [""]
        captions += texts
        rows += [i] * len(texts)
        if label:
            labels += [int(record[label])] * len(texts)
    source = Source([f"{split}/{i}" for i in range(len(pictures))], pictures)
    if rows and (len(rows) != len(pictures)):
        source = source.take(rows)
    return dataclasses.replace(
        source,
        captions=captions if caption else None,
        labels=np.array(labels, np.int64) if label else None,
        classes=[word.replace("_", " ") for word in builder.info.features[label].names] if label else None,
    )


def _texts(record: Any, key: Key | None, where: str) -> list[str]:
    value: Any = record
    for part in key or ():
        value = value[part]
    values = [value] if isinstance(value, str | bytes) else list(value)
    try:
        texts = [text.decode() if isinstance(text, bytes) else str(text) for text in values]
    except UnicodeDecodeError:
        raise UserError(f"{where}: the caption is not UTF-8") from None
    if not texts or not all(text.strip() for text in texts):
        raise UserError(f"{where} has no caption, or an empty one")
    return texts


def _features(source: str, features: Any, tfds: Any) -> tuple[str, Key | None, str | None]:
    """(key of the image feature, path of the caption feature, key of the class label)."""
    keys = sorted(features)  # TFDS does not keep an order
    images = [key for key in keys if isinstance(features[key], tfds.features.Image)]
    if not images:
        raise UserError(f"{source} has no pictures; its features: {some(features)}")
    if "image" not in images and len(images) > 1:
        raise UserError(f"{source}: {some(images)} are pictures, and none is called image")
    texts = list(_text_keys(features, tfds))
    captions = [key for key in texts if any(normal(part) in CAPTION for part in key)]
    # Users cannot rename the features of TFDS, so "caption" takes precedence over synonyms such as "title".
    captions = [key for key in captions if {"caption", "captions"} & set(map(normal, key))] or captions
    if len(captions) > 1:
        raise UserError(f"{source}: {some('/'.join(key) for key in captions)} could each be the caption")
    labels = [key for key in keys if isinstance(features[key], tfds.features.ClassLabel)]
    named = [key for key in labels if normal(key) in LABEL]
    label = named[0] if len(named) == 1 else labels[0] if labels else None
    if len(labels) > 1 and len(named) != 1:
        warnings.warn(
            f"{source}: {some(labels)} are class labels and none is called label; {label} is taken", stacklevel=2
        )
    if texts and not captions and not labels:
        listed = some("/".join(key) for key in texts)
        warnings.warn(f"{source}: no feature is called caption, so there are none; its texts: {listed}", stacklevel=2)
    return "image" if "image" in images else images[0], captions[0] if captions else None, label


def _text_keys(features: Any, tfds: Any, above: Key = ()) -> Iterator[Key]:
    for key in sorted(features):
        feature = features[key]
        if isinstance(feature, tfds.features.Sequence):
            feature = feature.feature
        if isinstance(feature, tfds.features.FeaturesDict):
            yield from _text_keys(feature, tfds, (*above, key))
        elif isinstance(feature, tfds.features.Text) or (
            type(feature) in (tfds.features.Tensor, tfds.features.Scalar)
            and feature.shape == ()
            and tfds.core.utils.dtype_utils.is_string(feature.np_dtype)
        ):
            yield (*above, key)


def _check_code(data_dir: Path, name: str) -> None:
    """Checks every `features.json` of a dataset, as TFDS imports the modules that it names."""
    root = data_dir / name.partition("/")[0].partition(":")[0]
    for path in sorted(root.rglob("features.json")) if root.is_dir() else ():
        check_description(path)
