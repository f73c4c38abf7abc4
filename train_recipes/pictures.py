"""Which pictures a stage reads in training, and a random-access source of them with the tokens of their captions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int
from PIL import Image, ImageOps

from clip_jax.config import CLIPConfig
from clip_jax.errors import UserError
from clip_jax.images import Preprocess, open_image


class Seen(NamedTuple):
    """Which pictures a stage reads in training.

    Attributes:
        size: side in pixels of the pictures that the stage learns to draw; None for a CLIP or a prior.
        preprocess: preprocessing of the CLIP that the stage is, or is conditioned by; None for an upsampler.
    """

    size: int | None
    preprocess: Preprocess | None

    def sides(self) -> dict[str, tuple[int, int]]:
        """(side, channels) of the pictures of an example, by the name of their field.

        For a decoder, "image" is the picture it draws and "clip_image" the same picture as CLIP reads it. An upsampler
        has "image" only. For a CLIP or a prior, "image" is the picture as CLIP reads it.
        """
        fields: dict[str, tuple[int, int]] = {}
        if self.preprocess is not None:
            name = "image" if self.size is None else "clip_image"
            fields[name] = (self.preprocess.size, len(self.preprocess.config.mean))
        if self.size is not None:
            fields["image"] = (self.size, 3)
        return fields


class Pictures:
    """A random-access source of pictures and tokens; a picture is opened and resized on access."""

    def __init__(self, pictures: Sequence[Any], tokens: Int[np.ndarray, "N L"], seen: Seen):
        """Makes a source of N pictures, each an argument of `open_image`, and the tokens of their captions [N, L]."""
        self.pictures, self.tokens, self.seen = pictures, tokens, seen

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The example at `index`.

        Returns:
            tokens: int32 [L].
            image: uint8 [size, size, 3], the central square of the picture, resized; if `seen.size` is None, the
                picture as CLIP reads it, uint8, before normalisation.
            clip_image: the picture as CLIP reads it, uint8; only if `seen` has both a size and a preprocessing.

        Raises:
            UserError: the picture cannot be read; the message begins with its name.
        """
        picture = open_image(self.pictures[index])
        example: dict[str, Any] = {"tokens": self.tokens[index]}
        size, preprocess = self.seen
        if preprocess is not None:
            example["image" if size is None else "clip_image"] = preprocess.pixels(picture)
        if size is not None:
            square = ImageOps.fit(picture.convert("RGB"), (size, size), Image.Resampling.BICUBIC)
            example["image"] = np.asarray(square)
        return example


def clip_preprocess(clip: CLIPConfig) -> Preprocess:
    """The image preprocessing of a CLIP.

    Raises:
        UserError: the CLIP has no image tower.
    """
    if clip.vision is None:
        raise UserError("this CLIP has no image tower, and sees no pictures")
    return Preprocess(clip.preprocess, clip.vision.image_size)
