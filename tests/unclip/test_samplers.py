"""The oracle: for data x0 ~ N(m, s²) the best denoiser is known exactly, and so is the end of the probability-flow ODE.

Every sampler must find the data's mean and spread with it.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unclip_jax.diffusion.predict import Denoised, per_sample
from unclip_jax.diffusion.samplers import (
    SAMPLERS,
    Sampler,
    Step,
    Stepped,
    ddim,
    ddpm,
    fold_in_each,
    heun,
    invert,
    normal,
    resampled,
    sample,
    sample_keys,
)
from unclip_jax.diffusion.schedule import cosine, karras_timesteps, spaced_timesteps

T = 1000
COSINE = cosine(T)
MEAN, STD = jnp.array([0.0, 0.5, -0.8]), jnp.array([1.0, 0.3, 0.1])
EVERY = {**SAMPLERS, "ddpm_large": lambda: ddpm("large"), "ddim_1": lambda: ddim(1.0)}


def oracle(mean=MEAN, std=STD, var_frac=0.0):
    """E[x0 | x_t] for Gaussian data, with a constant position of the variance between its bounds."""

    def denoise(x_t, t):
        alpha, sigma = (per_sample(f(t), x_t) for f in (COSINE.alpha, COSINE.sigma))
        x0 = mean + std**2 * alpha / (alpha**2 * std**2 + sigma**2) * (x_t - alpha * mean)
        x0_error = std**2 * sigma**2 / (alpha**2 * std**2 + sigma**2)
        return Denoised(x0, jnp.full_like(x_t, var_frac), x0_error)

    return denoise


def start(batch=6, shape=(3,)):
    """(x_T, keys): noise to start from, and keys for the noise of the steps."""
    keys = sample_keys(jax.random.key(0), jnp.arange(batch))
    return normal(fold_in_each(keys, T), shape), keys


@partial(jax.jit, static_argnums=(0, 1))
def draw(name, num_steps, x_T, keys, var_frac=0.0):
    """Samples with the oracle. Tests that agree on sampler, length and shape share one compiled program."""
    return sample(oracle(var_frac=var_frac), COSINE, spaced_timesteps(T, num_steps), EVERY[name](), x_T, keys)


@partial(jax.jit, static_argnums=0)
def one_step(name, x_t, state, t, s, keys, mean=MEAN, std=STD, var_frac=0.0):
    step = Step(t, s, fold_in_each(keys, t))
    return EVERY[name]().step(oracle(mean, std, var_frac), COSINE, x_t, state, step)


def loop(name, num_steps, x_T, keys, *data):
    """What `sample` does, step by step: it compiles one step, whatever their number."""
    x_t, state, timesteps = x_T, EVERY[name]().init(x_T), spaced_timesteps(T, num_steps)
    for t, s in zip(timesteps, [*timesteps[1:], np.int32(-1)], strict=True):
        x_t, state, _ = one_step(name, x_t, state, t, s, keys, *data)
    return np.asarray(x_t)


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY)
def test_scan_is_a_loop(name):
    np.testing.assert_allclose(draw(name, 50, *start()), loop(name, 50, *start()), atol=1e-6)


def errors(name, steps):
    """[steps, 3] root mean square distance, per dimension, to the end of the probability-flow ODE.

    For Gaussian data that end is known: the same quantile of the data's distribution that x_T is of the noise's.
    """
    x_T, keys = start()
    alpha, sigma = COSINE.alpha(T - 1), COSINE.sigma(T - 1)
    want = MEAN + STD * (x_T - alpha * MEAN) / jnp.sqrt(alpha**2 * STD**2 + sigma**2)
    return np.array([np.sqrt(np.square(loop(name, n, x_T, keys) - want).mean(0)) for n in steps])


def test_ddim_is_of_first_order_and_dpmpp_of_second():
    """Doubling the steps halves the error of one and quarters that of the other."""
    ddim_errors, dpmpp_errors = errors("ddim", (40, 80, 160)), errors("dpmpp_2m", (20, 80, 160))
    np.testing.assert_allclose(ddim_errors[:-1] / ddim_errors[1:], 2.0, atol=0.25)
    assert (dpmpp_errors[1] / dpmpp_errors[2] > 3.0).all()
    assert (dpmpp_errors[2] < ddim_errors[2]).all()
    # Over data of unit variance, where a handful of steps can do, 20 of the one are worth more than 40 of the other.
    assert dpmpp_errors[0, 0] < ddim_errors[0, 0]


@pytest.mark.slow
def test_heun_is_of_second_order_on_the_grid_it_is_meant_for():
    """Sigma falls from 80, where the data is still a point to it, to a start that the exact solution is known from."""
    std = 0.3

    def error(num_steps):
        times = karras_timesteps(COSINE, num_steps)
        x_T = normal(sample_keys(jax.random.key(0), jnp.arange(6)), (3,)) * COSINE.sigma(times[0])
        alpha, sigma = COSINE.alpha(times[0]), COSINE.sigma(times[0])
        want = MEAN + std * (x_T - alpha * MEAN) / jnp.sqrt(alpha**2 * std**2 + sigma**2)
        got = sample(oracle(std=std), COSINE, times, heun(), x_T, start()[1])
        return np.sqrt(np.square(got - want).mean())

    errors = [error(n) for n in (10, 20, 40)]
    assert errors[0] / errors[1] > 2.8
    assert errors[1] / errors[2] > 2.8
    assert errors[2] < 5e-3


def test_eulers_method_is_ddim():
    """In the variables x/alpha and sigma/alpha (Song et al. 2021, §4.3)."""
    x_t, keys = start()
    t, s = np.int32(700), np.int32(650)
    x0 = oracle()(x_t, jnp.full(6, t)).x0
    y, noise, less = x_t / COSINE.alpha(t), COSINE.sigma(t) / COSINE.alpha(t), COSINE.sigma(s) / COSINE.alpha(s)
    want = COSINE.alpha(s) * (y + (less - noise) * (y - x0) / noise)
    np.testing.assert_allclose(one_step("euler", x_t, (), t, s, keys)[0], want, atol=1e-5)


@pytest.mark.parametrize("num_steps", [2, 10])
def test_the_analytic_variance_is_right_at_any_number_of_steps(num_steps):
    """Over Gaussian data q(x_s | x_t) is Gaussian: with its own variance every step is exact, however long."""
    x_T, keys = start(4, (1000, 3))
    n = 4 * 1000
    found = loop("ddpm_analytic", num_steps, x_T, keys).reshape(n, 3)
    # The last step returns the mean alone: what is left of the spread is that of the estimate at t = 0.
    kept = STD**2 / jnp.sqrt(STD**2 + (COSINE.sigma(0) / COSINE.alpha(0)) ** 2)
    np.testing.assert_allclose(found.std(0) / kept, 1.0, atol=4.5 / np.sqrt(2 * n))
    too_little = loop("ddpm", num_steps, x_T, keys).reshape(n, 3)
    assert (np.abs(too_little.std(0) / kept - 1) > np.abs(found.std(0) / kept - 1)).all()


def test_the_analytic_variance_needs_an_error():
    with pytest.raises(ValueError, match="x0_error"):
        sample(lambda x_t, t: Denoised(x_t), COSINE, np.array([9, 0]), ddpm("analytic"), *start())


@pytest.mark.parametrize("num_steps", [10, 50])
def test_inversion_finds_the_noise_that_ddim_came_from(num_steps):
    """There and back, at the very same grid; DDIM's own way up (one iteration) misses it."""
    x_T, keys = start()
    timesteps = spaced_timesteps(T, num_steps)
    x0 = sample(oracle(), COSINE, timesteps, ddim(), x_T, keys)
    exact, plain = (invert(oracle(), COSINE, timesteps, x0, iterations=n) for n in (20, 1))
    back, missed = (sample(oracle(), COSINE, timesteps, ddim(), x, keys) for x in (exact, plain))
    np.testing.assert_allclose(back, x0, atol=5e-3)
    assert np.abs(missed - x0).max() > 4 * np.abs(back - x0).max()
    np.testing.assert_allclose(exact, x_T, atol=0.05)


