"""Samplers as pairs of pure functions, and the one loop that runs them.

A sampler moves x_t to x_s with s < t, given the denoiser's estimate of x0. Whatever it remembers from step to step is
its own state, a pytree carried by the scan, as in ``optax.GradientTransformation``. Times and keys are laid out as
arrays before the loop.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unclip_jax.diffusion.predict import Denoiser
from unclip_jax.diffusion.schedule import NoiseSchedule, Posterior, posterior


class Step(NamedTuple):
    """One step of the loop: from time ``t`` to time ``s`` < t (both int32 []), with one key per sample, [B]."""

    t: jax.Array
    s: jax.Array
    keys: jax.Array


class Sampler(NamedTuple):
    """``init(x_T) -> state`` and ``step(denoise, schedule, x_t, state, step) -> (x_s, state)``."""

    init: Callable[[jax.Array], Any]
    step: Callable[[Denoiser, NoiseSchedule, jax.Array, Any, Step], tuple[jax.Array, Any]]


def sample_keys(key: jax.Array, indices: jax.Array) -> jax.Array:
    """Indices [N] -> keys [N], ``fold_in(key, index)``: sample i is the same whatever batch it is drawn in."""
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(indices)


def fold_in_each(keys: jax.Array, data: int | jax.Array) -> jax.Array:
    """Folds the same number into each of [B] keys."""
    return jax.vmap(lambda key: jax.random.fold_in(key, data))(keys)


def normal(keys: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Standard normal noise, one key per sample: [B] keys -> float32 [B, *shape]."""
    return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)


def sample(
    denoise: Denoiser,
    schedule: NoiseSchedule,
    timesteps: np.ndarray,
    sampler: Sampler,
    x_T: jax.Array,
    keys: jax.Array,
) -> jax.Array:
    """Runs the reverse process from ``x_T`` to clean data in one ``lax.scan``.

    Args:
      denoise: (x_t, t [B]) -> Denoised.
      timesteps: int [S], decreasing; a last step to clean data (t = −1) is implied.
      x_T: noise at ``timesteps[0]``, [B, ...].
      keys: [B] keys, one per sample, for the noise that stochastic samplers add.

    Returns:
      x0 [B, ...].
    """
    times = jnp.asarray(timesteps, jnp.int32)
    ends = jnp.append(times[1:], -1)
    step_keys = jax.vmap(lambda t: fold_in_each(keys, t))(times)

    def body(carry, step):
        x_t, state = carry
        return sampler.step(denoise, schedule, x_t, state, step), None

    (x0, _), _ = jax.lax.scan(body, (x_T, sampler.init(x_T)), Step(times, ends, step_keys))
    return x0


def _denoise_all_at(denoise: Denoiser, x_t: jax.Array, t: jax.Array):
    """Every sample of the batch is at the same time of the grid."""
    return denoise(x_t, jnp.broadcast_to(t, x_t.shape[:1]))


def _no_state(x_T: jax.Array) -> tuple[()]:
    return ()


def learned_log_variance(reverse: Posterior, var_frac: jax.Array) -> jax.Array:
    """log Σ between β̃ (``var_frac`` 0) and β (1), Nichol & Dhariwal 2021, eq. 15; the bounds broadcast."""
    return var_frac * reverse.log_large + (1.0 - var_frac) * reverse.log_small


def ddpm(variance: str = "small") -> Sampler:
    """Ancestral sampling (Ho et al. 2020, eq. 6–7) between any two times of the grid.

    Args:
      variance: ``"small"`` (β̃, the posterior's), ``"large"`` (β), or ``"learned"`` (log-linear between the two by the
        denoiser's ``var_frac``, Nichol & Dhariwal 2021, eq. 15; the bounds are those of the strided grid).
    """
    if variance not in ("small", "large", "learned"):
        raise ValueError(f"variance is {variance!r}; give 'small', 'large' or 'learned'")

    def step(denoise, schedule, x_t, state, step):
        t, s, keys = step
        estimate = _denoise_all_at(denoise, x_t, t)
        reverse = posterior(schedule, t, s)
        mean = reverse.coef_x0 * estimate.x0 + reverse.coef_xt * x_t
        if variance == "learned":
            if estimate.var_frac is None:
                raise ValueError("ddpm('learned') needs a denoiser with a learned variance; use 'small' or 'large'")
            log_variance = learned_log_variance(reverse, estimate.var_frac)
        else:
            log_variance = reverse.log_large if variance == "large" else reverse.log_small
        noise = jnp.where(s < 0, 0.0, normal(keys, x_t.shape[1:]))
        return mean + jnp.exp(0.5 * log_variance) * noise, state

    return Sampler(_no_state, step)


def ddim(eta: float = 0.0) -> Sampler:
    """DDIM (Song et al. 2021, eq. 12 and 16); ``eta`` 0 is deterministic, 1 is ``ddpm("small")``."""

    def step(denoise, schedule, x_t, state, step):
        t, s, keys = step
        x0 = _denoise_all_at(denoise, x_t, t).x0
        eps = (x_t - schedule.alpha(t) * x0) / schedule.sigma(t)
        std = eta * schedule.sigma(s) / schedule.sigma(t) * jnp.sqrt(schedule.variance_between(t, s))
        direction = jnp.sqrt(jnp.maximum(schedule.sigma(s) ** 2 - std**2, 0.0))
        x_s = schedule.alpha(s) * x0 + direction * eps
        return (x_s + std * normal(keys, x_t.shape[1:]) if eta else x_s), state

    return Sampler(_no_state, step)


class _Multistep(NamedTuple):
    x0: jax.Array  # estimate of the previous step
    half_log_snr: jax.Array  # λ of the previous step; NaN-free stand-in before the first
    steps: jax.Array


def dpmpp_2m() -> Sampler:
    """DPM-Solver++(2M), data prediction, second-order multistep (Lu et al. 2022b, algorithm 2).

    First-order on the first step, which has no memory, and on the last, where λ is infinite and the update is x0
    itself.
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
        return x_s, _Multistep(x0, lam_t, state.steps + 1)

    return Sampler(init, step)


SAMPLERS: dict[str, Callable[[], Sampler]] = {
    "ddpm": ddpm,
    "ddpm_learned": lambda: ddpm("learned"),
    "ddim": ddim,
    "dpmpp_2m": dpmpp_2m,
}
