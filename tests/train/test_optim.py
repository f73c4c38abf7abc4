import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from train_jax.errors import UserError
from train_jax.optim import OptimConfig, decays, learning_rate, make_optimizer


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("kind", "sgd"),
        ("lr", math.nan),
        ("lr", -1.0),
        ("lr", 0.0),
        ("lr", math.inf),
        ("warmup_steps", -1),
        ("schedule", "linear"),
        ("final_lr_fraction", 1.5),
        ("b1", 1.0),
        ("b2", -0.1),
        ("eps", 0.0),
        ("weight_decay", math.nan),
        ("clip_norm", -1.0),
        ("ema_decay", 1.0),
        ("ema_decay", math.nan),
        ("accum", 0),
    ],
)
def test_nonsense_is_refused_by_name(field, value):
    with pytest.raises(UserError, match=rf"optim\.{field}: "):
        OptimConfig(**{field: value})


def test_warmup_longer_than_the_run_is_refused():
    with pytest.raises(UserError, match="101 is more than the run's 100 steps"):
        make_optimizer(OptimConfig(warmup_steps=101), 100)


@pytest.mark.parametrize("warmup", [0, 1, 2, 10, 100])
@pytest.mark.parametrize("kind", ["cosine", "constant"])
def test_schedule_rises_to_lr_and_ends_where_it_should(warmup, kind):
    rate = learning_rate(OptimConfig(lr=0.5, warmup_steps=warmup, schedule=kind, final_lr_fraction=0.1), 100)
    rates = np.array([rate(step) for step in range(101)])
    assert rates[0] == pytest.approx(0.5 / max(warmup, 1))
    assert rates[: max(warmup, 1)].max() == pytest.approx(0.5)
    assert (np.diff(rates[:warmup]) > 0).all()
    if warmup < 100:
        assert rates[100] == pytest.approx(0.05 if kind == "cosine" else 0.5)
    assert (np.diff(rates[warmup:]) <= 1e-7).all()


def test_only_what_multiplies_decays():
    params = {
        "dense": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones((2, 2))},
        "ln_1": {"scale": jnp.ones((3, 2)), "bias": jnp.ones(2)},
        "logit_scale": jnp.ones(()),
        "positional_embedding": jnp.ones((4, 2)),
    }
    assert decays(params) == {
        "dense": {"kernel": True, "bias": False},
        "ln_1": {"scale": False, "bias": False},
        "logit_scale": False,
        "positional_embedding": True,
    }


def test_it_is_adamw():
    config = OptimConfig(lr=0.1, warmup_steps=0, schedule="constant", weight_decay=0.2, clip_norm=0, b2=0.95)
    params = {"kernel": jax.random.normal(jax.random.key(0), (3, 2)), "bias": jnp.ones(2)}
    ours, reference = make_optimizer(config, 10), optax.adamw(0.1, 0.9, 0.95, weight_decay=0.2, mask=decays)
    a, b, state_a, state_b = params, params, ours.init(params), reference.init(params)
    for step in range(5):
        grads = jax.tree.map(lambda p, step=step: jnp.sin(p + step), params)
        updates, state_a = ours.update(grads, state_a, a)
        a = optax.apply_updates(a, updates)
        updates, state_b = reference.update(grads, state_b, b)
        b = optax.apply_updates(b, updates)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), a, b)
    assert optax.tree_utils.tree_get(state_a, "learning_rate") == pytest.approx(0.1)


@pytest.mark.slow
def test_muon_orthogonalises_kernels_and_leaves_the_rest_to_adam():
    config = OptimConfig(kind="muon", lr=0.1, warmup_steps=0, schedule="constant", clip_norm=0)
    key = jax.random.key(0)
    params = {
        "conv": {"kernel": jax.random.normal(key, (3, 3, 4, 8)), "bias": jnp.ones(8)},
        "positional_embedding": jax.random.normal(key, (5, 8)),
    }
    grads = jax.tree.map(lambda p: jnp.sin(3 * p), params)
    ours, adam = make_optimizer(config, 10), make_optimizer(dataclasses.replace(config, kind="adamw"), 10)
    (got, state), (plain, _) = (tx.update(grads, tx.init(params), params) for tx in (ours, adam))
    update = np.asarray(got["conv"]["kernel"]).reshape(36, 8)
    # An orthogonal update lengthens every direction alike; optax's five iterations leave them within a factor.
    singular = np.linalg.svd(update, compute_uv=False)
    assert singular.max() / singular.min() < 2
    assert np.linalg.cond(np.asarray(plain["conv"]["kernel"]).reshape(36, 8)) > 2
    assert np.sqrt(np.square(update).mean()) == pytest.approx(0.1 * 0.2, rel=0.15)
    for name in ("positional_embedding", "bias"):
        a, b = (tree["conv"].get(name, tree.get(name)) for tree in (got, plain))
        np.testing.assert_allclose(np.sign(a), np.sign(b))
        assert 0.09 < np.abs(a).max() < 0.16  # optax gives it a Nesterov step
    assert optax.tree_utils.tree_get(state, "learning_rate") == pytest.approx(0.1)
    assert np.vdot(update, np.asarray(grads["conv"]["kernel"]).reshape(36, 8)) < 0  # downhill


def test_gradients_are_clipped():
    params = {"kernel": jnp.zeros((2, 2))}
    tx = make_optimizer(OptimConfig(clip_norm=1.0, warmup_steps=0), 10)
    _, huge = tx.update({"kernel": jnp.full((2, 2), 1e6)}, tx.init(params), params)
    _, unit = tx.update({"kernel": jnp.full((2, 2), 0.5)}, tx.init(params), params)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), huge, unit)
