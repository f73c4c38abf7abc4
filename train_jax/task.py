"""`Task`, the protocol of everything that can be trained: initial parameters and a loss."""

from collections.abc import Mapping
from typing import Any, Protocol

import jax

from train_jax.errors import UserError

__all__ = ["Batch", "Metrics", "PyTree", "Task", "check_splits", "frozen_of"]

PyTree = Any
Batch = Mapping[str, Any]
Metrics = dict[str, jax.Array]


class Task(Protocol):
    """A model with its loss, as a structural type: packages that implement it need not import this one.

    Both methods are traced under `jit`, so they must be pure.

    A task may have two more attributes, which `frozen_of` and `check_splits` read:

        frozen: Mapping[str, PyTree] = {}    freeze: weights of frozen networks, by name; the loss reads them, no
                                             optimiser step changes them, and checkpoints leave them out
        splits: bool = True                  whether the loss of a batch is the mean of the losses of its microbatches
    """

    def init(self, key: jax.Array) -> tuple[PyTree, PyTree]:
        """The initial `(params, model_state)`.

        The optimiser updates `params`; `model_state` is everything else that belongs in the checkpoint, such as running
        statistics. Either may be an empty dict.
        """
        ...

    def loss(
        self, params: PyTree, model_state: PyTree, batch: Batch, key: jax.Array, *, train: bool
    ) -> tuple[jax.Array, tuple[Metrics, PyTree]]:
        """The loss of one batch.

        It is written for the global batch; the compiler splits it over the devices.

        Args:
            params: the trained parameters.
            model_state: the model state, and the trees of `frozen`, each under its name.
            batch: arrays [B, …] by field.
            key: random key of this step (and microbatch).
            train: whether the model is trained (dropout, batch statistics) or evaluated.

        Returns:
            `(loss, (metrics, model_state))`: loss and metrics are scalars. The new `model_state` has the structure,
            shapes and dtypes of the given one; frozen trees in it are ignored.
        """
        ...


def frozen_of(task: Task) -> dict[str, PyTree]:
    """The frozen trees of a task by name; an empty dict if it has no attribute `frozen`."""
    return dict(getattr(task, "frozen", {}))


def check_splits(task: Task, accum: int) -> None:
    """Refuse gradient accumulation for a loss that is not a mean over examples.

    A contrastive loss compares every example with all others of its batch; microbatches would have fewer negatives,
    which is a different loss.

    Raises:
        UserError: `accum` is more than 1 and the task says `splits = False`.
    """
    if accum > 1 and not getattr(task, "splits", True):
        raise UserError(
            f"optim.accum: {accum} microbatches would contrast fewer examples than a batch holds, which is another "
            "loss; set it to 1"
        )