@pytest.mark.parametrize("times", [1, 3])
def test_resampling_keeps_the_distribution(times):
    """However often a step is taken, it ends at the same mean and spread; taken once it is the sampler's own."""
    x_T, keys = start(4, (1000, 3))
    plain, again = (
        np.asarray(sample(oracle(), COSINE, spaced_timesteps(T, 40), sampler, x_T, keys)).reshape(-1, 3)
        for sampler in (ddpm("analytic"), resampled(ddpm("analytic"), times))
    )
    assert not np.array_equal(plain, again)
    np.testing.assert_allclose(again.std(0) / plain.std(0), 1.0, atol=0.1)
    np.testing.assert_allclose(again.mean(0), plain.mean(0), atol=0.1)


def test_resampling_takes_every_step_so_often():
    seen = []

    def step(denoise, schedule, x_t, state, step):
        jax.debug.callback(lambda s: seen.append(int(s)), step.s)
        return Stepped(x_t, state, x_t)

    counted = resampled(Sampler(lambda x_T: (), step), 3)
    sample(oracle(), COSINE, spaced_timesteps(T, 4), counted, *start()).block_until_ready()
    jax.effects_barrier()
    assert sorted(seen) == sorted([666, 333, 0, -1] * 3)


@pytest.mark.parametrize(("name", "var_frac"), [("ddpm", 0.0), ("ddpm_learned", 0.5)])
def test_stochastic_samplers_find_mean_and_spread(name, var_frac):
    """Many independent dimensions of a few samples; n of them know their deviation to 1/√2n."""
    x_T, keys = start(4, (1000, 3))
    n = 4 * 1000
    coarse, fine = (loop(name, steps, x_T, keys, MEAN, STD, var_frac).reshape(n, 3) for steps in (10, 200))
    off = np.abs(fine.std(0) / STD - 1)
    assert (off < 0.08 + 4 / np.sqrt(2 * n)).all()
    assert (off < np.maximum(np.abs(coarse.std(0) / STD - 1), 4 / np.sqrt(2 * n))).all()
    np.testing.assert_array_less(np.abs(fine.mean(0) - MEAN), 4.5 * STD / np.sqrt(n))


