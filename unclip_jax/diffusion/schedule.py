"""Noise schedules, stored as one array.

The forward process is x_t = alpha_t · x0 + sigma_t · eps with alpha_t² = ᾱ_t and sigma_t² = 1 − ᾱ_t (Ho et al. 2020,
eq. 4). Only log ᾱ_t is stored: it is built in float64 and kept in float32, because float32 log ᾱ still gives every β to
4e-5 while float32 ᾱ gives 5e-4 at the noisy end. Everything else follows with `exp` and `expm1`, for any pair of
times s < t, so that a coarser sampling grid needs no respaced schedule. Index t = −1 means clean data (ᾱ = 1).
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
"""Integer times of any shape; −1 is clean data."""


class NoiseSchedule(NamedTuple):
    """log ᾱ_t for t = 0 … T−1, float32 [T], strictly decreasing.

    The methods take integer times of any shape, −1 included.
    """

    log_alpha_bar_table: np.ndarray

    @property
    def num_timesteps(self) -> int:
        """T, the length of the schedule."""
        return len(self.log_alpha_bar_table)

    def log_alpha_bar(self, t: Time) -> Float[Array, "*B"]:
        """The table's log ᾱ_t, 0 at t = −1."""
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
        """alpha_{t|s} = alpha_t / alpha_s: what is left at t of the signal at s."""
        return jnp.exp(0.5 * (self.log_alpha_bar(t) - self.log_alpha_bar(s)))

    def variance_between(self, t: Time, s: Time) -> Float[Array, "*B"]:
        """sigma²_{t|s} = 1 − ᾱ_t/ᾱ_s: the variance q(x_t | x_s) adds on the way up; equals β_t when s = t − 1."""
        return -jnp.expm1(self.log_alpha_bar(t) - self.log_alpha_bar(s))


class Float32Schedule(NoiseSchedule):
    """The same in the arithmetic of diffusers: β and ᾱ in float32, and differences of those.

    A published system was measured and is known by the pictures that this draws. It is up to 5e-4 off, at the noisy end
    and near clean data, and networks under guidance carry that on, to 6e-3 in the worst pixel of Karlo's two random
    stages with guidance 4 and 8. `log_alpha_bar_table` is float64 here, so that β is what it was made of.
    """

    __slots__ = ()

    @property
    def beta_table(self) -> np.ndarray:
        """β_t, float32 [T]."""
        return -np.expm1(np.diff(self.log_alpha_bar_table, prepend=0.0)).astype(np.float32)

    def alpha_bar(self, t: Time) -> Float[Array, "*B"]:
        """ᾱ_t, 1 at t = −1: the product of rounded factors, itself rounded at the end."""
        table = np.cumprod((1.0 - self.beta_table).astype(np.float64)).astype(np.float32)
        return jnp.where(t < 0, 1.0, jnp.asarray(table)[jnp.maximum(t, 0)])

    def alpha(self, t: Time) -> Float[Array, "*B"]:
        """Signal scale √ᾱ_t."""
        return jnp.sqrt(self.alpha_bar(t))

    def variance(self, t: Time) -> Float[Array, "*B"]:
        """sigma² = 1 − ᾱ_t."""
        return 1.0 - self.alpha_bar(t)

    def alpha_between(self, t: Time, s: Time) -> Float[Array, "*B"]:
        """What is left at t of the signal at s."""
        return jnp.sqrt(1.0 - self.variance_between(t, s))

    def variance_between(self, t: Time, s: Time) -> Float[Array, "*B"]:
        """The variance that q(x_t | x_s) adds."""
        between = 1.0 - self.alpha_bar(t) / self.alpha_bar(s)
        return jnp.where(s == t - 1, jnp.asarray(self.beta_table)[jnp.maximum(t, 0)], between)


class Posterior(NamedTuple):
    """q(x_s | x_t, x0) = N(coef_x0 · x0 + coef_xt · x_t, exp(log_small)) and the bounds of a learned reverse variance.

    Attributes:
        coef_x0, coef_xt: coefficients of the mean (Ho et al. 2020, eq. 7, between any two times of a grid).
        log_small: log β̃, the posterior's own variance. At s = −1 that is log 0, and the value at t = 1 stands in, as
            in improved-diffusion.
        log_large: log β, the variance of q(x_t | x_s).
    """

    coef_x0: Float[Array, "*B"]
    coef_xt: Float[Array, "*B"]
    log_small: Float[Array, "*B"]
    log_large: Float[Array, "*B"]


