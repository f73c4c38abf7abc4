import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from clip_jax.errors import UserError
from clip_jax.model import unit_norm
from tests.support.jaxprs import structure
from unclip_jax import priors
from unclip_jax.conditioning import Cond, concatenate
from unclip_jax.diffusion.samplers import sample_keys
from unclip_jax.models.ar_prior import ARPrior, ARPriorConfig, measure
from unclip_jax.models.prior import DiffusionPrior, PriorConfig
from unclip_jax.priors import ARSampling, ARStage, OneStepStage
from unclip_jax.stage import Sampling, Stage

B, D, C, L, K, BUCKETS = 4, 6, 5, 3, 4, 8
AR = ARStage(
    ARPriorConfig(D, C, L, width=16, layers=1, heads=2, components=K, buckets=BUCKETS), ARSampling(guidance_scale=2.0)
)
ONE_STEP = OneStepStage(PriorConfig(D, C, L, width=16, layers=1, heads=2, time_token=False))
KEYS = sample_keys(jax.random.key(0), jnp.arange(B))


def gaussian(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


COND = Cond(
    text_embed=gaussian(0, B, D),
    text_encodings=gaussian(1, B, L, C),
    text_mask=np.arange(L) < np.array([[1], [2], [3], [2]]),
)
sample = jax.jit(priors.sample, static_argnums=0)


@pytest.fixture(scope="module")
def variables(fill):
    return {prior: fill(lambda key, prior=prior: priors.init(prior, key)) for prior in (AR, ONE_STEP)}


@pytest.mark.slow
def test_sampling_is_a_plain_loop_that_reads_everything_again(variables):
    """Every token from the whole sequence so far, guided, with the key of its place."""
    module, mine = ARPrior(AR.model), variables[AR]
    both = concatenate(COND.with_keep(B), COND.null())
    read = jax.jit(lambda tokens: module.apply(mine, tokens, both, method="logits"))
    tokens = np.zeros((B, K + 1), np.int32)
    for j in range(K + 1):
        conditional, unconditional = np.split(np.asarray(read(np.concatenate([tokens, tokens]))[:, j]), 2)
        logits = unconditional + 2.0 * (conditional - unconditional)
        own = jax.vmap(lambda key, j=j: jax.random.fold_in(key, j))(KEYS)
        draw = jax.vmap(jax.random.categorical) if j else priors.from_top_half
        tokens[:, j] = draw(own, jnp.asarray(logits))
    want = module.apply(mine, tokens[:, 1:], method="restore")
    assert len(np.unique(tokens)) > 3
    np.testing.assert_allclose(sample(AR, variables[AR], COND, KEYS), want, atol=1e-5)


@pytest.mark.parametrize("prior", [AR, ONE_STEP], ids=["ar", "one-step"])
def test_a_sample_depends_on_its_key_and_caption_alone(variables, prior):
    order = np.array([2, 0, 3, 1])
    together = np.asarray(sample(prior, variables[prior], COND, KEYS))
    assert together.shape == (B, D)
    shuffled = sample(prior, variables[prior], jax.tree.map(lambda a: a[order], COND), KEYS[order])
    np.testing.assert_array_equal(shuffled, together[order])
    other = sample(prior, variables[prior], COND, KEYS.at[1:].set(KEYS[0]))
    np.testing.assert_array_equal(other[0], together[0])
    assert (np.abs(np.asarray(other) - together)[1:].max(axis=1) > 1e-4).all()


def scans(prior, variables, **given):
    traced = jax.make_jaxpr(lambda p: priors.sample(prior, p, COND, KEYS, **given))(variables)
    return [eqn.params["length"] for eqn in traced.jaxpr.eqns if eqn.primitive.name == "scan"]


def test_one_scan_and_none(variables):
    assert scans(AR, variables[AR]) == [K]
    assert scans(ONE_STEP, variables[ONE_STEP]) == []


def test_guidance_is_data_and_one_is_off(variables):
    plain = dataclasses.replace(AR, sampling=ARSampling())
    sampled = jax.jit(lambda scale: priors.sample(AR, variables[AR], COND, KEYS, guidance_scale=scale))
    own = np.asarray(sample(AR, variables[AR], COND, KEYS))
    np.testing.assert_allclose(sampled(jnp.full(B, 2.0, jnp.float32)), own, atol=1e-5)
    mixed = np.asarray(sampled(jnp.array([2.0, 30.0, 2.0, 30.0], jnp.float32)))
    assert np.abs(mixed - own).max(axis=1)[[1, 3]].max() > 1e-3
    np.testing.assert_allclose(mixed[[0, 2]], own[[0, 2]], atol=1e-5)
    assert sampled._cache_size() == 1
    # A plain 1.0 runs one branch, and a prior without guidance ignores the scale.
    programs = [
        structure(jax.make_jaxpr(lambda p, s=s, g=g: priors.sample(s, p, COND, KEYS, guidance_scale=g))(variables[AR]))
        for s, g in ((AR, 1.0), (plain, None), (plain, 3.0))
    ]
    assert programs[0] == programs[1] == programs[2]


def test_the_top_half_is_half_of_the_probability():
    p = np.array([0.3, 0.1, 0.2, 0.25, 0.15])
    keys = jax.random.split(jax.random.key(0), 4000)
    drawn = priors.from_top_half(keys, jnp.broadcast_to(jnp.log(jnp.asarray(p)), (4000, 5)))
    # The median lies in the middle of the third bucket.
    np.testing.assert_allclose(np.bincount(drawn, minlength=5) / 4000, [0, 0, 0.2, 0.5, 0.3], atol=0.03)
    certain = priors.from_top_half(keys, jnp.where(jnp.arange(5) == 4, 0.0, -1e9) * jnp.ones((4000, 1)))
    assert (certain == 4).all()


@pytest.mark.slow
def test_the_losses_are_what_they_say(variables):
    embeds = gaussian(3, B, D)

    @jax.jit
    def of_ar(variables):
        logits, tokens = ARPrior(AR.model).apply(variables, embeds, COND)
        return jax.nn.softmax(logits), tokens, *priors.ar_loss(AR, variables, embeds, COND)

    p, tokens, loss, metrics = of_ar(variables[AR])
    each = -np.log(np.take_along_axis(np.asarray(p), np.asarray(tokens)[..., None], axis=-1))[..., 0]
    assert float(loss) == pytest.approx(each.mean(), rel=1e-4)
    assert float(metrics["similarity_cross_entropy"]) == pytest.approx(each[:, 0].mean(), rel=1e-4)

    key, scale, module = jax.random.key(1), jnp.float32(1.5), DiffusionPrior(ONE_STEP.model)

    @jax.jit
    def of_one_step(variables):
        predicted = module.apply(variables, jax.random.normal(key, (B, D)), None, COND)
        restored = module.apply(variables, predicted, method="restore")
        p = jax.nn.softmax(jnp.exp(scale) * unit_norm(restored) @ unit_norm(jnp.asarray(COND.text_embed)).T)
        return predicted, p, *priors.one_step_loss(ONE_STEP, variables, embeds, COND, key, logit_scale=scale)

    predicted, p, loss, metrics = of_one_step(variables[ONE_STEP])
    error = np.square(predicted - embeds).mean()
    contrastive = -np.log(np.diag(p)).mean()
    assert float(metrics["mean_squared_error"]) == pytest.approx(float(error), rel=1e-4)
    assert float(metrics["contrastive"]) == pytest.approx(contrastive, rel=1e-3)
    assert float(loss) == pytest.approx(float(error) + 0.2 * contrastive, rel=1e-3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: OneStepStage(PriorConfig(D, C, L, 16, 1, 2)), "model.time_token is True"),
        (lambda: dataclasses.replace(ONE_STEP, contrastive_weight=-1.0), "contrastive_weight is -1.0"),
        (lambda: Stage(ONE_STEP.model, Sampling(num_steps=4)), "model.time_token is False"),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()


@pytest.mark.slow
def test_the_ar_prior_learns_a_distribution(monkeypatch):
    """Two captions, each with points of its own in the plane and their probabilities."""
    points = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]], np.float32) * 2.0
    chances = np.array([[0.5, 0.3, 0.2, 0.0], [0.0, 0.1, 0.2, 0.7]])
    config = ARPriorConfig(2, 3, 2, width=32, layers=2, heads=2, components=2, buckets=8)
    stage = ARStage(config)
    captions = Cond(
        text_embed=jnp.array([[1.0, 0.3], [-0.3, 1.0]]),
        text_encodings=jnp.array(gaussian(0, 2, 2, 3)),
        text_mask=jnp.ones((2, 2), bool),
    )

    def draw(rng, n):
        caption = rng.integers(0, 2, n)
        point = np.array([rng.choice(4, p=chances[c]) for c in caption])
        return caption, points[point] + 0.05 * rng.normal(size=(n, 2)).astype(np.float32)

    rng = np.random.default_rng(0)
    caption, embeds = draw(rng, 4000)
    statistics = measure(config, embeds, np.asarray(captions.text_embed)[caption])
    params = jax.jit(lambda key: priors.init(stage, key))(jax.random.key(0))["params"]
    statistics = {"statistics": {"quantiser": statistics}}
    tx = optax.adam(optax.cosine_decay_schedule(3e-3, 500))  # at a constant rate the last step is as far off as any

    @jax.jit
    def step(params, state, caption, embeds):
        cond = jax.tree.map(lambda a: a[caption], captions)
        grads = jax.grad(lambda p: priors.ar_loss(stage, {"params": p, **statistics}, embeds, cond)[0])(params)
        updates, state = tx.update(grads, state)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for i in range(500):
        own = slice(128 * i % 3840, 128 * i % 3840 + 128)
        params, state = step(params, state, caption[own], embeds[own])
    variables = {"params": params, **statistics}
    n = 2000
    asked = np.repeat([0, 1], n)
    keys = sample_keys(jax.random.key(1), jnp.arange(2 * n))
    cond, texts = (jax.tree.map(lambda a: a[asked], tree) for tree in (captions, captions.text_embed))
    top = np.asarray(priors.sample(stage, variables, cond, keys))
    # Similarities from the top half of their distribution are not those of the data: here they are from all of it.
    monkeypatch.setattr(priors, "from_top_half", jax.vmap(jax.random.categorical))
    drawn = np.asarray(priors.sample(stage, variables, cond, keys))
    distance = np.linalg.norm(drawn[:, None] - points, axis=-1)
    assert np.quantile(distance.min(axis=1), 0.98) < 0.6
    for c in range(2):
        found = np.bincount(distance[asked == c].argmin(axis=1), minlength=4) / n
        np.testing.assert_allclose(found, chances[c], atol=0.06)

    closeness = [float((unit_norm(x) * unit_norm(texts)).sum(-1).mean()) for x in (top, drawn)]
    assert closeness[0] > closeness[1] + 0.1
