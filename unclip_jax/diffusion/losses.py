"""Diffusion losses: noising of a batch, weighted squared errors, and the variational bound of a learned variance.

A `Weight` is the factor on the squared error of x0, so that it means the same whatever the network predicts. With
SNR = alpha²/sigma², the squared error of eps is SNR times that of x0, and the squared error of v is SNR + 1 times it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from unclip_jax.diffusion.predict import PREDICTIONS, per_sample
from unclip_jax.diffusion.samplers import learned_log_variance
from unclip_jax.diffusion.schedule import NoiseSchedule, Posterior, posterior
from unclip_jax.ranges import check_ranges
from unclip_jax.settings import standard_settings


class Noised(NamedTuple):
    """A noised batch.

    Attributes:
        x_t: noised samples, [B, ...].
        t: their timesteps, int32 [B].
        eps: the noise in them, [B, ...].
    """

    x_t: Float[Array, "B ..."]
    t: Int[Array, " B"]
    eps: Float[Array, "B ..."]


@standard_settings
def add_noise(
    schedule: NoiseSchedule, x0: Float[Array, "B ..."], t: Int[Array, " B"], eps: Float[Array, "B ..."]
) -> Float[Array, "B ..."]:
    """Noises samples, q(x_t | x0) (Ho et al. 2020, eq. 4): x_t = alpha_t·x0 + sigma_t·eps.

    Args:
        schedule: the noise schedule.
        x0: clean data, [B, ...].
        t: timesteps, int [B], 0 to T − 1.
        eps: standard normal noise, [B, ...].

    Returns:
        x_t [B, ...].
    """
    return per_sample(schedule.alpha(t), x0) * x0 + per_sample(schedule.sigma(t), x0) * eps


@standard_settings
def noised(schedule: NoiseSchedule, x0: Float[Array, "B ..."], key: Key[Array, ""]) -> Noised:
    """Noises each sample at a timestep of its own, drawn uniformly from 0 to T − 1.

    The timesteps of a batch are evenly spread from one random offset (low-discrepancy sampling, Kingma et al. 2021,
    appendix I.1), so that the loss varies less between batches than with independent timesteps.

    Args:
        schedule: the noise schedule.
        x0: clean data, [B, ...].
        key: one PRNG key.
    """
    key_t, key_eps = jax.random.split(key)
    batch_size, last = len(x0), schedule.num_timesteps - 1
    fractions = (jax.random.uniform(key_t, (), jnp.float32) + jnp.arange(batch_size) / batch_size) % 1.0
    t = jnp.minimum((fractions * schedule.num_timesteps).astype(jnp.int32), last)
    eps = jax.random.normal(key_eps, x0.shape, jnp.float32)
    return Noised(add_noise(schedule, x0, t, eps), t, eps)


_X0_PER_OUTPUT: dict[str, Callable[[Array], Array]] = {
    # Squared error of x0 divided by the squared error of the output, as a function of the SNR.
    "x0": jnp.ones_like,
    "eps": lambda snr: 1.0 / snr,
    "v": lambda snr: 1.0 / (snr + 1.0),
}


@dataclass(frozen=True)
class Simple:
    """The plain mean squared error of whatever the network outputs (Ho et al. 2020, eq. 14)."""

    def __call__(self, snr: Float[Array, "*B"], prediction: str) -> Float[Array, "*B"]:
        """The weight on the squared error of x0."""
        return 1.0 / _X0_PER_OUTPUT[prediction](snr)


@dataclass(frozen=True)
class MinSNR:
    """min-SNR-γ: min(SNR, γ) (Hang et al. 2023).

    Attributes:
        gamma: 5 is usual.
    """

    gamma: float = 5.0

    def __post_init__(self) -> None:
        check_ranges(self, "weight.", gamma=(0.0, 1e6))

    def __call__(self, snr: Float[Array, "*B"], prediction: str) -> Float[Array, "*B"]:
        """The weight on the squared error of x0."""
        return jnp.minimum(snr, self.gamma)


@dataclass(frozen=True)
class CappedV:
    """min(SNR + 1, cap): the plain squared error of v, with the weight capped as in min-SNR.

    Unlike min-SNR, whose weight goes to 0 with the SNR, it keeps the noisiest timesteps, where the condition decides
    what is drawn.

    Attributes:
        cap: the largest weight.
    """

    cap: float = 5.0

    def __post_init__(self) -> None:
        check_ranges(self, "weight.", cap=(0.0, 1e6))

    def __call__(self, snr: Float[Array, "*B"], prediction: str) -> Float[Array, "*B"]:
        """The weight on the squared error of x0."""
        return jnp.minimum(snr + 1.0, self.cap)


@dataclass(frozen=True)
class P2:
    """P2 with k = 1: the plain squared error of eps divided by (1 + SNR)^γ (Choi et al. 2022).

    It gives less weight to the nearly clean timesteps, whose noise is invisible. Above γ = 2 fine noise would stay in
    the pictures.

    Attributes:
        gamma: γ, 0 to 2; 0.5 and 1 are usual.
    """

    gamma: float = 1.0

    def __post_init__(self) -> None:
        check_ranges(self, "weight.", gamma=(0.0, 2.0))

    def __call__(self, snr: Float[Array, "*B"], prediction: str) -> Float[Array, "*B"]:
        """The weight on the squared error of x0."""
        return snr / (1.0 + snr) ** self.gamma


@dataclass(frozen=True)
class TruncatedSNR:
    """Truncated SNR: max(SNR, 1), for progressive distillation (Salimans & Ho 2022, §4).

    A distilled sampler of few steps visits the noisiest timestep, where the SNR, the weight of the eps loss, is near 0.
    """

    def __call__(self, snr: Float[Array, "*B"], prediction: str) -> Float[Array, "*B"]:
        """The weight on the squared error of x0."""
        return jnp.maximum(snr, 1.0)


Weight = Simple | MinSNR | CappedV | P2 | TruncatedSNR
"""Weight of a noise level in the loss: `weight(snr, prediction)`, a factor on the squared error of x0."""


@standard_settings
def diffusion_loss(
    output: Float[Array, "B ..."],
    x0: Float[Array, "B ..."],
    at: Noised,
    schedule: NoiseSchedule,
    *,
    prediction: str,
    weight: Weight = Simple(),
) -> Float[Array, " B"]:
    """Weighted mean squared error per sample.

    Args:
        output: the network's output at `at.x_t`, `at.t`; [B, ...] like x0.
        x0: clean data, [B, ...].
        at: the noised batch.
        schedule: the noise schedule that it was noised with.
        prediction: what the network predicts, a row of `PREDICTIONS`.
        weight: weight of each noise level.

    Returns:
        float32 [B].

    Raises:
        KeyError: `prediction` is not a row of `PREDICTIONS`.
    """
    alpha, sigma = (per_sample(f(at.t), x0) for f in (schedule.alpha, schedule.sigma))
    target = PREDICTIONS[prediction].target(x0, at.eps, alpha, sigma)
    error = jnp.square(output - target).mean(axis=tuple(range(1, x0.ndim)))
    snr = jnp.exp(schedule.log_snr(at.t))
    return error * weight(snr, prediction) * _X0_PER_OUTPUT[prediction](snr)


@standard_settings
def variational_bound(
    x0_hat: Float[Array, "B ..."],
    var_frac: Float[Array, "B ..."],
    x0: Float[Array, "B ..."],
    at: Noised,
    schedule: NoiseSchedule,
) -> Float[Array, " B"]:
    """One term of the variational bound per sample (Ho et al. 2020, eq. 5; Nichol & Dhariwal 2021, §3.1).

    It trains the variance alone: no gradient flows through the mean, that is through `x0_hat`. At t = 0 the term is the
    negative log-likelihood of the 256 levels of a picture in [−1, 1]; at other timesteps it is
    KL(q(x_s | x_t, x0) ‖ p(x_s | x_t)) with s = t − 1.

    Args:
        x0_hat: the denoiser's estimate of x0, [B, ...].
        var_frac: position of the learned variance between its bounds, 0 (β̃_t) to 1 (β_t), [B, ...].
        x0: clean data, [B, ...].
        at: the noised batch.
        schedule: the noise schedule that it was noised with.

    Returns:
        Bits per dimension, [B].
    """
    reverse = Posterior(*(per_sample(c, x0) for c in posterior(schedule, at.t, at.t - 1)))
    mean = reverse.coef_x0 * jax.lax.stop_gradient(x0_hat) + reverse.coef_xt * at.x_t
    true_mean = reverse.coef_x0 * x0 + reverse.coef_xt * at.x_t
    log_variance = learned_log_variance(reverse, var_frac)
    divergence = 0.5 * (
        log_variance
        - reverse.log_small
        + jnp.exp(reverse.log_small - log_variance)
        + jnp.square(true_mean - mean) * jnp.exp(-log_variance)
        - 1.0
    )
    nats = jnp.where(per_sample(at.t, x0) == 0, -level_log_likelihood(x0, mean, log_variance), divergence)
    return nats.mean(axis=tuple(range(1, x0.ndim))) / jnp.log(2.0)


def level_log_likelihood(
    x: Float[Array, "*S"], mean: Float[Array, "*S"], log_variance: Float[Array, "*S"]
) -> Float[Array, "*S"]:
    """Log-probability of discretised pixels under a Gaussian (Ho et al. 2020, eq. 13).

    Args:
        x: values at one of 256 levels in [−1, 1]; the lowest and the highest level include the tails.
        mean: mean of the Gaussian.
        log_variance: logarithm of its variance.

    Returns:
        Nats, in the shape of `x`, at least log 1e-12.
    """
    inverse_std, half = jnp.exp(-0.5 * log_variance), 1.0 / 255.0
    upper = jnp.where(x > 0.999, 1.0, jax.scipy.stats.norm.cdf((x + half - mean) * inverse_std))
    lower = jnp.where(x < -0.999, 0.0, jax.scipy.stats.norm.cdf((x - half - mean) * inverse_std))
    return jnp.log(jnp.maximum(upper - lower, 1e-12))
