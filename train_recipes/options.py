"""What can be said on the command line of `train.py`: a preset is a value of one of these classes, a field a flag."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from train_jax.begin import Begin
from train_jax.optim import OptimConfig
from train_recipes.data import Data


@dataclass(frozen=True)
class StageTraining:
    """How one stage is trained."""

    model: str
    """Row of the preset table."""
    num_steps: int
    batch_size: int
    optim: OptimConfig
    log_every: int = 20
    save_every: int = 500


@dataclass(frozen=True, kw_only=True)
class RunOptions(Begin):
    """What every run has: where it goes, its seed, how it begins, and what it is trained on."""

    run: Path
    """Run directory: every stage's weights, checkpoints and logs."""
    seed: int = 0
    data: Data

    def training(self, stage: str) -> StageTraining:
        """How the stage of this name is trained."""
        return getattr(self, stage)

    def prefix(self, stage: str) -> str:
        """What comes before the flags of this stage in an error line: "decoder.", or nothing where it is alone."""
        return f"{stage}."

    @property
    def stored_as(self) -> str | None:
        """The dtype of the weights that are written; None for that of the training."""
        return None


@dataclass(frozen=True, kw_only=True)
class SystemOptions(RunOptions):
    """A run whose networks are stored for `sample.py`."""

    weights: Literal["float32", "float16"] = "float32"
    """How the finished weights are stored; float16 halves the files."""

    @property
    def stored_as(self) -> str | None:
        """As the flag says."""
        return self.weights


@dataclass(frozen=True)
class Alone(StageTraining):
    """The flags of a run of one stage are those of its training."""

    def training(self, stage: str) -> Any:
        """This one, for there is no other."""
        return self

    def prefix(self, stage: str) -> str:
        """Nothing: there is no other stage to tell it from."""
        return ""


@dataclass(frozen=True, kw_only=True)
class OverCLIP:
    """What is built over a CLIP that is trained already."""

    clip: str = ""
    """The CLIP it is built on: a directory, file or name that clip_jax.load takes; kept in the run directory."""
    factor: int = 4
    """Of an upsampler: how much larger its pictures are than what it starts from."""


# Runs of one stage


@dataclass(frozen=True)
class OneStage(Alone, SystemOptions):
    """One stage; the stages before it are taken from the run directory."""


@dataclass(frozen=True)
class OneStageOverCLIP(OverCLIP, OneStage):
    """One stage over a CLIP that is trained already."""


@dataclass(frozen=True)
class OneCLIP(Alone, RunOptions):
    """A CLIP alone."""


@dataclass(frozen=True)
class OneBertCLIP(OneCLIP):
    """A CLIP whose text tower is a BERT, on pictures with captions."""

    vocab: Path | None = None
    """WordPiece vocabulary: BERT's vocab.txt or tokenizer.json."""
    context_length: int = 64
    """Tokens of a caption, start and end included; BERT has positions for 512, but long rows cost time."""
    learned_temperature: bool = False
    """Whether the temperature is learned, from 0.07."""
    image_weights: Path | None = None
    """Start of the image tower: a file of torchvision's resnet50."""
    text_weights: Path | None = None
    """Start of the text tower: a file of Hugging Face's bert-base-uncased."""


# Whole systems: their stages are fields, in the order in which they need each other


@dataclass(frozen=True, kw_only=True)
class WholeSystem(SystemOptions):
    """CLIP, prior, decoder and upsampler, each trained with those before it."""

    clip: StageTraining
    prior: StageTraining
    decoder: StageTraining
    upsampler: StageTraining


@dataclass(frozen=True, kw_only=True)
class Cascade(OverCLIP, SystemOptions):
    """Prior, decoder and first upsampler over a CLIP that is trained already."""

    prior: StageTraining
    decoder: StageTraining
    upsampler_0: StageTraining


@dataclass(frozen=True)
class Distillation(Alone, SystemOptions):
    """Rounds of progressive distillation, each trained alike."""

    model: str
    """What is distilled: decoder, upsampler_0, …"""
    teacher: Path | None = None
    """Run directory of the trained system; None: the weights that come with the package."""
    rounds: tuple[int, ...] = (8, 4)
    """Steps of the students, each half of the one before; the teacher of the first takes twice as many, guided."""
    drop_text: float = 0.2
    """How often the decoder is taught to draw from the image embedding alone."""
