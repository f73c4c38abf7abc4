import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from unclip_jax.diffusion.losses import (
    P2,
    CappedV,
    MinSNR,
    Noised,
    Simple,
    TruncatedSNR,
    add_noise,
    diffusion_loss,
    level_log_likelihood,
    noised,
    variational_bound,
)
from unclip_jax.diffusion.predict import PREDICTIONS, per_sample
from unclip_jax.diffusion.schedule import cosine, linear, posterior

SCHEDULE = cosine(1000)
T = jnp.array([1, 60, 300, 600, 940])
SNR = np.exp(np.asarray(SCHEDULE.log_snr(T)))
SHAPE = (5, 4, 4, 3)
WEIGHTS = (Simple(), MinSNR(), CappedV(), P2(), TruncatedSNR())


def gaussian(seed):
    return np.random.default_rng(seed).normal(size=SHAPE).astype(np.float32)


X0, EPS = gaussian(0), gaussian(1)
AT = Noised(np.asarray(add_noise(SCHEDULE, X0, T, EPS)), T, EPS)
ALPHA, SIGMA = (per_sample(np.asarray(f(T)), X0) for f in (SCHEDULE.alpha, SCHEDULE.sigma))


def saying(x0_hat, prediction):
    """The output whose x0, read at AT, is the one given."""
    return PREDICTIONS[prediction].target(x0_hat, (AT.x_t - ALPHA * x0_hat) / SIGMA, ALPHA, SIGMA)


@pytest.mark.parametrize("weight", WEIGHTS, ids=repr)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_perfect_output_costs_nothing(prediction, weight):
    perfect = PREDICTIONS[prediction].target(X0, EPS, ALPHA, SIGMA)
    loss = diffusion_loss(perfect, X0, AT, SCHEDULE, prediction=prediction, weight=weight)
    np.testing.assert_allclose(loss, np.zeros(5), atol=1e-8)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_simple_is_the_plain_error_of_the_output(prediction):
    output = gaussian(2)
    target = PREDICTIONS[prediction].target(X0, EPS, ALPHA, SIGMA)
    loss = diffusion_loss(output, X0, AT, SCHEDULE, prediction=prediction)
    np.testing.assert_allclose(loss, np.square(output - target).mean(axis=(1, 2, 3)), rtol=1e-5)


@pytest.mark.parametrize("weight", WEIGHTS[1:], ids=repr)
def test_the_same_error_of_x0_costs_the_same_whatever_is_predicted(weight):
    error = 0.3 * gaussian(3)
    want = np.asarray(weight(SNR, "x0")) * np.square(error).mean(axis=(1, 2, 3))
    for prediction in PREDICTIONS:
        output = saying(X0 + error, prediction)
        loss = diffusion_loss(output, X0, AT, SCHEDULE, prediction=prediction, weight=weight)
        np.testing.assert_allclose(loss, want, rtol=2e-3)


def test_min_snr_is_the_published_table():
    """Hang et al. 2023, §3.4, as factors on the error of the output itself."""
    published = {"x0": np.minimum(SNR, 5), "eps": np.minimum(SNR, 5) / SNR, "v": np.minimum(SNR, 5) / (SNR + 1)}
    for prediction, factor in published.items():
        output = gaussian(2)
        plain = diffusion_loss(output, X0, AT, SCHEDULE, prediction=prediction)
        loss = diffusion_loss(output, X0, AT, SCHEDULE, prediction=prediction, weight=MinSNR(5.0))
        np.testing.assert_allclose(loss / plain, factor, rtol=1e-4)


@pytest.mark.parametrize("cap", [5.0, 40.0])
def test_capped_v_is_the_plain_error_of_v_where_it_is_noisy(cap):
    plain, capped = (
        diffusion_loss(gaussian(2), X0, AT, SCHEDULE, prediction="v", weight=weight)
        for weight in (Simple(), CappedV(cap))
    )
    noisy = cap > SNR + 1
    assert 0 < noisy.sum() < len(noisy)
    np.testing.assert_allclose((capped / plain)[noisy], 1.0, rtol=1e-4)
    np.testing.assert_allclose((capped / plain)[~noisy], cap / (SNR[~noisy] + 1), rtol=1e-4)


@pytest.mark.parametrize("gamma", [0.5, 1.0])
def test_p2_divides_the_error_of_eps(gamma):
    """Choi et al. 2022: λ' = λ / (k + SNR)^γ with k = 1, on the plain error of eps."""
    plain, weighed = (
        diffusion_loss(gaussian(2), X0, AT, SCHEDULE, prediction="eps", weight=weight)
        for weight in (Simple(), P2(gamma))
    )
    np.testing.assert_allclose(weighed / plain, (1 + SNR) ** -gamma, rtol=1e-4)


