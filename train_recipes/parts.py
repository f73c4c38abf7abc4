"""What a row of `presets.PRESETS` is made of: a preset has parts, each a stage that is trained, beside its options."""

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

Measure = Callable[[TrainState], Mapping[str, Any]]  # scalars and pictures to log
Weights = Mapping[str, Any]


class Evaluation(NamedTuple):
    """What is measured of a stage, now and then while it is trained, and said of it at its end."""

    measure: Measure
    report: Callable[[TrainState], str] | None = None


@dataclass(frozen=True)
class Part:
    """One stage of a recipe, beside how it is trained.

    Attributes:
        name: of its directory under RUN/train, and of the field of its training in a whole system.
        folder: where its finished weights go, under the run directory.
    """

    name: str
    folder: str


class Built(NamedTuple):
    """A CLIP that is to be trained.

    Attributes:
        config: its architecture.
        tokenizer: captions of the training split -> its tokenizer.
        start: flat variables that it starts from, where it does not start from drawn ones.
        identity: what of its options identifies a run, as JSON.
    """

    config: CLIPConfig
    tokenizer: Callable[[Sequence[str]], Tokenizer]
    start: Mapping[str, np.ndarray] = {}
    identity: Mapping[str, Any] = {}


@dataclass(frozen=True)
class CLIPPart(Part):
    """A CLIP as a part of a recipe.

    Attributes:
        build: (options of the run, its own training, the prefix of its flags) -> the CLIP. Raises UserError for a model
            that cannot be trained so.
        evaluate: (config, tokenizer, options of the run) -> what is measured of it.
    """

    build: Callable[[Any, StageTraining, str], Built]
    evaluate: Callable[[CLIPConfig, Tokenizer, RunOptions], Evaluation] | None = None


@dataclass(frozen=True)
class Kind:
    """What a network of unCLIP is for, and how one like it is trained.

    Attributes:
        called: in an error line.
        holds: whether a preset of `unclip_jax.presets` is of this kind.
        seen: (stage, how CLIP is shown pictures) -> which pictures it is given.
        task: (part, stage, the CLIP's config and weights, examples to take statistics from; None for shapes alone) ->
            what is trained.
        statistics: whether the task takes statistics of the training data.
        draws: whether it draws pictures.
        low_res: whether it draws them from smaller ones.
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
        kind: what it is for.
        needs: folders of the run directory whose networks it is trained against; their digests identify its run.
        factor: of an upsampler: how much larger its pictures are than what it starts from; None: as `--factor` says.
        degrade: how the pictures that an upsampler starts from are spoilt.
        evaluate: (stage, CLIP, a few examples) -> what is measured of it.
    """

    kind: Kind
    needs: tuple[str, ...] = ("clip",)
    factor: int | None = None
    degrade: DegradeConfig | BSRConfig = DegradeConfig()
    evaluate: Callable[[Any, LoadedCLIP, HostBatch], Evaluation] | None = None


class Recipe(NamedTuple):
    """How the presets of one family are checked and trained: both take a preset's name, itself and its options."""

    check: Callable[[str, Preset, Any], None]
    train: Callable[[str, Preset, Any], None]


@dataclass(frozen=True)
class Preset:
    """A row of the table.

    Attributes:
        recipe: of its family.
        about: what it is, in a line.
        options: the values of its flags.
        clip: the CLIP that is trained, first where there are other stages; None for none.
        stages: the other stages that are trained, one after the other.
        after: the preset that trains what these stages need, if no flag names that.
    """

    recipe: Recipe
    about: str
    options: RunOptions
    clip: CLIPPart | None = None
    stages: tuple[StagePart, ...] = ()
    after: str = ""

    @property
    def names(self) -> list[str]:
        """Of all parts, in the order in which they are trained."""
        return [part.name for part in ([self.clip] if self.clip else []) + list(self.stages)]
