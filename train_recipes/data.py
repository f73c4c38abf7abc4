"""What is trained on: three kinds of source, each a value of a preset whose fields are flags (`--data.…`).

A `Data` is known before anything is prepared: how many examples it has, which pictures they hold. `open` prepares it,
and gives its `Examples`. The recipes do not ask which kind they have.
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
        captions: one for each example, N texts.
        identity: what of the data identifies a run, as JSON.
        prompts: captions to draw a sheet of pictures for when a system is finished.
        prompt: one to suggest to whoever wants to go on drawing.
        statistics: how many examples the statistics of a prior are taken from.
    """

    captions: list[str]
    identity: dict[str, Any]
    prompts: list[str]
    prompt: str
    statistics: ClassVar[int]

    @abstractmethod
    def with_tokens(self, tokens: Int[np.ndarray, "N L"], seen: Seen) -> TrainingSource | InMemory:
        """Examples of pictures and the tokens of their captions."""

    def drawn(self, source: TrainingSource | InMemory, limit: int, seed: int) -> HostBatch:
        """At most `limit` examples of what `with_tokens` gave, to measure something on."""
        return drawn_examples(source, limit, seed)


@dataclass(frozen=True)
class Data(ABC):
    """Training data; the subclasses say which."""

    @property
    def directories(self) -> tuple[Path, ...]:
        """Where it is prepared."""
        return ()

    def check(self) -> None:  # noqa: B027 - some data have nothing to refuse
        """Raises UserError for values that cannot be, whatever is trained."""

    @abstractmethod
    def count(self) -> int:
        """How many training examples there are; nothing is prepared. Raises UserError for a source that will not do."""

    @abstractmethod
    def fields(self, seen: Seen) -> dict[str, tuple[int, int]]:
        """(side, channels) of the pictures of an example, uint8 [side, side, channels], by the name of their field."""

    def check_fits(self, seen: Seen, model: str) -> None:  # noqa: B027 - some data are made to fit
        """Raises UserError where `model` cannot take the pictures there are."""

    @abstractmethod
    def open(self) -> Examples:
        """The training split, prepared first if need be."""

    def hint(self, clip: Path) -> str:
        """What to do with a CLIP that was trained on it, as a line; nothing where there is nothing to say."""
        return ""


@dataclass(frozen=True)
class ShapesData(Data):
    """The shapes world as training data."""

    directory: Path = Path("data")
    """Prepared here on first use."""
    resolution: int = 64
    seed: int = 0
    train_examples: int = 20_000

    @property
    def directories(self) -> tuple[Path, ...]:
        """Where it is rendered."""
        return (self.directory,)

    def count(self) -> int:
        """As many as were asked for."""
        return self.train_examples

    def fields(self, seen: Seen) -> dict[str, tuple[int, int]]:
        """The picture as it was rendered, for CLIP and every other stage: a stage reduces it to its own size."""
        return {"image": (self.resolution, 3)}

    def check_fits(self, seen: Seen, model: str) -> None:
        """Raises UserError for another size than CLIP's, or of which an upsampler's is no whole part."""
        if seen.preprocess is not None:
            size = seen.preprocess.size
            if self.resolution != size:
                raise UserError(f"data.resolution: {self.resolution} is not {size}, the size of this CLIP's pictures")
        elif seen.size is not None and (self.resolution < seen.size or self.resolution % seen.size):
            raise UserError(f"data.resolution: {self.resolution} is no multiple of {seen.size}, the size of {model}")

    def open(self) -> ShapesExamples:
        """The training split in memory, rendered on first use."""
        # The full world is prepared with all its splits; a smaller one is for tests and has this one alone.
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
        # Seen and held out in turn.
        sheet = [shapes_world.combinations(split)[i] for i in (3, 11, 20) for split in ("train", "heldout")]
        self.prompts = [shapes_world.caption(labels) for labels in sheet]
        self.prompt = "a small red circle in the top left"

    def with_tokens(self, tokens: Int[np.ndarray, "N L"], seen: Seen) -> InMemory:
        """The pictures as they were rendered, whatever the stage."""
        return InMemory({"image": self.images, "tokens": tokens})

    def drawn(self, source: TrainingSource | InMemory, limit: int, seed: int) -> HostBatch:
        """The first `limit`: each example is a draw by itself, so they are like all others."""
        assert isinstance(source, InMemory)
        return source.take(np.arange(min(limit, len(source))))


