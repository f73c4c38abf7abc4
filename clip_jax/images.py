"""Preprocessing: resizes, crops and normalises pictures as the weights were trained to see them.

`Preprocess` is bit-exact to the published recipe (Pillow's uint8 resampling and torchvision's rounding). It runs on the
host, because no resampling in floating point gives the same pixels. For images that already have the network's size, as
in training, `normalise` does the rest on the device.

It departs from the recipe for pictures that the recipe spoils: they are turned upright (EXIF), transparent pixels are
put on white, palette and bilevel pictures are resampled in colour instead of by nearest neighbour, and 16 bits become 8
by scaling instead of clipping.
"""

import io
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn, get_args

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num
from PIL import Image

from clip_jax.arrays import AnyArray
from clip_jax.config import Interpolation, PreprocessConfig
from clip_jax.errors import UserError
from image_text.decode import decode, is_one, naming, open_image, plain

__all__ = ["MissingPreprocess", "Picture", "Preprocess", "normalise", "open_image", "plain", "resize_and_crop"]

Picture = str | os.PathLike | bytes | bytearray | memoryview | io.IOBase | Image.Image | AnyArray
RESAMPLING = {name: Image.Resampling[name.upper()] for name in get_args(Interpolation)}
MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # Pillow's mode by number of channels of the network's input
MOST_PIXELS = 100_000_000  # of a resized picture: resizing a strip of 1 × 100,000 pixels would fill the memory


def normalise(images: Num[AnyArray, "*B H W c"], config: PreprocessConfig) -> Float[Array, "*B H W c"]:
    """CLIP-normalised images, (pixel / 255 − mean) / std; works under `jit`.

    Args:
        images: of the network's size, uint8 in [0, 255] or float in [−1, 1].
        config: with one mean and std per channel.

    Returns:
        float32 of the same shape.
    """
    h: Any = images.astype(jnp.float32)
    unit = h / jnp.float32(255) if images.dtype == jnp.uint8 else (h + 1) / 2
    per_channel = (1,) * (images.ndim - 1) + (-1,)
    mean, std = (jnp.asarray(x, jnp.float32).reshape(per_channel) for x in (config.mean, config.std))
    return (unit - mean) / std


def resize_and_crop(image: Image.Image, size: int, config: PreprocessConfig) -> Image.Image:
    """The picture resized and cropped to `size` × `size` pixels, in RGB (RGBA stays RGBA).

    The order (resize, crop, then RGB) and every rounding are torchvision's, or transformers' where the config says so.

    Args:
        image: of any size and mode.
        size: side of the crop in pixels.
        config: how to resize and crop.

    Raises:
        UserError: If the picture is so long a strip that resizing it would fill the memory.
    """
    mode = "RGBA" if image.mode == "RGBA" else "RGB"
    side, resampling = config.resize_to or size, RESAMPLING[config.interpolation]
    if config.resize == "squash":
        image = image.convert(mode).resize((side, side), resampling)
    elif config.resize == "shortest":
        image = _shortest(image, side, resampling)
    width, height = image.size
    if (width, height) != (size, size):
        left, top = (_offset(long - size, config.crop) for long in (width, height))
        image = image.crop((left, top, left + size, top + size))
    return image.convert(mode)


def _shortest(image: Image.Image, side: int, resampling: Image.Resampling) -> Image.Image:
    width, height = image.size
    short, long = min(width, height), max(width, height)
    if short == side:
        return image
    other = int(side * long / short)  # truncated, as torchvision does
    if side * other > MOST_PIXELS:
        raise UserError(f"a picture of {width} × {height} pixels is too long a strip for this model: crop it")
    return image.resize((side, other) if width <= height else (other, side), resampling)


def _offset(excess: int, crop: str) -> int:
    """Offset of a centre crop that leaves out `excess` pixels; negative where there is a black border instead."""
    if crop == "floor":
        return excess // 2
    return round(excess / 2) if excess >= 0 else -(-excess // 2)  # Python rounds half to even


class Preprocess:
    """`preprocess(images)`: one picture or several, of any size -> CLIP-normalised float32 [B, size, size, c].

    The number of channels c is that of `config.mean`: 3 for RGB; 1 makes pictures grey; 4 takes uint8 arrays [H, W, 4]
    or Pillow images of mode RGBA, whose channels are used as they are.

    Args:
        config: resizing, cropping and normalisation.
        size: side of the network's input in pixels.
    """

    def __init__(self, config: PreprocessConfig, size: int):
        self.config = config
        self.size = size

    def __call__(self, images: Any, *, threads: int = 1) -> Float[np.ndarray, "B H W c"]:
        """Preprocesses a batch.

        Args:
            images: a `Picture` (see `open_image`), an iterable of them, or an array [B, H, W, c].
            threads: pictures that are decoded and resized in parallel; the result does not depend on it.

        Raises:
            UserError: If something is not a picture, or cannot be decoded; the message begins with its name.
        """
        if threads < 1:
            raise UserError(f"threads: {threads} is less than 1")
        pictures = [images] if is_one(images) else list(images)
        if not pictures:
            return np.zeros((0, self.size, self.size, len(self.config.mean)), np.float32)
        if threads == 1 or len(pictures) == 1:
            return np.stack([self.one(picture) for picture in pictures])
        with ThreadPoolExecutor(threads) as pool:  # Pillow decodes and resamples without Python's lock
            return np.stack(list(pool.map(self.one, pictures)))

    def one(self, image: Any) -> Float[np.ndarray, "H W c"]:
        """Preprocesses a single `Picture`, without the batch axis.

        Raises:
            UserError: If it is not a picture, or cannot be decoded.
        """
        unit = self.pixels(image).astype(np.float32) / np.float32(255)
        return (unit - np.asarray(self.config.mean, np.float32)) / np.asarray(self.config.std, np.float32)

    def pixels(self, image: Any) -> np.ndarray:
        """A single picture resized and cropped but not normalised, uint8 [H, W, c]: what the network sees.

        Raises:
            UserError: If it is not a picture, or cannot be decoded.
        """
        channels = len(self.config.mean)
        if channels not in MODES:
            raise UserError(f"this model takes pictures of {channels} channels, of which there is no kind: give arrays")
        with naming(image):
            picture = _four_channels(image) if channels == 4 else decode(image)
            picture = resize_and_crop(picture, self.size, self.config)
        return np.asarray(picture.convert("L"))[..., None] if channels == 1 else np.asarray(picture)


class MissingPreprocess(Preprocess):
    """Placeholder of a checkpoint without an image tower: every call and every attribute raises a UserError.

    Args:
        message: of the error, in one line.
    """

    def __init__(self, message: str):
        self.message = message

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("__"):  # copy and pickle look these up
            return object.__getattribute__(self, name)
        raise UserError(self.__dict__["message"])

    def __call__(self, images: Any, *, threads: int = 1) -> NoReturn:
        """Raises the error.

        Raises:
            UserError: Always.
        """
        raise UserError(self.__dict__["message"])


def _four_channels(image: Any) -> Image.Image:
    if isinstance(image, Image.Image) and image.mode == "RGBA":
        return image
    array = np.asarray(image) if hasattr(image, "__array__") else None
    if array is None or array.dtype != np.uint8 or array.ndim != 3 or array.shape[-1] != 4 or not array.size:
        raise UserError(
            "this model takes pictures of 4 channels: give an array uint8 [H, W, 4] or a Pillow image of mode RGBA"
        )
    return Image.fromarray(np.ascontiguousarray(array))