def posterior(schedule: NoiseSchedule, t: Time, s: Time) -> Posterior:
    """The reverse of one step from s up to t, for integer times s < t of any shape."""
    added, total = schedule.variance_between(t, s), schedule.variance(t)  # the same number at s = −1: x_s is x0 exactly
    last = s < 0
    up, down = jnp.where(last, 1, t), jnp.where(last, 0, s)
    return Posterior(
        coef_x0=schedule.alpha(s) * added / total,
        coef_xt=schedule.alpha_between(t, s) * schedule.variance(s) / total,
        log_small=jnp.log(schedule.variance_between(up, down) * schedule.variance(down) / schedule.variance(up)),
        log_large=jnp.log(added),
    )


def from_betas(betas: np.ndarray, *, float32: bool = False) -> NoiseSchedule:
    """Schedule of a list of β_t in (0, 1), as in Ho et al. (2020); `float32` makes it a `Float32Schedule`."""
    betas = np.asarray(betas, np.float64)
    if betas.ndim != 1 or not np.all((betas > 0) & (betas < 1)):
        raise ValueError("betas must be one-dimensional with values between 0 and 1")
    log_alpha_bar = np.cumsum(np.log1p(-betas))
    return Float32Schedule(log_alpha_bar) if float32 else NoiseSchedule(log_alpha_bar.astype(np.float32))


def cosine(num_timesteps: int, max_beta: float = 0.999, *, float32: bool = False) -> NoiseSchedule:
    """Squared-cosine ᾱ with offset 0.008 and β clipped at `max_beta` (Nichol & Dhariwal 2021, eq. 17)."""
    times = np.arange(num_timesteps + 1, dtype=np.float64) / num_timesteps
    alpha_bar = np.cos((times + 0.008) / 1.008 * np.pi / 2) ** 2
    return from_betas(np.minimum(1.0 - alpha_bar[1:] / alpha_bar[:-1], max_beta), float32=float32)


def linear(num_timesteps: int, *, float32: bool = False) -> NoiseSchedule:
    """β from 1e-4 to 0.02 at T = 1000, scaled by 1000/T for other lengths (Ho et al. 2020, §4; guided-diffusion)."""
    scale = 1000.0 / num_timesteps
    return from_betas(evenly_spaced(scale * 1e-4, scale * 0.02, num_timesteps, float32=float32), float32=float32)


def latent_linear(num_timesteps: int, *, float32: bool = False) -> NoiseSchedule:
    """β from 0.00085 to 0.012: Kandinsky's, for latents (not Stable Diffusion's, which is linear in √β)."""
    return from_betas(evenly_spaced(0.00085, 0.012, num_timesteps, float32=float32), float32=float32)


def evenly_spaced(start: float, stop: float, num: int, *, float32: bool) -> np.ndarray:
    """`np.linspace`; `float32` is torch's in that type, which counts rounded steps from both ends."""
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
    # Those of published systems.
    "cosine_float32": partial(cosine, float32=True),
    "linear_float32": partial(linear, float32=True),
    "latent_linear_float32": partial(latent_linear, float32=True),
}


def spaced_timesteps(num_timesteps: int, num_steps: int) -> np.ndarray:
    """`num_steps` times from T−1 down to 0, evenly spaced and rounded, both ends included: int32 [S].

    The last step then goes from t = 0 to clean data, so no residual noise is left. Equal to Karlo's published
    respacing and to guided-diffusion's. One step is T−1 alone.

    Raises:
        ValueError: as every grid here, when T has no such `num_steps` times.
    """
    _check_num_steps(num_timesteps, num_steps)
    return np.round(np.linspace(num_timesteps - 1, 0, num_steps)).astype(np.int32)