def test_truncated_snr_is_the_error_of_x0_or_of_eps_whichever_is_larger():
    """Salimans & Ho 2022, §4: max(‖x0 − x̂0‖², ‖eps − êps‖²)."""
    error = 0.3 * gaussian(3)
    of_x0, of_eps, truncated = (
        diffusion_loss(saying(X0 + error, prediction), X0, AT, SCHEDULE, prediction=prediction, weight=weight)
        for prediction, weight in (("x0", Simple()), ("eps", Simple()), ("x0", TruncatedSNR()))
    )
    np.testing.assert_allclose(truncated, np.maximum(of_x0, of_eps), rtol=2e-3)


def test_times_of_a_batch_are_spread_evenly_and_each_is_uniform():
    """One in each of B equal parts of the schedule; over many draws every time of the schedule is as likely."""
    x0 = jnp.zeros((8, 1))
    times = np.asarray(
        jax.jit(jax.vmap(lambda key: noised(SCHEDULE, x0, key).t))(jax.random.split(jax.random.key(0), 4000))
    )
    np.testing.assert_array_equal(np.sort(times // 125, axis=1), np.tile(np.arange(8), (4000, 1)))
    for sample in (0, 5):
        counts = np.bincount(times[:, sample] // 50, minlength=20)
        assert counts.min() > 140
        assert counts.max() < 260
    assert times.min() >= 0
    assert times.max() <= 999


@pytest.mark.parametrize("schedule", [SCHEDULE, linear(1000)])
def test_noised_is_the_forward_process(schedule):
    """x_t given t is N(alpha·x0, sigma²), at times uniform over the schedule."""
    n = 20_000
    x0 = np.full((n, 2), 2.0, np.float32)
    at = jax.jit(lambda key: noised(schedule, x0, key))(jax.random.key(0))
    t = np.asarray(at.t)
    alpha_bar = np.exp(schedule.log_alpha_bar_table.astype(np.float64))[t, None]
    standard = (np.asarray(at.x_t) - np.sqrt(alpha_bar) * x0) / np.sqrt(1 - alpha_bar)
    np.testing.assert_allclose(standard, at.eps, atol=2e-3)
    assert (t.min(), t.max()) == (0, 999)
    assert t.mean() == pytest.approx(499.5, abs=4 * 289 / np.sqrt(n))
    for early in (True, False):
        part = standard[(t < 500) == early]
        np.testing.assert_allclose(part.mean(0), 0.0, atol=4 / np.sqrt(len(part)))
        np.testing.assert_allclose(part.std(0), 1.0, atol=4 / np.sqrt(2 * len(part)))
    assert abs(np.corrcoef(standard.T)[0, 1]) < 4 / np.sqrt(n)


class TestVariationalBound:
    def test_the_true_posterior_costs_nothing(self):
        bound = variational_bound(X0, jnp.zeros(SHAPE), X0, AT, SCHEDULE)
        np.testing.assert_allclose(bound, np.zeros(5), atol=1e-5)

    @pytest.mark.slow
    def test_is_the_divergence_of_two_gaussians(self):
        """KL by its integral over x_s, in one dimension and float64."""
        x0_hat, var_frac = X0 + 0.3 * gaussian(3), np.full(SHAPE, 0.4, np.float32)
        reverse = posterior(SCHEDULE, T, T - 1)
        for i, place in enumerate([(0, 0, 0), (1, 2, 1), (3, 3, 2), (0, 3, 1), (2, 2, 2)]):
            coef_x0, coef_xt, small, large = (float(c[i]) for c in reverse)
            mean_q, mean_p = (coef_x0 * x[i][place] + coef_xt * AT.x_t[i][place] for x in (X0, x0_hat))
            std_q, std_p = np.exp(0.5 * small), np.exp(0.5 * (0.4 * large + 0.6 * small))
            x = np.linspace(mean_q - 10 * std_q, mean_q + 10 * std_q, 20_001, dtype=np.float64)
            log_q = -0.5 * ((x - mean_q) / std_q) ** 2 - np.log(std_q)
            log_p = -0.5 * ((x - mean_p) / std_p) ** 2 - np.log(std_p)
            nats = np.trapezoid(np.exp(log_q) * (log_q - log_p), x) / np.sqrt(2 * np.pi)
            one = tuple(a[i : i + 1][(slice(None), *place)][..., None] for a in (x0_hat, var_frac, X0))
            at = Noised(AT.x_t[i : i + 1][(slice(None), *place)][..., None], T[i : i + 1], None)
            bits = variational_bound(*one, at, SCHEDULE)
            assert bits[0] == pytest.approx(nats / np.log(2), rel=2e-3)

    def test_trains_the_variance_alone_and_towards_the_error(self):
        """For a mean that is off by d the best variance is β̃ + (coef·d)²: there the gradient vanishes."""
        d = 0.05
        reverse = posterior(SCHEDULE, T, T - 1)
        best = np.log(np.exp(reverse.log_small) + np.square(np.asarray(reverse.coef_x0) * d))
        frac = (best - reverse.log_small) / (reverse.log_large - reverse.log_small)

        def total(x0_hat, offset):
            var_frac = jnp.broadcast_to(per_sample(frac + offset, X0), SHAPE)
            return variational_bound(x0_hat, var_frac, X0, AT, SCHEDULE).sum()

        grad = jax.jit(jax.grad(total, argnums=(0, 1)))
        towards_mean, at_best = grad(X0 + d, jnp.zeros(5))
        assert not towards_mean.any()
        below, above = grad(X0 + d, jnp.full(5, -0.2))[1], grad(X0 + d, jnp.full(5, 0.2))[1]
        assert (below < 0).all()
        assert (above > 0).all()
        assert (np.abs(at_best) < 0.05 * np.maximum(np.abs(below), np.abs(above)) + 1e-4).all()

    def test_levels_of_a_picture_share_all_probability(self):
        levels = np.linspace(-1, 1, 256, dtype=np.float32)
        for mean, std in ((0.0, 0.3), (-0.99, 0.05), (0.4, 2.0), (1.5, 0.5)):
            total = np.exp(
                level_log_likelihood(levels, *(np.full_like(levels, x) for x in (mean, 2 * np.log(std))))
            ).sum()
            assert total == pytest.approx(1.0, abs=1e-3)

    def test_the_last_step_is_the_likelihood_of_the_levels(self):
        """At t = 0, where the posterior has no variance: cheap if the estimate is right, dear if it is wrong."""
        x0 = np.round((np.clip(X0, -1, 1) + 1) * 127.5).astype(np.float32) / 127.5 - 1
        at = Noised(add_noise(SCHEDULE, x0, jnp.zeros(5, int), EPS), jnp.zeros(5, int), EPS)
        right, wrong = (variational_bound(x, jnp.zeros(SHAPE), x0, at, SCHEDULE) for x in (x0, x0 + 0.2))
        assert np.isfinite(right).all()
        assert np.isfinite(wrong).all()
        assert (right >= 0).all()
        assert (right + 1 < wrong).all()


class TestGaussianData:
    """Data N(0.1, 0.2²), whose best denoiser and reverse variance are known: q(x_s | x_t) is Gaussian at any step."""

    mean, std, steps = 0.1, 0.2, 20
    schedule = cosine(steps)

    def batch(self, size, key):
        """(x0 [N, 16], noised at random times, the best estimate of it)."""
        key, key_noise = jax.random.split(key)
        x0 = self.mean + self.std * jax.random.normal(key, (size, 16))
        at = noised(self.schedule, x0, key_noise)
        alpha, variance = (per_sample(f(at.t), x0) for f in (self.schedule.alpha, self.schedule.variance))
        gain = alpha * self.std**2 / (alpha**2 * self.std**2 + variance)
        return x0, at, self.mean + gain * (at.x_t - alpha * self.mean)

    def best_fraction(self, t):
        """Where the variance of q(x_s | x_t) lies between the bounds."""
        alpha, variance = self.schedule.alpha(t), self.schedule.variance(t)
        left = self.std**2 * variance / (alpha**2 * self.std**2 + variance)
        reverse = posterior(self.schedule, t, t - 1)
        # At t = 0 the posterior given x0 has no variance of its own: log_small is a stand-in there.
        own = jnp.where(t == 0, 0.0, jnp.exp(reverse.log_small))
        best = jnp.log(own + jnp.square(reverse.coef_x0) * left)
        return (best - reverse.log_small) / (reverse.log_large - reverse.log_small)

    @pytest.mark.slow
    def test_the_bound_of_the_exact_model_is_the_entropy_of_the_data(self):
        """Nothing is lost: the bounds of all steps add up to the bits of a value told to within a level of 256."""
        x0, at, x0_hat = self.batch(20_000, jax.random.key(0))
        var_frac = jnp.broadcast_to(per_sample(self.best_fraction(at.t), x0), x0.shape)
        bits = np.asarray(variational_bound(x0_hat, var_frac, x0, at, self.schedule))
        entropy = 0.5 * np.log2(2 * np.pi * np.e * self.std**2) - np.log2(2 / 255)
        assert self.steps * bits.mean() == pytest.approx(entropy, rel=5e-3)

    @pytest.mark.slow
    def test_a_variance_learns_to_be_the_analytic_one(self):
        def loss(fractions, key):
            x0, at, x0_hat = self.batch(512, key)
            var_frac = jnp.broadcast_to(per_sample(fractions[at.t], x0), x0.shape)
            return variational_bound(x0_hat, var_frac, x0, at, self.schedule).mean()

        optimiser = optax.adam(optax.cosine_decay_schedule(0.05, 600))

        def step(carry, key):
            fractions, state = carry
            updates, state = optimiser.update(jax.grad(loss)(fractions, key), state)
            return (optax.apply_updates(fractions, updates), state), None

        fractions = jnp.full(self.steps, 0.5)
        start = fractions, optimiser.init(fractions)
        (learned, _), _ = jax.jit(lambda start, keys: jax.lax.scan(step, start, keys))(
            start, jax.random.split(jax.random.key(1), 600)
        )
        np.testing.assert_allclose(learned, self.best_fraction(jnp.arange(self.steps)), atol=0.03)
