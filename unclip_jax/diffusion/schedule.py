"""Noise schedules, stored as one array log ᾱ_t, and the grids of timesteps that samplers visit.

The forward process is x_t = alpha_t · x0 + sigma_t · eps with alpha_t² = ᾱ_t and sigma_t² = 1 − ᾱ_t (Ho et al. 2020,
eq. 4). Only log ᾱ_t is stored. It is computed in float64 and kept in float32: float32 log ᾱ gives every β with an error
of at most 4e-5, float32 ᾱ with 5e-4 at the noisy end. Everything else follows by `exp` and `expm1` for any two
timesteps s < t, so that a coarser sampling grid needs no respaced schedule. Timestep t = −1 is clean data (ᾱ = 1).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from unclip_jax.ranges import check_ranges

Time = int | Int[Array, "*B"]
"""Integer timesteps of any shape; −1 is clean data."""


class NoiseSchedule(NamedTuple):
    """A noise schedule. The methods take integer timesteps of any shape, −1 included.

    Attributes:
        log_alpha_bar_table: log ᾱ_t for t = 0 … T−1, float32 [T], strictly decreasing.
    """

    log_alpha_bar_table: np.ndarray

    @property
    def num_timesteps(self) -> int:
        """T, the length of the schedule."""
        return len(self.log_alpha_bar_table)

    def log_alpha_bar(self, t: Time) -> Float[Array, "*B"]:
        """Value of log ᾱ_t, 0 at t = −1."""
        table = jnp.asarray(self.log_alpha_bar_table)
        return jnp.where(t < 0, 0.0, table[jnp.maximum(t, 0)])

    def alpha(self, t: Time) -> Float[Array, "*B"]:
        """Signal scale √ᾱ_t."""
        return jnp.exp(0.5 * self.log_alpha_bar(t))

    def sigma(self, t: Time) -> Float[Array, "*B"]:
        """Noise scale √(1 − ᾱ_t), 0 at t = −1."""
        return jnp.sqrt(self.variance(t))

    def variance(self, t: Time) -> Float[Array, "*B"]:
        """sigma² = 1 − ᾱ_t, 0 at t = −1."""
        return -jnp.expm1(self.log_alpha_bar(t))

    def log_snr(self, t: Time) -> Float[Array, "*B"]:
        """log(alpha_t² / sigma_t²), +inf at t = −1."""
        log_alpha_bar = self.log_alpha_bar(t)
        return log_alpha_bar - jnp.log(-jnp.expm1(log_alpha_bar))

    def alpha_between(self, t: Time, s: Time) -> Float[Array, "*B"]:
        """alpha_{t|s} = alpha_t / alpha_s: the signal scale from s to t, for s < t."""
        return jnp.exp(0.5 * (self.log_alpha_bar(t) - self.log_alpha_bar(s)))

    def variance_between(self, t: Time, s: Time) -> Float[Array, "*B"]:
        """sigma²_{t|s} = 1 − ᾱ_t/ᾱ_s: the variance of q(x_t | x_s), for s < t; equal to β_t when s = t − 1."""
        return -jnp.expm1(self.log_alpha_bar(t) - self.log_alpha_bar(s))


class Float32Schedule(NoiseSchedule):
    """A noise schedule in the float32 arithmetic of diffusers, to reproduce the pictures of published systems.

    β and ᾱ are rounded to float32, and their differences are taken. The results differ by up to 5e-4 from those of
    `NoiseSchedule`, at the noisy end and near clean data, and guidance amplifies the difference in the pictures.
    `log_alpha_bar_table` is float64 here, so that β is exactly what the schedule was built from.
    """

    __slots__ = ()

    @property
    def beta_table(self) -> np.ndarray:
        """β_t, float32 [T]."""
        return -np.expm1(np.diff(self.log_alpha_bar_table, prepend=0.0)).astype(np.float32)

    def alpha_bar(self, t: Time) -> Float[Array, "*B"]:
        """ᾱ_t, 1 at t = −1: the float64 product of float32 factors 1 − β, rounded to float32."""
        table = np.cumprod((1.0 - self.beta_table).astype(np.float64)).astype(np.float32)
        return jnp.where(t < 0, 1.0, jnp.asarray(table)[jnp.maximum(t, 0)])

    def alpha(self, t: Time) -> Float[Array, "*B"]:
        """Signal scale √ᾱ_t."""
        return jnp.sqrt(self.alpha_bar(t))

    def variance(self, t: Time) -> Float[Array, "*B"]:
        """sigma² = 1 − ᾱ_t."""
        return 1.0 - self.alpha_bar(t)

    def alpha_between(self, t: Time, s: Time) -> Float[Array, "*B"]:
        """alpha_{t|s}: the signal scale from s to t, for s < t."""
        return jnp.sqrt(1.0 - self.variance_between(t, s))

    def variance_between(self, t: Time, s: Time) -> Float[Array, "*B"]:
        """sigma²_{t|s}: the variance of q(x_t | x_s), for s < t; exactly β_t when s = t − 1."""
        between = 1.0 - self.alpha_bar(t) / self.alpha_bar(s)
        return jnp.where(s == t - 1, jnp.asarray(self.beta_table)[jnp.maximum(t, 0)], between)


class Posterior(NamedTuple):
    """q(x_s | x_t, x0) = N(coef_x0 · x0 + coef_xt · x_t, exp(log_small)) and the bounds of a learned reverse variance.

    Attributes:
        coef_x0, coef_xt: coefficients of the mean (Ho et al. 2020, eq. 7, between any two timesteps of a grid).
        log_small: log β̃, the variance of the posterior. At s = −1 it would be log 0, and the value for t = 1, s = 0 is
            taken instead, as in improved-diffusion.
        log_large: log β, the variance of q(x_t | x_s).
    """

    coef_x0: Float[Array, "*B"]
    coef_xt: Float[Array, "*B"]
    log_small: Float[Array, "*B"]
    log_large: Float[Array, "*B"]


def posterior(schedule: NoiseSchedule, t: Time, s: Time) -> Posterior:
    """The posterior q(x_s | x_t, x0), for integer timesteps s < t of any shape, which broadcast."""
    added, total = schedule.variance_between(t, s), schedule.variance(t)  # equal at s = −1, where x_s is exactly x0
    last = s < 0
    up, down = jnp.where(last, 1, t), jnp.where(last, 0, s)
    return Posterior(
        coef_x0=schedule.alpha(s) * added / total,
        coef_xt=schedule.alpha_between(t, s) * schedule.variance(s) / total,
        log_small=jnp.log(schedule.variance_between(up, down) * schedule.variance(down) / schedule.variance(up)),
        log_large=jnp.log(added),
    )


def from_betas(betas: np.ndarray, *, float32: bool = False) -> NoiseSchedule:
    """The noise schedule of given β_t (Ho et al. 2020).

    Args:
        betas: [T], each in (0, 1).
        float32: returns a `Float32Schedule`.

    Raises:
        ValueError: `betas` has another number of dimensions, or a value out of range.
    """
    betas = np.asarray(betas, np.float64)
    if betas.ndim != 1 or not np.all((betas > 0) & (betas < 1)):
        raise ValueError("betas must be one-dimensional with values between 0 and 1")
    log_alpha_bar = np.cumsum(np.log1p(-betas))
    return Float32Schedule(log_alpha_bar) if float32 else NoiseSchedule(log_alpha_bar.astype(np.float32))


def cosine(num_timesteps: int, max_beta: float = 0.999, *, float32: bool = False) -> NoiseSchedule:
    """Cosine schedule: squared-cosine ᾱ with offset 0.008 (Nichol & Dhariwal 2021, eq. 17).

    Args:
        num_timesteps: T.
        max_beta: β is clipped to it.
        float32: returns a `Float32Schedule`.
    """
    times = np.arange(num_timesteps + 1, dtype=np.float64) / num_timesteps
    alpha_bar = np.cos((times + 0.008) / 1.008 * np.pi / 2) ** 2
    return from_betas(np.minimum(1.0 - alpha_bar[1:] / alpha_bar[:-1], max_beta), float32=float32)


def linear(num_timesteps: int, *, float32: bool = False) -> NoiseSchedule:
    """Linear schedule: β from 1e-4 to 0.02, both scaled by 1000/T (Ho et al. 2020, §4; guided-diffusion).

    Args:
        num_timesteps: T.
        float32: returns a `Float32Schedule`.
    """
    scale = 1000.0 / num_timesteps
    return from_betas(evenly_spaced(scale * 1e-4, scale * 0.02, num_timesteps, float32=float32), float32=float32)


def latent_linear(num_timesteps: int, *, float32: bool = False) -> NoiseSchedule:
    """Linear schedule of Kandinsky, for latents: β from 0.00085 to 0.012 (Stable Diffusion's is linear in √β).

    Args:
        num_timesteps: T.
        float32: returns a `Float32Schedule`.
    """
    return from_betas(evenly_spaced(0.00085, 0.012, num_timesteps, float32=float32), float32=float32)


def evenly_spaced(start: float, stop: float, num: int, *, float32: bool) -> np.ndarray:
    """`np.linspace`, or with `float32` the same numbers as `torch.linspace` in float32.

    torch adds rounded steps to the start in the first half, and subtracts them from the stop in the second.
    """
    if not float32:
        return np.linspace(start, stop, num)
    first, last = np.float32(start), np.float32(stop)
    steps, size = np.arange(num), np.float64(np.float32((last - first) / np.float32(num - 1)))
    up, down = first + size * steps, last - size * (num - 1 - steps)
    return np.where(steps < num // 2, up, down).astype(np.float32)


SCHEDULES: dict[str, Callable[[int], NoiseSchedule]] = {
    "cosine": cosine,
    "linear": linear,
    "latent_linear": latent_linear,
    # For published systems, which were trained and sampled in the arithmetic of diffusers.
    "cosine_float32": partial(cosine, float32=True),
    "linear_float32": partial(linear, float32=True),
    "latent_linear_float32": partial(latent_linear, float32=True),
}


def spaced_timesteps(num_timesteps: int, num_steps: int) -> np.ndarray:
    """Evenly spaced timesteps from T−1 down to 0, rounded, both ends included.

    The last step goes from t = 0 to clean data, so that no residual noise is left. The spacing is that of Karlo's
    published respacing and of guided-diffusion. A single step is at T−1.

    Args:
        num_timesteps: T.
        num_steps: S, 1 to T.

    Returns:
        int32 [S], decreasing.

    Raises:
        ValueError: `num_steps` is out of range.
    """
    _check_num_steps(num_timesteps, num_steps)
    return np.round(np.linspace(num_timesteps - 1, 0, num_steps)).astype(np.int32)


def leading_timesteps(num_timesteps: int, num_steps: int) -> np.ndarray:
    """Multiples of T // S from the largest down to 0 ("leading" spacing in diffusers, used by Kandinsky).

    The noisiest timesteps are not visited: with S = 25 and T = 1000 the first one is 960.

    Args:
        num_timesteps: T.
        num_steps: S, 1 to T.

    Returns:
        int32 [S], decreasing.

    Raises:
        ValueError: `num_steps` is out of range.
    """
    _check_num_steps(num_timesteps, num_steps)
    return (np.arange(num_steps, dtype=np.int32) * (num_timesteps // num_steps))[::-1].copy()


def trailing_timesteps(num_timesteps: int, num_steps: int) -> np.ndarray:
    """The last timestep of each of S equal parts of the schedule ("trailing" spacing in diffusers).

    The first timestep is T − 1, and the last step goes from about T/S to clean data, so that none of few steps is spent
    on nearly clean data. Half as many steps visit every other of these timesteps, as progressive distillation needs.

    Args:
        num_timesteps: T.
        num_steps: S, 1 to T.

    Returns:
        int32 [S], decreasing.

    Raises:
        ValueError: `num_steps` is out of range.
    """
    _check_num_steps(num_timesteps, num_steps)
    return (np.round(np.arange(num_steps, 0, -1) * (num_timesteps / num_steps)) - 1).astype(np.int32)


def karras_timesteps(schedule: NoiseSchedule, num_steps: int, *, rho: float = 7.0) -> np.ndarray:
    """The timesteps nearest to evenly spaced sigma^(1/rho), with sigma = sigma_t / alpha_t (Karras et al. 2022, eq. 5).

    They go from sigma = 80, or from T − 1 if its sigma is less, down to t = 0. No timestep is repeated: where two fall
    on the same one, the later moves to the next free one.

    Args:
        schedule: the noise schedule.
        num_steps: S.
        rho: 1 is even in sigma; larger values visit more of the nearly clean timesteps.

    Returns:
        int32 [S], decreasing.

    Raises:
        ValueError: `num_steps` is less than 1, or more than the timesteps with a sigma of 80 or less.
    """
    _check_num_steps(schedule.num_timesteps, num_steps)
    # In numpy, because the grid has to be known while the sampler is traced.
    log_alpha_bar = schedule.log_alpha_bar_table.astype(np.float64)
    log_sigma = -0.5 * (log_alpha_bar - np.log(-np.expm1(log_alpha_bar)))
    first = int(np.searchsorted(log_sigma, min(np.log(80.0), log_sigma[-1]), side="right")) - 1
    ends = np.exp(log_sigma[[first, 0]] / rho)
    spaced_log_sigma = rho * np.log(np.linspace(ends[0], ends[1], num_steps))
    times = np.abs(log_sigma[None, :] - spaced_log_sigma[:, None]).argmin(axis=1)
    if first + 1 < num_steps:
        raise ValueError(f"num_steps is {num_steps}; {first + 1} times have a sigma of 80 or less")
    # Make them strictly decreasing, and leave room above 0 for the steps that follow.
    times = np.minimum.accumulate(times + np.arange(num_steps)) - np.arange(num_steps)
    return np.maximum(times, np.arange(num_steps)[::-1]).astype(np.int32)


def fast27_timesteps(num_timesteps: int, num_steps: int) -> np.ndarray:
    """The 27 timesteps "fast27" of GLIDE's upsampler, which the first upsampler of the unCLIP paper uses too.

    10, 10, 3, 2 and 2 timesteps in the five fifths of the schedule, counted from the clean end. The noisiest one is
    T − 3 instead of T − 1.

    Args:
        num_timesteps: T, a multiple of 5, at least 50.
        num_steps: must be 27.

    Returns:
        int32 [27], decreasing.

    Raises:
        ValueError: `num_steps` is not 27, or T is no such number.
    """
    counts = (10, 10, 3, 2, 2)
    if num_steps != sum(counts) or num_timesteps % len(counts) or num_timesteps < 50:
        raise ValueError(f"fast27 has 27 steps of a schedule of 50, 55, …; here are {num_steps} of {num_timesteps}")
    size = num_timesteps // len(counts)
    times = np.concatenate([i * size + np.round(np.linspace(0, size - 1, count)) for i, count in enumerate(counts)])
    times[-1] = num_timesteps - 3
    return times[::-1].astype(np.int32)


def _check_num_steps(num_timesteps: int, num_steps: int) -> None:
    if not 1 <= num_steps <= num_timesteps:
        raise ValueError(f"num_steps is {num_steps}; give 1 to {num_timesteps}, the length of the schedule")


@dataclass(frozen=True)
class Uniform:
    """Evenly spaced timesteps, both ends included: `spaced_timesteps`."""

    def __call__(self, schedule: NoiseSchedule, num_steps: int) -> np.ndarray:
        """Decreasing timesteps, int32 [S].

        Raises:
            ValueError: the schedule has no such `num_steps` timesteps.
        """
        return spaced_timesteps(schedule.num_timesteps, num_steps)


@dataclass(frozen=True)
class Leading:
    """Multiples of T // S: `leading_timesteps`."""

    def __call__(self, schedule: NoiseSchedule, num_steps: int) -> np.ndarray:
        """Decreasing timesteps, int32 [S].

        Raises:
            ValueError: the schedule has no such `num_steps` timesteps.
        """
        return leading_timesteps(schedule.num_timesteps, num_steps)


@dataclass(frozen=True)
class Trailing:
    """The last timesteps of S equal parts: `trailing_timesteps`, the only grid that does not end at 0."""

    def __call__(self, schedule: NoiseSchedule, num_steps: int) -> np.ndarray:
        """Decreasing timesteps, int32 [S].

        Raises:
            ValueError: the schedule has no such `num_steps` timesteps.
        """
        return trailing_timesteps(schedule.num_timesteps, num_steps)


@dataclass(frozen=True)
class Karras:
    """Evenly spaced sigma^(1/rho): `karras_timesteps`.

    Attributes:
        rho: 7 in the paper; 1 is even in sigma, and larger values visit more of the nearly clean timesteps.
    """

    rho: float = 7.0

    def __post_init__(self) -> None:
        check_ranges(self, "grid.", rho=(1.0, 100.0))

    def __call__(self, schedule: NoiseSchedule, num_steps: int) -> np.ndarray:
        """Decreasing timesteps, int32 [S].

        Raises:
            ValueError: the schedule has no such `num_steps` timesteps.
        """
        return karras_timesteps(schedule, num_steps, rho=self.rho)


@dataclass(frozen=True)
class Fast27:
    """The 27 timesteps of GLIDE's upsampler: `fast27_timesteps`."""

    def __call__(self, schedule: NoiseSchedule, num_steps: int) -> np.ndarray:
        """Decreasing timesteps, int32 [27].

        Raises:
            ValueError: `num_steps` is not 27, or the schedule has no such timesteps.
        """
        return fast27_timesteps(schedule.num_timesteps, num_steps)


Grid = Uniform | Leading | Trailing | Karras | Fast27
"""The timesteps that a sampler visits: `grid(schedule, num_steps)` is int32 [S], decreasing."""

GRIDS: dict[str, Grid] = {
    "uniform": Uniform(),
    "leading": Leading(),
    "trailing": Trailing(),
    "karras": Karras(),
    "fast27": Fast27(),
}
"""Grids by name, as configs of older versions write them."""
