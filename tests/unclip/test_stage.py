import ast
import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax.errors import UserError
from tests.support.jaxprs import structure
from unclip_jax import stage as stages
from unclip_jax.conditioning import Cond
from unclip_jax.diffusion.guidance import dynamic_threshold, inpaint
from unclip_jax.diffusion.losses import add_noise, diffusion_loss, noised
from unclip_jax.diffusion.samplers import DDIM, DDPM, SAMPLERS, ddim, ddpm, fold_in_each, normal, resampled, sample_keys
from unclip_jax.diffusion.schedule import GRIDS
from unclip_jax.model import Model
from unclip_jax.models.prior import PriorConfig
from unclip_jax.models.unet import ImageCond, Level, LowRes, UNetConfig
from unclip_jax.stage import Sampling, Stage

B, D, L, C = 4, 6, 3, 5
PRIOR = Stage(
    model=PriorConfig(D, C, L, width=16, layers=1, heads=2),
    prediction="x0",
    sampling=Sampling(DDPM(), num_steps=4, guidance_scale=2.0, clip=None),
)
PIXELS = Stage(
    model=UNetConfig(image_size=8, levels=(Level(8, 1),), groups=4, time_width=8, image=ImageCond(D)),
    sampling=Sampling(DDIM(), num_steps=3),
)
LEARNED = dataclasses.replace(
    PIXELS,
    model=dataclasses.replace(PIXELS.model, learned_variance=True),
    sampling=Sampling(DDPM("learned"), num_steps=3, guidance_scale=1.5),
)
KEYS = sample_keys(jax.random.key(0), jnp.arange(B))


