"""From what a network outputs to what a sampler needs: x0.

With x_t = alpha·x0 + sigma·eps the parametrisations are

    x0        eps        v = alpha·eps − sigma·x0   (Salimans & Ho 2022)

Each is one row of `PREDICTIONS`: how to read x0 out of it, and what the network is trained to match.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from unclip_jax.diffusion.schedule import NoiseSchedule


class Denoised(NamedTuple):
    """A denoiser's estimate of clean data.

    Attributes:
        x0: estimate of clean data, the shape of x_t.
        var_frac: None, or the learned position of the reverse variance between its bounds (Nichol & Dhariwal 2021, eq.
            15): 0 is β̃_t, 1 is β_t. The network is free to leave [0, 1].
        x0_error: None, or the mean squared error expected of `x0`; broadcasts against it.
    """

    x0: Float[Array, "B ..."]
    var_frac: Float[Array, "B ..."] | None = None
    x0_error: Float[Array, "B ..."] | None = None


Denoiser = Callable[..., Denoised]
"""(x_t [B, ...], t int32 [B]) -> Denoised; the condition is already bound. All that a sampler ever sees.

A self-conditioned one also takes x0_hat, shaped like x_t; decorators hand on what else they are given.
"""


class Prediction(NamedTuple):
    """`to_x0(output, x_t, alpha, sigma)` and `target(x0, eps, alpha, sigma)`; alpha and sigma broadcast."""

    to_x0: Callable[[Array, Array, Array, Array], Array]
    target: Callable[[Array, Array, Array, Array], Array]


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
}


def per_sample(values: Shaped[Array, "..."], like: Shaped[Array, "..."]) -> Shaped[Array, "..."]:
    """[B] -> [B, 1, ...], to broadcast against `like` [B, ...]."""
    return values.reshape(values.shape + (1,) * (like.ndim - values.ndim))


def split_output(
    output: Float[Array, "B ..."], learned_variance: bool
) -> tuple[Float[Array, "B ..."], Float[Array, "B ..."] | None]:
    """Splits a network's output [B, ..., 2C] into (prediction, var_frac), each [B, ..., C].

    When the variance is not learned, the output is the prediction, and var_frac is None.
    """
    if not learned_variance:
        return output, None
    prediction, variance = jnp.split(output, 2, axis=-1)
    return prediction, 0.5 * (variance + 1.0)


def denoiser(
    network: Callable[..., Array],
    schedule: NoiseSchedule,
    prediction: str,
    *,
    learned_variance: bool = False,
    x0_error: Float[Array, " T"] | None = None,
) -> Denoiser:
    """Wraps `network(x_t, t, *given)` of the given parametrisation as a denoiser that returns x0.

    `x0_error` [T] is its mean squared error at each time, where it has been measured.

    Raises:
        KeyError: `prediction` is not a row of `PREDICTIONS`.
    """
    to_x0 = PREDICTIONS[prediction].to_x0

    def denoise(x_t: Float[Array, "B ..."], t: Int[Array, " B"], *given: Float[Array, "B ..."]) -> Denoised:
        output, var_frac = split_output(network(x_t, t, *given), learned_variance)
        alpha, sigma = (per_sample(f(t), x_t) for f in (schedule.alpha, schedule.sigma))
        error = None if x0_error is None else per_sample(x0_error[t], x_t)
        return Denoised(to_x0(output, x_t, alpha, sigma), var_frac, error)

    return denoise