@pytest.mark.parametrize("num_steps", [2, 50])
def test_ddim_with_full_noise_is_ddpm(num_steps):
    np.testing.assert_allclose(loop("ddim_1", num_steps, *start()), loop("ddpm", num_steps, *start()), atol=3e-5)


@pytest.mark.parametrize(("var_frac", "name"), [(0.0, "ddpm"), (1.0, "ddpm_large")])
def test_learned_variance_ends_at_its_bounds(var_frac, name):
    learned = loop("ddpm_learned", 50, *start(), MEAN, STD, var_frac)
    np.testing.assert_allclose(learned, loop(name, 50, *start()), atol=2e-5)


def test_learned_variance_is_log_linear_between_its_bounds():
    """Its noise read back from one step (Nichol & Dhariwal 2021, eq. 15)."""
    x_t, keys = start()

    def step(var_frac):
        times = np.int32(700), np.int32(650)
        return np.asarray(one_step("ddpm_learned", x_t, (), *times, keys, MEAN, STD, var_frac)[0])

    quiet = step(-jnp.inf)
    small, middle, large = (np.log(np.abs(step(f) - quiet)) for f in (0.0, 0.3, 1.0))
    np.testing.assert_allclose(middle, 0.7 * small + 0.3 * large, atol=1e-3)
    np.testing.assert_allclose(large - small, np.full((6, 3), (large - small)[0, 0]), atol=1e-3)


def test_learned_variance_needs_a_network_that_has_one():
    with pytest.raises(ValueError, match="learned variance"):
        sample(lambda x_t, t: Denoised(x_t), COSINE, np.array([9, 0]), ddpm("learned"), *start())
    with pytest.raises(ValueError, match="'tiny'"):
        ddpm("tiny")


