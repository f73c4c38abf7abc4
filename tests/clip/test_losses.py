import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax import clip_loss, same_rows, unit_norm
from clip_jax.losses import MAX_LOGIT_SCALE, clamp_logit_scale


def features(seed, batch=6, dim=8):
    return unit_norm(jax.random.normal(jax.random.key(seed), (batch, dim)))


def numpy_loss(image, text, log_scale, targets):
    """The formula of the docstring, in float64."""
    logits = np.exp(min(log_scale, math.log(100))) * np.asarray(image, np.float64) @ np.asarray(text, np.float64).T

    def cross_entropy(logits, weights):
        p = weights / weights.sum(1, keepdims=True)
        log_q = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        return -(p * log_q).sum(1).mean()

    return (cross_entropy(logits, targets) + cross_entropy(logits.T, targets.T)) / 2


@pytest.mark.parametrize("targets", [None, np.kron(np.eye(3), np.ones((2, 2))), np.triu(np.ones((6, 6)))])
def test_is_the_formula_and_so_is_its_gradient(targets):
    image, text, scale = features(0), features(1), 2.5
    weights = np.eye(6) if targets is None else targets
    loss, _ = clip_loss(image, text, jnp.float32(scale), None if targets is None else jnp.asarray(targets))
    assert float(loss) == pytest.approx(numpy_loss(image, text, scale, weights), rel=1e-5)

    gradients = jax.grad(lambda *a: clip_loss(*a, jnp.asarray(weights))[0], (0, 1, 2))(image, text, jnp.float32(scale))
    h, arguments = 1e-6, [np.asarray(image, np.float64), np.asarray(text, np.float64), np.float64(scale)]
    for which, index in ((0, (2, 3)), (1, (5, 0)), (2, ())):
        ends = []
        for sign in (1, -1):
            moved = [np.array(a) for a in arguments]
            moved[which][index] += sign * h
            ends.append(numpy_loss(*moved, weights))
        assert float(gradients[which][index]) == pytest.approx((ends[0] - ends[1]) / (2 * h), abs=2e-4)


def test_equal_captions_are_not_negatives():
    tokens = jnp.array([[1, 2], [1, 3], [1, 2]])
    np.testing.assert_array_equal(same_rows(tokens), [[1, 0, 1], [0, 1, 0], [1, 0, 1]])

    text = features(0, 3)
    text = text.at[2].set(text[0])
    perfect = [clip_loss(text, text, jnp.float32(4.6), targets)[1] for targets in (same_rows(tokens), None)]
    assert float(perfect[0]["accuracy"]) == 1
    assert float(perfect[0]["loss_floor"]) == pytest.approx(2 / 3 * math.log(2))
    assert float(perfect[0]["loss"]) == pytest.approx(2 / 3 * math.log(2), abs=1e-3)
    assert float(perfect[1]["loss_floor"]) == 0
    assert float(perfect[1]["accuracy"]) < 1


def test_floor_of_ten_captions_in_a_batch():
    """With 10 captions in a batch of 128 the one-hot loss cannot pass 2.585 nats. Equal captions as positives can."""
    tokens = jnp.arange(128)[:, None] % 10
    text = unit_norm(jax.nn.one_hot(tokens[:, 0], 10))
    one_hot = clip_loss(text, text, jnp.float32(MAX_LOGIT_SCALE))[0]
    loss, metrics = clip_loss(text, text, jnp.float32(MAX_LOGIT_SCALE), same_rows(tokens))
    assert float(one_hot) == pytest.approx(math.log(12.8), abs=0.05)
    assert float(loss) == pytest.approx(float(metrics["loss_floor"]), abs=1e-4)


def test_the_scale_cannot_run_away_and_can_come_back():
    assert float(jnp.exp(clamp_logit_scale(jnp.float32(9.0)))) == pytest.approx(100, rel=1e-5)
    gradient = jax.grad(lambda s, sign: sign * clamp_logit_scale(s))
    assert gradient(2.0, 1.0) == 1
    assert gradient(2.0, -1.0) == -1
    assert gradient(9.0, 1.0) == 1, "descent lowers the scale: allowed"
    assert gradient(9.0, -1.0) == 0, "descent would raise it further"
