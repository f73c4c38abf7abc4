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
MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # by the number of channels of the network's input
MOST_PIXELS = 100_000_000  # of a resized picture; a strip of 1 × 100,000 pixels would fill the memory


def normalise(images: Num[AnyArray, "*B H W c"], config: PreprocessConfig) -> Float[Array, "*B H W c"]:
    """Images of the right size -> CLIP-normalised float32, under `jit`: uint8 [0, 255], or float in [−1, 1]."""
    h: Any = images.astype(jnp.float32)
    unit = h / jnp.float32(255) if images.dtype == jnp.uint8 else (h + 1) / 2
    per_channel = (1,) * (images.ndim - 1) + (-1,)
    mean, std = (jnp.asarray(x, jnp.float32).reshape(per_channel) for x in (config.mean, config.std))
    return (unit - mean) / std


def resize_and_crop(image: Image.Image, size: int, config: PreprocessConfig) -> Image.Image:
    """The picture at `size` × `size` pixels, in RGB (RGBA stays so).

    The order (resize, crop, then RGB) and every rounding are torchvision's, or transformers' where the config says so.

    Raises:
        UserError: for a strip so long that resizing it would fill the memory.
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
    other = int(side * long / short)  # truncated, not rounded
    if side * other > MOST_PIXELS:
        raise UserError(f"a picture of {width} × {height} pixels is too long a strip for this model: crop it")
    return image.resize((side, other) if width <= height else (other, side), resampling)


def _offset(excess: int, crop: str) -> int:
    """Where a crop begins that leaves out `excess` pixels; below 0 there is a black border instead."""
    if crop == "floor":
        return excess // 2
    return round(excess / 2) if excess >= 0 else -(-excess // 2)  # to even, as Python does


class Preprocess:
    """`preprocess(images)` -> float32 [B, size, size, 3], CLIP-normalised: one picture or several, of any size.

    With one number of mean and std the pictures become grey: [B, size, size, 1]. With four, pictures are arrays uint8
    [H, W, 4] or Pillow images of mode RGBA, whose channels are taken as they are.
    """

    def __init__(self, config: PreprocessConfig, size: int):
        self.config = config
        self.size = size

    def __call__(self, images: Any, *, threads: int = 1) -> Float[np.ndarray, "B H W c"]:
        """Of a `Picture` (see `open_image`), a list, generator or other iterable of them, or an array [B, H, W, c].

        `threads` decode and resize that many pictures at once; the result does not depend on it.

        Raises:
            UserError: for what is not a picture, beginning with its name.
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
        """A single picture, without the batch axis."""
        unit = self.pixels(image).astype(np.float32) / np.float32(255)
        return (unit - np.asarray(self.config.mean, np.float32)) / np.asarray(self.config.std, np.float32)

    def pixels(self, image: Any) -> np.ndarray:
        """A single picture resized and cropped, uint8 [H, W, c]: what the network sees, for people to look at."""
        channels = len(self.config.mean)
        if channels not in MODES:
            raise UserError(f"this model takes pictures of {channels} channels, of which there is no kind: give arrays")
        with naming(image):
            picture = _four_channels(image) if channels == 4 else decode(image)
            picture = resize_and_crop(picture, self.size, self.config)
        return np.asarray(picture.convert("L"))[..., None] if channels == 1 else np.asarray(picture)


class MissingPreprocess(Preprocess):
    """The preprocessing of a checkpoint without an image tower: whatever is asked of it is a UserError that says so.

    Args:
        message: the error, in one line.
    """

    def __init__(self, message: str):
        self.message = message

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("__"):  # of every object; copy and pickle look for some that are not there
            return object.__getattribute__(self, name)
        raise UserError(self.__dict__["message"])

    def __call__(self, images: Any, *, threads: int = 1) -> NoReturn:
        """Raises UserError."""
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
