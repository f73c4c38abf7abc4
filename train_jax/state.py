"""Everything a run needs to go on: the train state, how it begins, and the EMA (moving average) of its parameters."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from train_jax.task import PyTree, Task, frozen_of

__all__ = ["TrainState", "ema_update", "init_state"]


class TrainState(NamedTuple):
    """The whole of a run at one step. Data position and randomness are functions of `step`, so neither is stored."""

    step: jax.Array  # int32 scalar: batches consumed
    params: PyTree
    ema_params: PyTree  # running average of params, same structure
    opt_state: optax.OptState
    model_state: PyTree  # what travels with the model without being trained
    skipped: jax.Array  # int32 scalar: steps whose loss or gradient was not finite
    bad: jax.Array | np.int32 = np.int32(0)  # int32 scalar: damaged examples passed over
    frozen: PyTree = {}  # noqa: RUF012 - an empty tree. What the loss reads and nobody trains; never in a checkpoint


def init_state(task: Task, tx: optax.GradientTransformation, key: jax.Array) -> TrainState:
    """The state before the first step. Pure, so it can be evaluated abstractly or jitted onto a mesh.

    Under `jit` the frozen trees would become constants of the program: leave them out there (`frozen={}`), and place
    them as they are.
    """
    # Python scalars would enter as weakly typed arrays and come back from a checkpoint strongly typed: two programs.
    params, model_state, frozen = jax.tree.map(_strong, (*task.init(key), frozen_of(task)))
    zero = jnp.zeros((), jnp.int32)
    return TrainState(zero, params, params, tx.init(params), model_state, zero, zero, frozen)


def ema_update(ema: PyTree, params: PyTree, decay: float, step: jax.Array) -> PyTree:
    """One update of an EMA (exponential moving average): move `ema` towards `params`.

    The decay warms up as (1 + step) / (10 + step), so that the start is soon forgotten.

    Written as ema + (1 - d)(p - ema): what does not move stays the same to the last bit, which d·ema + (1 - d)·p does
    not promise. A decay of 0 is no average at all.
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
