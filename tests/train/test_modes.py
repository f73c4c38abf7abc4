"""JAX's settings of a user: strict promotion, 64 bits, a stop at the first NaN."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.toy_run import prints, source
from train_jax.errors import RunError
from train_jax.loop import fit
from train_jax.optim import OptimConfig, make_optimizer
from train_jax.sharding import make_mesh, state_shardings
from train_jax.state import init_state
from train_jax.step import make_train_step

BATCH = source().take(np.arange(16))


class Careful:
    """A regression that says every conversion itself, as someone who asks for strictness does."""

    def init(self, key):
        return {"kernel": jax.random.normal(key, (4, 2), jnp.float32), "half": jnp.ones(2, jnp.bfloat16)}, {}

    def loss(self, params, model_state, batch, key, *, train):
        scale = jnp.broadcast_to(params["half"].astype(jnp.float32), batch["y"].shape)
        error = (batch["x"] @ params["kernel"]) * scale - batch["y"]
        return jnp.mean(jnp.square(error)), ({}, model_state)


def trained(kind="adamw", steps=3):
    config = OptimConfig(kind=kind, lr=1e-2, warmup_steps=2, weight_decay=0.1)
    task, tx, mesh = Careful(), make_optimizer(config, 100), make_mesh(1)
    abstract = jax.eval_shape(lambda: init_state(task, tx, jax.random.key(0)))
    shardings = state_shardings(abstract, mesh)
    state = jax.jit(lambda key: init_state(task, tx, key), out_shardings=shardings)(jax.random.key(0))
    step = make_train_step(task, tx, mesh, shardings, ema_decay=0.9)
    for _ in range(steps):
        state, metrics = step(state, BATCH | {"bad": np.zeros(16, np.int32)}, jax.random.key(1))
    assert bool(jnp.isfinite(metrics["loss"]))
    return state


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_strict_promotion_changes_nothing(kind):
    usual = trained(kind)
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        strict = trained(kind)
    assert prints(strict) == prints(usual)


def test_64_bits_keep_the_types_of_the_state():
    usual = trained()
    with jax.enable_x64(True):
        wide = trained()
    types = jax.tree.map(lambda leaf: leaf.dtype, usual)
    assert jax.tree.map(lambda leaf: leaf.dtype, wide) == types
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(np.float32(a), np.float32(b), rtol=1e-2, atol=1e-4),
        jax.device_get(wide.params),
        jax.device_get(usual.params),
    )


@pytest.fixture
def debug_nans():
    with jax.debug_nans(True):
        yield


@pytest.mark.usefixtures("debug_nans")
def test_a_run_without_nans_raises_no_false_alarm(toy):
    assert int(fit(toy(num_steps=4)).step) == 4


@pytest.mark.usefixtures("debug_nans")
def test_the_first_nan_is_one_line_to_who_asked_for_it(toy):
    run = toy(num_steps=4)

    def poisoned(step):
        batch = run.batches(step)
        return batch | {"y": batch["y"] * np.nan} if step == 2 else batch

    with pytest.raises(RunError, match=r"toy: step 3: .*without JAX_DEBUG_NANS it is skipped") as end:
        fit(dataclasses.replace(run, batches=poisoned))
    assert "\n" not in str(end.value)


@pytest.mark.slow
@pytest.mark.parametrize("log_every", [1, 100])
def test_ten_skipped_steps_in_a_row_end_a_run_whenever_it_logs(toy, log_every):
    """Seen at the step, a little late, and not at the next log; nine, and then a good one, do not."""
    run = toy(num_steps=60, log_every=log_every, save_every=100)

    def poisoned(bad):
        def batches(step):
            batch = run.batches(step)
            return batch | {"y": batch["y"] * np.nan} if step in bad else batch

        return batches

    seen = []

    def of_step(step):
        seen.append(step)
        return poisoned(range(30, 60))(step)

    with pytest.raises(RunError, match=r"no finite loss in 1[0-2] steps; lower optim\.lr"):
        fit(dataclasses.replace(run, batches=of_step))
    assert max(seen) < 50  # a few are read ahead
    state = fit(dataclasses.replace(run, batches=poisoned({*range(20, 29), *range(30, 39)})))
    assert int(state.skipped) == 18
