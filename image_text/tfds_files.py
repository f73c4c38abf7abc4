"""Opens prepared TFDS data on disk, checks it for damage, and reads it at random, without TensorFlow.

TFDS (`tensorflow_datasets`) is optional: these functions import it on use.
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

OWN = "tensorflow_datasets."  # prefix of the modules that a file may make TFDS import
QUOTED = 160  # characters of a library's error that our errors quote


def import_tfds(needed_by: str) -> Any:
    """Imports and returns the module `tensorflow_datasets`.

    Args:
        needed_by: the function or option that needs TFDS, for the error.

    Raises:
        UserError: TFDS is not installed.
    """
    with optional("tensorflow-datasets", needed_by=needed_by, extra="data"):
        import tensorflow_datasets
    return tensorflow_datasets


@contextlib.contextmanager
def quiet_tfds() -> Iterator[None]:
    """Silences TFDS's logs, warnings and progress bars in a block.

    Raises:
        UserError: TFDS is not installed.
    """
    tfds = import_tfds("the data")
    logger = logging.getLogger("absl")

    def errors_only(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR

    logger.addFilter(errors_only)  # and not a level, which concurrent threads would restore for each other
    tfds.disable_progress_bar()
    try:
        yield
    finally:
        tfds.enable_progress_bar()
        logger.removeFilter(errors_only)


def open_directory(directory: Path) -> Any:
    """Opens the data prepared in a directory.

    Args:
        directory: the directory of one version, with `dataset_info.json` and `features.json`.

    Returns:
        A read-only `tfds.core.DatasetBuilder`.

    Raises:
        UserError: the description is damaged or names code outside TFDS, or TFDS is not installed.
        OSError: a file is absent.
    """
    for path in (directory / "dataset_info.json", directory / "features.json"):
        check_description(path)
    with quiet_tfds():
        try:
            return import_tfds(str(directory)).builder_from_directory(directory)
        except (UserError, OSError):
            raise
        except Exception as error:  # TFDS raises many types for JSON with other fields
            raise UserError(
                f"{directory}: the data's description is damaged ({one_line(error, QUOTED)}): {_mend(directory)}"
            ) from None


def check_description(path: Path) -> None:
    """Checks a description of data: TFDS would import and run the modules that it names.

    Args:
        path: `features.json` or `dataset_info.json`.

    Raises:
        UserError: the file is not JSON, or a `features.json` names a class outside TFDS.
        OSError: the file is absent.
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
    """The Python classes that a features.json names, in TFDS's current and previous format."""
    pending = [description]
    while pending:
        node = pending.pop()
        if isinstance(node, dict):
            named = (node.get(key) for key in ("pythonClassName", "python_class_name", "type"))
            yield from (name for name in named if isinstance(name, str))
        pending += node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()


def check_shards(builder: Any, split: str) -> None:
    """Checks the files of a split, as array_record opens some truncated files without an error.

    Args:
        builder: the `tfds.core.DatasetBuilder` of the data.
        split: a split, or a part of one such as "train[:10%]"; all files of the split are checked.

    Raises:
        UserError: a file is missing, damaged or truncated; the error names the file.
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
            records = _count_records(path)
        except Exception as error:  # array_record raises many types, without the name of the file
            raise UserError(f"{path} is damaged or cut off ({one_line(error, QUOTED)}): {mend}") from None
        if records != expected:
            what = f"it has {records} records instead of {expected}"
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
    """Opens the records of a split with random access; pictures stay encoded.

    Args:
        builder: the `tfds.core.DatasetBuilder` of the data.
        split: such as "train" or "train[:10%]".
        image: the key of the image feature.

    Returns:
        A sequence of dicts; pictures are the bytes of a PNG or JPEG.

    Raises:
        UserError: a file of the split is missing or damaged.
    """
    check_shards(builder, split)
    # Skip TFDS's decoding: it warns that OpenCV is missing, and keeps palettes and transparency.
    return builder.as_data_source(split, decoders={image: import_tfds(split).decode.SkipDecoding()})


class Records:
    """A split with random access; subclasses define `example`, which decodes a stored record.

    Attributes:
        where: how errors name the split.
    """

    def __init__(self, records: Any, where: str = "data"):
        """Reads `records`, as `stored` returns them."""
        self._records, self.where = records, where

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not -len(self) <= index < len(self):  # array_record would read another record, or crash
            raise IndexError(f"example {index} of {len(self)}")
        try:
            return self.example(self._records[index % len(self)])
        except Exception as error:  # array_record and the decoders raise many types
            raise UserError(f"{self.where}: record {index} is damaged ({one_line(error, QUOTED)})") from error

    @abstractmethod
    def example(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """Decodes a stored record to an example."""
