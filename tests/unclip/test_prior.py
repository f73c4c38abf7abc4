import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax.errors import UserError
from unclip_jax.conditioning import Cond
from unclip_jax.models.prior import EXTRA_TOKENS, DiffusionPrior, PriorConfig

B, D, C, L, WIDTH = 3, 6, 5, 4, 16
MODULE = DiffusionPrior(PriorConfig(D, C, L, WIDTH, layers=2, heads=2))
T = jnp.array([0, 500, 999])
SEEN = ("text_encodings", "text_mask", "text_embed", "x_t", "t")


def gaussian(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


INPUTS = {
    "x_t": gaussian(0, B, D),
    "t": T,
    "text_encodings": gaussian(1, B, L, C),
    "text_mask": np.array([[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1]], bool),
    "text_embed": gaussian(2, B, D),
    "keep_text": np.ones(B, bool),
}
OTHER = {
    "x_t": gaussian(10, B, D),
    "t": jnp.array([5, 400, 990]),
    "text_encodings": gaussian(11, B, L, C),
    "text_mask": np.array([[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 0]], bool),
    "text_embed": gaussian(12, B, D),
}


@pytest.fixture(scope="module")
def variables(fill):
    return fill(lambda key: MODULE.init(key, INPUTS["x_t"], T, cond_of(INPUTS)))


def cond_of(inputs):
    return Cond(**{name: inputs[name] for name in ("text_encodings", "text_mask", "text_embed", "keep_text")})


@pytest.fixture(scope="module")
def predict(variables):
    """`predict(**changes)` -> [B, D], one compiled program for all tests."""
    apply = jax.jit(lambda x_t, t, cond: MODULE.apply(variables, x_t, t, cond))

    def run(**changes):
        inputs = INPUTS | changes
        return np.asarray(apply(inputs["x_t"], inputs["t"], cond_of(inputs)))

    return run


def test_predicts_an_embedding_per_sample(predict):
    out = predict()
    assert out.shape == (B, D)
    assert np.isfinite(out).all()


@pytest.mark.parametrize("name", SEEN)
def test_reads_everything_it_is_given(predict, name):
    changed = np.abs(predict(**{name: OTHER[name]}) - predict()).max(axis=1)
    assert (changed > 1e-4).all()


@pytest.mark.parametrize("name", ["text_encodings", "text_mask", "text_embed"])
def test_a_dropped_caption_leaves_no_trace(predict, name):
    dropped = {"keep_text": np.zeros(B, bool)}
    np.testing.assert_array_equal(predict(**dropped, **{name: OTHER[name]}), predict(**dropped))
    assert (np.abs(predict(**dropped) - predict()).max(axis=1) > 1e-4).all()


@pytest.mark.parametrize("name", ["x_t", "t"])
def test_dropping_the_caption_drops_nothing_else(predict, name):
    """DALLE2-pytorch's null branch loses the noised embedding too, and guidance with it is worse than none."""
    dropped = {"keep_text": np.zeros(B, bool)}
    assert (np.abs(predict(**dropped, **{name: OTHER[name]}) - predict(**dropped)).max(axis=1) > 1e-4).all()


def test_captions_are_dropped_per_sample(predict):
    mixed = predict(keep_text=np.array([True, False, True]))
    np.testing.assert_array_equal(mixed[[0, 2]], predict()[[0, 2]])
    np.testing.assert_array_equal(mixed[1], predict(keep_text=np.zeros(B, bool))[1])


def test_a_dropped_caption_looks_the_same_behind_any_caption(predict):
    """Nothing of the length of the caption shows either: equal x_t and t give equal outputs."""
    same = {"x_t": np.repeat(INPUTS["x_t"][:1], B, axis=0), "t": jnp.full(B, 300), "keep_text": np.zeros(B, bool)}
    out = predict(**same)
    np.testing.assert_allclose(out, np.repeat(out[:1], B, axis=0), atol=1e-6)


def test_padding_is_never_read(predict):
    garbage = np.where(INPUTS["text_mask"][..., None], INPUTS["text_encodings"], 1e3)
    np.testing.assert_array_equal(predict(text_encodings=garbage), predict())


@pytest.mark.slow
def test_keep_text_defaults_to_true(variables, predict):
    out = MODULE.apply(variables, INPUTS["x_t"], T, cond_of(INPUTS).replace(keep_text=None))
    np.testing.assert_allclose(out, predict(), atol=1e-5)


@pytest.mark.slow
def test_every_token_reads_only_what_comes_before_it(variables):
    """Hidden states of the sequence [text (L), text embedding, time, noised embedding, query] after both layers."""

    def states(inputs):
        _, aux = MODULE.apply(
            variables,
            inputs["x_t"],
            inputs["t"],
            cond_of(inputs),
            capture_intermediates=True,
            mutable="intermediates",
        )
        return np.asarray(aux["intermediates"]["transformer"]["__call__"][0])

    before = states(INPUTS)
    assert before.shape == (B, L + EXTRA_TOKENS, WIDTH)
    for name, place in (("text_embed", L), ("t", L + 1), ("x_t", L + 2)):
        moved = np.abs(states(INPUTS | {name: OTHER[name]}) - before).max(axis=(0, 2)) > 1e-5
        assert moved.tolist() == [i >= place for i in range(L + EXTRA_TOKENS)], name


@pytest.mark.parametrize("time_token", [True, False])
def test_a_caption_read_once_is_the_caption_read_again(fill, time_token):
    """From the keys and values of captions short, full and dropped."""
    module = DiffusionPrior(dataclasses.replace(MODULE.config, time_token=time_token))
    t, cond = T if time_token else None, cond_of(INPUTS | {"keep_text": np.array([True, False, True])})
    variables = fill(lambda key: module.init(key, INPUTS["x_t"], t, cond))
    prefix = jax.jit(lambda p: module.apply(p, cond, method="encode_prefix"))(variables)

    @jax.jit
    def both(x_t):
        return module.apply(variables, x_t, t, cond), module.apply(variables, x_t, t, prefix, method="after_prefix")

    for x_t in (INPUTS["x_t"], OTHER["x_t"]):
        again, once = both(x_t)
        np.testing.assert_allclose(once, again, atol=1e-5)
        assert np.abs(again).max() > 0.1


def test_without_a_time_nothing_of_it_is_left(fill):
    module = DiffusionPrior(dataclasses.replace(MODULE.config, time_token=False))
    variables = jax.eval_shape(lambda: module.init(jax.random.key(0), INPUTS["x_t"], None, cond_of(INPUTS)))["params"]
    assert "time_embedding" not in variables
    assert variables["positional_embedding"].shape == (L + 3, WIDTH)  # text embedding, noise, query


@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_standardise_and_restore_are_inverse(variables, scale):
    module = DiffusionPrior(dataclasses.replace(MODULE.config, scale=scale))
    mean, std = gaussian(3, D), np.abs(gaussian(4, D)) + 0.1
    variables = variables | {"statistics": {"embed_mean": mean, "embed_std": std}}
    embeds = mean + std * gaussian(5, 500, D)
    standard = module.apply(variables, embeds, method="standardise")
    np.testing.assert_allclose(np.mean(standard, axis=0), 0.0, atol=0.2 * scale)
    np.testing.assert_allclose(np.std(standard, axis=0), scale, rtol=0.15)
    np.testing.assert_allclose(module.apply(variables, standard, method="restore"), embeds, atol=1e-5)


@pytest.mark.slow
def test_the_skip_adds_x_t_times_a_gate(variables, predict):
    module = DiffusionPrior(dataclasses.replace(MODULE.config, skip=True))
    gate = {"kernel": np.zeros((WIDTH, D), np.float32), "bias": gaussian(6, D)}
    with_skip = module.apply(
        {**variables, "params": variables["params"] | {"skip_gate": gate}}, INPUTS["x_t"], T, cond_of(INPUTS)
    )
    np.testing.assert_allclose(with_skip, predict() + gate["bias"] * INPUTS["x_t"], atol=1e-5)


@pytest.mark.slow
def test_a_fresh_prior_does_not_move_embeddings():
    variables = jax.jit(MODULE.init)(jax.random.key(0), INPUTS["x_t"], T, cond_of(INPUTS))
    np.testing.assert_array_equal(MODULE.apply(variables, INPUTS["x_t"], method="standardise"), INPUTS["x_t"])


def test_heads_must_divide_the_width():
    module = DiffusionPrior(PriorConfig(D, C, L, width=16, layers=1, heads=3))
    with pytest.raises(UserError, match="heads 3 does not divide width 16"):
        jax.eval_shape(lambda: module.init(jax.random.key(0), INPUTS["x_t"], T, cond_of(INPUTS)))


def test_a_skip_needs_a_time():
    with pytest.raises(UserError, match="the gate of the skip is learned of the time"):
        PriorConfig(D, C, L, WIDTH, layers=1, heads=2, skip=True, time_token=False)


def test_self_conditioning_needs_a_time():
    with pytest.raises(UserError, match="one step has no estimate before it"):
        PriorConfig(6, 5, 3, 16, 1, 2, time_token=False, self_condition=True)
