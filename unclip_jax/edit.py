"""The paper's manipulations of pictures (Ramesh et al. 2022, §3) and two that users expect beside them.

A picture is encoded as the pair (z_i, x_T): what CLIP sees of it, and the noise from which the decoder draws exactly
that picture, found by inverting DDIM. Every edit moves one of the two, or keeps part of the picture, and decodes again.

    latent = encode(unclip, params, images)
    variations(unclip, params, latent, keys).images          # the same meaning, other details

Pictures are [B, H, W, 3], float in [−1, 1] or uint8, of the size that the system draws. All functions are pure and
compile; what they are given is checked by `inputs`, and one of a thing stands for all pictures of a batch.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from clip_jax.encode import encode_images
from clip_jax.errors import UserError
from clip_jax.model import unit_norm
from clip_jax.towers.text import TextFeatures
from unclip_jax import inputs
from unclip_jax import stage as stages
from unclip_jax.conditioning import Cond
from unclip_jax.degrade import box_reduce
from unclip_jax.diffusion import guidance
from unclip_jax.diffusion.guidance import GuidanceScale
from unclip_jax.diffusion.keys import fold_in_each
from unclip_jax.diffusion.losses import add_noise
from unclip_jax.diffusion.samplers import ddim, ddpm, invert, resampled
from unclip_jax.model import joint_width
from unclip_jax.pipeline import Generation, UnCLIP, encode_text, sample_prior, upsample
from unclip_jax.settings import standard_settings
from unclip_jax.stage import Stage

Params = dict[str, Any]


class Latent(NamedTuple):
    """A picture as the paper's pair: image embedding z_i [B, D] and decoder noise x_T [B, h, w, 3]."""

    image_embed: Float[Array, "B D"]
    x_T: Float[Array, "B h w 3"]


def slerp(first: Float[Array, "*B D"], second: Float[Array, "*B D"], weight: Float[Array, "*W"]) -> Float[Array, "..."]:
    """Spherical interpolation of vectors [..., D]; their lengths are interpolated linearly.

    weight: broadcasts against [..., 1]; 0 gives `first`, 1 `second`, both exactly.
    """
    lengths = [jnp.linalg.norm(a, axis=-1, keepdims=True) for a in (first, second)]
    cosine = jnp.sum(unit_norm(first) * unit_norm(second), axis=-1, keepdims=True)
    angle = jnp.arccos(jnp.clip(cosine, -1.0, 1.0))
    # Between vectors of one direction the sphere is flat, and sin(angle) no divisor.
    flat = angle < 1e-3
    sine = jnp.where(flat, 1.0, jnp.sin(angle))
    a = jnp.where(flat, 1.0 - weight, jnp.sin((1.0 - weight) * angle) / sine)
    b = jnp.where(flat, weight, jnp.sin(weight * angle) / sine)
    length = (1.0 - weight) * lengths[0] + weight * lengths[1]
    between = (a * unit_norm(first) + b * unit_norm(second)) * length
    return jnp.where(weight == 0, first, jnp.where(weight == 1, second, between))


@standard_settings
def embed_images(unclip: UnCLIP, params: Params, images: Any) -> Float[Array, "B D"]:
    """CLIP's image embeddings [B, D], not normalised, of pictures [B, H, W, 3], float in [−1, 1] or uint8."""
    images = inputs.pictures(images, ())
    if unclip.clip.vision is None:
        raise UserError("the CLIP of this system has no image tower: it cannot see a picture to edit; give image_embed")
    size = unclip.clip.vision.image_size
    if images.shape[1:3] != (size, size):
        images = jax.image.resize(images, (len(images), size, size, images.shape[-1]), "cubic")
    return encode_images(unclip.clip, params["clip"], images)


