"""A training loop for any model: mesh, data, train state, step, checkpoints, metrics. It imports no model.

Names are imported on first use, so that reading data does not load Orbax and parsing arguments does not load JAX.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from image_text import __version__

if TYPE_CHECKING:
    from train_jax.data import InMemory, batches
    from train_jax.errors import Preempted, RunError, UserError
    from train_jax.loop import Run, fit
    from train_jax.optim import OptimConfig, make_optimizer
    from train_jax.state import TrainState
    from train_jax.step import make_train_step
    from train_jax.task import Task

__all__ = [
    "InMemory",
    "OptimConfig",
    "Preempted",
    "Run",
    "RunError",
    "Task",
    "TrainState",
    "UserError",
    "__version__",
    "batches",
    "fit",
    "make_optimizer",
    "make_train_step",
]

_HOME = {
    "InMemory": "data",
    "OptimConfig": "optim",
    "Preempted": "errors",
    "Run": "loop",
    "RunError": "errors",
    "Task": "task",
    "TrainState": "state",
    "UserError": "errors",
    "batches": "data",
    "fit": "loop",
    "make_optimizer": "optim",
    "make_train_step": "step",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
