"""Data that TFDS has prepared on disk: opened, checked for damage, and read at random, all without TensorFlow.

TFDS (`tensorflow_datasets`) is optional and is imported when the first of these functions is called.
"""

import contextlib
import json
import logging
import os
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from image_text.errors import UserError, one_line, printable
from image_text.optional import optional

__all__ = ["Records", "check_description", "check_shards", "import_tfds", "open_directory", "quiet_tfds", "stored"]

OWN = "tensorflow_datasets."  # modules that TFDS may import because a file names them
QUOTED = 160  # characters of the error of a library in an error of ours


def import_tfds(needed_by: str) -> Any:
    """The module `tensorflow_datasets`.

    Args:
        needed_by: what needs it, for the error.

    Raises:
        UserError: it is not installed.
    """
    with optional("tensorflow-datasets", needed_by=needed_by, extra="data"):
        import tensorflow_datasets
    return tensorflow_datasets


@contextlib.contextmanager
def quiet_tfds() -> Iterator[None]:
    """Silences TFDS in a block: it logs, warns of unusual configs, and draws a bar per split and shard."""
    tfds = import_tfds("the data")
    logger = logging.getLogger("absl")

    def errors_only(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR

    logger.addFilter(errors_only)  # not its level: threads that do this at once would restore each other's
    tfds.disable_progress_bar()
    try:
        yield
    finally:
        tfds.enable_progress_bar()
        logger.removeFilter(errors_only)


def open_directory(directory: Path) -> Any:
    """The TFDS builder of the data prepared in `directory`, which only reads.

    Args:
        directory: of one version, with `dataset_info.json` and `features.json`.

    Returns:
        A `tfds.core.DatasetBuilder`.

    Raises:
        UserError: its description is damaged or names code outside TFDS, or TFDS is not installed.
    """
    for path in (directory / "dataset_info.json", directory / "features.json"):
        check_description(path)
    with quiet_tfds():
        try:
            return import_tfds(str(directory)).builder_from_directory(directory)
        except (UserError, OSError):
            raise
        except Exception as error:  # TFDS raises anything at JSON of another shape
            raise UserError(
                f"{directory}: the data's description is damaged ({one_line(error, QUOTED)}): {_mend(directory)}"
            ) from None


def check_description(path: Path) -> None:
    """Refuses a description of data that is damaged, or that names modules which TFDS would import and run.

    Args:
        path: `features.json` or `dataset_info.json`.

    Raises:
        UserError: it is not JSON, or names a class that is not TFDS's own.
    """
    try:
        description = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path}: the data's description is damaged, it is not JSON ({one_line(error, QUOTED)}): "
            f"{_mend(path.parent)}"
        ) from None
    for name in _classes_in(description):
        if path.name == "features.json" and not name.startswith(OWN):
            raise UserError(f"{path} names code outside TFDS, {printable(name, 80)!r}: it is not run")


def _classes_in(description: Any) -> Iterator[str]:
    """The Python classes that a features.json names, in this format of TFDS and the one before."""
    pending = [description]
    while pending:
        node = pending.pop()
        if isinstance(node, dict):
            named = (node.get(key) for key in ("pythonClassName", "python_class_name", "type"))
            yield from (name for name in named if isinstance(name, str))
        pending += node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()


def check_shards(builder: Any, split: str) -> None:
    """Refuses files of a split that are missing or cut off: array_record opens some without a word.

    Args:
        builder: a `tfds.core.DatasetBuilder`.
        split: the name of a split, or a part of one as in "train[:10%]"; all files of the split are looked at.

    Raises:
        UserError: naming the file.
    """
    info = builder.info.splits[split.partition("[")[0]]
    in_array_records = builder.info.file_format.value == "array_record"
    for path, expected in zip(map(os.fspath, info.filepaths), info.shard_lengths, strict=True):
        mend = _mend(Path(path).parent)
        if not os.path.isfile(path):
            raise UserError(f"{path} is missing: {mend}")
        if not in_array_records:
            continue
        try:
            there = _count_records(path)
        except Exception as error:  # array_record raises anything, without the name of the file
            raise UserError(f"{path} is damaged or cut off ({one_line(error, QUOTED)}): {mend}") from None
        if there != expected:
            what = f"it has {there} records instead of {expected}"
            raise UserError(f"{path} is damaged or cut off ({what}): {mend}")


def _count_records(path: str) -> int:
    from array_record.python.array_record_module import ArrayRecordReader

    reader = ArrayRecordReader(path)
    count = reader.num_records()
    reader.close()
    return count


def _mend(directory: Path) -> str:
    return f"remove {directory} and prepare it again"


def stored(builder: Any, split: str, *, image: str = "image") -> Any:
    """The records of a split, or a part of one as TFDS writes it, at random; pictures stay encoded.

    Args:
        builder: a `tfds.core.DatasetBuilder`.
        split: as in "train" or "train[:10%]".
        image: the key of the feature with the picture.

    Returns:
        A sequence of dicts; a picture is bytes of a PNG or JPEG.

    Raises:
        UserError: a file of the split is missing or damaged.
    """
    check_shards(builder, split)
    # TFDS's own decoding asks for OpenCV in a warning, and leaves palettes and transparency as they are.
    return builder.as_data_source(split, decoders={image: import_tfds(split).decode.SkipDecoding()})


class Records:
    """A split read at random: `example` makes of a stored record what a training script wants to see.

    Attributes:
        where: what the records are called when one is damaged.
    """

    def __init__(self, records: Any, where: str = "data"):
        """Reads `records`, as `stored` gives them."""
        self._records, self.where = records, where

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not -len(self) <= index < len(self):  # array_record would read some other record, or crash
            raise IndexError(f"example {index} of {len(self)}")
        try:
            return self.example(self._records[index % len(self)])
        except Exception as error:  # array_record and the decoders raise anything
            raise UserError(f"{self.where}: record {index} is damaged ({one_line(error, QUOTED)})") from error

    @abstractmethod
    def example(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """A stored record, decoded."""
