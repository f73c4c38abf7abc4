"""The shapes world as a TFDS dataset: rendered once, kept as PNG in array_record files, read at random.

    train = source("train", data_dir="data")  # renders it the first time, with a progress bar
    train[0]  # {"image": uint8 [64, 64, 3], "caption": "a small red star ...", "size": 0, "colour": 0, ...}

Record i of a split is `shapes_world.example(split, i)`. Resolution, seed and split sizes name the directory, so data
made with different ones live side by side.
"""

import io
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

import shapes_world
from image_text.building import LocalBuilder, Records, expanded, prepared, stored
from image_text.errors import UserError

__all__ = ["Shapes", "ShapesConfig", "ShapesSource", "prepare", "source"]

LABELS = {
    "size": shapes_world.SIZES,
    "colour": shapes_world.COLOURS,
    "shape": shapes_world.SHAPES,
    "position": shapes_world.POSITIONS,
}


class ShapesConfig(tfds.core.BuilderConfig):
    """Which shapes: everything the examples depend on, all of it in the config's name.

    Args:
        resolution: side of the images in pixels.
        seed: another seed, other examples.
        split_sizes: examples per split, for the splits wanted; None is `shapes_world.SPLIT_SIZES`.

    Raises:
        UserError: one of them is out of range.
    """

    def __init__(self, resolution: int = 64, seed: int = 0, split_sizes: Mapping[str, int] | None = None):
        if resolution < 16:
            raise UserError(f"resolution: at {resolution} pixels the shapes cannot be told apart; use 16 or more")
        if seed < 0:
            raise UserError(f"seed: {seed} is negative; use 0 or more")
        sizes = dict(shapes_world.SPLIT_SIZES if split_sizes is None else split_sizes)
        if not sizes or min(sizes.values()) < 1 or not sizes.keys() <= shapes_world.SPLIT_SIZES.keys():
            known = ", ".join(shapes_world.SPLIT_SIZES)
            raise UserError(f"split_sizes: {sizes} will not do; give one or more examples to any of {known}")
        self.resolution, self.seed, self.split_sizes = resolution, seed, sizes
        listed = "".join(f"-{split}{size}" for split, size in sizes.items())
        super().__init__(name=f"{resolution}px-seed{seed}" + ("" if sizes == shapes_world.SPLIT_SIZES else listed))


class Shapes(LocalBuilder):
    """One coloured shape on grey with a caption; the pairs of the heldout split are never in train or test."""

    # Raise it when the renderer, the captions or the draws change, or data prepared before would be taken for new.
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS: ClassVar = [ShapesConfig()]

    @property
    def settings(self) -> ShapesConfig:
        """The config, which as far as TFDS knows could be none."""
        assert isinstance(self.builder_config, ShapesConfig)
        return self.builder_config

    @property
    def split_sizes(self) -> Mapping[str, int]:
        return self.settings.split_sizes

    @property
    def activity(self) -> str:
        return f"rendering shapes {self.settings.name}"

    def _info(self) -> tfds.core.DatasetInfo:
        resolution = self.settings.resolution
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(resolution, resolution, 3), encoding_format="png"),
                    "caption": tfds.features.Text(),
                    **{name: tfds.features.ClassLabel(names=values) for name, values in LABELS.items()},
                }
            ),
            disable_shuffling=True,  # examples are independent draws already; so record i is example i
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        return {split: self.counted(self._generate_examples(split, size)) for split, size in self.split_sizes.items()}

    def _generate_examples(self, split: str, size: int) -> Iterator[tuple[int, dict[str, Any]]]:
        config = self.settings
        for index in range(size):
            image, caption, labels = shapes_world.example(split, index, seed=config.seed, resolution=config.resolution)
            # As a PIL image: TFDS would encode an array with TensorFlow.
            yield index, {"image": Image.fromarray(image), "caption": caption, **labels.words}


class ShapesSource(Records):
    """A split as a random-access source of dicts: image uint8 [R, R, 3], caption str, and the four labels as ints."""

    def example(self, record: Mapping[str, Any]) -> dict[str, Any]:
        caption = record["caption"]
        return {
            "image": np.asarray(Image.open(io.BytesIO(record["image"])).convert("RGB")),
            "caption": caption.decode() if isinstance(caption, bytes) else str(caption),  # from disk it comes as bytes
            **{name: int(record[name]) for name in LABELS},
        }


def source(
    split: str,
    *,
    data_dir: str | Path,
    resolution: int = 64,
    seed: int = 0,
    split_sizes: Mapping[str, int] | None = None,
) -> ShapesSource:
    """The examples of a split, prepared first if they are not.

    Args:
        split: "train", "test" or "heldout", or a part of one as TFDS writes it, e.g. "train[:10%]".

    Raises:
        UserError: there is no such split; and as `prepare`.
    """
    known = shapes_world.SPLIT_SIZES if split_sizes is None else split_sizes
    if split.partition("[")[0] not in known:
        raise UserError(f"split: shapes has no {split!r}; choose from {', '.join(known)}")
    builder = prepare(data_dir, resolution=resolution, seed=seed, split_sizes=split_sizes)
    return ShapesSource(stored(builder, split), f"{builder.data_dir}, {split}")


def prepare(
    data_dir: str | Path, *, resolution: int = 64, seed: int = 0, split_sizes: Mapping[str, int] | None = None
) -> Shapes:
    """The builder of these shapes, its data on disk under `data_dir`.

    The first call renders them; an interrupted one leaves nothing that a later one would take for data. Of several
    processes that call at once, one renders and the others wait for it.

    Raises:
        UserError: a setting is out of range, or the directory cannot be written.
    """
    config = ShapesConfig(resolution, seed, split_sizes)
    data_dir = expanded(data_dir)
    return prepared(partial(_builder, config, data_dir), data_dir)


def _builder(config: ShapesConfig, data_dir: Path) -> Shapes:
    # TFDS wants a config it knows by its name, and warns of any other.
    known = config.name in Shapes.builder_configs
    return Shapes(config=config.name if known else config, data_dir=data_dir, file_format="array_record")