@dataclass(frozen=True)
class CaptionData(Data):
    """Pictures with captions of one's own."""

    source: str = ""
    """A table (.csv, .tsv, .jsonl with columns image and caption), a folder of classes, or tfds:NAME:SPLIT."""
    directory: Path | None = None
    """Where TFDS keeps its data; None: where it usually does."""
    max_damaged: float = 0.01
    """Share of the pictures that may be damaged: the next stands in, the log counts `bad`."""

    def check(self) -> None:
        """Raises UserError where no source is named, or the share of damaged pictures is none."""
        if not self.source:
            raise UserError("data.source: none was given; name a table, a folder or tfds:NAME:SPLIT")
        if not 0 <= self.max_damaged <= 1:
            raise UserError(f"data.max_damaged: {self.max_damaged} is not between 0 and 1")

    def count(self) -> int:
        """As many as the source lists."""
        return len(self.open().captions)

    def fields(self, seen: Seen) -> dict[str, tuple[int, int]]:
        """What the stage asks for."""
        return seen.sides()

    def open(self) -> CaptionExamples:
        """What the source lists; no picture is opened."""
        listing = open_source(self.source, data_dir=self.directory)
        return CaptionExamples(listing, captions_of(listing, self.source), self.max_damaged)

    def hint(self, clip: Path) -> str:
        """How to measure it."""
        return f"how well they find each other: python -m clip_jax retrieve {self.source} --model {clip}"


class CaptionExamples(Examples):
    """All pictures of a source, with a caption for each."""

    statistics = 2048

    def __init__(self, listing: Source, captions: list[str], max_damaged: float):
        """The pictures of the listing, and N captions."""
        self.listing, self.captions, self.max_damaged = listing, captions, max_damaged
        self.identity = {
            "examples": len(captions),
            "names and captions": digest_of_captions(listing.names, captions),
        }
        self.prompts, self.prompt = list(dict.fromkeys(captions))[:4], captions[0]

    def with_tokens(self, tokens: Int[np.ndarray, "N L"], seen: Seen) -> Replacing:
        """Read when they are asked for; the next one stands in for a damaged one."""
        return Replacing(Pictures(self.listing.pictures, tokens, seen), max_damaged=self.max_damaged)


def captions_of(listing: Source, name: str) -> list[str]:
    """Captions as the source has them, else a sentence with the name of the class.

    Raises:
        UserError: the source, whose name is `name`, has neither.
    """
    if listing.captions is not None:
        return listing.captions
    if listing.labels is None or listing.classes is None:
        raise UserError(f"{name} has neither captions nor classes; write a table with columns image and caption")
    (sentence,) = TEMPLATES["plain"]
    return [sentence.format(listing.classes[label]) for label in listing.labels]


def digest_of_captions(names: Sequence[str], captions: Sequence[str]) -> str:
    """SHA-256 of the names of pictures with their captions, in their order: the order of a run's examples."""
    lines = "\n".join(f"{name}\t{caption}" for name, caption in zip(names, captions, strict=True))
    return hashlib.sha256(lines.encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(frozen=True)
class FashionData(Data):
    """Fashion-MNIST as training data."""

    directory: Path = Path("data")
    """Prepared here on first use."""
    files: Path | None = None
    """Directory of the four idx files; None: TFDS's fashion_mnist, downloaded if it is not in `directory`."""

    EXAMPLES: ClassVar[int] = 60_000

    @property
    def directories(self) -> tuple[Path, ...]:
        """Where it is prepared."""
        return (self.directory,)

    def count(self) -> int:
        """As many as the files hold."""
        return self.EXAMPLES if self.files is None else len(fashion_mnist.read_idx(self.files)["train"].images)

    def fields(self, seen: Seen) -> dict[str, tuple[int, int]]:
        """Grey pictures, as they are."""
        return {"image": (fashion_mnist.SIDE, 1)}

    def open(self, split: str = "train") -> FashionExamples:
        """A split in memory, "train" or "test", prepared on first use."""
        arrays = InMemory(fashion_mnist.source(split, data_dir=self.directory, files=self.files)).arrays
        return FashionExamples(arrays["image"], arrays["label"])


class FashionExamples(Examples):
    """A split of Fashion-MNIST in memory; its captions are ten."""

    statistics = 4096

    def __init__(self, images: np.ndarray, labels: np.ndarray):
        """Images uint8 [N, 28, 28, 1] and the classes of N garments."""
        self.images, self.labels = images, labels
        self.captions = [fashion_mnist.CAPTIONS[label] for label in labels]
        self.identity = {"examples": len(images)}
        self.prompts, self.prompt = list(fashion_mnist.CAPTIONS), fashion_mnist.CAPTIONS[0]

    def with_tokens(self, tokens: Int[np.ndarray, "N L"], seen: Seen) -> InMemory:
        """The pictures as they are."""
        return InMemory({"image": self.images, "tokens": tokens})


def tokens_of(tokenize: Tokenizer, captions: Sequence[str]) -> Int[np.ndarray, "N L"]:
    """The tokens of N captions, int32 [N, L]; those that are equal are tokenised once."""
    rows = {caption: row for row, caption in enumerate(dict.fromkeys(captions))}
    return tokenize(list(rows))[[rows[caption] for caption in captions]]
