import jax
import jax.numpy as jnp
import numpy as np

from tests.support.toy_run import ToyTask, prints
from train_jax.optim import OptimConfig, make_optimizer
from train_jax.state import ema_update, init_state


def test_constants_stay_the_same_to_the_last_bit():
    constant = {"a": jax.random.normal(jax.random.key(0), (1000,)), "b": jnp.array([1e-30, 3e38, 0.0, 1 / 3])}
    ema = constant
    for step in range(200):
        ema = ema_update(ema, constant, 0.999, jnp.int32(step))
    assert prints(ema) == prints(constant)


def test_the_start_is_soon_forgotten():
    zero, one = {"a": jnp.zeros(1)}, {"a": jnp.ones(1)}
    np.testing.assert_allclose(ema_update(zero, one, 0.999, jnp.int32(0))["a"], 0.9)
    np.testing.assert_allclose(ema_update(zero, one, 0.999, jnp.int32(10**6))["a"], 0.001, rtol=1e-4)


def test_without_decay_it_is_no_average():
    old, new = {"a": jnp.full(3, 1e8)}, {"a": jnp.full(3, 1 / 3)}
    assert prints(ema_update(old, new, 0.0, jnp.int32(5))) == prints(new)


def test_state_begins_at_zero_and_strongly_typed():
    class Weak(ToyTask):
        def init(self, key):
            params, model_state = super().init(key)
            return params | {"scalar": 2.5}, model_state

    state = init_state(Weak(), make_optimizer(OptimConfig(), 1000), jax.random.key(0))
    assert int(state.step) == int(state.skipped) == 0
    assert prints(state.params) == prints(state.ema_params)
    assert not any(leaf.weak_type for leaf in jax.tree.leaves(state))


def test_params_and_average_can_both_be_donated():
    tx = make_optimizer(OptimConfig(), 1000)
    state = jax.jit(lambda key: init_state(ToyTask(), tx, key))(jax.random.key(0))
    before = prints(state)
    after = jax.jit(lambda state: state, donate_argnums=0)(state)
    assert prints(after) == before
