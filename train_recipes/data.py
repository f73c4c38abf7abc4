"""Training data of the recipes: the shapes world, your own captioned pictures, Fashion-MNIST.

A `Data` holds the options of a preset's data; its fields are flags (`--data.…`). It tells the number of examples and
the sizes of their pictures before anything is rendered or downloaded. `Data.open` prepares the data and returns
`Examples`. Recipes use these two interfaces and do not depend on the kind of data.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Int

import shapes_world
from clip_jax.tokenizer import Tokenizer
from clip_jax.uses.prompts import TEMPLATES
from image_text import fashion_mnist, shapes
from image_text.source import Source, open_source
from train_jax.data import InMemory, Replacing
from train_jax.data import Source as TrainingSource
from train_jax.errors import UserError
from train_recipes.draw import drawn_examples
from train_recipes.pictures import Pictures, Seen

HostBatch = dict[str, np.ndarray]


class Examples(ABC):
    """The examples of a split, ready to be read.

    Attributes:
        captions: caption of each example, N texts.
        identity: what identifies the data in the config of a run, as JSON; other data need `--extend`.
        prompts: captions for the contact sheet of a finished system.
        prompt: caption of the `sample.py` command that is suggested at the end of training.
        statistics: number of examples from which the statistics of a prior (mean and deviation, or PCA) are computed.
    """

    captions: list[str]
    identity: dict[str, Any]
    prompts: list[str]
    prompt: str
    statistics: ClassVar[int]

    @abstractmethod
    def with_tokens(self, tokens: Int[np.ndarray, "N L"], seen: Seen) -> TrainingSource | InMemory:
        """A training source of the pictures with the tokens of their captions.

        Args:
            tokens: tokens of all captions, int32 [N, L].
            seen: which pictures the stage reads.
        """

    def drawn(self, source: TrainingSource | InMemory, limit: int, seed: int) -> HostBatch:
        """At most `limit` examples of a source from `with_tokens` as one batch, for statistics and evaluations."""
        return drawn_examples(source, limit, seed)


@dataclass(frozen=True)
class Data(ABC):
    """Training data; one subclass for each kind."""

    @property
    def directories(self) -> tuple[Path, ...]:
        """Directories in which the data are prepared."""
        return ()

    def check(self) -> None:  # noqa: B027 - some data have nothing to refuse
        """Checks the options by themselves, whatever is trained.

        Raises:
            UserError: an option is missing or out of range.
        """

    @abstractmethod
    def count(self) -> int:
        """The number of training examples; nothing is prepared.

        Raises:
            UserError: the source cannot be read.
        """

    @abstractmethod
    def fields(self, seen: Seen) -> dict[str, tuple[int, int]]:
        """(side, channels) of the pictures of an example, uint8 [side, side, channels], by the name of their field."""

    def check_fits(self, seen: Seen, model: str) -> None:  # noqa: B027 - some data are made to fit
        """Checks that the pictures have a size that the stage can use.

        Args:
            seen: which pictures the stage reads.
            model: name of its model preset, for the message.

        Raises:
            UserError: the pictures do not fit.
        """

    @abstractmethod
    def open(self) -> Examples:
        """The training split, prepared first if need be."""

    def hint(self, clip: Path) -> str:
        """A line to print after training a CLIP on these data: how to measure it. Empty if there is none."""
        return ""


@dataclass(frozen=True)
class ShapesData(Data):
    """The shapes world as training data."""

    directory: Path = Path("data")
    """Directory of the rendered pictures; rendered on first use."""
    resolution: int = 64
    """Side of the pictures in pixels."""
    seed: int = 0
    """Seed of the pictures and captions."""
    train_examples: int = 20_000
    """Number of training examples."""

    @property
    def directories(self) -> tuple[Path, ...]:
        """The directory in which the pictures are rendered."""
        return (self.directory,)

    def count(self) -> int:
        """The number of training examples."""
        return self.train_examples

    def fields(self, seen: Seen) -> dict[str, tuple[int, int]]:
        """One picture of the rendered resolution for every stage: the stage reduces it to its own size."""
        return {"image": (self.resolution, 3)}

    def check_fits(self, seen: Seen, model: str) -> None:
        """Checks the resolution against the image size of the stage.

        Raises:
            UserError: the resolution is not the image size of the CLIP, or no multiple of an upsampler's image size.
        """
        if seen.preprocess is not None:
            size = seen.preprocess.size
            if self.resolution != size:
                raise UserError(f"data.resolution: {self.resolution} is not {size}, the size of this CLIP's pictures")
        elif seen.size is not None and (self.resolution < seen.size or self.resolution % seen.size):
            raise UserError(f"data.resolution: {self.resolution} is no multiple of {seen.size}, the size of {model}")

    def open(self) -> ShapesExamples:
        """The training split in memory, rendered on first use."""
        # The world of default size is prepared with all its splits; a smaller one, for tests, has "train" only.
        full = self.train_examples == shapes_world.SPLIT_SIZES["train"]
        source = shapes.source(
            "train",
            data_dir=self.directory,
            resolution=self.resolution,
            seed=self.seed,
            split_sizes=None if full else {"train": self.train_examples},
        )
        arrays = InMemory(source).arrays
        identity = {"resolution": self.resolution, "seed": self.seed, "examples": self.train_examples}
        return ShapesExamples(arrays["image"], arrays["caption"].tolist(), identity)


class ShapesExamples(Examples):
    """A split of the shapes world in memory."""

    statistics = 4096

    def __init__(self, images: np.ndarray, captions: list[str], identity: dict[str, Any]):
        """Images uint8 [N, R, R, 3] and N captions."""
        self.images, self.captions, self.identity = images, captions, identity
        # Combinations seen in training and held-out ones, alternately.
        sheet = [shapes_world.combinations(split)[i] for i in (3, 11, 20) for split in ("train", "heldout")]
        self.prompts = [shapes_world.caption(labels) for labels in sheet]
        self.prompt = "a small red circle in the top left"

    def with_tokens(self, tokens: Int[np.ndarray, "N L"], seen: Seen) -> InMemory:
        """The pictures at the rendered resolution, whatever the stage."""
        return InMemory({"image": self.images, "tokens": tokens})

    def drawn(self, source: TrainingSource | InMemory, limit: int, seed: int) -> HostBatch:
        """The first `limit` examples: the shapes world is in random order already."""
        assert isinstance(source, InMemory)
        return source.take(np.arange(min(limit, len(source))))


@dataclass(frozen=True)
class CaptionData(Data):
    """Your own pictures with captions."""

    source: str = ""
    """A table (.csv, .tsv, .jsonl with columns image and caption), a folder of classes, or tfds:NAME:SPLIT."""
    directory: Path | None = None
    """Data directory of TFDS; None: TFDS's default."""
    max_damaged: float = 0.01
    """Tolerated share of damaged pictures, 0 to 1; the next picture replaces each, and the log counts them (`bad`)."""

    def check(self) -> None:
        """Checks that a source is named and the share of damaged pictures is in range.

        Raises:
            UserError: no source is named, or `max_damaged` is not between 0 and 1.
        """
        if not self.source:
            raise UserError("data.source: none was given; name a table, a folder or tfds:NAME:SPLIT")
        if not 0 <= self.max_damaged <= 1:
            raise UserError(f"data.max_damaged: {self.max_damaged} is not between 0 and 1")

    def count(self) -> int:
        """The number of entries of the source."""
        return len(self.open().captions)

    def fields(self, seen: Seen) -> dict[str, tuple[int, int]]:
        """The pictures that the stage reads, resized to the stage's own sizes."""
        return seen.sides()

    def open(self) -> CaptionExamples:
        """Lists the source; no picture is opened yet."""
        listing = open_source(self.source, data_dir=self.directory)
        return CaptionExamples(listing, captions_of(listing, self.source), self.max_damaged)

    def hint(self, clip: Path) -> str:
        """The command that measures retrieval with the trained CLIP."""
        return f"how well they find each other: python -m clip_jax retrieve {self.source} --model {clip}"


