"""The shapes world as a TFDS dataset: rendered once to PNG in array_record files, with random access.

    train = source("train", data_dir="data")  # renders it the first time, with a progress bar
    train[0]  # {"image": uint8 [64, 64, 3], "caption": "a small red star ...", "size": 0, "colour": 0, ...}

Record i of a split is `shapes_world.example(split, i)`. The directory name contains resolution, seed and split sizes,
so variants do not overwrite each other.
"""

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import shapes_world
from image_text.base import Source
from image_text.building import Dataset, expanded, prepared
from image_text.errors import UserError
from image_text.tfds import split_source
from image_text.tfds_files import Records, stored

__all__ = ["ShapesConfig", "ShapesSource", "open_shapes", "prepare", "source"]

LABELS = {
    "size": shapes_world.SIZES,
    "colour": shapes_world.COLOURS,
    "shape": shapes_world.SHAPES,
    "position": shapes_world.POSITIONS,
}
VERSION = "1.0.0"


@dataclass(frozen=True)
class ShapesConfig:
    """The settings that determine the examples; all of them are in the config's name.

    Attributes:
        resolution: side of the images in pixels, at least 16.
        seed: of the random draws, at least 0.
        split_sizes: {split: number of examples}, for the splits to render.

    Raises:
        UserError: a setting is out of range.
    """

    resolution: int = 64
    seed: int = 0
    split_sizes: Mapping[str, int] = field(default_factory=lambda: shapes_world.SPLIT_SIZES)

    def __post_init__(self) -> None:
        if self.resolution < 16:
            raise UserError(f"resolution: at {self.resolution} pixels the shapes cannot be told apart; use 16 or more")
        if self.seed < 0:
            raise UserError(f"seed: {self.seed} is negative; use 0 or more")
        sizes = self.split_sizes
        if not sizes or min(sizes.values()) < 1 or not sizes.keys() <= shapes_world.SPLIT_SIZES.keys():
            known = ", ".join(shapes_world.SPLIT_SIZES)
            raise UserError(f"split_sizes: {sizes} will not do; give one or more examples to any of {known}")

    @property
    def name(self) -> str:
        """The directory name of the config, such as "64px-seed0", with the split sizes if they are not the defaults."""
        sizes = "".join(f"-{split}{size}" for split, size in self.split_sizes.items())
        return f"{self.resolution}px-seed{self.seed}" + ("" if self.split_sizes == shapes_world.SPLIT_SIZES else sizes)


class ShapesSource(Records):
    """A split as a random-access source of dicts: image uint8 [R, R, 3], caption str, four labels int (`LABELS`)."""

    def example(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """Decodes a stored record."""
        caption = record["caption"]
        return {
            "image": np.asarray(Image.open(io.BytesIO(record["image"])).convert("RGB")),
            "caption": caption.decode() if isinstance(caption, bytes) else str(caption),  # bytes when read from disk
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
    """Opens a split for training; renders the data first if it is absent.

    Args:
        split: "train", "test" or "heldout", or a part of one in TFDS's notation, such as "train[:10%]".
        data_dir: the directory of all datasets.
        resolution: side R of the images in pixels.
        seed: of the random draws.
        split_sizes: {split: number of examples}, for the splits to render; None: `shapes_world.SPLIT_SIZES`.

    Raises:
        UserError: there is no such split; and as `prepare`.
    """
    _check_split(split, split_sizes)
    builder = prepare(data_dir, resolution=resolution, seed=seed, split_sizes=split_sizes)
    return ShapesSource(stored(builder, split), f"{builder.data_dir}, {split}")


def open_shapes(split: str = "train", *, data_dir: str | Path) -> Source:
    """Opens a split of the default shapes (64 pixels, seed 0) as a `Source` of PNG pictures with captions.

    Args:
        split: "train", "test" or "heldout", or a part of one in TFDS's notation.
        data_dir: the directory of all datasets; the shapes are rendered if they are absent.

    Raises:
        UserError: there is no such split; and as `prepare`.
    """
    _check_split(split)
    return split_source(prepare(data_dir), split, image="image", caption=("caption",))


def _check_split(split: str, split_sizes: Mapping[str, int] | None = None) -> None:
    known = shapes_world.SPLIT_SIZES if split_sizes is None else split_sizes
    if split.partition("[")[0] not in known:
        raise UserError(f"split: shapes has no {split!r}; choose from {', '.join(known)}")


def prepare(
    data_dir: str | Path, *, resolution: int = 64, seed: int = 0, split_sizes: Mapping[str, int] | None = None
) -> Any:
    """Renders shapes to disk under `data_dir`, if they are absent.

    The data of an interrupted call is recognised as incomplete and rendered again. Of several processes that call at
    once, one renders and the others wait.

    Args:
        data_dir: the directory of all datasets.
        resolution: side of the images in pixels.
        seed: of the random draws.
        split_sizes: {split: number of examples}, for the splits to render; None: `shapes_world.SPLIT_SIZES`.

    Returns:
        The `tfds.core.DatasetBuilder` that reads the data.

    Raises:
        UserError: a setting is out of range, the directory cannot be written, or TFDS is not installed.
    """
    config = ShapesConfig(resolution, seed, shapes_world.SPLIT_SIZES if split_sizes is None else dict(split_sizes))

    def features(kinds: Any) -> dict[str, Any]:
        return {
            "image": kinds.Image(shape=(resolution, resolution, 3), encoding_format="png"),
            "caption": kinds.Text(),
            **{name: kinds.ClassLabel(names=values) for name, values in LABELS.items()},
        }

    def examples(split: str) -> Iterator[dict[str, Any]]:
        for index in range(config.split_sizes[split]):
            image, caption, labels = shapes_world.example(split, index, seed=seed, resolution=resolution)
            yield {"image": Image.fromarray(image), "caption": caption, **labels.words}

    dataset = Dataset(
        "shapes",
        VERSION,  # raise it when the renderer, the captions or the draws change
        "One coloured shape on grey with a caption; the pairs of the heldout split are never in train or test.",
        features,
        config.split_sizes,
        examples,
        activity=f"rendering shapes {config.name}",
        config=config.name,
        default_config=ShapesConfig().name,
    )
    return prepared(dataset, expanded(data_dir))
