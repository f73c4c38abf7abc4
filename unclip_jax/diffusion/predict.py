"""Parametrisations (a network predicts x0, eps or v), and denoisers, which turn the prediction into x0.

With x_t = alpha·x0 + sigma·eps a network may predict

    x0        eps        v = alpha·eps − sigma·x0   (Salimans & Ho 2022)

Each is a row of `PREDICTIONS`: how to compute x0 from the output, and the target that the network is trained on.
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
        x0: estimate of clean data, in the shape of x_t.
        var_frac: position of the learned reverse variance between its bounds (Nichol & Dhariwal 2021, eq. 15): 0 is
            β̃_t, 1 is β_t; it may lie outside [0, 1]. None if the variance is not learned.
        x0_error: expected mean squared error of `x0`, broadcasts against it. None if it was not measured.
    """

    x0: Float[Array, "B ..."]
    var_frac: Float[Array, "B ..."] | None = None
    x0_error: Float[Array, "B ..."] | None = None


Denoiser = Callable[..., Denoised]
"""Function (x_t [B, ...], t int32 [B]) -> Denoised with the condition bound: all that a sampler knows of a network.

A self-conditioned denoiser takes x0_hat, in the shape of x_t, as a third argument. Decorators pass it on.
"""


class Prediction(NamedTuple):
    """A parametrisation; alpha and sigma broadcast against x_t.

    Attributes:
        to_x0: function (output, x_t, alpha, sigma) -> x0.
        target: function (x0, eps, alpha, sigma) -> what the network should output.
    """

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
    """Reshapes values [B] to [B, 1, ...], so that they broadcast against `like` [B, ...]."""
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
    """Wraps a network as a denoiser.

    Args:
        network: function (x_t, t, *given) -> output [B, ...], or [B, ..., 2C] with a learned variance.
        schedule: the noise schedule of x_t.
        prediction: what the network predicts, a row of `PREDICTIONS`.
        learned_variance: whether the output holds the variance too.
        x0_error: mean squared error of the estimate of x0 at each timestep, [T], if it was measured.

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
