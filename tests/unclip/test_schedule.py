import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unclip_jax.diffusion.schedule import (
    GRIDS,
    SCHEDULES,
    NoiseSchedule,
    cosine,
    fast27_timesteps,
    from_betas,
    karras_timesteps,
    leading_timesteps,
    linear,
    posterior,
    spaced_timesteps,
    trailing_timesteps,
)

T = 1000
EXACT, ROUNDED = (
    [name for name in SCHEDULES if "float32" not in name],
    [name for name in SCHEDULES if "float32" in name],
)
ALL = [pytest.param(SCHEDULES[name](length), id=f"{name}-{length}") for name in EXACT for length in (50, T)]


def cosine_alpha_bar(t, num_timesteps):
    """ᾱ after step t (so −1 is clean), in the paper's closed form."""
    return np.cos(((np.asarray(t, np.float64) + 1) / num_timesteps + 0.008) / 1.008 * np.pi / 2) ** 2


def test_betas_round_trip():
    betas = np.random.default_rng(0).uniform(1e-4, 0.99, 400)
    table = from_betas(betas).log_alpha_bar_table
    np.testing.assert_array_equal(table, np.cumsum(np.log1p(-betas)).astype(np.float32))
    recovered = -np.expm1(np.diff(np.cumsum(np.log1p(-betas)), prepend=0.0))
    np.testing.assert_allclose(recovered, betas, rtol=1e-10)


def test_cosine_is_the_closed_form_until_beta_is_clipped():
    t = np.arange(T - 1)
    want = np.log(cosine_alpha_bar(t, T) / cosine_alpha_bar(-1, T))
    np.testing.assert_allclose(cosine(T).log_alpha_bar_table[:-1], want, rtol=1e-6)
    last = np.diff(cosine(T).log_alpha_bar_table.astype(np.float64))[-1]
    assert -np.expm1(last) == pytest.approx(0.999, rel=1e-5)
    assert np.exp(np.float64(cosine(T).log_alpha_bar_table[-1])) == pytest.approx(2.43e-9, rel=2e-3)


def test_linear_is_the_product_of_its_betas():
    want = np.cumprod(1.0 - np.linspace(1e-4, 0.02, T))
    np.testing.assert_allclose(np.exp(linear(T).log_alpha_bar_table.astype(np.float64)), want, rtol=2e-6)


@pytest.mark.parametrize("schedule", ALL)
def test_only_gets_noisier_and_starts_clean(schedule):
    t = jnp.arange(-1, schedule.num_timesteps)
    log_alpha_bar = np.asarray(schedule.log_alpha_bar(t))
    assert log_alpha_bar[0] == 0
    assert (np.diff(log_alpha_bar) < 0).all()
    assert log_alpha_bar.dtype == np.float32
    assert schedule.alpha(jnp.int32(-1)) == 1
    assert schedule.sigma(jnp.int32(-1)) == 0
    assert schedule.log_snr(jnp.int32(-1)) == jnp.inf
    assert np.isfinite(schedule.log_snr(t[1:])).all()


@pytest.mark.parametrize("schedule", ALL)
def test_scales_agree_with_each_other(schedule):
    t = jnp.arange(schedule.num_timesteps)
    alpha, sigma = (np.asarray(f(t), np.float64) for f in (schedule.alpha, schedule.sigma))
    np.testing.assert_allclose(alpha**2 + sigma**2, 1.0, rtol=3e-7)
    np.testing.assert_allclose(schedule.log_snr(t), 2 * np.log(alpha / sigma), rtol=1e-4, atol=1e-5)


def test_float32_still_gives_beta():
    betas = np.linspace(1e-4, 0.02, T)
    t = jnp.arange(T)
    np.testing.assert_allclose(from_betas(betas).variance_between(t, t - 1), betas, rtol=1e-4)
    alpha_bar = cosine_alpha_bar(np.arange(-1, T), T)
    betas = np.minimum(1.0 - alpha_bar[1:] / alpha_bar[:-1], 0.999)
    np.testing.assert_allclose(cosine(T).variance_between(t, t - 1), betas, rtol=1e-4)


