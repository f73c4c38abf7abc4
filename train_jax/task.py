"""What can be trained: anything of this shape."""

from collections.abc import Mapping
from typing import Any, Protocol

import jax

__all__ = ["Batch", "Metrics", "PyTree", "Task"]

PyTree = Any
Batch = Mapping[str, Any]
Metrics = dict[str, jax.Array]


class Task(Protocol):
    """A thing to train. It is met by shape: the packages that implement it never import this one.

    Both methods are traced under `jit`, so they are pure and hold no arrays that change.
    """

    def init(self, key: jax.Array) -> tuple[PyTree, PyTree]:
        """Draw the start: `(params, model_state)`.

        `params` is what the optimiser moves; `model_state` is everything else that belongs in the checkpoint (running
        statistics, a frozen network). Either may be an empty dict.
        """
        ...

    def loss(
        self, params: PyTree, model_state: PyTree, batch: Batch, key: jax.Array, *, train: bool
    ) -> tuple[jax.Array, tuple[Metrics, PyTree]]:
        """The loss of one batch: `(scalar, (metrics, model_state))`.

        Written for the whole batch, whatever devices it lies on. Every metric is a scalar; the returned `model_state`
        has the structure, shapes and dtypes of the one given.
        """
        ...
