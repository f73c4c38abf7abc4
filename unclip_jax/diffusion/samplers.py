"""Samplers (DDPM, DDIM, Euler, Heun, DPM-Solver++) as pairs of pure functions, and the scan that runs them.

A step of a sampler moves x_t to x_s with s < t, given the denoiser's estimate of x0. What a sampler keeps from step to
step is its state, a pytree carried by `lax.scan`, as in `optax.GradientTransformation`. The timesteps and keys of all
steps are computed as arrays before the scan.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from clip_jax.errors import UserError
from unclip_jax.diffusion.keys import fold_in_each, normal
from unclip_jax.diffusion.keys import sample_keys as sample_keys
from unclip_jax.diffusion.predict import Denoised, Denoiser
from unclip_jax.diffusion.schedule import Grid, Karras, NoiseSchedule, Posterior, Uniform, posterior
from unclip_jax.ranges import check_ranges
from unclip_jax.settings import standard_settings


class Step(NamedTuple):
    """One step of the scan.

    Attributes:
        t: timestep of x_t, int32 [].
        s: the next timestep, s < t, int32 []; −1 is clean data.
        keys: [B], one per sample, for the noise of the step.
    """

    t: Int[Array, ""]
    s: Int[Array, ""]
    keys: Key[Array, " B"]


class Stepped(NamedTuple):
    """What a step of a sampler returns.

    Attributes:
        x_s: the samples at the next timestep, [B, ...].
        state: the sampler's state for the next step.
        x0_hat: the denoiser's last estimate of x0, [B, ...], which self-conditioning passes to the next step.
    """

    x_s: Float[Array, "B ..."]
    state: Any
    x0_hat: Float[Array, "B ..."]


class Sampler(NamedTuple):
    """A sampler.

    Attributes:
        init: function x_T -> state.
        step: function (denoise, schedule, x_t, state, step) -> Stepped.
    """

    init: Callable[[Array], Any]
    step: Callable[[Denoiser, NoiseSchedule, Array, Any, Step], Stepped]


@standard_settings
def sample(
    denoise: Denoiser,
    schedule: NoiseSchedule,
    timesteps: Int[np.ndarray, " S"],
    sampler: Sampler,
    x_T: Float[Array, "B ..."],
    keys: Key[Array, " B"],
) -> Float[Array, "B ..."]:
    """Runs the reverse process from `x_T` to clean data in one `lax.scan`.

    Args:
        denoise: function (x_t, t [B]) -> Denoised.
        schedule: the noise schedule.
        timesteps: int [S], decreasing; the last step, to clean data (t = −1), is implied.
        sampler: the method.
        x_T: noise at `timesteps[0]`, [B, ...].
        keys: [B] keys, one per sample, for the noise that stochastic samplers add.

    Returns:
        x0 [B, ...].
    """
    times = jnp.asarray(timesteps, jnp.int32)
    ends = jnp.append(times[1:], -1)
    step_keys = jax.vmap(lambda t: fold_in_each(keys, t))(times)

    def body(carry, step):
        x_t, state = carry
        x_s, state, _ = sampler.step(denoise, schedule, x_t, state, step)
        return (x_s, state), None

    (x0, _), _ = jax.lax.scan(body, (x_T, sampler.init(x_T)), Step(times, ends, step_keys))
    return x0


def _denoise_all_at(denoise: Denoiser, x_t: Float[Array, "B ..."], t: Int[Array, ""]) -> Denoised:
    """Denoises a batch whose samples are all at the same timestep t, int32 []."""
    return denoise(x_t, jnp.broadcast_to(t, x_t.shape[:1]))


def _no_state(x_T: Array) -> tuple[()]:
    return ()


def self_conditioned(sampler: Sampler) -> Sampler:
    """Self-conditioning (Chen et al. 2022, "Analog Bits", algorithm 2) for any sampler.

    The denoiser takes (x_t, t, x0_hat), where x0_hat is its estimate in the previous step, after guidance and clipping;
    zeros in the first step.

    Args:
        sampler: the method.
    """

    def init(x_T):
        return sampler.init(x_T), jnp.zeros_like(x_T)

    def step(denoise, schedule, x_t, state, step):
        state, x0_hat = state
        x_s, state, latest = sampler.step(lambda x_t, t: denoise(x_t, t, x0_hat), schedule, x_t, state, step)
        return Stepped(x_s, (state, latest), latest)

    return Sampler(init, step)


@standard_settings
def invert(
    denoise: Denoiser,
    schedule: NoiseSchedule,
    timesteps: Int[np.ndarray, " S"],
    x0: Float[Array, "B ..."],
    *,
    iterations: int = 5,
) -> Float[Array, "B ..."]:
    """DDIM inversion: the noise x_T from which `ddim()` samples `x0` on the same timesteps.

    Plain DDIM inversion (Song et al. 2021, §4.3) uses the estimate at x_s in place of that at x_t, which makes an error
    in each step. Here each step solves for the x_t that DDIM maps to x_s (Pan et al. 2023), x_t = F(x_t), by relaxed
    fixed-point iteration; all steps run in one `lax.scan`.

    Args:
        denoise: function (x_t, t [B]) -> Denoised, with the condition and guidance that sampling will use.
        schedule: the noise schedule.
        timesteps: int [S], decreasing, as for `sample`.
        x0: clean data, [B, ...].
        iterations: fixed-point iterations, and so denoiser calls, per step.

    Returns:
        x_T [B, ...], at `timesteps[0]`.
    """
    times = jnp.asarray(timesteps, jnp.int32)[::-1]
    # The last step of DDIM, from t = 0, returns the estimate of x0 and drops the noise: so x at t = 0 gets none.
    x_s = schedule.alpha(times[0]) * x0

    def body(x_s, step):
        s, t = step
        ratio = schedule.sigma(t) / schedule.sigma(s)
        # dF/dx_t = (alpha_t − ratio·alpha_s)·D, with D the derivative of the denoiser, lies between 0 (D removes a
        # direction) and about 1 − ratio (D keeps it): this is the best relaxation for that interval.
        relaxation = 2.0 / (1.0 + ratio)

        def improve(_, x_t):
            estimate = _denoise_all_at(denoise, x_t, t).x0
            image = ratio * (x_s - schedule.alpha(s) * estimate) + schedule.alpha(t) * estimate
            return x_t + relaxation * (image - x_t)

        return jax.lax.fori_loop(0, iterations, improve, x_s), None

    return jax.lax.scan(body, x_s, (times[:-1], times[1:]))[0]


def learned_log_variance(reverse: Posterior, var_frac: Float[Array, "B ..."]) -> Float[Array, "B ..."]:
    """Log-variance interpolated between β̃ and β (Nichol & Dhariwal 2021, eq. 15).

    Args:
        reverse: the bounds, which broadcast against `var_frac`.
        var_frac: [B, ...], 0 for β̃ and 1 for β.
    """
    return var_frac * reverse.log_large + (1.0 - var_frac) * reverse.log_small


def ddpm(variance: str = "small") -> Sampler:
    """Ancestral sampling (Ho et al. 2020, eq. 6–7) between any two timesteps of the grid.

    Args:
        variance: `"small"` (β̃, that of the posterior), `"large"` (β), `"learned"` (log-linear between the two by the
            denoiser's `var_frac`, Nichol & Dhariwal 2021, eq. 15; the bounds are those of the strided grid), or
            `"analytic"` (the optimal one for this denoiser, from its `x0_error`, Bao et al. 2022).

    Raises:
        ValueError: there is no such variance; or, when the sampler is run, the denoiser gives no `var_frac` or
            `x0_error`.
    """
    if variance not in ("small", "large", "learned", "analytic"):
        raise ValueError(f"variance is {variance!r}; give 'small', 'large', 'learned' or 'analytic'")

    def step(denoise, schedule, x_t, state, step):
        t, s, keys = step
        estimate = _denoise_all_at(denoise, x_t, t)
        reverse = posterior(schedule, t, s)
        mean = reverse.coef_x0 * estimate.x0 + reverse.coef_xt * x_t
        if variance == "learned":
            if estimate.var_frac is None:
                raise ValueError("ddpm('learned') needs a denoiser with a learned variance; use 'small' or 'large'")
            log_variance = learned_log_variance(reverse, estimate.var_frac)
        elif variance == "analytic":
            if estimate.x0_error is None:
                raise ValueError("ddpm('analytic') needs a denoiser that knows its x0_error; use 'small' or 'large'")
            # Law of total variance: that of x_s given x0, plus that of the mean of x_s under the uncertainty of x0.
            log_variance = jnp.log(jnp.exp(reverse.log_small) + reverse.coef_x0**2 * estimate.x0_error)
        else:
            log_variance = reverse.log_large if variance == "large" else reverse.log_small
        noise = jnp.where(s < 0, 0.0, normal(keys, x_t.shape[1:]))
        return Stepped(mean + jnp.exp(0.5 * log_variance) * noise, state, estimate.x0)

    return Sampler(_no_state, step)


def ddim(eta: float = 0.0) -> Sampler:
    """DDIM (Song et al. 2021, eq. 12 and 16).

    Args:
        eta: stochasticity, 0 (deterministic) to 1 (`ddpm("small")`).
    """

    def step(denoise, schedule, x_t, state, step):
        t, s, keys = step
        x0 = _denoise_all_at(denoise, x_t, t).x0
        eps = (x_t - schedule.alpha(t) * x0) / schedule.sigma(t)
        std = eta * schedule.sigma(s) / schedule.sigma(t) * jnp.sqrt(schedule.variance_between(t, s))
        direction = jnp.sqrt(jnp.maximum(schedule.sigma(s) ** 2 - std**2, 0.0))
        x_s = schedule.alpha(s) * x0 + direction * eps
        return Stepped(x_s + std * normal(keys, x_t.shape[1:]) if eta else x_s, state, x0)

    return Sampler(_no_state, step)


def heun() -> Sampler:
    """Heun's second-order method on dx/dσ in the variables x/alpha, sigma/alpha (Karras et al. 2022, algorithm 1).

    Two denoiser calls per step. The last step, to clean data, is a step of Euler's method. Meant for
    `karras_timesteps`. Euler's method itself is `ddim(0)`: in these variables the two are the same step.
    """

    def step(denoise, schedule, x_t, state, step):
        t, s, _ = step
        x0 = _denoise_all_at(denoise, x_t, t).x0
        clean, s = s < 0, jnp.maximum(s, 0)
        # r = (sigma_s/alpha_s) / (sigma_t/alpha_t) < 1
        ratio = schedule.sigma(s) / schedule.alpha(s) * schedule.alpha(t) / schedule.sigma(t)
        euler = schedule.sigma(s) / schedule.sigma(t) * x_t + schedule.alpha(s) * (1.0 - ratio) * x0
        # The mean of both slopes, written with x0: in an Euler step x/alpha − x0 shrinks by r.
        again = _denoise_all_at(denoise, euler, s).x0
        correction = 0.5 * (1.0 / ratio - 1.0) * (again - x0)
        return Stepped(jnp.where(clean, x0, euler + schedule.alpha(s) * correction), state, again)

    return Sampler(_no_state, step)


def resampled(sampler: Sampler, times: int) -> Sampler:
    """Resampling (RePaint, Lugmayr et al. 2022): takes every step several times, noising x_s back to x_t in between.

    In an inpainting the part that is sampled thus comes to fit the known part.

    Args:
        sampler: a sampler without state.
        times: how often each step is taken, at least 1.
    """

    def step(denoise, schedule, x_t, state, step):
        t, s, keys = step
        up = schedule.alpha_between(t, s), jnp.sqrt(schedule.variance_between(t, s))

        def once(i, carry):
            x_t, _ = carry
            own = fold_in_each(keys, i)
            x_s, _, x0_hat = sampler.step(denoise, schedule, x_t, state, Step(t, s, fold_in_each(own, 0)))
            again = up[0] * x_s + up[1] * normal(fold_in_each(own, 1), x_t.shape[1:])
            return jnp.where(i < times - 1, again, x_s), x0_hat

        x_s, x0_hat = jax.lax.fori_loop(0, times, once, (x_t, jnp.zeros_like(x_t)))
        return Stepped(x_s, state, x0_hat)

    return Sampler(sampler.init, step)


class _Multistep(NamedTuple):
    """State of DPM-Solver++(2M): x0 and λ of the previous step (zeros before the first), and the steps taken."""

    x0: Float[Array, "B ..."]
    half_log_snr: Float[Array, ""]
    steps: Int[Array, ""]


def dpmpp_2m() -> Sampler:
    """DPM-Solver++(2M), data prediction, second-order multistep (Lu et al. 2022b, algorithm 2).

    The first step is first-order, because there is no previous one, and so is the last, where λ is infinite and the
    result is x0 itself.
    """

    def init(x_T):
        return _Multistep(jnp.zeros_like(x_T), jnp.float32(0.0), jnp.int32(0))

    def step(denoise, schedule, x_t, state, step):
        t, s, _ = step
        x0 = _denoise_all_at(denoise, x_t, t).x0
        lam_t = 0.5 * schedule.log_snr(t)
        first_order = (state.steps == 0) | (s < 0)
        h = jnp.where(s < 0, 1.0, 0.5 * schedule.log_snr(s) - lam_t)
        h_last = jnp.where(state.steps == 0, h, lam_t - state.half_log_snr)
        slope = jnp.where(first_order, 0.0, 0.5 * h / h_last)
        data = x0 + slope * (x0 - state.x0)
        # alpha_s·(1 − e^{−h}) with e^{−h} = (sigma_s/alpha_s)·(alpha_t/sigma_t), which is 0 at s = −1.
        shrink = schedule.sigma(s) / schedule.alpha(s) * schedule.alpha(t) / schedule.sigma(t)
        x_s = schedule.sigma(s) / schedule.sigma(t) * x_t + schedule.alpha(s) * (1.0 - shrink) * data
        return Stepped(x_s, _Multistep(x0, lam_t, state.steps + 1), x0)

    return Sampler(init, step)


class _Named:
    """Base class of the sampler specs below."""

    grid: Grid

    @property
    def name(self) -> str:
        """Name of the row of `SAMPLERS` that is equal, or else equal but for its grid; otherwise the repr."""
        exact = [name for name, row in SAMPLERS.items() if row == self]
        similar = [name for name, row in SAMPLERS.items() if replace(row, grid=self.grid) == self]
        return (exact + similar + [repr(self)])[0]


Variance = Literal["small", "large", "learned", "analytic"]


@dataclass(frozen=True)
class DDPM(_Named):
    """`ddpm` and the grid it runs on.

    Attributes:
        variance: variance of the reverse steps, see `ddpm`. "learned" needs a network with a learned variance,
            "analytic" a stage whose `x0_error` was measured.
        grid: chooses the timesteps.

    Raises:
        UserError: there is no such variance.
    """

    variance: Variance = "small"
    grid: Grid = Uniform()  # noqa: RUF009 - a frozen value

    def __post_init__(self) -> None:
        if self.variance not in get_args(Variance):
            raise UserError(f"sampler.variance is {self.variance!r}; choose one of {', '.join(get_args(Variance))}")

    def __call__(self) -> Sampler:
        """The `Sampler`, a pair of functions."""
        return ddpm(self.variance)


@dataclass(frozen=True)
class DDIM(_Named):
    """`ddim` and the grid it runs on. With eta 0 on `Karras()` it is Euler's method, see `heun`.

    Attributes:
        eta: stochasticity, 0 (deterministic) to 1 (`DDPM()`).
        grid: chooses the timesteps.

    Raises:
        UserError: `eta` is out of range.
    """

    eta: float = 0.0
    grid: Grid = Uniform()  # noqa: RUF009 - a frozen value

    def __post_init__(self) -> None:
        check_ranges(self, "sampler.", eta=(0.0, 1.0))

    def __call__(self) -> Sampler:
        """The `Sampler`, a pair of functions."""
        return ddim(self.eta)


@dataclass(frozen=True)
class DPMpp2M(_Named):
    """`dpmpp_2m` (DPM-Solver++ 2M) and the grid it runs on.

    Attributes:
        grid: chooses the timesteps.
    """

    grid: Grid = Uniform()  # noqa: RUF009 - a frozen value

    def __call__(self) -> Sampler:
        """The `Sampler`, a pair of functions."""
        return dpmpp_2m()


@dataclass(frozen=True)
class Heun(_Named):
    """`heun` and the grid it runs on: two denoiser calls per step.

    Attributes:
        grid: chooses the timesteps.
    """

    grid: Grid = Karras()  # noqa: RUF009 - a frozen value

    def __call__(self) -> Sampler:
        """The `Sampler`, a pair of functions."""
        return heun()


SamplerSpec = DDPM | DDIM | DPMpp2M | Heun
"""A sampler with its grid, as configs hold it: `spec()` is the `Sampler`, `spec.grid` chooses its timesteps."""

SAMPLERS: dict[str, SamplerSpec] = {
    "ddpm": DDPM(),
    "ddpm_learned": DDPM("learned"),
    "ddpm_analytic": DDPM("analytic"),
    "ddim": DDIM(),
    "euler": DDIM(grid=Karras()),
    "dpmpp_2m": DPMpp2M(),
    "heun": Heun(),
}
"""Samplers by name, as `--sampler` takes them."""


def named_sampler(name: str, grid: Grid | None = None) -> SamplerSpec:
    """The sampler of a name.

    Args:
        name: row of `SAMPLERS`.
        grid: replaces the grid of a row on `Uniform()`; a row on another grid (`euler`, `heun`) keeps it.

    Raises:
        UserError: there is no such row.
    """
    if name not in SAMPLERS:
        raise UserError(f"sampling.sampler is {name!r}; choose one of {', '.join(SAMPLERS)}")
    spec = SAMPLERS[name]
    return spec if grid is None or spec.grid != Uniform() else replace(spec, grid=grid)
