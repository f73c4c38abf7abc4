"""The train step, compiled once: gradients, optimiser update, EMA, and skipping of steps that are not finite."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from train_jax.data import BAD
from train_jax.optim import usual_promotion
from train_jax.sharding import batch_sharding
from train_jax.state import TrainState, ema_update
from train_jax.task import Batch, Metrics, PyTree, Task, check_splits

__all__ = ["TrainStep", "make_train_step"]

TrainStep = Callable[[TrainState, Batch, jax.Array], tuple[TrainState, Metrics]]


def make_train_step(
    task: Task,
    tx: optax.GradientTransformation,
    mesh: Mesh,
    shardings: TrainState,
    *,
    ema_decay: float = 0.0,
    accum: int = 1,
) -> TrainStep:
    """Make the jitted train step `(state, batch, key) -> (state, metrics)` over `mesh`.

    The step donates the buffers of the state it is given, except `state.frozen`, which it passes on without a copy; the
    task's loss finds the frozen trees in its `model_state`.

    `key` is the same at every step: the step folds `state.step` into it, so a resumed run draws the same random numbers
    as an uninterrupted one. `batch` holds arrays whose first axis is a multiple of data devices x `accum`.

    Gradient accumulation: with `accum` > 1 the batch is processed in that many microbatches, and gradients, loss and
    metrics are averaged. For losses that are means over examples the result is that of the whole batch.

    A step whose loss or gradient norm is not finite is skipped: the state stays the same, bit for bit, except that
    `step` and `skipped` increase.

    The field `bad` [B] of a batch, the number of damaged examples skipped for each example, is not passed to the task
    but added to `state.bad`.

    Metrics (scalars): `loss`, `grad_norm` (before clipping), `lr`, `skipped` (so far), `bad` (so far, if the batch has
    it), and those of the task.

    Args:
        task: its loss is minimised.
        tx: the optimiser, as `make_optimizer` makes it.
        mesh: the devices.
        shardings: sharding of every leaf of the state.
        ema_decay: decay of the EMA, in [0, 1); 0: no averaging.
        accum: number of microbatches.

    Raises:
        UserError: `accum` is more than 1, and the task has `splits = False`.
    """
    check_splits(task, accum)

    def gradients(params: PyTree, model_state: PyTree, frozen: PyTree, batch: Batch, key: jax.Array):
        def objective(params: PyTree):
            return task.loss(params, {**model_state, **frozen}, batch, key, train=True)

        (loss, (metrics, state)), grads = jax.value_and_grad(objective, has_aux=True)(params)
        state = {name: tree for name, tree in state.items() if name not in frozen}
        return (grads, jax.tree.map(_float32, {**metrics, "loss": loss})), state

    def accumulated(params: PyTree, model_state: PyTree, frozen: PyTree, batch: Batch, key: jax.Array):
        def microbatches(x: jax.Array) -> jax.Array:
            # Microbatch i takes rows i, i + accum, …: so each device splits its own rows, without communication.
            return jnp.moveaxis(x.reshape(-1, accum, *x.shape[1:]), 1, 0)

        def add(carry, microbatch):
            total, model_state = carry
            index, batch = microbatch
            one, model_state = gradients(params, model_state, frozen, batch, jax.random.fold_in(key, index))
            return (jax.tree.map(jnp.add, total, one), model_state), None

        split = jax.tree.map(microbatches, batch)
        first = jax.tree.map(lambda x: x[0], split)
        like, _ = jax.eval_shape(gradients, params, model_state, frozen, first, key)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)
        (total, model_state), _ = jax.lax.scan(add, (zeros, model_state), (jnp.arange(accum), split))
        return jax.tree.map(lambda x: x / accum, total), model_state

    def step(state: TrainState, frozen: PyTree, batch: Batch, key: jax.Array) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(key, state.step)
        batch = dict(batch)
        bad = batch.pop(BAD, None)
        average = gradients if accum == 1 else accumulated
        (grads, metrics), model_state = average(state.params, state.model_state, frozen, batch, key)
        with usual_promotion():
            grad_norm = optax.global_norm(grads)
            updates, opt_state = tx.update(grads, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
        ema_params = ema_update(state.ema_params, params, ema_decay, state.step)

        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(grad_norm)
        moved = state._replace(params=params, ema_params=ema_params, opt_state=opt_state, model_state=model_state)
        state = jax.tree.map(lambda new, old: jnp.where(finite, new, old), moved, state)
        state = state._replace(step=state.step + 1, skipped=state.skipped + (~finite).astype(jnp.int32))

        lr = optax.tree_utils.tree_get(opt_state, "learning_rate", jnp.nan)
        metrics = {**metrics, "grad_norm": grad_norm, "lr": lr, "skipped": state.skipped}
        if bad is not None:
            state = state._replace(bad=state.bad + jnp.sum(bad, dtype=jnp.int32))
            metrics["bad"] = state.bad
        return state, metrics

    replicated, moving = NamedSharding(mesh, PartitionSpec()), shardings._replace(frozen={})
    compiled = jax.jit(
        step,
        in_shardings=(moving, shardings.frozen, batch_sharding(mesh), replicated),
        out_shardings=(moving, replicated),
        donate_argnums=0,
    )

    def train_step(state: TrainState, batch: Batch, key: jax.Array) -> tuple[TrainState, Metrics]:
        moved, metrics = compiled(state._replace(frozen={}), state.frozen, batch, key)
        return moved._replace(frozen=state.frozen), metrics

    return train_step


def _float32(x: jax.Array) -> jax.Array:
    return jnp.asarray(x, jnp.float32)