@pytest.mark.parametrize("schedule", ALL)
def test_variances_of_consecutive_jumps_compose(schedule):
    """sigma²_{t|r} = sigma²_{t|s} + (ᾱ_t/ᾱ_s)·sigma²_{s|r}: going up in two jumps adds the noise of one."""
    last = schedule.num_timesteps - 1
    t, s, r = (np.array(x) for x in zip((last, last // 2, 3), (last, 5, -1), (7, 2, 0), strict=True))
    ratio = np.exp(np.asarray(schedule.log_alpha_bar(t) - schedule.log_alpha_bar(s), np.float64))
    both = schedule.variance_between(t, s) + ratio * schedule.variance_between(s, r)
    np.testing.assert_allclose(schedule.variance_between(t, r), both, rtol=1e-5)
    np.testing.assert_allclose(schedule.variance_between(t, np.full(3, -1)), np.square(schedule.sigma(t)), rtol=1e-6)


@pytest.mark.parametrize("name", ROUNDED)
def test_rounded_schedule_is_near_the_exact_one(name):
    exact, rounded = SCHEDULES[name.removesuffix("_float32")](T), SCHEDULES[name](T)
    t = jnp.arange(-1, T)
    for scale in ("alpha", "sigma", "log_snr"):
        # Near clean data, 1 − ᾱ has lost digits.
        np.testing.assert_allclose(getattr(rounded, scale)(t), getattr(exact, scale)(t), rtol=2e-3, atol=2e-3)
    s = t[1:] // 2
    np.testing.assert_allclose(rounded.variance_between(t[1:], s), exact.variance_between(t[1:], s), rtol=2e-3)
    assert not np.array_equal(rounded.sigma(t), exact.sigma(t))


@pytest.mark.parity
@pytest.mark.parametrize(("name", "ends"), [("linear", (1e-4, 0.02)), ("latent_linear", (0.00085, 0.012))])
def test_rounded_table_is_that_of_diffusers(name, ends):
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.DDPMScheduler(T, beta_start=ends[0], beta_end=ends[1])
    schedule = SCHEDULES[f"{name}_float32"](T)
    np.testing.assert_array_equal(schedule.beta_table, theirs.betas)
    np.testing.assert_array_equal(schedule.alpha_bar(np.arange(T)), theirs.alphas_cumprod)


@pytest.mark.parity
@pytest.mark.parametrize("num_steps", [7, 25, 1000])
def test_rounded_schedule_is_that_of_diffusers(num_steps, monkeypatch):
    """Every step of their scheduler, as it mixes x0, x_t and noise of a learned variance."""
    torch, scheduling = pytest.importorskip("torch"), pytest.importorskip("diffusers.schedulers.scheduling_unclip")
    theirs = scheduling.UnCLIPScheduler(variance_type="learned_range", prediction_type="sample", clip_sample=False)
    monkeypatch.setattr(scheduling, "randn_tensor", lambda shape, **_: torch.ones(shape))
    schedule, times = SCHEDULES["cosine_float32"](T), spaced_timesteps(T, num_steps)
    np.testing.assert_array_equal(schedule.beta_table, theirs.betas)
    np.testing.assert_array_equal(schedule.alpha_bar(np.arange(T)), theirs.alphas_cumprod)
    x0, x_t, frac = 0.3, 1.7, 0.6
    output, start = torch.tensor([[x0, 2 * frac - 1]]), torch.tensor([[x_t]])
    ends = np.append(times[1:], -1)
    steps = zip(times.tolist(), ends.tolist(), strict=True)
    expected = [theirs.step(output, t, start, prev_timestep=s if s >= 0 else None).prev_sample.item() for t, s in steps]
    reverse = jax.jit(lambda t, s: posterior(schedule, t, s))(times, ends)
    log_variance = frac * reverse.log_large + (1 - frac) * reverse.log_small
    noise = np.where(ends < 0, 0.0, np.exp(0.5 * log_variance))
    np.testing.assert_allclose(reverse.coef_x0 * x0 + reverse.coef_xt * x_t + noise, expected, rtol=1e-6)


def test_times_of_any_shape_under_jit():
    schedule = linear(50)
    t = jnp.array([[-1, 0], [5, 9]])
    np.testing.assert_array_equal(jax.jit(schedule.alpha)(t), schedule.alpha(t))
    assert schedule.alpha(t).shape == (2, 2)


@pytest.mark.parametrize("betas", [[0.0, 0.1], [0.1, 1.0], [-0.1], [np.nan], [[0.1, 0.2]]])
def test_betas_that_cannot_be_are_refused(betas):
    with pytest.raises(ValueError, match="between 0 and 1"):
        from_betas(np.array(betas))


@pytest.mark.parametrize("num_steps", [7, 25, 50, 64, 250])
def test_grid_is_karlos(num_steps):
    grid = spaced_timesteps(T, num_steps)
    np.testing.assert_array_equal(grid, np.round(np.linspace(0, T - 1, num_steps))[::-1])
    assert grid.dtype == np.int32


@pytest.mark.parametrize("num_steps", [2, 3, 16, T])
def test_grid_goes_from_the_noisiest_to_the_cleanest(num_steps):
    grid = spaced_timesteps(T, num_steps)
    assert (grid[0], grid[-1], len(grid)) == (T - 1, 0, num_steps)
    assert (np.diff(grid) < 0).all()


def test_published_seven_step_grid():
    assert spaced_timesteps(T, 7).tolist() == [999, 832, 666, 500, 333, 166, 0]  # Karlo's super-resolution
    assert spaced_timesteps(T, 1).tolist() == [999]


@pytest.mark.parametrize("num_steps", [0, -1, T + 1])
def test_grid_longer_than_the_schedule_is_refused(num_steps):
    with pytest.raises(ValueError, match="num_steps"):
        spaced_timesteps(T, num_steps)


@pytest.mark.parametrize("name", sorted(GRIDS.keys() - {"trailing"}))
@pytest.mark.parametrize("schedule", ALL)
def test_every_grid_falls_to_zero(schedule, name):
    grid = GRIDS[name](schedule, 27)
    assert grid.dtype == np.int32
    assert len(grid) == 27
    assert (np.diff(grid) < 0).all()
    assert grid[-1] == 0
    assert grid[0] < schedule.num_timesteps


def test_leading_grid_of_diffusers():
    assert leading_timesteps(T, 25).tolist() == list(range(960, -1, -40))
    assert leading_timesteps(T, 3).tolist() == [666, 333, 0]


@pytest.mark.parametrize("num_steps", [1, 2, 4, 7, 8, 16, 500])
def test_trailing_grids_of_half_the_steps_are_every_other_time(num_steps):
    fine = trailing_timesteps(T, 2 * num_steps)
    np.testing.assert_array_equal(fine[::2], trailing_timesteps(T, num_steps))
    assert fine[0] == T - 1
    assert (np.diff(fine) < 0).all()
    assert fine[-1] == round(T / (2 * num_steps)) - 1


def test_trailing_grid_of_diffusers():
    assert trailing_timesteps(T, 4).tolist() == [999, 749, 499, 249]
    assert GRIDS["trailing"](cosine(T), 8).tolist() == [999, 874, 749, 624, 499, 374, 249, 124]


def test_fast27_is_glides():
    """Its own list: the five fifths hold 10, 10, 3, 2 and 2 times, and 999 gives way to 997."""
    want = [0, 22, 44, 66, 88, 111, 133, 155, 177, 199, 200, 222, 244, 266, 288, 311, 333, 355, 377, 399]
    want += [400, 500, 599, 600, 799, 800, 997]
    assert fast27_timesteps(T, 27)[::-1].tolist() == want
    with pytest.raises(ValueError, match="27 steps"):
        fast27_timesteps(T, 26)


def test_karras_grid_is_even_in_the_seventh_root_of_sigma():
    schedule, grid = cosine(T), karras_timesteps(cosine(T), 8)
    sigma = np.exp(-0.5 * np.asarray(schedule.log_snr(jnp.asarray(grid)), np.float64))
    assert 64 < sigma[0] <= 80
    roots = sigma ** (1 / 7)
    np.testing.assert_allclose(np.diff(roots), np.full(7, (roots[-1] - roots[0]) / 7), rtol=0.05)
    assert karras_timesteps(from_betas(np.linspace(1e-4, 5e-3, T)), 10)[0] == T - 1  # never as noisy as 80
    with pytest.raises(ValueError, match="sigma of 80"):
        karras_timesteps(cosine(50), 50)


def test_a_schedule_is_one_array():
    schedule = NoiseSchedule(np.array([-0.1, -1.0], np.float32))
    assert schedule.num_timesteps == 2
    assert len(jax.tree.leaves(schedule)) == 1