@standard_settings
def encode(
    unclip: UnCLIP,
    params: Params,
    images: Any,
    *,
    image_embed: Any = None,
    iterations: int = 5,
) -> Latent:
    """The pair (z_i, x_T) of pictures: `decode` of it gives them back, as far as the decoder can draw them.

    Args:
        unclip: the architecture of the system.
        params: variables of its networks, as `load` gives them.
        images: [B, H, W, 3], float in [−1, 1] or uint8; H = W, a multiple of the decoder's size.
        image_embed: float [B, D] to pair the noise with, instead of what CLIP sees.
        iterations: denoiser calls per step of the inversion; see `samplers.invert`.

    Raises:
        UserError: as all functions here, for an argument of another shape, type or range; the line names it.
    """
    _check_draws_pictures(unclip)
    images = inputs.pictures(images, (unclip.decoder.sample_shape[0],))
    inputs.number(iterations, 1, 1000, "iterations")
    if image_embed is not None:
        image_embed = inputs.floats(image_embed, (len(images), joint_width(unclip.clip)), "image_embed")
    image_embed = embed_images(unclip, params, images) if image_embed is None else image_embed
    stage, cond = unclip.decoder, _meaning(unclip, image_embed)
    denoise = stages.conditional_denoiser(stage, params["decoder"], cond, guidance_scale=1.0)
    x_T = invert(
        denoise,
        stages.noise_schedule(stage),
        stages.timesteps(stage),
        _reduced(stage, images),
        iterations=iterations,
    )
    return Latent(image_embed, x_T)


@standard_settings
def decode(
    unclip: UnCLIP,
    params: Params,
    latent: Latent | Any,
    keys: Any,
    *,
    eta: float = 0.0,
    guidance_scale: GuidanceScale = 1.0,
) -> Generation:
    """Pictures of pairs (z_i, x_T), by DDIM and without a caption.

    Args:
        unclip: the architecture of the system.
        params: variables of its networks, as `load` gives them.
        latent: of as many pictures as there are keys, or of one.
        keys: [B], for the noise of `eta` > 0 and of the upsamplers.
        eta: 0 draws the one picture that x_T stands for; up to 1, ever freer of it.
        guidance_scale: 1.0, off, is what pictures are inverted with.
    """
    keys = inputs.picture_keys(keys)
    latent = _latents(unclip, latent, len(keys), "latent")
    inputs.number(eta, 0.0, 1.0, "eta")
    inputs.guidance(guidance_scale, len(keys))
    cond = _meaning(unclip, latent.image_embed)
    small = stages.run(
        unclip.decoder,
        params["decoder"],
        cond,
        fold_in_each(keys, 0),
        guidance_scale=guidance_scale,
        x_T=latent.x_T,
        sampler=ddim(eta),
    )
    return Generation(None, latent.image_embed, upsample(unclip, params, small, keys))


@standard_settings
def variations(
    unclip: UnCLIP,
    params: Params,
    latent: Latent | Any,
    keys: Any,
    *,
    eta: float = 1.0,
    guidance_scale: GuidanceScale = 1.0,
) -> Generation:
    """Other pictures with the meaning of this one (§3.1): its z_i is kept, its x_T the less the larger `eta` is.

    latent: of one picture or of as many as there are `keys` [B].
    """
    return decode(unclip, params, latent, keys, eta=eta, guidance_scale=guidance_scale)


@standard_settings
def interpolate(
    unclip: UnCLIP,
    params: Params,
    first: Latent | Any,
    second: Latent | Any,
    weights: Any,
    keys: Any,
    *,
    guidance_scale: GuidanceScale = 1.0,
) -> Generation:
    """Pictures on the way from one to another (§3.2): z_i and x_T both turn along the great circle.

    Args:
        unclip: the architecture of the system.
        params: variables of its networks, as `load` gives them.
        first: of one picture.
        second: of one picture.
        weights: [B] in [0, 1]; 0 is `first`, 1 is `second`.
        keys: [B].
        guidance_scale: as in `decode`; off, the ends are the two pictures.
    """
    keys = inputs.picture_keys(keys)
    first, second = _latents(unclip, first, 1, "first"), _latents(unclip, second, 1, "second")
    weights = inputs.weights(weights, len(keys), "weights", 0.0, 1.0)
    between = [
        slerp(a.reshape(1, -1), b.reshape(1, -1), weights[:, None]).reshape(-1, *a.shape[1:])
        for a, b in zip(first, second, strict=True)
    ]
    return decode(unclip, params, Latent(*between), keys, guidance_scale=guidance_scale)


