"""One stage of a run: how it is trained, what is special about it, and `train_stage`, the same for all."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from train_jax.begin import Begin
from train_jax.errors import UserError
from train_jax.optim import OptimConfig

if TYPE_CHECKING:
    from train_jax.data import Batches
    from train_jax.state import TrainState


# What a run cannot change when it goes on: its network, and the networks that it was trained against.
FIXED = ("name", "config.model", "config.data.clip", "config.data.teacher", "optim.kind")


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


class Plan(NamedTuple):
    """What is special about training one stage."""

    task: Any
    model: dict[str, Any]  # its architecture, part of the run's identity
    export: Callable[[TrainState], None]  # writes the averaged parameters for use
    evaluate: Callable[[TrainState], dict[str, Any]] | None = None


def train_stage(
    name: str,
    training: StageTraining,
    plan: Plan,
    batches: Batches,
    *,
    run: Path,
    seed: int,
    data: dict[str, Any],
    begin: Begin = Begin(),  # noqa: B008 - a frozen value
) -> TrainState:
    """Trains one stage to its end, from where it was, writes its weights into the run directory, returns its state.

    `data` is what of the data identifies the run; `begin` says how the run begins, or that it may change.
    """
    from train_jax.loop import Run, fit

    return fit(
        Run(
            name=name,
            task=plan.task,
            batches=batches,
            optim=training.optim,
            num_steps=training.num_steps,
            seed=seed,
            directory=run / "train" / name,
            begin_from=begin.begin_from and stage_directory(begin.begin_from, name),
            extend=begin.extend,
            fixed=FIXED,
            config={"model": plan.model, "batch_size": training.batch_size, "data": data},
            log_every=training.log_every,
            save_every=training.save_every,
            evaluate=plan.evaluate,
            evaluate_every=-(-training.num_steps // 4),
            on_end=plan.export,
        )
    )


def architecture(stage: Any) -> dict[str, Any]:
    """The config of a stage as part of a run's identity, as it always was: what it starts from belongs to the data."""
    from unclip_jax.stage_configs import to_json

    data = to_json(stage)
    if data["model"].get("low_res"):
        data["model"]["low_res"].pop("size")
    return data


def fitted(stage: Any, clip: Any) -> Any:
    """A stage with the widths of this CLIP's config; an upsampler has none of them."""
    return dataclasses.replace(stage, model=stage.model.fitted(clip))


def digest(folder: Path) -> str:
    """SHA-256 of the weights in the folder of a network: who was trained against them goes on with no others."""
    from unclip_jax.pipeline import WEIGHTS

    return hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()


def check_training(training: StageTraining, prefix: str = "") -> None:
    """Raises UserError for numbers that cannot be; `prefix` is what comes before their flags."""
    for field_name in ("num_steps", "batch_size", "log_every", "save_every"):
        if getattr(training, field_name) < 1:
            raise UserError(f"{prefix}{field_name}: {getattr(training, field_name)} is less than 1")


def stage_directory(run: Path, name: str) -> Path:
    """Where a run directory keeps the checkpoints of a stage; a directory that holds checkpoints itself is one."""
    return run if (run / "checkpoints").is_dir() else run / "train" / name


def saved_steps(directory: Path) -> list[int]:
    """The steps that are saved in the directory of a stage."""
    return [int(path.name) for path in directory.glob("checkpoints/*") if path.name.isdecimal()]


def check_begin(begin: Begin, run: Path, stages: Sequence[str]) -> None:
    """Raises UserError where a stage has nothing to begin from, or none of them anything to go on from."""
    other = begin.begin_from
    if other is None:
        if begin.extend and not any(saved_steps(run / "train" / name) for name in stages):
            raise UserError(f"extend: {run} holds no run of {', '.join(stages)} to go on with; leave --extend out")
        return
    if not other.is_dir():
        raise UserError(f"begin_from: {other} is not a directory; name the run directory of a trained run")
    if other.resolve() == run.resolve():
        raise UserError(f"begin_from: {other} is the run itself, which goes on without it")
    for name in stages:
        if not saved_steps(stage_directory(other, name)) and not saved_steps(run / "train" / name):
            raise UserError(f"begin_from: {other} holds no checkpoints of the {name}; name a run that trained it")


def check_directories(*directories: Path) -> None:
    """Raises UserError where a file is in the way."""
    for directory in directories:
        if directory.exists() and not directory.is_dir():
            raise UserError(f"{directory} is a file; name a directory")
