"""Decorators of a denoiser, applied inside out: predict, then guide, then clip.

Guidance comes before the condition is bound, the others after it. Guiding x0 is the same as guiding eps or v, because
each is linear in the other at a fixed x_t, but only before clipping.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from unclip_jax.conditioning import Cond, concatenate
from unclip_jax.diffusion.predict import Denoised, Denoiser, per_sample

CondDenoiser = Callable[[Cond], Denoiser]
"""Binds a condition. What can be computed of the condition alone is computed here, once for all steps of a sampler."""

GuidanceScale = float | Float[Array, ""] | Float[Array, " B"]
"""1.0 is off. One for all or one per sample; as an array it is data, and another one does not compile again."""

Decorator = Callable[[Denoiser], Denoiser]


def guide(
    conditional: Float[Array, "B ..."], unconditional: Float[Array, "B ..."], guidance_scale: GuidanceScale
) -> Float[Array, "B ..."]:
    """Classifier-free guidance u + s·(c − u) (Ho & Salimans 2022, eq. 6), of estimates of x0 as of logits.

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
    """Whether the unconditional branch need not be run: there is no scale, or it is a plain 1.0 and no data."""
    return guidance_scale is None or (isinstance(guidance_scale, float) and guidance_scale == 1.0)


def classifier_free(guidance_scale: GuidanceScale) -> Callable[[CondDenoiser], CondDenoiser]:
    """Classifier-free guidance u + s·(c − u) (Ho & Salimans 2022, eq. 6).

    `guidance_scale` is a scalar or [B] and may be traced; 1.0 is off. Both branches run as one batch of 2B. The
    learned variance and the error are the conditional branch's: extrapolating them has no meaning.
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
    """Clamps the estimate of clean data to [low, high], the range of the data."""

    def decorate(denoise: Denoiser) -> Denoiser:
        def clipped(x_t: Float[Array, "B ..."], t: Int[Array, " B"], *given: Float[Array, "B ..."]) -> Denoised:
            estimate = denoise(x_t, t, *given)
            return estimate._replace(x0=jnp.clip(estimate.x0, low, high))

        return clipped

    return decorate


def inpaint(known: Float[Array, "B ..."], mask: Bool[Array, "*M"]) -> Decorator:
    """The estimate of clean data is `known` [B, ...] wherever `mask` (broadcasts against it) is False.

    Samplers then carry the known part down at its right noise, and end at it exactly. Outermost of the decorators.
    """

    def decorate(denoise: Denoiser) -> Denoiser:
        def inpainted(x_t: Float[Array, "B ..."], t: Int[Array, " B"], *given: Float[Array, "B ..."]) -> Denoised:
            estimate = denoise(x_t, t, *given)
            return estimate._replace(x0=jnp.where(mask, estimate.x0, known))

        return inpainted

    return decorate


def dynamic_threshold(percentile: float) -> Decorator:
    """Scales each sample's x0 into [−1, 1] by its own `percentile` (0 to 100) of |x0|, at least 1 (Imagen, §2.3)."""

    def decorate(denoise: Denoiser) -> Denoiser:
        def thresholded(x_t: Float[Array, "B ..."], t: Int[Array, " B"], *given: Float[Array, "B ..."]) -> Denoised:
            estimate = denoise(x_t, t, *given)
            magnitude = jnp.abs(estimate.x0).reshape(x_t.shape[0], -1)
            limit = per_sample(jnp.maximum(jnp.percentile(magnitude, percentile, axis=1), 1.0), x_t)
            return estimate._replace(x0=jnp.clip(estimate.x0, -limit, limit) / limit)

        return thresholded

    return decorate
