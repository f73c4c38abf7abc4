import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unclip_jax.diffusion.predict import PREDICTIONS, denoiser, per_sample, split_output
from unclip_jax.diffusion.schedule import SCHEDULES, cosine

SHAPE = (6, 4, 4, 3)
TIMES = jnp.array([0, 3, 100, 500, 900, 990])


def gaussian(seed):
    """Numpy, which the table's plain arithmetic takes as well and which needs no compilation."""
    return np.random.default_rng(seed).normal(size=SHAPE).astype(np.float32)


@pytest.fixture(scope="module", params=sorted(SCHEDULES))
def sample(request):
    """(x0, eps, x_t, alpha, sigma) at times from hardly to very noisy."""
    schedule = SCHEDULES[request.param](1000)
    x0, eps = gaussian(0), gaussian(1)
    alpha, sigma = (per_sample(np.asarray(f(TIMES)), x0) for f in (schedule.alpha, schedule.sigma))
    return x0, eps, alpha * x0 + sigma * eps, alpha, sigma


def close(got, want, gain):
    """Equal up to float32 rounding, which dividing by a small number amplifies by ``gain`` per sample."""
    error = np.abs(np.asarray(got) - np.asarray(want)).max(axis=(1, 2, 3))
    assert (error < 3e-6 * np.ravel(np.maximum(gain, 1.0))).all(), error


@pytest.mark.parametrize("name", PREDICTIONS)
def test_a_perfect_network_gives_x0_back(sample, name):
    x0, eps, x_t, alpha, sigma = sample
    row = PREDICTIONS[name]
    close(row.to_x0(row.target(x0, eps, alpha, sigma), x_t, alpha, sigma), x0, 1 / alpha)


@pytest.mark.parametrize("path", list(itertools.permutations(PREDICTIONS)))
def test_converting_round_the_table_comes_back(sample, path):
    """Any output, right or wrong: read x0 out of it, say the same in the next parametrisation, and so on round."""
    _, _, x_t, alpha, sigma = sample
    first = gaussian(2)
    output = first
    for here, there in zip(path, (*path[1:], path[0]), strict=True):
        x0 = PREDICTIONS[here].to_x0(output, x_t, alpha, sigma)
        output = PREDICTIONS[there].target(x0, (x_t - alpha * x0) / sigma, alpha, sigma)
    close(output, first, 3 / (alpha * sigma))


@pytest.mark.parametrize("name", PREDICTIONS)
def test_x0_is_linear_in_every_output(sample, name):
    """So guidance may combine any of them: the mean of two outputs is the mean of what they say of x0."""
    _, _, x_t, alpha, sigma = sample
    a, b = gaussian(3), gaussian(4)
    row = PREDICTIONS[name]
    mean = row.to_x0(0.5 * (a + b), x_t, alpha, sigma)
    close(mean, 0.5 * (row.to_x0(a, x_t, alpha, sigma) + row.to_x0(b, x_t, alpha, sigma)), 3 / alpha)


def test_v_is_the_velocity():
    """v = d x_φ / dφ with alpha = cos φ, sigma = sin φ (Salimans & Ho 2022, appendix D)."""
    x0, eps, phi = 0.7, -1.3, 0.4

    def x(angle):
        return jnp.cos(angle) * x0 + jnp.sin(angle) * eps

    velocity = float(jax.grad(x)(phi))
    assert PREDICTIONS["v"].target(x0, eps, np.cos(phi), np.sin(phi)) == pytest.approx(velocity, abs=1e-6)


def test_variance_is_the_second_half_of_the_channels():
    output = jnp.linspace(-3, 3, 2 * 4 * 4 * 6).reshape(2, 4, 4, 6)
    prediction, var_frac = split_output(output, learned_variance=True)
    np.testing.assert_array_equal(prediction, output[..., :3])
    np.testing.assert_array_equal(var_frac, (output[..., 3:] + 1) / 2)  # −1 is β̃, +1 is β
    whole, none = split_output(output, learned_variance=False)
    assert whole is output
    assert none is None


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("name", PREDICTIONS)
def test_denoiser_reads_the_network_at_its_own_time(name, learned):
    schedule = cosine(1000)
    x0, eps = gaussian(0), gaussian(1)
    alpha, sigma = (per_sample(f(TIMES), x0) for f in (schedule.alpha, schedule.sigma))
    seen = {}

    def network(x_t, t):
        seen.update(t=t)
        target = PREDICTIONS[name].target(x0, eps, alpha, sigma)
        return jnp.concatenate([target, jnp.ones_like(target)], axis=-1) if learned else target

    estimate = denoiser(network, schedule, name, learned_variance=learned)(alpha * x0 + sigma * eps, TIMES)
    close(estimate.x0, x0, 1 / alpha)
    assert seen["t"] is TIMES
    if learned:
        np.testing.assert_array_equal(estimate.var_frac, jnp.ones_like(x0))
    else:
        assert estimate.var_frac is None


def test_unknown_prediction_is_refused():
    with pytest.raises(KeyError):
        denoiser(lambda x_t, t: x_t, cosine(10), "score")


def test_per_sample_broadcasts_from_the_left():
    assert per_sample(jnp.arange(3.0), jnp.zeros((3, 4, 5))).shape == (3, 1, 1)
    assert per_sample(jnp.arange(3.0), jnp.zeros((3, 4))).shape == (3, 1)
