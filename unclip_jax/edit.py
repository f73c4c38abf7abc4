"""Edits of pictures: variations, interpolation and text diffs (Ramesh et al. 2022, §3), SDEdit and inpainting.

A picture is encoded as the pair (z_i, x_T): its CLIP image embedding, and the noise from which the decoder draws that
picture, found by DDIM inversion. An edit changes one of the two, or keeps a part of the picture, and decodes again.

    latent = encode(unclip, params, images)
    variations(unclip, params, latent, keys).images          # the same content and style, other details

Pictures are [B, H, W, 3], float in [−1, 1] or uint8, of the size that the system draws. All functions are pure and can
be compiled by `jax.jit`. Arguments are checked by `inputs`, which raises UserError with the name of the argument; an
argument of batch size 1 is broadcast to all pictures.
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
    """Encoded pictures, the paper's pair (z_i, x_T).

    Attributes:
        image_embed: CLIP image embedding z_i, not normalised, [B, D].
        x_T: noise of the decoder, [B, h, w, 3].
    """

    image_embed: Float[Array, "B D"]
    x_T: Float[Array, "B h w 3"]


def slerp(first: Float[Array, "*B D"], second: Float[Array, "*B D"], weight: Float[Array, "*W"]) -> Float[Array, "..."]:
    """Spherical interpolation (slerp) of vectors; their lengths are interpolated linearly.

    Args:
        first: [..., D].
        second: [..., D].
        weight: broadcasts against [..., 1]; 0 gives exactly `first`, 1 exactly `second`.
    """
    lengths = [jnp.linalg.norm(a, axis=-1, keepdims=True) for a in (first, second)]
    cosine = jnp.sum(unit_norm(first) * unit_norm(second), axis=-1, keepdims=True)
    angle = jnp.arccos(jnp.clip(cosine, -1.0, 1.0))
    # Vectors of nearly one direction are interpolated linearly, as sin(angle) is nearly 0 there.
    flat = angle < 1e-3
    sine = jnp.where(flat, 1.0, jnp.sin(angle))
    a = jnp.where(flat, 1.0 - weight, jnp.sin((1.0 - weight) * angle) / sine)
    b = jnp.where(flat, weight, jnp.sin(weight * angle) / sine)
    length = (1.0 - weight) * lengths[0] + weight * lengths[1]
    between = (a * unit_norm(first) + b * unit_norm(second)) * length
    return jnp.where(weight == 0, first, jnp.where(weight == 1, second, between))


@standard_settings
def embed_images(unclip: UnCLIP, params: Params, images: Any) -> Float[Array, "B D"]:
    """CLIP image embeddings of pictures.

    Args:
        unclip: the architecture of the system.
        params: variables of its networks, as `load` returns them.
        images: [B, H, W, 3], float in [−1, 1] or uint8, of any size; resized to that of CLIP (bicubic).

    Returns:
        float32 [B, D], not normalised.

    Raises:
        UserError: `images` are no such pictures, or the CLIP has no image tower.
    """
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
    """Encodes pictures as (z_i, x_T) by DDIM inversion; `decode` reconstructs them, as far as the decoder can.

    Args:
        unclip: the architecture of the system.
        params: variables of its networks, as `load` returns them.
        images: [B, H, W, 3], float in [−1, 1] or uint8; H = W, a multiple of the decoder's size.
        image_embed: float [B, D], image embeddings to invert with in place of those of the pictures.
        iterations: fixed-point iterations per step of the inversion, see `samplers.invert`.

    Raises:
        UserError: an argument has another shape, dtype or range, the CLIP has no image tower, or the decoder draws
            latents (Kandinsky), which cannot be edited.
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
    """Decodes pairs (z_i, x_T) to pictures, by DDIM and without a caption.

    Args:
        unclip: the architecture of the system.
        params: variables of its networks, as `load` returns them.
        latent: of B pictures, or of one.
        keys: [B], for the noise of DDIM with `eta` > 0 and of the upsamplers.
        eta: DDIM stochasticity, 0 to 1; 0 reconstructs the picture of x_T, larger values depend less on x_T.
        guidance_scale: scale of the decoder, a scalar or [B]; pictures are inverted with 1.0 (off).

    Raises:
        UserError: an argument has another shape, dtype or range.
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
    """Variations of pictures (§3.1): z_i is kept, and x_T counts less the larger `eta` is.

    Args:
        unclip: the architecture of the system.
        params: variables of its networks, as `load` returns them.
        latent: of B pictures, or of one.
        keys: [B].
        eta: DDIM stochasticity, 0 (reconstruction) to 1.
        guidance_scale: as in `decode`.

    Raises:
        UserError: an argument has another shape, dtype or range.
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
    """Interpolates between two pictures (§3.2): spherical interpolation of both z_i and x_T.

    Args:
        unclip: the architecture of the system.
        params: variables of its networks, as `load` returns them.
        first: latent of one picture.
        second: latent of one picture.
        weights: [B] in [0, 1]; 0 is `first`, 1 is `second`.
        keys: [B].
        guidance_scale: as in `decode`; with 1.0 (off) weights 0 and 1 reconstruct the two pictures.

    Raises:
        UserError: an argument has another shape, dtype or range.
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
    """Text diff (§3.3): edits pictures by the difference between two captions; x_T is kept.

    z_i is rotated towards z_d = (z_t − z_t0) / |z_t − z_t0|, where z_t0 and z_t are the normalised text embeddings, by
    the fraction `strength` of the angle between them. The length of z_i is kept.

    Args:
        unclip: the architecture of the system.
        params: variables of its networks, as `load` returns them.
        latent: of B pictures, or of one.
        tokens_from: int32 [1, L] or [B, L], captions of the pictures as they are.
        tokens_to: int32 [1, L] or [B, L], captions of the pictures as they should be.
        strength: a scalar or [B], in [0, 1]; 0.25 to 0.5 in the paper.
        keys: [B].
        guidance_scale: as in `decode`.

    Raises:
        UserError: an argument has another shape, dtype or range.
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
    """Image to image (SDEdit, Meng et al. 2022): draws a prompt starting from noised pictures, whose layout is kept.

    Args:
        unclip: the architecture of the system.
        params: variables of its networks, as `load` returns them.
        images: [B, H, W, 3], or one for all, float in [−1, 1] or uint8; H = W, a multiple of the decoder's size.
        tokens: int32 [B, L], or [1, L], one prompt for all.
        keys: [B].
        strength: share of the decoder's sampling steps that are taken, in (0, 1]; with 1 the pictures are all noise.
        image_embed: [B, D], image embeddings to draw; None samples the prior for the prompt.
        guidance_scale: scale of the decoder, a scalar or [B]; None takes that of the stage, 1.0 is off.

    Raises:
        UserError: an argument has another shape, dtype or range, or the decoder draws latents (Kandinsky).
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
    """Inpainting: draws a prompt where `mask` is True; every other pixel keeps its exact value.

    The decoder samples by DDPM and takes each step `resamples` times (RePaint, Lugmayr et al. 2022), so that the new
    part fits its surroundings.

    Args:
        unclip: the architecture of the system.
        params: variables of its networks, as `load` returns them.
        images: [B, H, W, 3], or one for all, float in [−1, 1] or uint8, of the size that the system draws.
        mask: bool [B, H, W, 1], or one for all, [H, W] for example; True where a picture is drawn anew.
        tokens: int32 [B, L], or [1, L], one prompt for all.
        keys: [B].
        resamples: how often each step is taken, 1 to 1000.
        image_embed: [B, D], image embeddings to draw; None samples the prior for the prompt.
        guidance_scale: scale of the decoder, a scalar or [B]; None takes that of the stage, 1.0 is off.

    Raises:
        UserError: an argument has another shape, dtype or range, or the decoder draws latents (Kandinsky).
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
        # A pixel of the reduced picture is drawn anew if any of the pixels that it averages is.
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
    """Checks a latent of `count` pictures or of one, and broadcasts it to `count` pictures."""
    if not isinstance(latent, tuple) or len(latent) != 2:
        raise UserError(f"{name} is {type(latent).__name__}; give a Latent, as encode returns it")
    return Latent(
        inputs.floats(latent[0], (count, joint_width(unclip.clip)), f"{name}.image_embed"),
        inputs.floats(latent[1], (count, *unclip.decoder.sample_shape), f"{name}.x_T"),
    )


def _meaning(unclip: UnCLIP, image_embed: Float[Array, "B D"]) -> Cond:
    """A condition of image embeddings alone, with the caption dropped."""
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
    """Text features of the prompts, and the image embeddings to draw: those given, or samples of the prior."""
    text = encode_text(unclip, params, inputs.prompt_tokens(tokens, len(keys), unclip.clip.text))
    if image_embed is not None:
        image_embed = inputs.floats(image_embed, (len(keys), joint_width(unclip.clip)), "image_embed")
    # 0 is folded into the keys for the decoder, 1, 2, … for the upsamplers, and the next number for the prior.
    own = fold_in_each(keys, 1 + len(unclip.upsamplers))
    return text, sample_prior(unclip, params, text, own) if image_embed is None else image_embed


def _reduced(stage: Stage, images: Float[Array, "B H W 3"]) -> Float[Array, "B h w 3"]:
    """Pictures reduced to the size that a stage draws, by averaging boxes."""
    return box_reduce(images, stage.sample_shape[0])
