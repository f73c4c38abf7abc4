"""Reads the input pictures and masks of a command as arrays of the size that the system draws."""

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
    """Side in pixels of the pictures that a system draws: of its last upsampler, or of its decoder."""
    return (unclip.upsamplers[-1] if unclip.upsamplers else unclip.decoder).sample_shape[0]


def picture(path: Path, size: int) -> UInt8[np.ndarray, "H W 3"]:
    """Reads a picture, crops its largest centred square and resizes it (bicubic).

    Args:
        path: the file.
        size: side of the result in pixels.

    Returns:
        uint8 [size, size, 3].

    Raises:
        UserError: the file is no picture.
    """
    return np.asarray(ImageOps.fit(open_image(path).convert("RGB"), (size, size), Image.Resampling.BICUBIC))


def mask_of(path: Path, of: Path, size: int) -> Bool[np.ndarray, "H W"]:
    """Reads an inpainting mask, cropped and resized as the picture is (nearest neighbour).

    White (grey level 128 to 255) is True; black and transparent pixels are False, so that white strokes on a
    transparent layer are a mask too.

    Args:
        path: file of the mask.
        of: file of the picture that it belongs to.
        size: side of the result in pixels.

    Returns:
        bool [size, size], True where the picture is drawn anew.

    Raises:
        UserError: a file is no picture, the mask has another aspect ratio than the picture, or it has no white pixel.
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
    """Reads a picture as a Pillow image of mode "L", upright by its EXIF orientation; transparent pixels are black.

    Raises:
        UserError: the file is no picture.
    """
    levels = open_image(path).convert("L")  # raises UserError if the file is no picture
    with Image.open(path) as raw:
        if raw.has_transparency_data:
            layer = ImageOps.exif_transpose(raw).convert("RGBA")
            levels = Image.alpha_composite(Image.new("RGBA", layer.size, "black"), layer).convert("L")
    return levels


def inverted(path: Path, loaded: LoadedUnCLIP) -> tuple[UInt8[np.ndarray, "H W 3"], Latent]:
    """Reads a picture and inverts it by DDIM, in as many steps as the decoder's sampling has.

    Args:
        path: the file.
        loaded: the system, whose CLIP encodes the picture.

    Returns:
        (picture uint8 [size, size, 3], its latent (z_i, x_T) as a batch of 1).

    Raises:
        UserError: the file is no picture, or the system cannot encode pictures.
    """
    image = picture(path, drawn_size(loaded.unclip))
    encode = jax.jit(edit.encode, static_argnums=0)
    return image, encode(loaded.unclip, loaded.params, to_signed(jnp.asarray(image)[None]))
