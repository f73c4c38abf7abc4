"""Writes datasets to disk in TFDS's format (array_record), without TensorFlow.

A `Dataset` describes the data; `prepared` writes it if it is not on disk yet, and opens it.
"""

import functools
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from image_text.errors import UserError
from image_text.locks import locked
from image_text.tfds_files import import_tfds, open_directory, quiet_tfds

__all__ = ["Dataset", "expanded", "prepared"]

Features = Callable[[Any], dict[str, Any]]  # its argument is the module `tfds.features`, as TFDS is optional


@dataclass(frozen=True)
class Dataset:
    """The description of a TFDS dataset to write.

    Attributes:
        name: the name of the dataset; the first part of its directory.
        version: such as "1.0.0". Raise it when the examples change; otherwise data on disk is taken for current.
        description: one sentence, written to the data's `dataset_info.json`.
        features: from the module `tfds.features` to the dict of a `FeaturesDict`.
        split_sizes: the number of examples of each split.
        examples: from the name of a split to its examples, in the order of the records. Pictures are PIL images: TFDS
            would encode arrays with TensorFlow.
        activity: the title of the progress bar, such as "rendering shapes 64px".
        config: the second part of the directory, for variants of a dataset; None: there is one variant only.
        default_config: the config that `tfds:NAME:SPLIT` reads.
        homepage: the web page of the data.
    """

    name: str
    version: str
    description: str
    features: Features
    split_sizes: Mapping[str, int]
    examples: Callable[[str], Iterable[dict[str, Any]]]
    activity: str
    config: str | None = None
    default_config: str | None = None
    homepage: str | None = None

    def directory(self, data_dir: Path) -> Path:
        """The directory of the dataset below `data_dir`: NAME/CONFIG/VERSION, as in TFDS."""
        return data_dir.joinpath(self.name, *([self.config] if self.config else []), self.version)


def expanded(path: Path | str) -> Path:
    """The path with `~` replaced by the user's home directory.

    Raises:
        UserError: the user has no home directory.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:  # a uid without an entry in passwd, and no HOME
        raise UserError(f"{path}: this user has no home directory; set HOME, or name another place") from None


def prepared(dataset: Dataset, data_dir: Path) -> Any:
    """Opens a dataset under `data_dir`; writes it first if it is absent or incomplete.

    The data of an interrupted call is recognised as incomplete and written again. Of several processes that call at
    once, one writes and the others wait.

    Args:
        dataset: the description of the data.
        data_dir: the directory of all datasets, created if it is absent.

    Returns:
        The `tfds.core.DatasetBuilder` that reads the data.

    Raises:
        UserError: the directory cannot be written, the description of existing data is damaged, or TFDS is not
            installed.
    """
    import_tfds(f"the data set {dataset.name}")
    if whole := _whole(dataset, data_dir):
        return whole
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with locked(data_dir / f".{dataset.name}.lock", wait=True):
            if whole := _whole(dataset, data_dir):  # another process prepared it while this one waited
                return whole
            _clear(dataset.directory(data_dir))
            _write(dataset, data_dir)
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        raise UserError(f"{data_dir}: no data can go there ({error.strerror}); choose another directory") from None
    return open_directory(dataset.directory(data_dir))


def _whole(dataset: Dataset, data_dir: Path) -> Any | None:
    """The builder of the data if all its files exist, else None. TFDS itself checks for the description only."""
    directory = dataset.directory(data_dir)
    if not all((directory / name).is_file() for name in ("dataset_info.json", "features.json")):
        return None
    builder = open_directory(directory)
    splits = builder.info.splits
    whole = {name: split.num_examples for name, split in splits.items()} == dataset.split_sizes and all(
        Path(path).is_file() for split in splits.values() for path in split.filepaths
    )
    return builder if whole else None


def _clear(directory: Path) -> None:
    """Removes incomplete data, and the directories incomplete.XXXXXX_<version> of killed processes."""
    for path in (directory, *directory.parent.glob(f"incomplete.*_{directory.name}")):
        if path.exists():
            shutil.rmtree(path)


def _write(dataset: Dataset, data_dir: Path) -> None:
    total = sum(dataset.split_sizes.values())
    on_terminal = sys.stderr.isatty()
    if not on_terminal:
        print(f"{dataset.activity}: {total} images", file=sys.stderr, flush=True)
    layout = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}]"
    with (
        quiet_tfds(),
        tqdm(
            desc=dataset.activity,
            total=total,
            unit=" images",
            bar_format=layout,
            dynamic_ncols=True,
            disable=not on_terminal,
        ) as bar,
    ):
        _builder_class()(dataset, bar, data_dir).download_and_prepare()


@functools.cache
def _builder_class() -> Any:
    """The builder class that writes a `Dataset`, made on first use, as its base class is in an optional package."""
    tfds = import_tfds("writing a dataset")

    class Writer(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg, misc, name-defined] # TFDS comes without types
        """Writes a `Dataset` and updates a progress bar with each example."""

        def __init__(self, dataset: Dataset, bar: tqdm, data_dir: Path):
            self._dataset, self._bar = dataset, bar
            self.name, self.VERSION = dataset.name, tfds.core.Version(dataset.version)
            # TFDS records the first of these as the default config.
            self.BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name) for name in [dataset.default_config] if name]
            config = tfds.core.BuilderConfig(name=dataset.config) if dataset.config else None
            super().__init__(data_dir=data_dir, config=config, file_format="array_record")

        def _info(self) -> Any:
            return tfds.core.DatasetInfo(
                builder=self,
                description=self._dataset.description,
                features=tfds.features.FeaturesDict(self._dataset.features(tfds.features)),
                homepage=self._dataset.homepage,
                disable_shuffling=True,  # record i must be example i
            )

        def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
            return {split: self._generate_examples(split) for split in self._dataset.split_sizes}

        def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
            for index, example in enumerate(self._dataset.examples(split)):
                yield index, example
                self._bar.update()

        def _log_download_bytes(self) -> None:
            """Suppresses TFDS's message about a download: there is none."""

        def _log_download_done(self) -> None:
            """Suppresses TFDS's message at the end: the progress bar shows it."""

    return Writer
