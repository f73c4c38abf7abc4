"""What of a recipe can be seen to be wrong before its first step: every stage is built and traced without computing.

All is known before: shapes from the configs, devices, the number of examples. So a mistake in the last stage is told in
seconds, and not when the stages before it have been trained for hours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from train_jax.errors import UserError
from train_recipes.engine import StageTraining, check_training

if TYPE_CHECKING:
    from unclip_jax.seams import Drawn

KINDS = {"prior": "a prior", "decoder": "a decoder", "upsampler": "an upsampler"}


def check_settings(trainings: Mapping[str, StageTraining], seed: int) -> None:
    """Refuses numbers that cannot be, whatever the data and the networks: of every stage, by the prefix of its flags.

    Raises:
      UserError: a count is less than 1, a warm-up longer than its run, a batch that these devices cannot share, or the
        seed is out of range.
    """
    from train_jax.optim import learning_rate
    from train_jax.sharding import make_mesh

    if not 0 <= seed < 2**32:
        raise UserError(f"seed: {seed} is not between 0 and 2**32 - 1")
    for prefix, training in trainings.items():
        check_training(training, prefix)
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


def check_examples(trainings: Mapping[str, StageTraining], examples: int) -> None:
    """Refuses batches larger than the data. Raises UserError."""
    for prefix, training in trainings.items():
        if training.batch_size > examples:
            raise UserError(f"{prefix}batch_size: {training.batch_size} is more than the {examples} examples there are")


def network(name: str, kind: str, prefix: str = "") -> Any:
    """The preset of a stage. Raises UserError where there is none of the name, or it is of another kind (`KINDS`)."""
    from unclip_jax.presets import preset

    stage = with_prefix(f"{prefix}model: ", lambda: preset(name))
    found = stage.model.role
    if found != kind:
        raise UserError(f"{prefix}model: {name} is {KINDS[found]}, not {KINDS[kind]}")
    return stage


def check_average(clip: Any, training: StageTraining, prefix: str = "") -> None:
    """Refuses averaged weights for a CLIP with batch norms. Raises UserError."""
    from clip_jax import PlainResNetConfig, ResNetConfig

    average = training.optim.ema_decay
    if average and isinstance(clip.vision, ResNetConfig | PlainResNetConfig):
        raise UserError(
            f"{prefix}optim.ema_decay: averaged weights do not fit the running statistics of batch norms; set it to 0, "
            f"not {average}"
        )


def check_sizes(rows: list[list[Drawn]], hint: str = "") -> None:
    """Refuses stages that do not start from what is drawn before them; `hint` says what to do. Raises UserError."""
    from unclip_jax.seams import check_seams

    for row in rows:
        try:
            check_seams(row)
        except user_errors() as error:
            raise UserError(f"{error}{hint}") from error


def trace(
    prefix: str, training: StageTraining, make: Callable[[Any], Any], frozen: Any, batch: Mapping[str, Any]
) -> None:
    """Builds a stage's state and the loss of one batch, shapes only: nothing is computed, and no weight allocated.

    Args:
      make: the CLIP's weights -> the task.
      frozen: the CLIP's weights as one tree, arrays or what `jax.eval_shape` gives of them.
      batch: the fields of one example, each with `shape` and `dtype`.

    Raises:
      UserError: the parts of the stage do not fit each other.
    """
    import jax

    from train_jax.optim import make_optimizer
    from train_jax.state import init_state

    tx = make_optimizer(training.optim, training.num_steps)
    rows = {
        name: jax.ShapeDtypeStruct((training.batch_size, *field.shape), field.dtype) for name, field in batch.items()
    }

    def loss(frozen: Any, batch: Any, key: Any) -> Any:
        task = make(frozen)
        state = init_state(task, tx, key)
        model_state = {**state.model_state, **getattr(task, "frozen", {})}
        return task.loss(state.params, model_state, batch, key, train=True)

    def traced() -> None:
        try:
            jax.eval_shape(loss, frozen, rows, jax.eval_shape(lambda: jax.random.key(0)))
        except user_errors():
            raise
        except (TypeError, ValueError) as error:
            raise UserError(f"model: {training.model} cannot be trained so: {' '.join(str(error).split())}") from error

    with_prefix(prefix, traced)


def example(**fields: tuple[tuple[int, ...], str]) -> dict[str, Any]:
    """Fields of one example by their shape and dtype, as `trace` takes them."""
    import jax

    return {name: jax.ShapeDtypeStruct(shape, dtype) for name, (shape, dtype) in fields.items()}


def user_errors() -> tuple[type[Exception], ...]:
    """What packages below raise for bad input."""
    import clip_jax

    return UserError, clip_jax.UserError


def with_prefix(prefix: str, do: Callable[[], Any]) -> Any:
    """`do()`, with the flags that are meant put before the line of its UserError."""
    try:
        return do()
    except user_errors() as error:
        raise UserError(f"{prefix}{error}") from error