class CaptionExamples(Examples):
    """All pictures of a source, with a caption for each."""

    statistics = 2048

    def __init__(self, listing: Source, captions: list[str], max_damaged: float):
        """The N pictures of `listing`, their captions, and the tolerated share of damaged pictures."""
        self.listing, self.captions, self.max_damaged = listing, captions, max_damaged
        self.identity = {
            "examples": len(captions),
            "names and captions": digest_of_captions(listing.names, captions),
        }
        self.prompts, self.prompt = list(dict.fromkeys(captions))[:4], captions[0]

    def with_tokens(self, tokens: Int[np.ndarray, "N L"], seen: Seen) -> Replacing:
        """A source that decodes a picture on access and replaces a damaged one by the next."""
        return Replacing(Pictures(self.listing.pictures, tokens, seen), max_damaged=self.max_damaged)


def captions_of(listing: Source, name: str) -> list[str]:
    """The captions of a source; of a source with class labels, "a photo of a CLASS.".

    Args:
        listing: the source.
        name: what the message calls it.

    Raises:
        UserError: the source has neither captions nor classes.
    """
    if listing.captions is not None:
        return listing.captions
    if listing.labels is None or listing.classes is None:
        raise UserError(f"{name} has neither captions nor classes; write a table with columns image and caption")
    (sentence,) = TEMPLATES["plain"]
    return [sentence.format(listing.classes[label]) for label in listing.labels]


