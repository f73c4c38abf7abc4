"""The train state: everything that a run needs to go on, with the EMA (moving average) of the parameters."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from train_jax.task import PyTree, Task, frozen_of

__all__ = ["TrainState", "ema_update", "init_state"]


class TrainState(NamedTuple):
    """The state of a run after a step. Data position and random keys are functions of `step`, so neither is stored."""

    step: jax.Array  # int32 scalar: batches consumed
    params: PyTree
    ema_params: PyTree  # EMA of params, same structure
    opt_state: optax.OptState
    model_state: PyTree  # other variables of the model, such as running statistics, by collection
    skipped: jax.Array  # int32 scalar: steps whose loss or gradient was not finite
    bad: jax.Array | np.int32 = np.int32(0)  # int32 scalar: damaged examples that were replaced
    frozen: PyTree = {}  # noqa: RUF012 - an empty tree. Frozen networks that the loss reads; never in a checkpoint


def init_state(task: Task, tx: optax.GradientTransformation, key: jax.Array) -> TrainState:
    """The state before the first step; a pure function, for `jax.eval_shape` and `jit`.

    Under `jit` the frozen trees would become constants of the program: drop them there (`frozen={}`) and place them on
    the devices separately.

    Args:
        task: gives `params`, `model_state` and the frozen trees.
        tx: the optimiser.
        key: random key of the initial parameters.
    """
    # A Python scalar would be weakly typed here and strongly typed after a restore: the step would compile twice.
    params, model_state, frozen = jax.tree.map(_strong, (*task.init(key), frozen_of(task)))
    zero = jnp.zeros((), jnp.int32)
    return TrainState(zero, params, params, tx.init(params), model_state, zero, zero, frozen)


def ema_update(ema: PyTree, params: PyTree, decay: float, step: jax.Array) -> PyTree:
    """One update of an EMA (exponential moving average): d·ema + (1 - d)·params.

    The decay d is min(decay, (1 + step) / (10 + step)): smaller in early steps, so that the EMA forgets the initial
    parameters. The sum is computed as ema + (1 - d)·(params - ema), which keeps a parameter that does not change equal
    to the last bit.

    Args:
        ema: EMA before the update.
        params: parameters after the optimiser's update, same structure.
        decay: decay in [0, 1); with 0 the result is `params`.
        step: number of steps before this one, int32 scalar.
    """
    if not decay:
        return params
    d = jnp.minimum(decay, (1 + step).astype(jnp.float32) / (10 + step).astype(jnp.float32))

    def moved(e: jax.Array, p: jax.Array) -> jax.Array:
        wide = e.dtype if e.dtype.itemsize >= 4 else jnp.float32
        return e + ((1 - d).astype(wide) * (p - e).astype(wide)).astype(e.dtype)

    return jax.tree.map(moved, ema, params)


def _strong(leaf) -> jax.Array:
    return jnp.asarray(leaf, dtype=jnp.result_type(leaf))
