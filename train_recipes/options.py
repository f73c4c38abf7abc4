"""Option dataclasses of `train.py`: a preset holds an instance; every field is a flag, its docstring the help text."""

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
    """Model preset: of clip_jax for a CLIP, of unclip_jax for other stages."""
    num_steps: int
    """Number of training steps."""
    batch_size: int
    """Examples per step, over all devices."""
    optim: OptimConfig
    log_every: int = 20
    """Steps between log entries."""
    save_every: int = 500
    """Steps between checkpoints."""


@dataclass(frozen=True, kw_only=True)
class RunOptions(Begin):
    """Options of every run: directory, seed, data, and how it begins."""

    run: Path
    """Run directory: every stage's weights, checkpoints and logs."""
    seed: int = 0
    """Seed of initial weights, order of examples and noise; 0 to 2**32 - 1."""
    data: Data

    def training(self, stage: str) -> StageTraining:
        """How the stage of this name is trained."""
        return getattr(self, stage)

    def prefix(self, stage: str) -> str:
        """Prefix of the stage's flags, such as "decoder."; "" in a run of one stage."""
        return f"{stage}."

    @property
    def stored_as(self) -> str | None:
        """The dtype of the exported weights; None: the dtype of training."""
        return None


@dataclass(frozen=True, kw_only=True)
class SystemOptions(RunOptions):
    """A run that exports networks for `sample.py`."""

    weights: Literal["float32", "float16"] = "float32"
    """dtype of the exported weights; float16 halves the files."""

    @property
    def stored_as(self) -> str | None:
        """The dtype of the exported weights, `weights`."""
        return self.weights


@dataclass(frozen=True)
class Alone(StageTraining):
    """A run of one stage: the stage's training options are flags without a prefix."""

    def training(self, stage: str) -> Any:
        """These options themselves, whatever the name of the stage."""
        return self

    def prefix(self, stage: str) -> str:
        """The empty prefix."""
        return ""


@dataclass(frozen=True, kw_only=True)
class OverCLIP:
    """Options of stages over a CLIP that is trained already."""

    clip: str = ""
    """The pretrained CLIP: a directory, file or name for clip_jax.load. It is copied into the run directory."""
    factor: int = 4
    """Upsampling factor: side of an upsampler's output divided by that of its input. Other stages ignore it."""


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
    """Tokens per caption, start and end tokens included; BERT allows 512, but long captions cost time."""
    learned_temperature: bool = False
    """Learn the temperature, starting from 0.07; otherwise it is fixed there."""
    image_weights: Path | None = None
    """Pretrained weights of the image tower: a file of torchvision's resnet50."""
    text_weights: Path | None = None
    """Pretrained weights of the text tower: a file of Hugging Face's bert-base-uncased."""


# Whole systems: their stages are fields, in training order


@dataclass(frozen=True, kw_only=True)
class WholeSystem(SystemOptions):
    """CLIP, prior, decoder and upsampler; all are trained, one after the other."""

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
    """Rounds of progressive distillation, all with the same training options."""

    model: str
    """Stage to distil: decoder, upsampler_0, …"""
    teacher: Path | None = None
    """Run directory of the trained system; None: the weights that come with the package."""
    rounds: tuple[int, ...] = (8, 4)
    """Sampling steps of the students, each half of the one before; the first teacher takes twice as many, guided."""
    drop_text: float = 0.2
    """Probability of dropping the caption, so that the decoder learns to draw from the image embedding alone."""