def gaussian(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


TEXT = Cond(
    text_embed=gaussian(0, B, D),
    text_encodings=gaussian(1, B, L, C),
    text_mask=np.arange(L) < np.array([[1], [2], [3], [2]]),
)
IMAGE = Cond(image_embed=gaussian(2, B, D))
run = jax.jit(stages.run, static_argnums=0)
loss = jax.jit(stages.loss, static_argnums=0, static_argnames="train")


@pytest.fixture(scope="module")
def prior_variables(fill):
    return fill(PRIOR)


def with_sampling(stage, **changes):
    return dataclasses.replace(stage, sampling=dataclasses.replace(stage.sampling, **changes))


@pytest.mark.parametrize("stage", [PRIOR, PIXELS, LEARNED], ids=["prior", "pixels", "learned"])
def test_blank_condition_and_shapes_are_the_networks_own(stage):
    variables = jax.eval_shape(lambda key: stages.init(stage, key), jax.random.key(0))
    cond = stage.model.blank_cond(B)
    out = jax.eval_shape(lambda p, c: stages.run(stage, p, c, KEYS), variables, cond)
    assert out.shape == (B, *stage.sample_shape)
    assert out.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


@pytest.mark.slow
def test_guidance_of_one_is_no_guidance(prior_variables):
    off = run(with_sampling(PRIOR, guidance_scale=None), prior_variables, TEXT, KEYS)
    one = run(PRIOR, prior_variables, TEXT, KEYS, guidance_scale=1.0)
    np.testing.assert_allclose(one, off, atol=1e-4)
    # And no second branch, also where the stage's own scale says so.
    np.testing.assert_array_equal(run(with_sampling(PRIOR, guidance_scale=1.0), prior_variables, TEXT, KEYS), off)
    assert np.abs(np.asarray(off) - run(PRIOR, prior_variables, TEXT, KEYS)).max() > 1e-2


def test_guidance_scale_is_data(prior_variables):
    """The stage's own by default; any other, also per sample, runs in the same program."""
    sampled = jax.jit(lambda scale: stages.run(PRIOR, prior_variables, TEXT, KEYS, guidance_scale=scale))
    scales = jnp.array([0.0, 1.0, 2.0, 5.0])
    each = np.asarray(sampled(scales))
    np.testing.assert_allclose(each[2], run(PRIOR, prior_variables, TEXT, KEYS)[2], atol=1e-4)
    np.testing.assert_allclose(each[1], sampled(jnp.ones(B))[1], atol=1e-6)
    assert sampled._cache_size() == 1


def test_a_stage_without_guidance_ignores_the_scale(fill):
    variables = fill(PIXELS)
    given = structure(jax.make_jaxpr(lambda s: stages.run(PIXELS, variables, IMAGE, KEYS, guidance_scale=s))(3.0))
    assert given == structure(jax.make_jaxpr(lambda s: stages.run(PIXELS, variables, IMAGE, KEYS))(3.0))


def test_a_sample_depends_on_its_key_and_condition_alone(prior_variables):
    order = np.array([2, 0, 3, 1])
    together = np.asarray(run(PRIOR, prior_variables, TEXT, KEYS))
    shuffled = run(PRIOR, prior_variables, jax.tree.map(lambda a: a[order], TEXT), KEYS[order])
    np.testing.assert_array_equal(shuffled, together[order])
    other = run(PRIOR, prior_variables, TEXT, KEYS.at[1:].set(KEYS[0]))
    np.testing.assert_array_equal(other[0], together[0])
    assert (np.abs(np.asarray(other) - together)[1:].max(axis=1) > 1e-4).all()


@pytest.mark.slow
def test_samples_start_from_noise_of_their_own(prior_variables, monkeypatch):
    """And the noise of the start is none of the noises of the steps."""
    started = {}

    def spy(denoise, schedule, timesteps, sampler, x_T, keys):
        started.update(x_T=np.asarray(x_T), keys=keys, timesteps=timesteps)
        return x_T

    monkeypatch.setattr(stages, "sample", spy)
    stages.run(PRIOR, prior_variables, TEXT, KEYS)
    assert started["timesteps"].tolist() == [999, 666, 333, 0]
    flat = started["x_T"].reshape(-1)
    assert len(np.unique(flat)) == flat.size
    for t in started["timesteps"]:
        assert not np.array_equal(started["x_T"], normal(fold_in_each(KEYS, t), (D,)))


@pytest.mark.parametrize("clip", [1.0, 0.25, None])
def test_pictures_are_clipped(fill, clip):
    stage, variables = with_sampling(PIXELS, clip=clip), fill(PIXELS)
    largest = np.abs(run(stage, variables, IMAGE, KEYS)).max()
    assert np.isfinite(largest)
    assert largest <= clip if clip else largest > 1


@pytest.mark.slow
def test_dynamic_thresholding_takes_the_place_of_clipping(fill):
    """Each sample is scaled by its own percentile, inside the one program; a picture does not feel its neighbours."""
    variables = jax.tree.map(lambda a: 3 * a, fill(PIXELS))
    stage = with_sampling(PIXELS, threshold=80.0)
    together, clipped = np.asarray(run(stage, variables, IMAGE, KEYS)), run(PIXELS, variables, IMAGE, KEYS)
    assert np.abs(together).max() <= 1
    assert np.abs(together - clipped).max() > 1e-2
    others = jax.tree.map(lambda a: a.at[1:].set(7 * a[1:]), Cond(image_embed=jnp.asarray(IMAGE.image_embed)))
    np.testing.assert_allclose(run(stage, variables, others, KEYS)[0], together[0], atol=1e-5)
    denoise = stages.conditional_denoiser(stage, variables, IMAGE)
    raw = stages.conditional_denoiser(with_sampling(PIXELS, clip=None), variables, IMAGE)
    x_t, t = 5 * gaussian(3, B, 8, 8, 3), jnp.full(B, 500)
    want = dynamic_threshold(80.0)(raw)(x_t, t)
    assert np.abs(raw(x_t, t).x0).max() > 1
    np.testing.assert_allclose(denoise(x_t, t).x0, want.x0, atol=1e-6)


@pytest.mark.parametrize("name", GRIDS)
def test_every_grid_is_laid_out_inside_a_compiled_program(fill, name):
    """The program holds one scan over as many steps as were asked for."""
    stage = with_sampling(PIXELS, sampler=DDIM(grid=GRIDS[name]), num_steps=27 if name == "fast27" else 3)
    program = jax.make_jaxpr(stages.run, static_argnums=0)(stage, fill(stage), IMAGE, KEYS)
    (scan,) = (equation for equation in program.eqns if equation.primitive.name == "scan")
    assert scan.params["length"] == stage.sampling.num_steps


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_runs_a_network_with_learned_variance(fill, name):
    stage = dataclasses.replace(LEARNED, x0_error=True)
    out = run(with_sampling(stage, sampler=SAMPLERS[name]), fill(stage), IMAGE, KEYS)
    assert np.isfinite(out).all()
    assert np.abs(out).max() <= 1


def test_the_analytic_sampler_needs_a_stage_that_was_measured():
    with pytest.raises(UserError, match="x0_error"):
        with_sampling(PIXELS, sampler=DDPM("analytic"))


@pytest.mark.slow
def test_the_measured_error_is_the_networks_own(fill):
    """At the times measured: the plain error of x0 over many samples; between them it is interpolated."""
    variables, x0 = fill(PIXELS), np.tile(gaussian(5, B, 8, 8, 3), (16, 1, 1, 1))
    cond = IMAGE.repeat(16)
    table = np.asarray(stages.measure_x0_error(PIXELS, variables, x0, cond, jax.random.key(0), times=10))
    assert table.shape == (PIXELS.num_timesteps,)
    schedule, denoise = stages.noise_schedule(PIXELS), stages.conditional_denoiser(PIXELS, variables, cond)
    for t in (0, 333, 999):
        at = jnp.full(len(x0), t)
        x_t = add_noise(schedule, x0, at, gaussian(t, *x0.shape))
        want = np.square(denoise(x_t, at).x0 - x0).mean()
        assert table[t] == pytest.approx(float(want), rel=0.1)
    assert table[300] == pytest.approx(np.exp(np.interp(300, [222, 333], np.log(table[[222, 333]]))), rel=0.3)


@pytest.mark.slow
def test_other_noise_other_samplers_and_decorators_can_be_given(fill):
    variables, x_T = fill(PIXELS), gaussian(9, B, 8, 8, 3)
    given = run(PIXELS, variables, IMAGE, KEYS, x_T=x_T)
    own = stages.starting_noise(PIXELS, KEYS)
    np.testing.assert_allclose(
        run(PIXELS, variables, IMAGE, KEYS, x_T=own), run(PIXELS, variables, IMAGE, KEYS), atol=1e-5
    )
    assert np.abs(given - run(PIXELS, variables, IMAGE, KEYS)).max() > 1e-3
    sampled = stages.run(PIXELS, variables, IMAGE, KEYS, x_T=x_T, sampler=ddim(1.0))
    assert np.abs(given - sampled).max() > 1e-3
    half = inpaint(jnp.zeros_like(x_T), jnp.arange(8)[None, :, None, None] < 4)
    known = stages.run(PIXELS, variables, IMAGE, KEYS, x_T=x_T, decorate=half)
    np.testing.assert_array_equal(known[:, 4:], 0.0)


@pytest.mark.slow
def test_an_upsampler_is_told_how_noisy_its_input_is(fill):
    """The level of `Sampling` unless the condition brings its own, with noise of each sample's own key."""
    model = UNetConfig(image_size=8, levels=(Level(8, 1),), groups=4, time_width=8, low_res=LowRes(level=True))
    stage = Stage(model, Sampling(DDIM(), num_steps=2, low_res_level=0.3), prediction="x0")
    cond = Cond(low_res=gaussian(3, B, 4, 4, 3))
    seen = stages.with_level(stage, cond, KEYS)
    np.testing.assert_allclose(seen.low_res_level, 0.3)
    noise = (np.asarray(seen.low_res) - np.sqrt(1 - 0.09) * cond.low_res) / 0.3
    assert abs(noise.std() - 1) < 0.2
    one = stages.with_level(stage, Cond(low_res=cond.low_res[2:3]), KEYS[2:3])
    np.testing.assert_allclose(one.low_res[0], seen.low_res[2], atol=1e-6)
    given = cond.replace(low_res_level=jnp.full(B, 0.1))
    assert stages.with_level(stage, given, KEYS) is given
    variables = fill(stage)
    quiet, told = (run(stage, variables, cond.replace(low_res_level=jnp.full(B, level)), KEYS) for level in (0.0, 0.9))
    assert np.abs(quiet - told).max() > 1e-3  # the number alone makes a difference
    for changes in ({"low_res_level": 1.5}, {"low_res_level": -0.1}):
        with pytest.raises(UserError, match="low_res_level"):
            with_sampling(stage, **changes)
    with pytest.raises(UserError, match="not trained to be told"):
        with_sampling(PIXELS, low_res_level=0.1)


@pytest.mark.slow
def test_loss_is_that_of_the_network_at_its_own_noise(fill):
    variables, x0, key = fill(PIXELS), gaussian(5, B, 8, 8, 3), jax.random.key(7)
    got, metrics = loss(PIXELS, variables, x0, IMAGE, key)
    schedule = stages.noise_schedule(PIXELS)
    at = noised(schedule, x0, jax.random.split(key)[0])
    output = stages.network(PIXELS).apply(variables, at.x_t, at.t, IMAGE)
    want = diffusion_loss(output, x0, at, schedule, prediction="eps").mean()
    assert float(got) == pytest.approx(float(want), rel=1e-4)
    assert metrics == {}


@pytest.mark.slow
def test_learned_variance_adds_the_bound(fill):
    """The squared error reaches the prediction only, the bound the variance only, at full weight for 1000 steps."""
    variables, x0, key = fill(LEARNED), gaussian(5, B, 8, 8, 3), jax.random.key(7)

    @jax.jit
    def grads(variables):
        def parts(variables):
            total, metrics = stages.loss(LEARNED, variables, x0, IMAGE, key)
            return total, metrics["mean_squared_error"], metrics["bound_bits"]

        values = parts(variables)
        return values, [
            jax.grad(lambda p, i=i: parts(p)[i])(variables)["params"]["conv_out"]["kernel"] for i in range(3)
        ]

    (total, error, bound), by_part = grads(variables)
    assert float(total) == pytest.approx(float(error + bound), rel=1e-5)
    total, of_error, of_bound = (np.abs(g).max(axis=(0, 1, 2)) > 0 for g in by_part)
    assert of_error.tolist() == [True] * 3 + [False] * 3
    assert of_bound.tolist() == [False] * 3 + [True] * 3
    assert total.all()


@pytest.mark.slow
def test_evaluating_does_not_need_a_dropout_key(fill):
    stage = dataclasses.replace(PIXELS, model=dataclasses.replace(PIXELS.model, dropout=0.5))
    variables, x0 = fill(stage), gaussian(5, B, 8, 8, 3)
    quiet = [float(loss(s, variables, x0, IMAGE, jax.random.key(1), train=False)[0]) for s in (stage, PIXELS)]
    assert quiet[0] == pytest.approx(quiet[1], rel=1e-5)
    assert float(loss(stage, variables, x0, IMAGE, jax.random.key(1), train=True)[0]) != pytest.approx(
        quiet[0], rel=1e-5
    )


@pytest.mark.slow
def test_another_network_takes_the_last_step_alone(fill):
    """As Karlo's upsampler has it. Every grid ends at 0."""
    stage = dataclasses.replace(PIXELS, last_network=True)
    variables, x_t = fill(stage), gaussian(5, B, 8, 8, 3)
    first = {name: tree for name, tree in variables["params"].items() if name != "last"}
    last = variables["params"]["last"]
    assert last.keys() == first.keys()

    @jax.jit
    def estimate(variables, t):
        plain = stages.conditional_denoiser(PIXELS, variables, IMAGE)
        return stages.conditional_denoiser(stage, variables, IMAGE)(x_t, t).x0, plain(x_t, t).x0

    for t, network in ((999, first), (1, first), (0, last)):
        at = jnp.full(B, t)
        expected = estimate({"params": {**network, "last": last}}, at)[1]
        np.testing.assert_allclose(estimate(variables, at)[0], expected, rtol=1e-5, atol=1e-5)
    assert np.abs(estimate(variables, jnp.zeros(B, int))[0] - estimate(variables, jnp.zeros(B, int))[1]).max() > 1e-3


SELF = dataclasses.replace(PRIOR, model=dataclasses.replace(PRIOR.model, self_condition=True))


@pytest.mark.slow
def test_a_self_conditioned_stage_is_given_its_last_estimate(fill):
    """Both branches of guidance read the guided and clipped estimate of the last step, at first zeros."""
    stage = with_sampling(SELF, sampler=DDIM(), clip=0.8)
    variables, schedule, times = fill(stage), stages.noise_schedule(stage), stages.timesteps(stage)
    module, x_t, x0_hat = stages.network(stage), stages.starting_noise(stage, KEYS), jnp.zeros((B, D))
    for t, s in zip(times, [*times[1:], -1], strict=True):
        at = jnp.full((B,), t)
        with_text, without = (module.apply(variables, x_t, at, cond, x0_hat) for cond in (TEXT, TEXT.null()))
        x0_hat = jnp.clip(without + 2.0 * (with_text - without), -0.8, 0.8)
        eps = (x_t - schedule.alpha(t) * x0_hat) / schedule.sigma(t)
        x_t = schedule.alpha(s) * x0_hat + schedule.sigma(s) * eps
    np.testing.assert_allclose(run(stage, variables, TEXT, KEYS), x_t, atol=2e-5)


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_runs_a_self_conditioned_stage(fill, name):
    if name in ("ddpm_learned", "ddpm_analytic"):
        pytest.skip("they need what a prior does not learn")
    stage = with_sampling(SELF, sampler=SAMPLERS[name], guidance_scale=None)
    assert np.isfinite(run(stage, fill(stage), TEXT, KEYS)).all()


@pytest.mark.slow
def test_a_self_conditioned_stage_is_resampled_under_jit(fill):
    """Every repetition of a step reads the estimate of the step before; once is the plain sampler."""
    stage = with_sampling(SELF, sampler=DDPM(), guidance_scale=None)
    variables = fill(stage)
    draw = lambda times: jax.jit(  # noqa: E731
        lambda variables: stages.run(stage, variables, TEXT, KEYS, sampler=resampled(ddpm(), times))
    )(variables)
    assert np.isfinite(draw(2)).all()
    assert np.abs(np.asarray(draw(2)) - draw(1)).max() > 1e-4


@pytest.mark.slow
def test_in_training_a_coin_per_sample_says_who_is_given_an_estimate(fill):
    """Of x0, as in sampling, and not the raw output: the network predicts v here."""
    stage = dataclasses.replace(with_sampling(SELF, clip=0.5), prediction="v")
    variables, x0 = fill(stage), gaussian(3, 64, D)
    cond = jax.tree.map(lambda a: np.tile(a, (16,) + (1,) * (a.ndim - 1)), TEXT)
    schedule = stages.noise_schedule(stage)
    at = noised(schedule, x0, jax.random.key(1))
    own_estimate = jax.jit(lambda variables: stages.own_estimate(stage, variables, at, cond, jax.random.key(2)))
    given = own_estimate(variables)
    network = jax.jit(stages.network(stage).apply)
    v = network(variables, at.x_t, at.t, cond, jnp.zeros_like(x0))
    estimate = schedule.alpha(at.t)[:, None] * at.x_t - schedule.sigma(at.t)[:, None] * v
    has = np.any(given != 0, axis=1)
    assert 16 < has.sum() < 48
    np.testing.assert_allclose(given[has], np.clip(estimate, -0.5, 0.5)[has], atol=1e-5)
    gradient = jax.jit(jax.grad(lambda variables: own_estimate(variables).sum()))(variables)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient))
    # The loss reads it: the part of the network that does so gets a gradient.
    gradient = jax.jit(jax.grad(lambda variables: loss(stage, variables, x0, cond, jax.random.key(0))[0]))(variables)
    assert np.any(gradient["params"]["image_embed_proj"]["kernel"][D:])


@pytest.mark.parametrize("name", ["stage", "priors", "pipeline"])
def test_nobody_asks_of_which_class_a_model_is(name):
    """The contract is `unclip_jax.model`; the one `isinstance` of `pipeline` is on a path that a user gave."""
    tree = ast.parse((Path(stages.__file__).parent / f"{name}.py").read_text(encoding="utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    asked = [ast.unparse(call) for call in calls if call.func.id == "isinstance"]
    assert asked == (["isinstance(source, os.PathLike)"] if name == "pipeline" else [])


@pytest.mark.parametrize("stage", [PRIOR, PIXELS], ids=["prior", "pixels"])
def test_a_config_satisfies_the_contract(stage):
    assert isinstance(stage.model, Model)
    assert stage.model.role == ("prior" if stage is PRIOR else "decoder")
