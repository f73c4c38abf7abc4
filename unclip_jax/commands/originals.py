"""The pictures and masks that a command is given, as arrays of the size that the system draws."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image, ImageOps

from clip_jax.images import open_image
from image_text.errors import UserError
from unclip_jax import edit
from unclip_jax.edit import Latent
from unclip_jax.pipeline import LoadedUnCLIP, UnCLIP
from unclip_jax.tasks import to_signed


def drawn_size(unclip: UnCLIP) -> int:
    """Side of the pictures that a system draws."""
    return (unclip.upsamplers[-1] if unclip.upsamplers else unclip.decoder).sample_shape[0]


def picture(path: Path, size: int) -> UInt8[np.ndarray, "H W 3"]:
    """A picture as uint8 [size, size, 3]: the largest square in its middle, resized.

    Raises:
        UserError: the file is no picture.
    """
    return np.asarray(ImageOps.fit(open_image(path).convert("RGB"), (size, size), Image.Resampling.BICUBIC))


def mask_of(path: Path, of: Path, size: int) -> Bool[np.ndarray, "H W"]:
    """What of the picture `of` is drawn anew: bool [size, size].

    White (128 to 255) is drawn, black and what is transparent is kept: a brush on an empty layer is a mask. It is cut
    and resized as the picture is, so it has its size or its shape.

    Raises:
        UserError: the mask has another aspect than the picture, or nothing in it is white.
    """
    levels, (width, height) = grey_levels(path), open_image(of).size
    if abs(levels.width * height - levels.height * width) > max(width, height):  # less than a pixel of difference
        raise UserError(
            f"--mask: {path} is {levels.width}×{levels.height} pixels and {of} is {width}×{height}: "
            "give a mask of the size of the picture, or of its shape"
        )
    levels = levels.resize((width, height), Image.Resampling.NEAREST)
    mask = np.asarray(ImageOps.fit(levels, (size, size), Image.Resampling.NEAREST)) >= 128
    if not mask.any():
        where = f" in the square in the middle of {of}, which is what is drawn" if width != height else ""
        raise UserError(f"--mask: {path} has no white pixel{where}: there is nothing to draw")
    return mask


def grey_levels(path: Path) -> Image.Image:
    """A picture as a Pillow image of mode "L", upright; what is transparent is black."""
    levels = open_image(path).convert("L")  # refuses what is no picture
    with Image.open(path) as raw:
        if raw.has_transparency_data:
            layer = ImageOps.exif_transpose(raw).convert("RGBA")
            levels = Image.alpha_composite(Image.new("RGBA", layer.size, "black"), layer).convert("L")
    return levels


def inverted(path: Path, loaded: LoadedUnCLIP) -> tuple[UInt8[np.ndarray, "H W 3"], Latent]:
    """A picture and its latent (z_i, x_T), by DDIM inversion in the steps of the decoder's sampling."""
    image = picture(path, drawn_size(loaded.unclip))
    encode = jax.jit(edit.encode, static_argnums=0)
    return image, encode(loaded.unclip, loaded.params, to_signed(jnp.asarray(image)[None]))
