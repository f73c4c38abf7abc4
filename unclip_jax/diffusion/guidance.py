"""Classifier-free guidance, clipping, dynamic thresholding and inpainting, as decorators of a denoiser.

They are applied in this order: predict x0, guide, clip, inpaint. `classifier_free` decorates a `CondDenoiser`, whose
condition is not bound yet; the others decorate a `Denoiser`. x0 is guided here, which is the same as guiding eps or v
as long as x0 is not clipped first: at a fixed x_t each is an affine function of the others.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from unclip_jax.conditioning import Cond, concatenate
from unclip_jax.diffusion.predict import Denoised, Denoiser, per_sample

CondDenoiser = Callable[[Cond], Denoiser]
"""Binds a condition. What depends on the condition alone is computed here, once for all steps of a sampler."""

GuidanceScale = float | Float[Array, ""] | Float[Array, " B"]
"""A scalar, or [B], one per sample; 1.0 is off. An array may be traced: another scale then does not compile again."""

Decorator = Callable[[Denoiser], Denoiser]


def guide(
    conditional: Float[Array, "B ..."], unconditional: Float[Array, "B ..."], guidance_scale: GuidanceScale
) -> Float[Array, "B ..."]:
    """Classifier-free guidance u + s·(c − u) (Ho & Salimans 2022, eq. 6), for estimates of x0 or for logits.

    Args:
        conditional: c, [B, …].
        unconditional: u, of the same shape.
        guidance_scale: s, a scalar or [B]; 1.0 gives c.

    Returns:
        [B, …].
    """
    scale = per_sample(jnp.broadcast_to(guidance_scale, conditional.shape[:1]), conditional)
    return unconditional + scale * (conditional - unconditional)


def is_off(guidance_scale: GuidanceScale | None) -> bool:
    """Whether the unconditional branch need not be run: the scale is None or the Python float 1.0, not an array."""
    return guidance_scale is None or (isinstance(guidance_scale, float) and guidance_scale == 1.0)


def classifier_free(guidance_scale: GuidanceScale) -> Callable[[CondDenoiser], CondDenoiser]:
    """Decorator for classifier-free guidance u + s·(c − u) (Ho & Salimans 2022, eq. 6).

    Both branches run as one batch of 2B. `var_frac` and `x0_error` are those of the conditional branch, because
    extrapolating them has no meaning.

    Args:
        guidance_scale: s, a scalar or [B]; may be traced; 1.0 is off.
    """

    def decorate(bind: CondDenoiser) -> CondDenoiser:
        def guided(cond: Cond) -> Denoiser:
            cond = cond.with_keep(cond.batch_size)
            denoise = bind(concatenate(cond, cond.null()))

            def denoise_guided(
                x_t: Float[Array, "B ..."], t: Int[Array, " B"], *given: Float[Array, "B ..."]
            ) -> Denoised:
                both = denoise(*(jnp.concatenate([rows, rows]) for rows in (x_t, t, *given)))
                conditional, unconditional = jnp.split(both.x0, 2)
                var_frac, x0_error = (None if a is None else jnp.split(a, 2)[0] for a in both[1:])
                return Denoised(guide(conditional, unconditional, guidance_scale), var_frac, x0_error)

            return denoise_guided

        return guided

    return decorate


def clip_x0(low: float, high: float) -> Decorator:
    """Decorator that clips the estimate of x0 to [low, high], the range of the data."""

    def decorate(denoise: Denoiser) -> Denoiser:
        def clipped(x_t: Float[Array, "B ..."], t: Int[Array, " B"], *given: Float[Array, "B ..."]) -> Denoised:
            estimate = denoise(x_t, t, *given)
            return estimate._replace(x0=jnp.clip(estimate.x0, low, high))

        return clipped

    return decorate


def inpaint(known: Float[Array, "B ..."], mask: Bool[Array, "*M"]) -> Decorator:
    """Decorator that replaces the estimate of x0 by `known` where `mask` is False; the outermost decorator.

    A sampler then keeps the known part at the noise level of each timestep, and ends at exactly `known`.

    Args:
        known: [B, ...], the clean data to keep.
        mask: bool, broadcasts against `known`; True where data is sampled.
    """

    def decorate(denoise: Denoiser) -> Denoiser:
        def inpainted(x_t: Float[Array, "B ..."], t: Int[Array, " B"], *given: Float[Array, "B ..."]) -> Denoised:
            estimate = denoise(x_t, t, *given)
            return estimate._replace(x0=jnp.where(mask, estimate.x0, known))

        return inpainted

    return decorate


def dynamic_threshold(percentile: float) -> Decorator:
    """Decorator for dynamic thresholding of x0 (Imagen, Saharia et al. 2022, §2.3).

    Each sample is clipped to ±s and divided by s, where s is a percentile of its own |x0|, at least 1.

    Args:
        percentile: 0 to 100.
    """

    def decorate(denoise: Denoiser) -> Denoiser:
        def thresholded(x_t: Float[Array, "B ..."], t: Int[Array, " B"], *given: Float[Array, "B ..."]) -> Denoised:
            estimate = denoise(x_t, t, *given)
            magnitude = jnp.abs(estimate.x0).reshape(x_t.shape[0], -1)
            limit = per_sample(jnp.maximum(jnp.percentile(magnitude, percentile, axis=1), 1.0), x_t)
            return estimate._replace(x0=jnp.clip(estimate.x0, -limit, limit) / limit)

        return thresholded

    return decorate
