import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from tests.support.toy_run import ToyTask, prints, source
from train_jax.optim import OptimConfig, make_optimizer
from train_jax.sharding import make_mesh, state_shardings
from train_jax.state import init_state
from train_jax.step import make_train_step

CONFIG = OptimConfig(lr=3e-2, warmup_steps=2, weight_decay=0.1)
BATCH = source().take(np.arange(16))


def build(task=None, *, devices=1, rules=(), accum=1, ema_decay=0.9):
    task, tx, mesh = task or ToyTask(), make_optimizer(CONFIG, 100), make_mesh(devices)
    shardings = state_shardings(jax.eval_shape(lambda: init_state(task, tx, jax.random.key(0))), mesh, rules)
    state = jax.jit(lambda key: init_state(task, tx, key), out_shardings=shardings)(jax.random.key(0))
    return make_train_step(task, tx, mesh, shardings, ema_decay=ema_decay, accum=accum), state


def train(step, state, steps, batch=BATCH):
    for _ in range(steps):
        state, metrics = step(state, batch, jax.random.key(1))
    return jax.device_get((state, metrics))


def close(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


class Quiet(ToyTask):
    """The toy without noise: what is left is a mean over examples."""

    def loss(self, params, model_state, batch, key, *, train):
        return super().loss(params, model_state, batch, jax.random.key(5), train=train)


def test_it_learns_and_says_so():
    step, state = build()
    _, first = step(state, BATCH, jax.random.key(1))
    step, state = build()
    state, last = train(step, state, 80)
    assert set(last) == {"loss", "mae", "grad_norm", "lr", "skipped"}
    assert last["loss"] < first["loss"] / 2
    assert state.step == 80
    assert state.skipped == 0
    assert last["lr"] == pytest.approx(float(np.float32(state.opt_state[-1].learning_rate)))


@pytest.mark.slow
@pytest.mark.parametrize("rules", [(), ((r"dense_0/kernel", P(None, "data")), (r"dense_1/kernel", P("data")))])
def test_eight_devices_are_one(rules):
    one, _ = train(*build(), 10)
    eight, _ = train(*build(devices=8, rules=rules), 10)
    close(one.params, eight.params, rtol=1e-4, atol=1e-5)
    close(one.ema_params, eight.ema_params, rtol=1e-4, atol=1e-5)
    close(one.model_state, eight.model_state, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("devices", [1, 4])
def test_microbatches_are_one_big_batch(devices):
    whole, metrics = train(*build(Quiet()), 5)
    parts, of_parts = train(*build(Quiet(), accum=4, devices=devices), 5)
    close(whole.params, parts.params, rtol=1e-4, atol=1e-5)
    for name in ("loss", "mae", "grad_norm"):
        assert metrics[name] == pytest.approx(of_parts[name], rel=1e-4)


def test_every_step_draws_its_own_noise():
    class Draw(ToyTask):
        def loss(self, params, model_state, batch, key, *, train):
            loss, (_, model_state) = super().loss(params, model_state, batch, key, train=train)
            return loss, ({"draw": jax.random.uniform(key)}, model_state)

    step, state = build(Draw())
    draws = []
    for _ in range(3):
        state, metrics = step(state, BATCH, jax.random.key(1))
        draws.append(float(metrics["draw"]))
    expected = [float(jax.random.uniform(jax.random.fold_in(jax.random.key(1), i))) for i in range(3)]
    assert draws == expected


@pytest.mark.parametrize("accum", [1, 2])
@pytest.mark.parametrize("bad", [np.nan, np.inf, 3e38])
def test_a_step_that_is_not_finite_changes_nothing(bad, accum):
    step, state = build(accum=accum)
    state, _ = step(state, BATCH, jax.random.key(1))
    before = prints(state._replace(step=state.step + 1, skipped=state.skipped + 1))
    poisoned = dict(BATCH, y=np.where(np.arange(16)[:, None] == 3, np.float32(bad), BATCH["y"]))
    state, metrics = step(state, poisoned, jax.random.key(1))
    assert prints(state) == before
    assert metrics["skipped"] == 1
    state, metrics = step(state, BATCH, jax.random.key(1))
    assert np.isfinite(metrics["loss"])
    assert (int(state.step), int(state.skipped)) == (3, 1)


def test_a_finite_loss_with_an_infinite_gradient_is_skipped_too():
    class Steep(ToyTask):
        def loss(self, params, model_state, batch, key, *, train):
            loss, rest = super().loss(params, model_state, batch, key, train=train)
            return loss + jnp.sqrt(jnp.sum(jnp.abs(params["dense_0"]["bias"]))), rest  # slope ∞ at the start, 0

    step, state = build(Steep())
    before = prints(state.params)
    state, metrics = step(state, BATCH, jax.random.key(1))
    assert np.isfinite(metrics["loss"])
    assert prints(state.params) == before
    assert state.skipped == 1


def test_it_compiles_once_and_consumes_the_state():
    traced = []

    class Counted(ToyTask):
        def loss(self, params, model_state, batch, key, *, train):
            traced.append(train)
            return super().loss(params, model_state, batch, key, train=train)

    step, state = build(Counted())
    for _ in range(3):
        old, (state, _) = state, step(state, BATCH, jax.random.key(1))
        assert old.params["dense_0"]["kernel"].is_deleted()
    assert traced == [True]
