"""What all recipes share: how one stage is trained to its end, and what its run directory knows of it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from train_jax.begin import Begin
from train_jax.data import Batches
from train_jax.errors import UserError
from train_jax.loop import Run, fit
from train_jax.state import TrainState
from train_jax.task import Task
from train_recipes.options import RunOptions, StageTraining
from train_recipes.parts import Measure
from unclip_jax.priors import Prior
from unclip_jax.stage_configs import to_json
from unclip_jax.stage_files import WEIGHTS

# What a run cannot change when it goes on: its network, and the networks that it was trained against.
FIXED = ("name", "config.model", "config.data.clip", "config.data.teacher", "optim.kind")


class Plan(NamedTuple):
    """What is special about training one stage."""

    task: Task
    model: Mapping[str, Any]  # its architecture, part of the run's identity
    export: Callable[[TrainState], None]  # writes the averaged weights for use
    evaluate: Measure | None = None


def train_stage(
    name: str, training: StageTraining, plan: Plan, batches: Batches, options: RunOptions, *, data: Mapping[str, Any]
) -> TrainState:
    """Train one stage to its end, from where it was, write its weights into the run directory, return its state.

    Args:
        name: of its directory, RUN/train/NAME.
        training: its steps, batch and optimiser.
        plan: what is trained and what becomes of it.
        batches: step -> batch.
        options: of the run: its directory, its seed, and how it begins or may change.
        data: what of the data identifies the run, as JSON; digests of the networks it is trained against, too.

    Raises:
        UserError: what is there is of another run.
        RunError: a fault on the way.
    """
    return fit(
        Run(
            name=name,
            task=plan.task,
            batches=batches,
            optim=training.optim,
            num_steps=training.num_steps,
            seed=options.seed,
            directory=options.run / "train" / name,
            begin_from=options.begin_from and stage_directory(options.begin_from, name),
            extend=options.extend,
            fixed=FIXED,
            config={"model": plan.model, "batch_size": training.batch_size, "data": data},
            log_every=training.log_every,
            save_every=training.save_every,
            evaluate=plan.evaluate,
            evaluate_every=-(-training.num_steps // 4),
            on_end=plan.export,
        )
    )


def variables_of(state: TrainState) -> dict[str, Any]:
    """The averaged weights of a trained network, with what was measured, as the Flax variables that are exported."""
    return {"params": state.ema_params, **state.model_state}


def architecture(stage: Prior) -> dict[str, Any]:
    """The config of a stage as part of a run's identity, as it always was: what it starts from belongs to the data."""
    data = to_json(stage)
    if data["model"].get("low_res"):
        data["model"]["low_res"].pop("size")
    return data


def digest(folder: Path) -> str:
    """SHA-256 of the weights in the folder of a network: who was trained against them goes on with no others."""
    return hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()


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
