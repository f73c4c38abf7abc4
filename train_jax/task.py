"""What can be trained: anything of this shape."""

from collections.abc import Mapping
from typing import Any, Protocol

import jax

from train_jax.errors import UserError

__all__ = ["Batch", "Metrics", "PyTree", "Task", "check_splits", "frozen_of"]

PyTree = Any
Batch = Mapping[str, Any]
Metrics = dict[str, jax.Array]


class Task(Protocol):
    """A thing to train. It is met by shape: the packages that implement it never import this one.

    Both methods are traced under `jit`, so they are pure and hold no arrays that change.

    A task may have two attributes beside, which `frozen_of` and `check_splits` read:

        frozen: Mapping[str, PyTree] = {}    freeze: networks that the loss reads and nobody trains, by name
        splits: bool = True                  whether the loss of a batch is the mean of those of its microbatches
    """

    def init(self, key: jax.Array) -> tuple[PyTree, PyTree]:
        """Draw the start: `(params, model_state)`.

        `params` is what the optimiser moves; `model_state` is everything else that belongs in the checkpoint, such as
        running statistics. Either may be an empty dict.
        """
        ...

    def loss(
        self, params: PyTree, model_state: PyTree, batch: Batch, key: jax.Array, *, train: bool
    ) -> tuple[jax.Array, tuple[Metrics, PyTree]]:
        """The loss of one batch: `(scalar, (metrics, model_state))`.

        Written for the whole batch, whatever devices it lies on. The `model_state` given also holds the trees of
        `frozen`, each under its name; those that come back are dropped. Every metric is a scalar; the rest of the
        returned `model_state` has the structure, shapes and dtypes of the one given.
        """
        ...


def frozen_of(task: Task) -> dict[str, PyTree]:
    """The trees that the loss of `task` reads and nobody trains, by their names; none unless the task has `frozen`."""
    return dict(getattr(task, "frozen", {}))


def check_splits(task: Task, accum: int) -> None:
    """Refuse gradient accumulation for a loss that is no mean over examples.

    A contrastive loss compares every example with all others of its batch: in microbatches it would have fewer
    negatives, and be another loss.

    Raises:
        UserError: `accum` is more than 1 and the task says `splits = False`.
    """
    if accum > 1 and not getattr(task, "splits", True):
        raise UserError(
            f"optim.accum: {accum} microbatches would contrast fewer examples than a batch holds, which is another "
            "loss; set it to 1"
        )
