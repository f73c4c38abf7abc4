"""Trains one stage to its last step, and reads what a run directory holds: checkpoints, digests of weights."""

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

# Config keys that `--extend` cannot change: the stage, its network, the networks it was trained against, the optimiser.
FIXED = ("name", "config.model", "config.data.clip", "config.data.teacher", "optim.kind")


class Plan(NamedTuple):
    """What a recipe gives `train_stage` to train one stage.

    Attributes:
        task: initial parameters and loss.
        model: config of the network as JSON, part of the run's identity.
        export: writes the EMA weights of the final state to the run directory.
        evaluate: metrics and pictures to log during training; None for none.
    """

    task: Task
    model: Mapping[str, Any]
    export: Callable[[TrainState], None]
    evaluate: Measure | None = None


def train_stage(
    name: str, training: StageTraining, plan: Plan, batches: Batches, options: RunOptions, *, data: Mapping[str, Any]
) -> TrainState:
    """Trains one stage to its last step, resuming from its newest checkpoint if there is one, and exports its weights.

    Args:
        name: name of its directory, RUN/train/NAME.
        training: number of steps, batch size and optimiser.
        plan: task, export and evaluation.
        batches: step -> batch.
        options: options of the run: directory, seed, and how it begins or may change.
        data: what identifies the data, as JSON, with the digests of the networks that the stage is trained against.

    Returns:
        The final state.

    Raises:
        UserError: the directory holds a run with another config.
        RunError: a fault during training, such as a full disk or a loss that stays NaN.
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
    """Flax variables to export: the EMA parameters, with the collections of the model state (measured statistics)."""
    return {"params": state.ema_params, **state.model_state}


def architecture(stage: Prior) -> dict[str, Any]:
    """The config of a stage as recorded in its run's identity, as JSON.

    The input size of an upsampler is left out: it is recorded with the data (`low_res_size`) where it can be chosen.
    """
    data = to_json(stage)
    if data["model"].get("low_res"):
        data["model"]["low_res"].pop("size")
    return data


def digest(folder: Path) -> str:
    """SHA-256 of the weights file in a network's folder; a stage trained against it goes on with the same one only."""
    return hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()


def stage_directory(run: Path, name: str) -> Path:
    """Directory of a stage in a run directory, RUN/train/NAME; or `run` itself, if it directly holds checkpoints."""
    return run if (run / "checkpoints").is_dir() else run / "train" / name


def saved_steps(directory: Path) -> list[int]:
    """Steps of the checkpoints in a stage's directory, unordered."""
    return [int(path.name) for path in directory.glob("checkpoints/*") if path.name.isdecimal()]


def check_begin(begin: Begin, run: Path, stages: Sequence[str]) -> None:
    """Checks that there are checkpoints for `--begin-from` and `--extend`.

    Args:
        begin: how the run begins.
        run: its directory.
        stages: names of the stages that it trains.

    Raises:
        UserError: `begin_from` is not another run with checkpoints of every stage, or `extend` finds no checkpoint.
    """
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