@standard_settings
def text_diff(
    unclip: UnCLIP,
    params: Params,
    latent: Latent | Any,
    tokens_from: Any,
    tokens_to: Any,
    strength: Any,
    keys: Any,
    *,
    guidance_scale: GuidanceScale = 1.0,
) -> Generation:
    """A picture changed as one caption differs from another (§3.3), with its x_T kept.

    z_i turns towards z_d = (z_t − z_t0) / |z_t − z_t0| by the share `strength` of the angle between them. The paper
    uses 0.25 to 0.5.

    Args:
        unclip: the architecture of the system.
        params: variables of its networks, as `load` gives them.
        latent: of one picture or of B.
        tokens_from: int32 [1, L] or [B, L], what the picture shows.
        tokens_to: int32 [1, L] or [B, L], what it should show.
        strength: [B] in [0, 1].
        keys: [B].
        guidance_scale: as in `decode`.
    """
    keys = inputs.picture_keys(keys)
    count, text = len(keys), unclip.clip.text
    latent = _latents(unclip, latent, count, "latent")
    tokens_from = inputs.prompt_tokens(tokens_from, count, text, "tokens_from")
    tokens_to = inputs.prompt_tokens(tokens_to, count, text, "tokens_to")
    strength = inputs.weights(strength, count, "strength", 0.0, 1.0)
    before, after = (unit_norm(encode_text(unclip, params, t).embed) for t in (tokens_from, tokens_to))
    length = jnp.linalg.norm(latent.image_embed, axis=-1, keepdims=True)
    towards = unit_norm(after - before) * length
    image_embed = slerp(latent.image_embed, jnp.broadcast_to(towards, latent.image_embed.shape), strength[:, None])
    return decode(unclip, params, Latent(image_embed, latent.x_T), keys, guidance_scale=guidance_scale)


@standard_settings
def image_to_image(
    unclip: UnCLIP,
    params: Params,
    images: Any,
    tokens: Any,
    keys: Any,
    *,
    strength: float = 0.6,
    image_embed: Any = None,
    guidance_scale: GuidanceScale | None = None,
) -> Generation:
    """Pictures redrawn to a prompt from some way up: noise hides their details and leaves their layout (SDEdit).

    Args:
        unclip: the architecture of the system.
        params: variables of its networks, as `load` gives them.
        images: [B, H, W, 3], or one for all, float in [−1, 1] or uint8; H = W, a multiple of the decoder's size.
        tokens: int32 [B, L], or of one prompt for all.
        keys: [B].
        strength: share of the decoder's steps that are taken, in (0, 1]; at 1 nothing of the picture is left.
        image_embed: [B, D], what to draw; by default the prior's for the prompt.
        guidance_scale: of the decoder, a scalar or [B]; None takes its own, 1.0 is off.
    """
    inputs.number(strength, 1e-6, 1.0, "strength")
    stage = unclip.decoder
    times = stages.timesteps(stage)
    times = times[len(times) - max(1, round(strength * len(times))) :]
    _check_draws_pictures(unclip)
    keys = inputs.picture_keys(keys)
    inputs.guidance(guidance_scale, len(keys))
    images = inputs.pictures(images, (stage.sample_shape[0],))
    images = inputs.for_all(images, len(keys), f"images are {len(images)}")
    text, image_embed = _asked(unclip, params, tokens, keys, image_embed)
    own = fold_in_each(keys, 0)
    at = jnp.full(len(images), times[0])
    x_t = add_noise(stages.noise_schedule(stage), _reduced(stage, images), at, stages.starting_noise(stage, own))
    cond = Cond.of(text, image_embed)
    small = stages.run(stage, params["decoder"], cond, own, guidance_scale=guidance_scale, x_T=x_t, times=times)
    return Generation(text, image_embed, upsample(unclip, params, small, keys))