def digest_of_captions(names: Sequence[str], captions: Sequence[str]) -> str:
    """SHA-256 over picture names and captions, in the order of the examples."""
    lines = "\n".join(f"{name}\t{caption}" for name, caption in zip(names, captions, strict=True))
    return hashlib.sha256(lines.encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(frozen=True)
class FashionData(Data):
    """Fashion-MNIST as training data."""

    directory: Path = Path("data")
    """Directory of the prepared data; prepared on first use."""
    files: Path | None = None
    """Directory of the four idx files; None: TFDS's fashion_mnist, downloaded if it is not in `directory`."""

    EXAMPLES: ClassVar[int] = 60_000

    @property
    def directories(self) -> tuple[Path, ...]:
        """The directory in which the data are prepared."""
        return (self.directory,)

    def count(self) -> int:
        """The number of training images in `files`, or the 60,000 of TFDS."""
        return self.EXAMPLES if self.files is None else len(fashion_mnist.read_idx(self.files)["train"].images)

    def fields(self, seen: Seen) -> dict[str, tuple[int, int]]:
        """One grey picture of 28 × 28."""
        return {"image": (fashion_mnist.SIDE, 1)}

    def open(self, split: str = "train") -> FashionExamples:
        """Reads a split, "train" or "test", into memory; it is prepared on first use."""
        arrays = InMemory(fashion_mnist.source(split, data_dir=self.directory, files=self.files)).arrays
        return FashionExamples(arrays["image"], arrays["label"])


class FashionExamples(Examples):
    """A split of Fashion-MNIST in memory, with one caption for each of the ten classes."""

    statistics = 4096

    def __init__(self, images: np.ndarray, labels: np.ndarray):
        """Images uint8 [N, 28, 28, 1] and class labels [N], 0 to 9."""
        self.images, self.labels = images, labels
        self.captions = [fashion_mnist.CAPTIONS[label] for label in labels]
        self.identity = {"examples": len(images)}
        self.prompts, self.prompt = list(fashion_mnist.CAPTIONS), fashion_mnist.CAPTIONS[0]

    def with_tokens(self, tokens: Int[np.ndarray, "N L"], seen: Seen) -> InMemory:
        """The pictures at 28 × 28, uint8."""
        return InMemory({"image": self.images, "tokens": tokens})


def tokens_of(tokenize: Tokenizer, captions: Sequence[str]) -> Int[np.ndarray, "N L"]:
    """The tokens of N captions, int32 [N, L]; equal captions are tokenised once."""
    rows = {caption: row for row, caption in enumerate(dict.fromkeys(captions))}
    return tokenize(list(rows))[[rows[caption] for caption in captions]]
