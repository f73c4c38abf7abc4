"""From what a network outputs to what a sampler needs: x0.

With x_t = alpha·x0 + sigma·eps the usual parametrisations are

    x0        eps        v = alpha·eps − sigma·x0   (Salimans & Ho 2022)

and that of EDM (Karras et al. 2022, table 1 and appendix B.6), whose output F has variance 1 for data of standard
deviation s = ``SIGMA_DATA`` and is added to the best linear estimate of x0 from x_t alone:

    x0 = c_skip·x_t + c_out·F,   c_skip = alpha·s² / (alpha²s² + sigma²),   c_out = sigma·s / √(alpha²s² + sigma²)

For s = 1 it is −v. Each is one row of ``PREDICTIONS``: how to read x0 out of it, and what the network is trained to
match.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from unclip_jax.conditioning import Cond
from unclip_jax.diffusion.schedule import NoiseSchedule


class Denoised(NamedTuple):
    """A denoiser's estimate of clean data.

    Attributes:
      x0: estimate of clean data, the shape of x_t.
      var_frac: None, or the learned position of the reverse variance between its bounds (Nichol & Dhariwal 2021, eq.
        15): 0 is β̃_t, 1 is β_t. The network is free to leave [0, 1].
    """

    x0: jax.Array
    var_frac: jax.Array | None = None


Denoiser = Callable[[jax.Array, jax.Array], Denoised]
"""(x_t [B, ...], t int32 [B]) -> Denoised; the condition is already bound. All that a sampler ever sees."""

CondDenoiser = Callable[[jax.Array, jax.Array, Cond], Denoised]
"""(x_t [B, ...], t int32 [B], cond) -> Denoised. What guidance transforms."""


class Prediction(NamedTuple):
    """``to_x0(output, x_t, alpha, sigma)`` and ``target(x0, eps, alpha, sigma)``; alpha and sigma broadcast."""

    to_x0: Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]
    target: Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]


SIGMA_DATA = 0.5


def _to_x0_edm(output: jax.Array, x_t: jax.Array, alpha: jax.Array, sigma: jax.Array) -> jax.Array:
    total = alpha**2 * SIGMA_DATA**2 + sigma**2
    return alpha * SIGMA_DATA**2 / total * x_t + sigma * SIGMA_DATA * jax.lax.rsqrt(total) * output


def _target_edm(x0: jax.Array, eps: jax.Array, alpha: jax.Array, sigma: jax.Array) -> jax.Array:
    total = alpha**2 * SIGMA_DATA**2 + sigma**2
    return (sigma * x0 / SIGMA_DATA - alpha * SIGMA_DATA * eps) * jax.lax.rsqrt(total)


PREDICTIONS: dict[str, Prediction] = {
    "x0": Prediction(
        to_x0=lambda output, x_t, alpha, sigma: output,
        target=lambda x0, eps, alpha, sigma: x0,
    ),
    "eps": Prediction(
        to_x0=lambda output, x_t, alpha, sigma: (x_t - sigma * output) / alpha,
        target=lambda x0, eps, alpha, sigma: eps,
    ),
    "v": Prediction(
        to_x0=lambda output, x_t, alpha, sigma: alpha * x_t - sigma * output,
        target=lambda x0, eps, alpha, sigma: alpha * eps - sigma * x0,
    ),
    "edm": Prediction(_to_x0_edm, _target_edm),
}


def per_sample(values: jax.Array, like: jax.Array) -> jax.Array:
    """[B] -> [B, 1, ...], to broadcast against ``like`` [B, ...]."""
    return values.reshape(values.shape + (1,) * (like.ndim - values.ndim))


def split_output(output: jax.Array, learned_variance: bool) -> tuple[jax.Array, jax.Array | None]:
    """Splits a network's output [B, ..., 2C] into (prediction, var_frac), each [B, ..., C].

    When the variance is not learned, the output is the prediction, and var_frac is None.
    """
    if not learned_variance:
        return output, None
    prediction, variance = jnp.split(output, 2, axis=-1)
    return prediction, 0.5 * (variance + 1.0)


def denoiser(
    network: Callable[[jax.Array, jax.Array, Cond], jax.Array],
    schedule: NoiseSchedule,
    prediction: str,
    *,
    learned_variance: bool = False,
) -> CondDenoiser:
    """Wraps ``network(x_t, t, cond)`` of the given parametrisation as a denoiser that returns x0.

    Raises:
      KeyError: ``prediction`` is not a row of ``PREDICTIONS``.
    """
    to_x0 = PREDICTIONS[prediction].to_x0

    def denoise(x_t: jax.Array, t: jax.Array, cond: Cond) -> Denoised:
        output, var_frac = split_output(network(x_t, t, cond), learned_variance)
        alpha, sigma = (per_sample(f(t), x_t) for f in (schedule.alpha, schedule.sigma))
        return Denoised(to_x0(output, x_t, alpha, sigma), var_frac)

    return denoise
