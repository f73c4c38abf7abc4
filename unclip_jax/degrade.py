"""How a training picture is spoilt before an upsampler sees it as its low-resolution input.

At sampling time that input comes from a decoder, which is never quite sharp or quite right; an upsampler that only ever
saw clean reductions amplifies those faults (Ramesh et al. 2022, §2.1; Ho et al. 2021, cascaded diffusion). Every sample
is spoilt by its own draw.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp


@dataclass(frozen=True)
class DegradeConfig:
    """Attributes:
    blur_prob: probability in [0, 1] that a sample is blurred at all.
    blur_sigma: range of the standard deviation, in pixels of the low-resolution picture (the paper: 3×3 kernel, σ 0.6).
    noise_std: largest standard deviation of the Gaussian noise that is added, for pictures in [−1, 1]; the draw is
      uniform from 0.
    """

    blur_prob: float = 0.5
    blur_sigma: tuple[float, float] = (0.4, 0.6)
    noise_std: float = 0.05


def box_reduce(images: jax.Array, factor: int) -> jax.Array:
    """Mean over factor×factor boxes: [B, H, W, C] -> [B, H/f, W/f, C]."""
    b, h, w, c = images.shape
    return images.reshape(b, h // factor, factor, w // factor, factor, c).mean(axis=(2, 4))


def gaussian_blur(images: jax.Array, sigma: jax.Array) -> jax.Array:
    """3×3 Gaussian with a standard deviation per sample: images [B, H, W, C], sigma [B] > 0; edges are repeated."""
    side = jnp.exp(-0.5 / sigma**2)[:, None, None, None]
    for axis in (1, 2):
        pad = [(1, 1) if a == axis else (0, 0) for a in range(4)]
        padded = jnp.pad(images, pad, mode="edge")
        size = images.shape[axis]
        before, after = (jax.lax.slice_in_dim(padded, start, start + size, axis=axis) for start in (0, 2))
        images = (images + side * (before + after)) / (1.0 + 2.0 * side)
    return images


def degrade(low_res: jax.Array, key: jax.Array, config: DegradeConfig) -> jax.Array:
    """Blurs and noises each sample of [B, h, w, C] in [−1, 1] by its own random amount."""
    batch = low_res.shape[0]
    keys = jax.random.split(key, 4)
    sigma = jax.random.uniform(keys[0], (batch,), minval=config.blur_sigma[0], maxval=config.blur_sigma[1])
    blurred = jax.random.bernoulli(keys[1], config.blur_prob, (batch, 1, 1, 1))
    low_res = jnp.where(blurred, gaussian_blur(low_res, sigma), low_res)
    std = jax.random.uniform(keys[2], (batch, 1, 1, 1), maxval=config.noise_std)
    return low_res + std * jax.random.normal(keys[3], low_res.shape)


def random_crops(images: tuple[jax.Array, ...], key: jax.Array, size: int) -> tuple[jax.Array, ...]:
    """The same random size×size window of each picture, drawn per sample: each [B, H, W, C] -> [B, size, size, C]."""
    batch, height, width = images[0].shape[:3]
    key_y, key_x = jax.random.split(key)
    tops = jax.random.randint(key_y, (batch,), 0, height - size + 1)
    lefts = jax.random.randint(key_x, (batch,), 0, width - size + 1)

    def crop(image, top, left):
        return jax.lax.dynamic_slice(image, (top, left, 0), (size, size, image.shape[-1]))

    return tuple(jax.vmap(crop)(pictures, tops, lefts) for pictures in images)