@standard_settings
def inpaint(
    unclip: UnCLIP,
    params: Params,
    images: Any,
    mask: Any,
    tokens: Any,
    keys: Any,
    *,
    resamples: int = 4,
    image_embed: Any = None,
    guidance_scale: GuidanceScale | None = None,
) -> Generation:
    """Pictures drawn anew to a prompt where `mask` is True; every other pixel is left as it was, exactly.

    The decoder samples by DDPM and takes each step `resamples` times (RePaint, Lugmayr et al. 2022), so that what it
    draws fits its surroundings.

    Args:
        unclip: the architecture of the system.
        params: variables of its networks, as `load` gives them.
        images: [B, H, W, 3], or one for all, float in [−1, 1] or uint8, of the size that the system draws.
        mask: bool [B, H, W, 1], or one for all, [H, W] say.
        tokens: int32 [B, L], or of one prompt for all.
        keys: [B].
        resamples: how often each step is taken.
        image_embed: [B, D], what to draw; by default the prior's for the prompt.
        guidance_scale: of the decoder, a scalar or [B]; None takes its own, 1.0 is off.
    """
    _check_draws_pictures(unclip)
    keys = inputs.picture_keys(keys)
    inputs.number(resamples, 1, 1000, "resamples")
    inputs.guidance(guidance_scale, len(keys))
    images = inputs.pictures(images, tuple(stage.sample_shape[0] for stage in (unclip.decoder, *unclip.upsamplers)))
    images = inputs.for_all(images, len(keys), f"images are {len(images)}")
    mask = inputs.free_pixels(mask, images.shape)
    text, image_embed = _asked(unclip, params, tokens, keys, image_embed)

    def decorate(stage: Stage) -> guidance.Decorator:
        small = mask.shape[1] // stage.sample_shape[0]
        # A pixel of the small picture is free if any of those under it is.
        free = mask.reshape(len(mask), mask.shape[1] // small, small, mask.shape[2] // small, small, 1).any(axis=(2, 4))
        return guidance.inpaint(_reduced(stage, images), free)

    small = stages.run(
        unclip.decoder,
        params["decoder"],
        Cond.of(text, image_embed),
        fold_in_each(keys, 0),
        guidance_scale=guidance_scale,
        sampler=resampled(ddpm(), resamples),
        decorate=decorate(unclip.decoder),
    )
    return Generation(text, image_embed, upsample(unclip, params, small, keys, decorate=decorate))


def _check_draws_pictures(unclip: UnCLIP) -> None:
    if unclip.movq is not None:
        raise UserError("this decoder draws latents, into which no picture is encoded here: it cannot edit pictures")


def _latents(unclip: UnCLIP, latent: Any, count: int, name: str) -> Latent:
    """The latents of `count` pictures, from those or from one."""
    if not isinstance(latent, tuple) or len(latent) != 2:
        raise UserError(f"{name} is {type(latent).__name__}; give a Latent, as encode returns it")
    return Latent(
        inputs.floats(latent[0], (count, joint_width(unclip.clip)), f"{name}.image_embed"),
        inputs.floats(latent[1], (count, *unclip.decoder.sample_shape), f"{name}.x_T"),
    )


def _meaning(unclip: UnCLIP, image_embed: Float[Array, "B D"]) -> Cond:
    """The image embedding alone: a caption that is dropped."""
    batch, width = len(image_embed), unclip.clip.text.width
    return Cond(
        image_embed=image_embed,
        text_embed=jnp.zeros_like(image_embed),
        text_encodings=jnp.zeros((batch, 1, width)),
        text_mask=jnp.ones((batch, 1), bool),
        keep_text=jnp.zeros(batch, bool),
    )


def _asked(
    unclip: UnCLIP,
    params: Params,
    tokens: Any,
    keys: Key[Array, " B"],
    image_embed: Any,
) -> tuple[TextFeatures, Float[Array, "B D"]]:
    """Text features of a prompt and the image embedding to draw: the one given, or the prior's."""
    text = encode_text(unclip, params, inputs.prompt_tokens(tokens, len(keys), unclip.clip.text))
    if image_embed is not None:
        image_embed = inputs.floats(image_embed, (len(keys), joint_width(unclip.clip)), "image_embed")
    # The decoder folds 0 and the upsamplers 1, 2, … into the keys.
    own = fold_in_each(keys, 1 + len(unclip.upsamplers))
    return text, sample_prior(unclip, params, text, own) if image_embed is None else image_embed


def _reduced(stage: Stage, images: Float[Array, "B H W 3"]) -> Float[Array, "B h w 3"]:
    """Pictures at the size of a stage."""
    return box_reduce(images, stage.sample_shape[0])
