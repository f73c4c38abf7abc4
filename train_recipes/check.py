"""Checks before the first training step: flags, then every stage traced with `jax.eval_shape`, without computing.

Shapes follow from the configs; the devices and the number of examples are known, too. So a mistake in the last stage is
reported in seconds, and not after the stages before it have been trained for hours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import jax

from clip_jax.config import CLIPConfig, PlainResNetConfig, ResNetConfig
from image_text.errors import one_line
from train_jax.errors import UserError
from train_jax.optim import learning_rate, make_optimizer
from train_jax.sharding import make_mesh
from train_jax.state import init_state
from train_jax.task import Task, check_splits
from train_recipes.engine import check_begin
from train_recipes.options import RunOptions, StageTraining

T = TypeVar("T")


def check_run(options: RunOptions, stages: list[str]) -> None:
    """Checks the flags of a run: ranges of numbers, directories, data options and checkpoints to begin from.

    Args:
        options: options of the run.
        stages: names of the stages that it trains.

    Raises:
        UserError: a flag has a value that cannot be used; the message names the flag or the path.
    """
    check_settings({options.prefix(name): options.training(name) for name in stages}, options.seed)
    for directory in (options.run, *options.data.directories):
        if directory.exists() and not directory.is_dir():
            raise UserError(f"{directory} is a file; name a directory")
    options.data.check()
    check_begin(options, options.run, stages)


def check_settings(trainings: Mapping[str, StageTraining], seed: int) -> None:
    """Checks the numbers of every stage that can be checked without data or networks.

    Args:
        trainings: how each stage is trained, by the prefix of its flags: "decoder.", or "" for a run of one stage.
        seed: seed of the run.

    Raises:
        UserError: a count is less than 1, a warm-up longer than its run, a batch that these devices cannot share, or
            the seed is out of range.
    """
    if not 0 <= seed < 2**32:
        raise UserError(f"seed: {seed} is not between 0 and 2**32 - 1")
    for prefix, training in trainings.items():
        for name, count in (
            ("num_steps", training.num_steps),
            ("batch_size", training.batch_size),
            ("log_every", training.log_every),
            ("save_every", training.save_every),
        ):
            if count < 1:
                raise UserError(f"{prefix}{name}: {count} is less than 1")
        with_prefix(prefix, partial(learning_rate, training.optim, training.num_steps))
    devices = make_mesh().shape["data"]
    for prefix, training in trainings.items():
        parts = devices * training.optim.accum
        if training.batch_size % parts:
            microbatches = f" x {training.optim.accum} microbatches" if training.optim.accum > 1 else ""
            raise UserError(
                f"{prefix}batch_size: {training.batch_size} examples cannot be divided over {devices} device(s)"
                f"{microbatches}; use a multiple of {parts}"
            )


def check_examples(options: RunOptions, stages: list[str]) -> None:
    """Checks that the data fill at least one batch of every stage.

    Raises:
        UserError: a stage's batch is larger than the number of examples.
    """
    examples = options.data.count()
    for name in stages:
        size = options.training(name).batch_size
        if size > examples:
            raise UserError(f"{options.prefix(name)}batch_size: {size} is more than the {examples} examples there are")


def check_average(clip: CLIPConfig, training: StageTraining, prefix: str = "") -> None:
    """Refuses an EMA of the weights for a CLIP with batch norms, whose running statistics are not averaged.

    Raises:
        UserError: the image tower has batch norms and `ema_decay` is not 0.
    """
    average = training.optim.ema_decay
    if average and isinstance(clip.vision, ResNetConfig | PlainResNetConfig):
        raise UserError(
            f"{prefix}optim.ema_decay: averaged weights do not fit the running statistics of batch norms; set it to 0, "
            f"not {average}"
        )


def trace(
    prefix: str, training: StageTraining, make: Callable[[Any], Task], weights: Any, batch: Mapping[str, Any]
) -> None:
    """Traces a stage's initial state and the loss of one batch with `jax.eval_shape`: no computation, no allocation.

    Args:
        prefix: prefix of the stage's flags, put before error messages.
        training: how the stage is trained.
        make: function of `weights` that returns the task.
        weights: frozen weights that the task is built on (those of the CLIP, or of the teacher), as one tree of arrays
            or of `jax.ShapeDtypeStruct`.
        batch: fields of one example, each with `shape` and `dtype`.

    Raises:
        UserError: the network, the optimiser and the data of the stage do not fit each other.
    """
    tx = make_optimizer(training.optim, training.num_steps)
    rows = {
        name: jax.ShapeDtypeStruct((training.batch_size, *field.shape), field.dtype) for name, field in batch.items()
    }

    def loss(weights: Any, batch: Any, key: Any) -> Any:
        task = make(weights)
        check_splits(task, training.optim.accum)
        state = init_state(task, tx, key)
        return task.loss(state.params, {**state.model_state, **state.frozen}, batch, key, train=True)

    def traced() -> None:
        try:
            jax.eval_shape(loss, weights, rows, jax.eval_shape(lambda: jax.random.key(0)))
        except UserError:
            raise
        except (TypeError, ValueError) as error:
            raise UserError(f"model: {training.model} cannot be trained so: {one_line(error, 1000)}") from error

    with_prefix(prefix, traced)


def example(pictures: Mapping[str, tuple[int, int]], context_length: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of one example, for the `batch` of `trace`.

    Args:
        pictures: (side, channels) of each picture, by the name of its field.
        context_length: number of tokens of a caption, L.

    Returns:
        Each picture as uint8 [side, side, channels], and "tokens" as int32 [L].
    """
    fields = {
        name: jax.ShapeDtypeStruct((side, side, channels), "uint8") for name, (side, channels) in pictures.items()
    }
    return fields | {"tokens": jax.ShapeDtypeStruct((context_length,), "int32")}


def with_prefix(prefix: str, do: Callable[[], T]) -> T:
    """Returns `do()`; if it raises a UserError, puts `prefix` (of the flags concerned) before the message."""
    try:
        return do()
    except UserError as error:
        raise UserError(f"{prefix}{error}") from error
