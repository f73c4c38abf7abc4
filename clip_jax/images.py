"""From pictures to the network's input, as the weights were trained to see them.

Bit-exact to the published recipe (Pillow's uint8 resampling and torchvision's rounding), which is why it runs on the
host: no resampling in floating point gives the same pixels. Where images already have the network's size, as in
training, `normalise` does the rest on the device.
"""

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num
from PIL import Image, UnidentifiedImageError

from clip_jax.config import PreprocessConfig
from clip_jax.errors import UserError

Picture = str | os.PathLike | bytes | Image.Image | np.ndarray
RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


def normalise(images: Num[Array, "*B H W 3"], config: PreprocessConfig) -> Float[Array, "*B H W 3"]:
    """Images of the right size -> CLIP-normalised float32, under `jit`: uint8 [0, 255], or float in [−1, 1]."""
    unit = images / jnp.float32(255) if images.dtype == jnp.uint8 else (images.astype(jnp.float32) + 1) / 2
    return (unit - jnp.asarray(config.mean, jnp.float32)) / jnp.asarray(config.std, jnp.float32)


def open_image(source: Picture) -> Image.Image:
    """A picture from a path, encoded bytes, a Pillow image or a uint8 array [H, W, 3].

    Raises: UserError when there is no such file or it is not a picture.
    """
    if isinstance(source, Image.Image):
        return source
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim != 3 or source.shape[-1] != 3:
            raise UserError(f"an image array must be uint8 [H, W, 3], got {source.dtype} {list(source.shape)}")
        return Image.fromarray(source)
    try:
        image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else Path(source))
        image.load()
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise UserError(f"cannot read the picture: {error}") from error
    return image


def resize_and_crop(image: Image.Image, size: int, config: PreprocessConfig) -> Image.Image:
    """RGB, `size` × `size`. The order (resize, crop, then RGB) and every rounding are torchvision's."""
    resampling = RESAMPLING[config.interpolation]
    if config.resize == "squash":
        return image.convert("RGB").resize((size, size), resampling)
    width, height = image.size
    short, long = min(width, height), max(width, height)
    if short != size:
        other = int(size * long / short)  # truncated, not rounded
        image = image.resize((size, other) if width <= height else (other, size), resampling)
    width, height = image.size
    left, top = round((width - size) / 2), round((height - size) / 2)  # to even, as Python does
    return image.crop((left, top, left + size, top + size)).convert("RGB")


class Preprocess:
    """`preprocess(images)` -> float32 [B, size, size, 3], CLIP-normalised: one picture or several, of any size."""

    def __init__(self, config: PreprocessConfig, size: int):
        self.config = config
        self.size = size

    def __call__(self, images: Picture | Sequence[Picture] | np.ndarray) -> Float[np.ndarray, "B H W 3"]:
        """Raises UserError for what is not a picture."""
        several = isinstance(images, Sequence) and not isinstance(images, str | bytes)
        several = several or (isinstance(images, np.ndarray) and images.ndim == 4)
        return np.stack([self.one(image) for image in (images if several else [images])])  # type: ignore[union-attr, list-item]

    def one(self, image: Any) -> Float[np.ndarray, "H W 3"]:
        """A single picture, without the batch axis."""
        pixels = np.asarray(resize_and_crop(open_image(image), self.size, self.config))
        unit = pixels.astype(np.float32) / np.float32(255)
        return (unit - np.asarray(self.config.mean, np.float32)) / np.asarray(self.config.std, np.float32)