def leading_timesteps(num_timesteps: int, num_steps: int) -> np.ndarray:
    """Multiples of T // S from the largest down to 0 (diffusers' "leading" spacing, that of Kandinsky): int32 [S].

    It never visits the noisiest times: with S = 25 of 1000 it starts at 960.
    """
    _check_num_steps(num_timesteps, num_steps)
    return (np.arange(num_steps, dtype=np.int32) * (num_timesteps // num_steps))[::-1].copy()


def trailing_timesteps(num_timesteps: int, num_steps: int) -> np.ndarray:
    """The last times of S equal parts of the schedule (diffusers' "trailing" spacing): int32 [S].

    It starts at T − 1, and its last step goes from about T/S straight to clean data. Half as many steps visit every
    other time of it, which is what progressive distillation needs, and with few steps none is spent on data that is
    clean already.
    """
    _check_num_steps(num_timesteps, num_steps)
    return (np.round(np.arange(num_steps, 0, -1) * (num_timesteps / num_steps)) - 1).astype(np.int32)


def karras_timesteps(schedule: NoiseSchedule, num_steps: int, *, rho: float = 7.0) -> np.ndarray:
    """The times nearest to evenly spaced sigma^(1/rho), sigma being the noise per signal (Karras et al. 2022, eq. 5).

    From sigma = 80 or the noisiest time's, whichever is less, to that of t = 0: int32 [S] without repetitions. Where
    two would fall on one time, the later moves on to the next free one.
    """
    _check_num_steps(schedule.num_timesteps, num_steps)
    # In numpy: a grid is laid out while the program that visits it is traced.
    log_alpha_bar = schedule.log_alpha_bar_table.astype(np.float64)
    log_sigma = -0.5 * (log_alpha_bar - np.log(-np.expm1(log_alpha_bar)))
    first = int(np.searchsorted(log_sigma, min(np.log(80.0), log_sigma[-1]), side="right")) - 1
    ends = np.exp(log_sigma[[first, 0]] / rho)
    wanted = rho * np.log(np.linspace(ends[0], ends[1], num_steps))
    times = np.abs(log_sigma[None, :] - wanted[:, None]).argmin(axis=1)
    if first + 1 < num_steps:
        raise ValueError(f"num_steps is {num_steps}; {first + 1} times have a sigma of 80 or less")
    # Strictly decreasing, and with room below for the steps that follow.
    times = np.minimum.accumulate(times + np.arange(num_steps)) - np.arange(num_steps)
    return np.maximum(times, np.arange(num_steps)[::-1]).astype(np.int32)


def fast27_timesteps(num_timesteps: int, num_steps: int) -> np.ndarray:
    """GLIDE's "fast27", the 27 times of its upsampler and of the paper's first: int32 [27].

    10, 10, 3, 2 and 2 times in the five fifths of the schedule, counted from the clean end; the noisiest time gives way
    to one two before it.
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
    """Evenly spaced times, both ends included: `spaced_timesteps`."""

    def __call__(self, schedule: NoiseSchedule, num_steps: int) -> np.ndarray:
        """Decreasing times, int32 [S]. Raises ValueError where the schedule has none such."""
        return spaced_timesteps(schedule.num_timesteps, num_steps)


@dataclass(frozen=True)
class Leading:
    """Multiples of T // S: `leading_timesteps`."""

    def __call__(self, schedule: NoiseSchedule, num_steps: int) -> np.ndarray:
        """Decreasing times, int32 [S]. Raises ValueError where the schedule has none such."""
        return leading_timesteps(schedule.num_timesteps, num_steps)


@dataclass(frozen=True)
class Trailing:
    """The last times of S equal parts: `trailing_timesteps`, the one grid that does not end at 0."""

    def __call__(self, schedule: NoiseSchedule, num_steps: int) -> np.ndarray:
        """Decreasing times, int32 [S]. Raises ValueError where the schedule has none such."""
        return trailing_timesteps(schedule.num_timesteps, num_steps)


@dataclass(frozen=True)
class Karras:
    """Evenly spaced sigma^(1/rho): `karras_timesteps`.

    Attributes:
        rho: the paper's 7; 1 is even in sigma, and larger values visit more of the nearly clean times.
    """

    rho: float = 7.0

    def __post_init__(self) -> None:
        check_ranges(self, "grid.", rho=(1.0, 100.0))

    def __call__(self, schedule: NoiseSchedule, num_steps: int) -> np.ndarray:
        """Decreasing times, int32 [S]. Raises ValueError where the schedule has none such."""
        return karras_timesteps(schedule, num_steps, rho=self.rho)


@dataclass(frozen=True)
class Fast27:
    """The 27 times of GLIDE's upsampler: `fast27_timesteps`."""

    def __call__(self, schedule: NoiseSchedule, num_steps: int) -> np.ndarray:
        """Decreasing times, int32 [27]. Raises ValueError for another number of steps."""
        return fast27_timesteps(schedule.num_timesteps, num_steps)


Grid = Uniform | Leading | Trailing | Karras | Fast27
"""The times that a sampler visits: `grid(schedule, num_steps)`."""

GRIDS: dict[str, Grid] = {
    "uniform": Uniform(),
    "leading": Leading(),
    "trailing": Trailing(),
    "karras": Karras(),
    "fast27": Fast27(),
}
"""Grids by the names that older configs know them by."""
