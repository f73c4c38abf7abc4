import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax.errors import UserError
from unclip_jax.conditioning import Cond
from unclip_jax.models.ar_prior import ARPrior, ARPriorConfig, Quantiser, measure
from unclip_jax.pca import principal_components

B, D, C, L, K, BUCKETS = 3, 6, 5, 4, 3, 8
CONFIG = ARPriorConfig(D, C, L, width=16, layers=2, heads=2, components=K, buckets=BUCKETS)
MODULE = ARPrior(CONFIG)


def gaussian(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


COND = Cond(
    text_embed=gaussian(0, B, D),
    text_encodings=gaussian(1, B, L, C),
    text_mask=np.array([[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1]], bool),
    keep_text=np.array([True, False, True]),
)
TOKENS = np.random.default_rng(2).integers(0, BUCKETS, (B, K + 1), dtype=np.int32)


@pytest.fixture(scope="module")
def variables(fill):
    return fill(lambda key: MODULE.init(key, gaussian(3, B, D), COND))


@pytest.fixture(scope="module")
def both(variables):
    """`both(tokens, cond)` -> logits of all tokens at once, and of one after the other with what was read kept."""

    def run(tokens, cond):
        apply = jax.tree_util.Partial(MODULE.apply, variables)
        logits, prefix = apply(cond, method="first_logits")
        steps = [logits]
        for j in range(K):
            logits, prefix = apply(tokens[:, j], CONFIG.prefix_length + j, prefix, method="next_logits")
            steps.append(logits)
        return apply(tokens, cond, method="logits"), jnp.stack(steps, axis=1)

    compiled = jax.jit(run)
    return lambda tokens=TOKENS, cond=COND: tuple(np.asarray(part) for part in compiled(tokens, cond))


@pytest.mark.slow
def test_token_by_token_is_all_at_once(both):
    at_once, step_by_step = both()
    assert at_once.shape == (B, K + 1, BUCKETS)
    np.testing.assert_allclose(step_by_step, at_once, atol=1e-5)


@pytest.mark.slow
def test_a_token_is_told_by_those_before_it_alone(both):
    before = both()[0]
    for j in range(K + 1):
        tokens = TOKENS.copy()
        tokens[:, j] = (tokens[:, j] + 3) % BUCKETS
        moved = np.abs(both(tokens)[0] - before).max(axis=(0, 2)) > 1e-5
        assert moved.tolist() == [i > j for i in range(K + 1)]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["text_embed", "text_encodings"])
def test_captions_are_read_and_a_dropped_one_leaves_no_trace(both, name):
    other = {"text_embed": gaussian(4, B, D), "text_encodings": gaussian(5, B, L, C)}
    changed = both(cond=COND.replace(**{name: other[name]}))[0]
    moved = np.abs(changed - both()[0]).max(axis=(1, 2)) > 1e-4
    assert moved.tolist() == [True, False, True]


@pytest.fixture(scope="module")
def measured():
    """(quantiser of all dimensions of 200 embeddings, its variables, the embeddings, those of their captions)."""
    embeds = gaussian(6, 200, D) * np.array([0.1, 3.0, 1.0, 0.5, 2.0, 0.2], np.float32) + 1.0
    texts = gaussian(7, 200, D)
    config = dataclasses.replace(CONFIG, components=D)
    return Quantiser(config), {"statistics": measure(config, embeds, texts)}, embeds, texts


def test_components_come_by_their_eigenvalue(measured):
    _, variables, embeds, _ = measured
    variances = variables["statistics"]["variances"]
    assert (np.diff(variances) < 0).all()
    np.testing.assert_allclose(variances, np.sort(np.linalg.eigvalsh(np.cov(embeds.T)))[::-1], rtol=1e-4)
    found = ((embeds - embeds.mean(0)) @ variables["statistics"]["components"].T).var(axis=0)
    np.testing.assert_allclose(found, variances, rtol=0.02)


def test_there_and_back_is_at_most_half_a_bucket_off(measured):
    module, variables, embeds, texts = measured
    tokens = np.asarray(module.apply(variables, embeds, texts, method="quantise"))
    assert tokens.dtype == np.int32
    assert (tokens.min(axis=0) == 0).all()
    assert (tokens.max(axis=0) == BUCKETS - 1).all()
    restored = module.apply(variables, tokens[:, 1:], method="restore")
    statistics = variables["statistics"]
    errors = np.abs((restored - embeds) @ statistics["components"].T)
    half = statistics["scale"][1:] / BUCKETS
    assert (errors <= half * (1 + 1e-3) + 1e-5).all()
    assert (errors.max(axis=0) > 0.8 * half).all()  # the buckets are as wide as that
    # The centre of a bucket falls into it again.
    again = module.apply(variables, restored, texts, method="quantise")
    np.testing.assert_array_equal(again[:, 1:], tokens[:, 1:])


def test_the_first_token_grows_with_the_cosine(measured):
    module, variables, embeds, texts = measured
    first = np.asarray(module.apply(variables, embeds, texts, method="quantise"))[:, 0]
    cosine = (embeds * texts).sum(-1) / np.linalg.norm(embeds, axis=-1) / np.linalg.norm(texts, axis=-1)
    order = np.argsort(cosine)
    assert (np.diff(first[order]) >= 0).all()
    assert (first[order[0]], first[order[-1]]) == (0, BUCKETS - 1)


def test_what_lies_outside_falls_into_the_outermost_bucket(measured):
    module, variables, _, texts = measured
    far = np.asarray(variables["statistics"]["components"])[:1] * 1e4
    ends = [module.apply(variables, sign * far, texts[:1], method="quantise")[0, 1] for sign in (-1, 1)]
    assert ends == [0, BUCKETS - 1]


def test_a_value_that_never_moves_is_told(caplog):
    embeds, texts = gaussian(6, 50, D), gaussian(7, 50, D)
    measure(CONFIG, embeds, texts)
    assert not caplog.records
    scale = measure(CONFIG, np.repeat(embeds[:1], 50, axis=0), np.repeat(texts[:1], 50, axis=0))["scale"]
    np.testing.assert_array_equal(scale, np.float32(1e-6))
    (warning,) = caplog.messages
    assert f"{K + 1} of the {K + 1} values of an embedding hardly move over 50 pictures" in warning


def test_components_left_out_are_the_mean(measured):
    _, _, embeds, texts = measured
    module, variables = Quantiser(CONFIG), {"statistics": measure(CONFIG, embeds, texts)}
    tokens = module.apply(variables, embeds, texts, method="quantise")
    left_out = principal_components(embeds).components[K:]
    centred = module.apply(variables, tokens[:, 1:], method="restore") - embeds.mean(axis=0)
    np.testing.assert_allclose(centred @ left_out.T, 0.0, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"components": 0}, "components is 0; give 1 to 6"),
        ({"components": D + 1}, "components is 7; give 1 to 6"),
        ({"buckets": 1}, "buckets is 1; give 2 to 65536"),
    ],
)
def test_what_cannot_be_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(CONFIG, **changes)
