"""Degradations (blur, noise, BSR, JPEG) of the low-resolution input that upsamplers are trained with, and crops.

In sampling that input comes from a decoder, whose pictures are never quite sharp or right; an upsampler trained on
clean reductions would amplify their faults (Ramesh et al. 2022, §2.1; Ho et al. 2022, cascaded diffusion). The
degradation of each sample is drawn independently.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from clip_jax.errors import UserError
from unclip_jax.settings import standard_settings


@dataclass(frozen=True)
class DegradeConfig:
    """Gaussian blur and a little noise, for the first upsampler.

    Attributes:
        blur_prob: probability in [0, 1] that a sample is blurred.
        blur_sigma: range of the standard deviation, in pixels of the low-resolution picture (the paper: 3×3 kernel,
            σ 0.6).
        noise_std: largest standard deviation of the added Gaussian noise, for pictures in [−1, 1]; the deviation of a
            sample is uniform from 0 to it.
    """

    blur_prob: float = 0.5
    blur_sigma: tuple[float, float] = (0.4, 0.6)
    noise_std: float = 0.05


@dataclass(frozen=True)
class BSRConfig:
    """A stronger degradation, for the upsampler to the largest size: after BSR (BSRGAN, Zhang et al. 2021).

    Blur, resizing, noise and JPEG compression; for each sample it is drawn which of them apply, and how strongly. It is
    simpler than the original: the four come in this order and are not shuffled, there is one blur instead of two, the
    noise is grey or independent per channel, and there is no camera sensor noise.

    Attributes:
        prob: probability of each of the four.
        blur_sigma: range of the two standard deviations of the blur kernel, in pixels. Half of the kernels are
            isotropic; the others have two different deviations and a random orientation.
        scale: smallest factor, in (0, 1], by which a picture is reduced before it is enlarged again, bilinearly or
            bicubically.
        noise_std: largest standard deviation of the noise, for pictures in [−1, 1] (in the paper 25 levels of 255).
        quality: range of the JPEG quality, 1 to 100.
    """

    prob: float = 0.8
    blur_sigma: tuple[float, float] = (0.2, 1.5)
    scale: float = 0.5
    noise_std: float = 50 / 255
    quality: tuple[float, float] = (30.0, 95.0)


@standard_settings
def box_reduce(images: Float[Array, "B H W C"], height: int) -> Float[Array, "B {height} w C"]:
    """Reduces pictures by the mean over square boxes: [B, H, W, C] -> [B, height, W · height / H, C].

    Args:
        images: [B, H, W, C].
        height: height of the result; must divide H, and H / height must divide W.

    Raises:
        UserError: the pictures cannot be divided into such boxes.
    """
    b, h, w, c = images.shape
    factor = max(h // height, 1)
    if h != factor * height or w % factor:
        raise UserError(f"pictures of {h}×{w} pixels cannot be reduced to {height} by whole boxes; give a multiple")
    return images.reshape(b, h // factor, factor, w // factor, factor, c).mean(axis=(2, 4))


@standard_settings
def gaussian_blur(images: Float[Array, "B H W C"], sigma: Float[Array, " B"]) -> Float[Array, "B H W C"]:
    """Gaussian blur with a 3×3 kernel; edges are repeated.

    Args:
        images: [B, H, W, C].
        sigma: standard deviation of each sample, [B] > 0, in pixels.
    """
    side = jnp.exp(-0.5 / sigma**2)[:, None, None, None]
    for axis in (1, 2):
        pad = [(1, 1) if a == axis else (0, 0) for a in range(4)]
        padded = jnp.pad(images, pad, mode="edge")
        size = images.shape[axis]
        before, after = (jax.lax.slice_in_dim(padded, start, start + size, axis=axis) for start in (0, 2))
        images = (images + side * (before + after)) / (1.0 + 2.0 * side)
    return images


@standard_settings
def degrade(
    low_res: Float[Array, "B h w C"], key: Key[Array, ""], config: DegradeConfig | BSRConfig
) -> Float[Array, "B h w C"]:
    """Degrades each sample by an independent random amount.

    Args:
        low_res: [B, h, w, C] in [−1, 1].
        key: one PRNG key.
        config: which degradation.

    Returns:
        [B, h, w, C]; noise may leave [−1, 1].
    """
    if isinstance(config, BSRConfig):
        return bsr(low_res, key, config)
    batch = low_res.shape[0]
    keys = jax.random.split(key, 4)
    sigma = jax.random.uniform(keys[0], (batch,), jnp.float32, minval=config.blur_sigma[0], maxval=config.blur_sigma[1])
    blurred = jax.random.bernoulli(keys[1], config.blur_prob, (batch, 1, 1, 1))
    low_res = jnp.where(blurred, gaussian_blur(low_res, sigma), low_res)
    std = jax.random.uniform(keys[2], (batch, 1, 1, 1), jnp.float32, maxval=config.noise_std)
    return low_res + std * jax.random.normal(keys[3], low_res.shape, jnp.float32)


@standard_settings
def bsr(images: Float[Array, "B H W 3"], key: Key[Array, ""], config: BSRConfig) -> Float[Array, "B H W 3"]:
    """Blur, resizing, noise and JPEG compression of each sample, see `BSRConfig`.

    Args:
        images: [B, H, W, 3] in [−1, 1].
        key: one PRNG key.
        config: probabilities and ranges.
    """
    batch = images.shape[0]
    keys = jax.random.split(key, 12)

    def uniform(i, low, high, shape=(batch,)):
        return jax.random.uniform(keys[i], shape, jnp.float32, minval=low, maxval=high)

    def sometimes(i, changed, images):
        return jnp.where(jax.random.bernoulli(keys[i], config.prob, (batch, 1, 1, 1)), changed, images)

    sigma = uniform(0, *config.blur_sigma, shape=(batch, 2))
    sigma = jnp.where(jax.random.bernoulli(keys[1], 0.5, (batch, 1)), sigma[:, :1], sigma)  # isotropic
    images = sometimes(2, blur(images, sigma, uniform(3, 0.0, jnp.pi)), images)
    reduced = lose_resolution(images, uniform(4, config.scale, 1.0), jax.random.bernoulli(keys[5], 0.5, (batch,)))
    images = sometimes(6, reduced, images)
    noise = jax.random.normal(keys[7], images.shape, jnp.float32)
    noise = jnp.where(jax.random.bernoulli(keys[8], 0.5, (batch, 1, 1, 1)), noise[..., :1], noise)  # grey
    noised = images + uniform(9, 0.0, config.noise_std, shape=(batch, 1, 1, 1)) * noise
    images = sometimes(10, noised, images)
    key_quality, key_jpeg = jax.random.split(keys[11])
    quality = jax.random.uniform(key_quality, (batch,), jnp.float32, minval=config.quality[0], maxval=config.quality[1])
    compressed = jax.random.bernoulli(key_jpeg, config.prob, (batch, 1, 1, 1))
    return jnp.where(compressed, jpeg(images, quality), images)


@standard_settings
def blur(
    images: Float[Array, "B H W C"], sigma: Float[Array, "B 2"], angle: Float[Array, " B"], radius: int = 3
) -> Float[Array, "B H W C"]:
    """Anisotropic Gaussian blur with a covariance per sample; edges are repeated.

    Args:
        images: [B, H, W, C].
        sigma: [B, 2] > 0, standard deviations along and across `angle`.
        angle: [B], in radians from the x to the y axis.
        radius: the kernel has 2 · radius + 1 pixels along each side.
    """
    offsets = jnp.arange(-radius, radius + 1, dtype=jnp.float32)
    y, x = jnp.meshgrid(offsets, offsets, indexing="ij")
    cos, sin = (f(angle)[:, None, None] for f in (jnp.cos, jnp.sin))
    along, across = cos * x + sin * y, cos * y - sin * x
    first, second = sigma[:, 0, None, None], sigma[:, 1, None, None]
    kernel = jnp.exp(-0.5 * (jnp.square(along / first) + jnp.square(across / second)))
    kernel = kernel / kernel.sum(axis=(1, 2), keepdims=True)
    padded = jnp.pad(images, ((0, 0), (radius, radius), (radius, radius), (0, 0)), mode="edge")
    _, height, width, _ = images.shape
    out = jnp.zeros_like(images)
    for i in range(2 * radius + 1):
        for j in range(2 * radius + 1):
            out = out + kernel[:, i, j, None, None, None] * padded[:, i : i + height, j : j + width]
    return out


@standard_settings
def lose_resolution(
    images: Float[Array, "B H W C"], scale: Float[Array, " B"], cubic: Bool[Array, " B"]
) -> Float[Array, "B H W C"]:
    """Reduces each picture (antialiased) and enlarges it to its size again.

    The factor is traced while shapes are static, so both resizings together are one matrix product per axis.

    Args:
        images: [B, H, W, C].
        scale: factor of each sample, [B] in (0, 1]; the reduced size is rounded to whole pixels.
        cubic: [B], bicubic if True, bilinear if False.

    Returns:
        [B, H, W, C].
    """
    rows, columns = (
        jax.vmap(lambda s, c, n=n: _reduced_and_enlarged(n, s, c))(scale, cubic) for n in images.shape[1:3]
    )
    return jnp.einsum("byh,bxw,bhwc->byxc", rows, columns, images)


def _reduced_and_enlarged(size: int, scale: Float[Array, ""], cubic: Bool[Array, ""]) -> Float[Array, "size size"]:
    """[size, size] matrix that resizes `size` pixels to round(scale·size) and back."""
    small = jnp.maximum(jnp.round(scale * size), 1.0)
    ratio = small / size
    index = jnp.arange(size, dtype=jnp.float32)

    def weights(centres, width, columns):
        distance = jnp.abs(centres[:, None] - index[None, :]) / width
        linear = jnp.maximum(1.0 - distance, 0.0)
        near = (1.5 * distance - 2.5) * distance**2 + 1.0  # Keys 1981, with a = −1/2
        far = ((-0.5 * distance + 2.5) * distance - 4.0) * distance + 2.0
        keys = jnp.where(distance < 1, near, jnp.where(distance < 2, far, 0.0))
        chosen = jnp.where(cubic, keys, linear) * (index < columns)[None, :]
        total = chosen.sum(axis=1, keepdims=True)
        return chosen / jnp.where(total == 0, 1.0, total)

    # Rows of `down` beyond the reduced size have no meaning: the columns of `up` that would read them are zero.
    down = weights((index + 0.5) / ratio - 0.5, 1.0 / ratio, size)
    up = weights((index + 0.5) * ratio - 0.5, 1.0, small)
    return up @ down


# Quantisation tables K.1 and K.2 of the JPEG standard (ITU-T T.81), for quality 50.
_LUMINANCE = np.array(
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ],
    np.float32,
)
_CHROMINANCE = np.full((8, 8), 99, np.float32)
_CHROMINANCE[:4, :4] = [[17, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99]]
_TABLES = np.stack([_LUMINANCE, _CHROMINANCE, _CHROMINANCE])  # of Y, Cb and Cr
# JFIF: R'G'B' -> Y'CbCr, without the offset of Cb and Cr.
_YCBCR = np.array(
    [[0.299, 0.587, 0.114], [-0.168735892, -0.331264108, 0.5], [0.5, -0.418687589, -0.081312411]], np.float32
)
_DCT = np.sqrt(2 / 8) * np.cos(np.pi * (2 * np.arange(8) + 1) * np.arange(8)[:, None] / 16)
_DCT[0] /= np.sqrt(2)
_DCT = _DCT.astype(np.float32)


@standard_settings
def jpeg(images: Float[Array, "B H W 3"], quality: Float[Array, " B"]) -> Float[Array, "B H W 3"]:
    """The loss of JPEG compression: 8×8 DCT, quantisation and back, without an encoded file.

    The tables of the standard are scaled by quality as in libjpeg; chroma is not subsampled.

    Args:
        images: [B, H, W, 3] in [−1, 1].
        quality: [B], 1 to 100.

    Returns:
        [B, H, W, 3] in [−1, 1].
    """
    batch, height, width, _ = images.shape
    padded = jnp.pad(images, ((0, 0), (0, -height % 8), (0, -width % 8), (0, 0)), mode="edge")
    levels = jnp.clip(jnp.round(padded * 127.5 + 127.5), 0, 255)
    colours = jnp.round(levels @ _YCBCR.T - np.array([128.0, 0.0, 0.0], np.float32))
    blocks = colours.reshape(batch, padded.shape[1] // 8, 8, padded.shape[2] // 8, 8, 3)
    percent = jnp.where(quality < 50, jnp.floor(5000.0 / quality), 200.0 - 2.0 * quality)
    steps = jnp.floor((percent[:, None, None, None] * _TABLES + 50.0) / 100.0)
    steps = jnp.clip(steps, 1.0, 255.0).transpose(0, 2, 3, 1)[:, None, :, None]  # [B, 1, 8, 1, 8, 3]
    coefficients = jnp.einsum("ui,vj,bhiwjc->bhuwvc", _DCT, _DCT, blocks)
    kept = jnp.round(coefficients / steps) * steps
    restored = jnp.round(jnp.einsum("ui,vj,bhuwvc->bhiwjc", _DCT, _DCT, kept)).reshape(colours.shape)
    restored = jnp.clip(restored, -128, 127)
    restored = restored + np.array([128.0, 0.0, 0.0], np.float32)
    levels = jnp.round(restored @ np.linalg.inv(_YCBCR).T.astype(np.float32))
    return (jnp.clip(levels, 0, 255) / 127.5 - 1.0)[:, :height, :width]


@standard_settings
def add_level(
    low_res: Float[Array, "B h w C"], level: Float[Array, " B"], noise: Float[Array, "B h w C"]
) -> Float[Array, "B h w C"]:
    """Conditioning augmentation, non-truncated (Ho et al. 2022, §4): √(1 − level²)·low_res + level·noise.

    The upsampler reads the level, in training and in sampling, and so learns how far to trust its input.

    Args:
        low_res: [B, h, w, C].
        level: [B] in [0, 1].
        noise: standard normal noise, [B, h, w, C].
    """
    level = level[:, None, None, None]
    return jnp.sqrt(1.0 - level**2) * low_res + level * noise


@standard_settings
def random_crops(
    images: tuple[Float[Array, "B H W _"], ...], key: Key[Array, ""], size: int
) -> tuple[Float[Array, "B {size} {size} _"], ...]:
    """Random crops, at a place drawn per sample and the same in all arrays.

    Args:
        images: arrays [B, H, W, C] of the same B, H and W.
        key: one PRNG key.
        size: side of the crops in pixels, at most H and W.

    Returns:
        One array [B, size, size, C] per array of `images`.
    """
    batch, height, width = images[0].shape[:3]
    key_y, key_x = jax.random.split(key)
    tops = jax.random.randint(key_y, (batch,), 0, height - size + 1)
    lefts = jax.random.randint(key_x, (batch,), 0, width - size + 1)

    def crop(image, top, left):
        return jax.lax.dynamic_slice(image, (top, left, 0), (size, size, image.shape[-1]))

    return tuple(jax.vmap(crop)(pictures, tops, lefts) for pictures in images)
