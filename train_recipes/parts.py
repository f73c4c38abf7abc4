"""The types that a preset is made of: its parts (each a stage that is trained), its recipe and its evaluations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from clip_jax.config import CLIPConfig
from clip_jax.images import Preprocess
from clip_jax.pretrained import LoadedCLIP
from clip_jax.tokenizer import Tokenizer
from train_jax.state import TrainState
from train_jax.task import Task
from train_recipes.data import HostBatch
from train_recipes.options import RunOptions, StageTraining
from train_recipes.pictures import Seen
from unclip_jax.degrade import BSRConfig, DegradeConfig

Measure = Callable[[TrainState], Mapping[str, Any]]  # name -> scalar or uint8 image [H, W, 3] to log
Weights = Mapping[str, Any]


class Evaluation(NamedTuple):
    """How a stage is evaluated.

    Attributes:
        measure: metrics and pictures to log during training and at its end.
        report: a line to print at the end of training; None for none.
    """

    measure: Measure
    report: Callable[[TrainState], str] | None = None


@dataclass(frozen=True)
class Part:
    """One stage of a preset; how it is trained is in the preset's options.

    Attributes:
        name: name of its directory RUN/train/NAME, and of the field of a whole system's options that trains it.
        folder: folder of the run directory that its exported weights go to.
    """

    name: str
    folder: str


class Built(NamedTuple):
    """A CLIP to train.

    Attributes:
        config: its architecture.
        tokenizer: captions of the training split -> tokenizer.
        start: pretrained variables, flat (path -> array); the others are randomly initialised.
        identity: the options that identify a run beside the config, as JSON.
    """

    config: CLIPConfig
    tokenizer: Callable[[Sequence[str]], Tokenizer]
    start: Mapping[str, np.ndarray] = {}
    identity: Mapping[str, Any] = {}


@dataclass(frozen=True)
class CLIPPart(Part):
    """A CLIP as a part of a recipe.

    Attributes:
        build: (options of the run, training options of the CLIP, prefix of its flags) -> the CLIP. It raises UserError
            if the model does not fit the recipe.
        evaluate: (config, tokenizer, options of the run) -> its evaluation.
    """

    build: Callable[[Any, StageTraining, str], Built]
    evaluate: Callable[[CLIPConfig, Tokenizer, RunOptions], Evaluation] | None = None


@dataclass(frozen=True)
class Kind:
    """A kind of unCLIP stage (a kind of prior, the decoder or an upsampler), and how stages of this kind are trained.

    Attributes:
        called: its name in error messages, with article.
        holds: stage -> whether it is of this kind.
        seen: (stage, preprocessing of CLIP) -> which pictures the stage reads.
        task: (part, stage, config of the CLIP, weights of the CLIP, examples for statistics) -> the task. With None
            for the examples the statistics are blank, which is enough for tracing.
        statistics: whether the task needs statistics of the training data.
        draws: whether the stage draws pictures.
        low_res: whether it upsamples a low-resolution picture.
    """

    called: str
    holds: Callable[[Any], bool]
    seen: Callable[[Any, Preprocess], Seen]
    task: Callable[[StagePart, Any, CLIPConfig, Weights, HostBatch | None], Task]
    statistics: bool = False
    draws: bool = False
    low_res: bool = False


@dataclass(frozen=True)
class StagePart(Part):
    """A stage of unCLIP as a part of a recipe.

    Attributes:
        kind: prior, decoder or upsampler.
        needs: folders of the run directory with the networks it is trained against; their digests identify its run.
        factor: upsampling factor of an upsampler; None: the flag `--factor`.
        degrade: degradation of the low-resolution input of an upsampler in training.
        evaluate: (stage, CLIP, a few examples) -> its evaluation.
    """

    kind: Kind
    needs: tuple[str, ...] = ("clip",)
    factor: int | None = None
    degrade: DegradeConfig | BSRConfig = DegradeConfig()
    evaluate: Callable[[Any, LoadedCLIP, HostBatch], Evaluation] | None = None


class Recipe(NamedTuple):
    """How presets of one family are checked and trained.

    Attributes:
        check: (name of the preset, preset, options) -> None; raises UserError before anything is written.
        train: (name of the preset, preset, options) -> None.
    """

    check: Callable[[str, Preset, Any], None]
    train: Callable[[str, Preset, Any], None]


@dataclass(frozen=True)
class Preset:
    """A row of the table.

    Attributes:
        recipe: how it is checked and trained.
        about: its description in `train.py --help`, one line.
        options: its flags with their defaults.
        clip: the CLIP that is trained before the other stages; None for none.
        stages: the other stages that are trained, in this order.
        after: preset to train first, which the message for a missing CLIP names; "" where `--clip` gives the CLIP.
    """

    recipe: Recipe
    about: str
    options: RunOptions
    clip: CLIPPart | None = None
    stages: tuple[StagePart, ...] = ()
    after: str = ""

    @property
    def names(self) -> list[str]:
        """Names of all parts, in training order."""
        return [part.name for part in ([self.clip] if self.clip else []) + list(self.stages)]
