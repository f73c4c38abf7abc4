"""Datasets written once and read at random: what the TFDS builders here share."""

import contextlib
import json
import logging
import shutil
import sys
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader  # type: ignore[import-untyped]
from tqdm import tqdm

from image_text.errors import UserError
from image_text.locks import locked

__all__ = ["LocalBuilder", "Records", "expanded", "open_directory", "prepared", "quiet_tfds", "stored"]

OWN = "tensorflow_datasets."  # modules that TFDS may import because a file names them


def expanded(path: Path | str) -> Path:
    """The path with `~` as the user's home.

    Raises:
        UserError: the user has none.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:  # a uid without an entry in passwd, and no HOME
        raise UserError(f"{path}: this user has no home directory; set HOME, or name another place") from None


class LocalBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg] # TFDS comes without types
    """A builder that knows how many examples it will write, and tells a bar of each."""

    bar: tqdm | None = None  # `prepared` hangs it here

    @property
    @abstractmethod
    def split_sizes(self) -> Mapping[str, int]:
        """Examples of each split."""

    @property
    @abstractmethod
    def activity(self) -> str:
        """What the bar is called, as in "rendering shapes 64px"."""

    def counted(self, examples: Iterable[tuple[int, dict[str, Any]]]) -> Iterator[tuple[int, dict[str, Any]]]:
        """The same examples, each told to the bar."""
        for example in examples:
            yield example
            if self.bar is not None:
                self.bar.update()

    def _log_download_bytes(self) -> None:
        """TFDS would print that it downloads; nothing is."""

    def _log_download_done(self) -> None:
        """TFDS would print that it is done; the bar says so."""


class Records:
    """A split read at random: `example` makes of a stored record what a training script wants to see."""

    def __init__(self, records: Any, where: str = "data"):
        """Read `records`, as `stored` gives them; `where` is what they are called when one is damaged."""
        self._records, self.where = records, where

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not -len(self) <= index < len(self):  # array_record would read some other record, or crash
            raise IndexError(f"example {index} of {len(self)}")
        try:
            return self.example(self._records[index % len(self)])
        except Exception as error:  # array_record and the decoders raise anything
            raise UserError(f"{self.where}: record {index} is damaged ({_one_line(error)})") from error

    @abstractmethod
    def example(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """A stored record, decoded."""


def stored(builder: tfds.core.DatasetBuilder, split: str) -> Any:
    """The records of a split, or a part of one as TFDS writes it, at random; pictures stay encoded.

    Raises:
        UserError: a file of the split is damaged.
    """
    _check_shards(builder, split.partition("[")[0])
    # TFDS's own decoding would do, but asks for OpenCV in a warning.
    return builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})


def _check_shards(builder: tfds.core.DatasetBuilder, split: str) -> None:
    """Refuses files that are cut off. Array_record opens them later, some without a word."""
    info = builder.info.splits[split]
    for path, expected in zip(info.filepaths, info.shard_lengths, strict=True):
        try:
            reader = ArrayRecordReader(str(path))
            there = reader.num_records()
            reader.close()
        except Exception as error:
            raise UserError(f"{path}: it is damaged ({_one_line(error)}); remove {Path(path).parent}") from None
        if there != expected:
            what = f"it has {there} records instead of {expected}"
            raise UserError(f"{path}: it is damaged: {what}; remove {Path(path).parent}")


def open_directory(directory: Path) -> tfds.core.DatasetBuilder:
    """TFDS's builder of the data prepared in `directory`.

    Raises:
        UserError: its description is damaged, or names modules outside TFDS, which would be imported.
    """
    try:
        features = json.loads((directory / "features.json").read_text(encoding="utf-8"))
        if foreign := next((name for name in _classes(features) if not name.startswith(OWN)), None):
            raise UserError(f"{directory / 'features.json'}: it names {foreign!r:.100}, which is no class of TFDS")
        with quiet_tfds():
            return tfds.builder_from_directory(directory)
    except (UserError, OSError):
        raise
    except Exception as error:
        raise UserError(f"{directory}: its description is damaged ({_one_line(error)}); remove it") from None


def _classes(features: Any) -> Iterator[str]:
    """The Python classes that a features.json names, in this format of TFDS and the one before."""
    if isinstance(features, dict):
        for key, value in features.items():
            if key in ("pythonClassName", "python_class_name", "type") and isinstance(value, str):
                yield value
            yield from _classes(value)
    elif isinstance(features, list):
        for value in features:
            yield from _classes(value)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:150] or type(error).__name__


Builder = TypeVar("Builder", bound=LocalBuilder)


def prepared(make: Callable[[], Builder], data_dir: Path) -> Builder:
    """The builder that `make` gives, its data on disk under `data_dir`, written first if it is not whole.

    An interrupted call leaves nothing that a later one would take for data. Of several processes that call at once, one
    writes and the others wait for it. `make` is called anew where a builder would remember what was there before.

    Raises:
        UserError: the directory cannot be written, or the description of what is there is damaged.
    """
    with quiet_tfds():
        try:
            builder = make()
        except (UserError, OSError):
            raise
        except Exception as error:
            where = _not_json(data_dir) or data_dir
            raise UserError(f"{where}: the data's description is damaged ({_one_line(error)}); remove it") from None
        if _is_whole(builder):
            return builder
        try:
            data_dir.mkdir(parents=True, exist_ok=True)
            with locked(data_dir / f".{builder.name}.lock", wait=True):
                builder = make()  # another process may have prepared it while this one waited
                if not _is_whole(builder):
                    _clear(Path(builder.data_dir))
                    builder = make()
                    _write(builder)
        except (FileExistsError, NotADirectoryError, PermissionError) as error:
            raise UserError(f"{data_dir}: no data can go there ({error.strerror}); choose another directory") from None
        return builder


def _not_json(data_dir: Path) -> Path | None:
    """The first description of data that cannot be read."""
    for path in (*data_dir.glob("*/*/dataset_info.json"), *data_dir.glob("*/*/*/dataset_info.json")):
        try:
            json.loads(path.read_bytes())
        except (ValueError, RecursionError):
            return path
    return None


def _is_whole(builder: LocalBuilder) -> bool:
    """Whether all files are there. TFDS itself looks for their description only, and half a copy would do."""
    if not builder.is_prepared():
        return False
    splits = builder.info.splits
    return {name: split.num_examples for name, split in splits.items()} == builder.split_sizes and all(
        Path(path).is_file() for split in splits.values() for path in split.filepaths
    )


def _clear(directory: Path) -> None:
    """Remove what is not whole, and the incomplete.XXXXXX_<version> in which killed runs were writing."""
    for path in (directory, *directory.parent.glob(f"incomplete.*_{directory.name}")):
        if path.exists():
            shutil.rmtree(path)


def _write(builder: LocalBuilder) -> None:
    what, total = builder.activity, sum(builder.split_sizes.values())
    on_terminal = sys.stderr.isatty()
    if not on_terminal:
        print(f"{what}: {total} images", file=sys.stderr, flush=True)
    layout = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}]"
    with tqdm(
        desc=what, total=total, unit=" images", bar_format=layout, dynamic_ncols=True, disable=not on_terminal
    ) as builder.bar:
        builder.download_and_prepare()
    builder.bar = None


@contextlib.contextmanager
def quiet_tfds() -> Iterator[None]:
    """TFDS logs, warns of every config but the usual one, and draws a bar per split and shard. Ours is enough."""
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