@pytest.mark.parametrize("name", EVERY)
def test_a_known_x0_is_carried_at_its_own_scale(name):
    """From alpha_t·x0 with x0 known, every step goes to alpha_s·x0, plus noise that does not depend on x0."""
    x0 = jnp.array([1.0, -2.0, 0.3])
    _, keys = start()
    t, s = np.int32(600), np.int32(400)

    def step(x0):
        x_t = jnp.broadcast_to(COSINE.alpha(t) * x0, (6, 3))
        return one_step(name, x_t, EVERY[name]().init(x_t), t, s, keys, x0, jnp.zeros(3))[0]

    np.testing.assert_allclose(step(2 * x0) - step(x0), np.tile(COSINE.alpha(s) * x0, (6, 1)), atol=1e-6)


@pytest.mark.parametrize("name", EVERY)
def test_the_last_step_is_the_estimate_itself(name):
    """Whatever came before, from any time t to clean data: no rest of x_t, no noise, no NaN from the infinite SNR."""
    x_t, keys = start()
    for t in (0, 500, 998):
        _, state, _ = one_step(name, x_t, EVERY[name]().init(x_t), np.int32(999), np.int32(t), keys)
        x0, *_ = one_step(name, x_t, state, np.int32(t), np.int32(-1), keys)
        np.testing.assert_allclose(x0, oracle()(x_t, jnp.full(6, t)).x0, atol=1e-6)


@pytest.mark.parametrize("num_steps", [1, 2, 50, T])
@pytest.mark.parametrize("name", EVERY)
def test_finite_at_any_number_of_steps(name, num_steps):
    """With the exact denoiser, and with one that always says 0, as a network fresh from its initialisation does."""
    x_T, keys = start()
    x0 = loop(name, num_steps, x_T, keys)
    assert np.isfinite(x0).all()
    np.testing.assert_allclose(loop(name, num_steps, x_T, keys, 0 * MEAN, 0 * STD, 0.5), 0.0, atol=1e-6)
    if num_steps == 1:
        np.testing.assert_allclose(x0, oracle()(x_T, jnp.full(6, T - 1)).x0, atol=1e-6)


@pytest.mark.parametrize("name", EVERY)
def test_a_sample_does_not_depend_on_its_batch(name):
    x_T, keys = start()
    together = np.asarray(draw(name, 50, x_T, keys))
    for order in (jnp.array([3, 0, 5, 1, 4, 2]), jnp.array([2, 2, 2, 2, 2, 2])):
        np.testing.assert_array_equal(draw(name, 50, x_T[order], keys[order]), together[order])
    if name in ("ddpm", "dpmpp_2m"):
        np.testing.assert_allclose(draw(name, 50, x_T[2:3], keys[2:3]), together[2:3], atol=1e-5)


def test_keys_belong_to_indices():
    key = jax.random.key(3)
    whole = jax.random.key_data(sample_keys(key, jnp.arange(10)))
    np.testing.assert_array_equal(jax.random.key_data(sample_keys(key, jnp.array([7, 2]))), whole[jnp.array([7, 2])])
    assert len(np.unique(whole, axis=0)) == 10
    again = jax.random.key_data(fold_in_each(sample_keys(key, jnp.arange(10)), 1))
    assert len(np.unique(np.concatenate([whole, again]), axis=0)) == 20


def test_noise_is_new_at_every_step_and_for_every_sample():
    """Seen by the noise alone: x_t and every estimate are 0."""
    _, keys = start()
    x_t, nothing = jnp.zeros((6, 3)), (jnp.zeros(3), jnp.zeros(3))

    def noise(t):
        return np.asarray(one_step("ddpm", x_t, (), np.int32(t), np.int32(500), keys, *nothing)[0])

    assert not np.allclose(noise(900), noise(901), rtol=0.01)
    assert len(np.unique(noise(900))) == 18
    np.testing.assert_array_equal(noise(900), noise(900))


@pytest.mark.parametrize("name", EVERY)
def test_one_scan_and_no_key_made_inside_it(name):
    jaxpr = jax.make_jaxpr(draw, static_argnums=(0, 1))(name, 50, *start())
    text = str(jaxpr)
    assert text.count(" scan[") == 1
    assert "length=50" in text
    assert "while" not in text
    body = text[text.index(" scan[") :]
    assert "random_fold_in" not in body
    assert "random_split" not in body
