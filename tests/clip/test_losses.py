import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax import UserError, clip_loss, distillation_loss, same_rows, sigmoid_loss, unit_norm
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


@pytest.mark.slow
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


@pytest.mark.slow
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


def log_softmax(logits):
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


def softmax_in_numpy(image, text, scale, direction):
    logits = np.exp(scale) * image @ text.T
    halves = {"image_to_text": logits, "text_to_image": logits.T}
    chosen = halves.values() if direction == "both" else [halves[direction]]
    return np.mean([-np.diag(log_softmax(half)).mean() for half in chosen])


def sigmoid_in_numpy(image, text, scale, bias, targets):
    z = np.where(targets, 1, -1)
    return np.log1p(np.exp(-z * (np.exp(scale) * image @ text.T + bias))).sum() / len(image)


def distillation_in_numpy(image, text, scale, teacher_image, teacher_text, teacher_scale):
    logits, teacher = np.exp(scale) * image @ text.T, np.exp(teacher_scale) * teacher_image @ teacher_text.T
    halves = [
        -(np.exp(log_softmax(t)) * log_softmax(s)).sum(1).mean() for s, t in ((logits, teacher), (logits.T, teacher.T))
    ]
    return np.mean(halves)


SAME = np.kron(np.eye(3), np.ones((2, 2))).astype(bool)
CASES = {
    **{
        direction: (
            lambda *a, d=direction: clip_loss(*a, direction=d)[0],
            lambda *a, d=direction: softmax_in_numpy(*a, d),
            [2.5],
        )
        for direction in ("both", "image_to_text", "text_to_image")
    },
    "sigmoid": (lambda *a: sigmoid_loss(*a)[0], lambda *a: sigmoid_in_numpy(*a, np.eye(6)), [2.0, -3.0]),
    "sigmoid, equal captions": (
        lambda *a: sigmoid_loss(*a, jnp.asarray(SAME))[0],
        lambda *a: sigmoid_in_numpy(*a, SAME),
        [2.0, -3.0],
    ),
    "distillation": (
        lambda *a: distillation_loss(*a, features(7, dim=5), features(8, dim=5), jnp.float32(2.0))[0],
        lambda *a: distillation_in_numpy(*a, *(np.asarray(features(k, dim=5), np.float64) for k in (7, 8)), 2.0),
        [1.5],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_loss_and_every_gradient_are_those_of_float64_numpy(name):
    ours, reference, scalars = CASES[name]
    arguments = [features(0), features(1), *map(jnp.float32, scalars)]
    exact = [np.asarray(a, np.float64) for a in arguments]
    loss, gradients = jax.jit(jax.value_and_grad(ours, tuple(range(len(arguments)))))(*arguments)
    assert float(loss) == pytest.approx(reference(*exact), rel=2e-6)
    h = 1e-6
    for which, gradient in enumerate(gradients):
        numeric = np.zeros(exact[which].shape)
        for index in np.ndindex(numeric.shape):
            ends = []
            for sign in (1, -1):
                moved = [a.copy() for a in exact]
                moved[which][index] += sign * h
                ends.append(reference(*moved))
            numeric[index] = (ends[0] - ends[1]) / (2 * h)
        np.testing.assert_allclose(gradient, numeric, atol=2e-6 * max(1, np.abs(numeric).max()), rtol=1e-5)


def test_the_directions_are_the_halves_of_the_whole():
    arguments = features(0), features(1), jnp.float32(2.0)
    both, image, text = (clip_loss(*arguments, direction=d)[0] for d in ("both", "image_to_text", "text_to_image"))
    assert float(both) == pytest.approx(float(image + text) / 2, rel=1e-6)
    assert float(image) == float(clip_loss(arguments[1], arguments[0], arguments[2], direction="text_to_image")[0])
    with pytest.raises(UserError, match=r"sideways.*image_to_text"):
        clip_loss(*arguments, direction="sideways")


def test_distilling_from_oneself_reaches_the_floor_and_leaves_the_teacher_alone():
    image, text, scale = features(0), features(1), jnp.float32(2.0)
    loss, metrics = distillation_loss(image, text, scale, image, text, scale)
    assert float(loss) == pytest.approx(float(metrics["loss_floor"]), rel=1e-6)
    assert float(metrics["agreement"]) == 1
    gradient = jax.grad(lambda teacher: distillation_loss(image, text, scale, teacher, text, scale)[0])(image)
    assert not gradient.any()


def test_sigmoid_finds_the_right_pairs_and_its_scale_is_free():
    text = features(0)
    loss, metrics = sigmoid_loss(text, text, jnp.float32(4.8), jnp.float32(-60.0))
    assert float(metrics["accuracy"]) == 1
    assert float(metrics["logit_scale"]) == pytest.approx(np.exp(4.8), rel=1e-5)
    assert float(loss) < float(sigmoid_loss(text, text, jnp.float32(4.8), jnp.float32(10.0))[0])


@pytest.mark.parametrize("scale", [50.0, -50.0, 1e6, -1e6])
def test_a_scale_driven_anywhere_has_a_finite_loss_and_comes_back(scale):
    image, text = features(0), features(0)  # identical embeddings
    for loss, most in ((clip_loss, 100), (lambda *a: sigmoid_loss(*a, jnp.float32(0)), 1000)):
        value, metrics = loss(image, text, jnp.float32(scale))
        assert np.isfinite(value)
        assert 0.01 * 0.999 < float(metrics["logit_scale"]) < most * 1.001

    # Descent can always move it towards the limits, and never further beyond them.
    def gradient(sign):
        return float(jax.grad(lambda s: sign * clamp_logit_scale(s))(jnp.float32(scale)))

    back, away = (1.0, -1.0) if scale > 0 else (-1.0, 1.0)
    assert (gradient(back), gradient(away)) == (back, 0.0)


@pytest.mark.slow
def test_losses_of_one_pair_and_of_zero_vectors_are_finite():
    for image in (features(0)[:1], jnp.zeros((6, 4)), jnp.ones((6, 4)) / 2):
        for loss in (clip_loss, lambda *a: sigmoid_loss(*a, jnp.float32(-1))):

            def value(image, loss=loss):
                return loss(unit_norm(image), unit_norm(image), jnp.float32(2))[0]

            found = jax.value_and_grad(value)(image)
            assert all(np.isfinite(x).all() for x in found)


@pytest.mark.slow
def test_unit_norm_of_the_largest_and_the_smallest_numbers():
    largest = np.array([[3e38, 0.0, 3e38], [3e38, 0, 0]], np.float32)
    np.testing.assert_allclose(unit_norm(largest), [[0.5**0.5, 0, 0.5**0.5], [1, 0, 0]], rtol=1e-6)
    np.testing.assert_allclose(jnp.linalg.norm(unit_norm(jnp.full((1, 8), 3e38, jnp.bfloat16))), 1, rtol=1e-6)
    np.testing.assert_allclose(jnp.linalg.norm(unit_norm(jnp.full((1, 8), 6e-8, jnp.float16))), 1, rtol=1e-6)
    for x in (largest, np.zeros((1, 3), np.float32)):
        assert np.isfinite(jax.grad(lambda x: unit_norm(x).sum())(x)).all()
    ordinary = np.random.default_rng(0).normal(size=(64, 32)).astype(np.float32)
    plain = jax.jit(lambda h: h * jax.lax.rsqrt(jnp.maximum(jnp.square(h).sum(-1, keepdims=True), 1e-24)))
    np.testing.assert_array_equal(jax.jit(unit_norm)(ordinary), plain(ordinary))


def test_pairs_of_other_shapes_are_refused():
    with pytest.raises(UserError, match=r"image_features \[6, 5\] and text_features \[3, 5\]"):
        clip_loss(np.zeros((6, 5), np.float32), np.zeros((3, 5), np.float32), 1.0)
