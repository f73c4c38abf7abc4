import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from clip_jax import CLIPTask
from clip_jax.task import drop_tokens

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def batch(images, tokenizer, captions):
    return {"image": images, "tokens": tokenizer(captions)}


def start(task):
    return jax.jit(task.init)(KEY)


def test_dropping_keeps_start_end_and_order():
    tokens = jnp.tile(jnp.array([98, 1, 2, 3, 4, 5, 99, 0, 0]), (200, 1))
    for eos_id in (None, 99):
        dropped = np.asarray(drop_tokens(tokens, KEY, 0.4, eos_id=eos_id, pad_id=0))
        lengths = []
        for row in dropped:
            end = int(row.argmax())
            assert row[0] == 98
            assert row[end] == 99
            assert not row[end + 1 :].any()
            assert (np.diff(row[1:end]) > 0).all()
            lengths.append(end - 1)
        assert np.mean(lengths) == pytest.approx(5 * 0.6, abs=0.25)
    np.testing.assert_array_equal(drop_tokens(tokens, KEY, 0.0, eos_id=None, pad_id=0), tokens)


def test_padding_is_never_counted_as_text():
    tokens = jnp.array([[98, 99, 0, 0]])
    np.testing.assert_array_equal(drop_tokens(tokens, KEY, 0.9, eos_id=None, pad_id=0), tokens)


@pytest.mark.slow
def test_evaluation_is_deterministic_and_training_is_not(tiny, batch):
    task = CLIPTask(tiny, token_drop_prob=0.5, patch_drop_prob=0.5)
    params, model_state = start(task)
    assert model_state == {}
    loss = jax.jit(task.loss, static_argnames="train")

    def losses(train):
        return [float(loss(params, {}, batch, jax.random.key(i), train=train)[0]) for i in range(2)]

    assert losses(False)[0] == losses(False)[1]
    assert losses(True)[0] != losses(True)[1]


@pytest.mark.slow
def test_equal_captions_raise_the_floor(tiny, batch):
    task = CLIPTask(tiny)
    loss, (metrics, _) = jax.jit(task.loss, static_argnames="train")(start(task)[0], {}, batch, KEY, train=False)
    assert float(metrics["loss_floor"]) == pytest.approx(0.5 * np.log(2))
    assert set(metrics) == {"loss", "loss_floor", "accuracy", "logit_scale"}
    assert float(loss) > float(metrics["loss_floor"])


@pytest.mark.slow
def test_learns_a_batch_by_heart(tiny, batch):
    task = CLIPTask(tiny)
    params, _ = start(task)
    tx = optax.adam(3e-3)
    opt_state = tx.init(params)

    @jax.jit
    def step(params, opt_state, key):
        (_, (metrics, _)), grads = jax.value_and_grad(task.loss, has_aux=True)(params, {}, batch, key, train=True)
        updates, opt_state = tx.update(grads, opt_state)
        return optax.apply_updates(params, updates), opt_state, metrics

    for i in range(60):
        params, opt_state, metrics = step(params, opt_state, jax.random.fold_in(KEY, i))
    assert float(metrics["accuracy"]) > 0.9


@pytest.mark.slow
def test_scanned_towers_train_too(tiny, batch):
    config = dataclasses.replace(tiny, vision=dataclasses.replace(tiny.vision, scan_layers=True, remat=True))
    task = CLIPTask(config)
    grads = jax.jit(jax.grad(lambda p: task.loss(p, {}, batch, KEY, train=True)[0]))(start(task)[0])
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
    assert grads["visual"]["transformer"]["resblocks"]["mlp"]["c_fc"]["kernel"].any()
