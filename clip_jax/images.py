"""From pictures to the network's input, as the weights were trained to see them.

Bit-exact to the published recipe (Pillow's uint8 resampling and torchvision's rounding), which is why it runs on the
host: no resampling in floating point gives the same pixels. Where images already have the network's size, as in
training, `normalise` does the rest on the device.

The recipe says nothing sensible about some pictures, so there this departs from it: they are turned upright (EXIF),
transparency shows white, palettes and bilevel pictures are resampled in colour and not by nearest neighbours, and
16 bits become 8 by scaling and not by clipping.
"""

import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num
from PIL import Image, ImageOps

from clip_jax.arrays import AnyArray
from clip_jax.config import PreprocessConfig
from clip_jax.errors import UserError

Picture = str | os.PathLike | bytes | Image.Image | AnyArray
RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
MOST_PIXELS = 100_000_000  # of a resized picture; a strip of 1 × 100,000 pixels would fill the memory


def normalise(images: Num[AnyArray, "*B H W c"], config: PreprocessConfig) -> Float[Array, "*B H W c"]:
    """Images of the right size -> CLIP-normalised float32, under `jit`: uint8 [0, 255], or float in [−1, 1]."""
    h: Any = images.astype(jnp.float32)
    unit = h / jnp.float32(255) if images.dtype == jnp.uint8 else (h + 1) / 2
    per_channel = (1,) * (images.ndim - 1) + (-1,)
    mean, std = (jnp.asarray(x, jnp.float32).reshape(per_channel) for x in (config.mean, config.std))
    return (unit - mean) / std


def open_image(source: Any) -> Image.Image:
    """A picture from a path, encoded bytes, a Pillow image or an array, upright and without transparency.

    Arrays are uint8 [H, W, 3], [H, W] or [H, W, 1] grey, [H, W, 4] with transparency, or uint16 [H, W] grey.

    Raises: UserError when there is no such file, it is damaged or no picture, or its numbers could mean anything.
    """
    if isinstance(source, Image.Image):
        return plain(source)
    if isinstance(source, str | os.PathLike | bytes):
        name = f"{len(source)} bytes" if isinstance(source, bytes) else os.fspath(source)
        try:
            image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else Path(source))
            image.load()
            return plain(image)
        except UserError as error:
            raise UserError(f"{name}: {error}") from error
        except Exception as error:  # Pillow's decoders raise whatever they like at damaged data
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise UserError(f"{name}: cannot read the picture: {' '.join(str(reason).split())}") from error
    if not hasattr(source, "__array__"):
        raise UserError(f"a picture is a path, bytes, a Pillow image or an array, not {type(source).__name__}")
    return plain(_from_array(np.asarray(source)))


def _from_array(array: np.ndarray) -> Image.Image:
    grey = array.ndim == 2 or (array.ndim == 3 and array.shape[-1] == 1)
    fits = grey or (array.ndim == 3 and array.shape[-1] in (3, 4) and array.dtype == np.uint8)
    if array.dtype not in (np.uint8, np.uint16) or not fits or not array.size:
        hint = "; if it lies in [0, 1], multiply by 255 and round" if np.issubdtype(array.dtype, np.floating) else ""
        raise UserError(
            f"an image array is uint8 [H, W, 3] (or [H, W], [H, W, 4]), got {array.dtype} {list(array.shape)}{hint}"
        )
    return Image.fromarray(np.ascontiguousarray(array[..., 0] if grey and array.ndim == 3 else array))


def plain(image: Image.Image) -> Image.Image:
    """The same picture upright, in RGB, grey or CMYK (which the recipe turns into RGB only after resizing).

    Raises: UserError for numbers without a known range.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode == "F" or image.mode == "I":
        values = np.asarray(image)
        if image.mode == "F" or values.min() < 0 or values.max() > 65535:
            raise UserError(f"a picture of mode {image.mode} has no known range: convert it to 8 or 16 bits")
        return _from_16_bits(values)
    if image.mode.startswith("I;16"):
        return _from_16_bits(np.asarray(image))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image if image.mode in ("RGB", "L", "CMYK") else image.convert("L" if image.mode == "1" else "RGB")


def _from_16_bits(values: np.ndarray) -> Image.Image:
    return Image.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8))  # 65535 = 255 × 257


def resize_and_crop(image: Image.Image, size: int, config: PreprocessConfig) -> Image.Image:
    """RGB, `size` × `size`. The order (resize, crop, then RGB) and every rounding are torchvision's.

    Raises: UserError for a strip so long that resizing it would fill the memory.
    """
    resampling = RESAMPLING[config.interpolation]
    if config.resize == "squash":
        return image.convert("RGB").resize((size, size), resampling)
    width, height = image.size
    short, long = min(width, height), max(width, height)
    if short != size:
        other = int(size * long / short)  # truncated, not rounded
        if size * other > MOST_PIXELS:
            raise UserError(f"a picture of {width} × {height} pixels is too long a strip for this model: crop it")
        image = image.resize((size, other) if width <= height else (other, size), resampling)
    width, height = image.size
    left, top = round((width - size) / 2), round((height - size) / 2)  # to even, as Python does
    return image.crop((left, top, left + size, top + size)).convert("RGB")


class Preprocess:
    """`preprocess(images)` -> float32 [B, size, size, 3], CLIP-normalised: one picture or several, of any size.

    With one number of mean and std the pictures become grey: [B, size, size, 1].
    """

    def __init__(self, config: PreprocessConfig, size: int):
        self.config = config
        self.size = size

    def __call__(self, images: Any, *, threads: int = 1) -> Float[np.ndarray, "B H W c"]:
        """Of a `Picture`, a sequence of them, or an array [B, H, W, c].

        `threads` decode and resize that many pictures at once; the result does not depend on it.

        Raises: UserError for what is not a picture.
        """
        several = isinstance(images, Sequence) and not isinstance(images, str | bytes)
        several = several or (hasattr(images, "__array__") and getattr(images, "ndim", 0) == 4)
        pictures = list(images) if several else [images]
        if not pictures:
            return np.zeros((0, self.size, self.size, len(self.config.mean)), np.float32)
        if threads == 1 or len(pictures) == 1:
            return np.stack([self.one(picture) for picture in pictures])
        with ThreadPoolExecutor(threads) as pool:  # Pillow decodes and resamples without Python's lock
            return np.stack(list(pool.map(self.one, pictures)))

    def one(self, image: Any) -> Float[np.ndarray, "H W c"]:
        """A single picture, without the batch axis."""
        unit = self.pixels(image).astype(np.float32) / np.float32(255)
        return (unit - np.asarray(self.config.mean, np.float32)) / np.asarray(self.config.std, np.float32)

    def pixels(self, image: Any) -> np.ndarray:
        """A single picture resized and cropped, uint8 [H, W, c]: what the network sees, for people to look at."""
        picture = resize_and_crop(open_image(image), self.size, self.config)
        return np.asarray(picture) if len(self.config.mean) == 3 else np.asarray(picture.convert("L"))[..., None]
