"""Pictures with their captions' tokens, as a random-access source that is trained on."""

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
    """Which pictures a stage is given.

    Attributes:
        size: side of the pictures that it draws; None for a stage that draws none.
        preprocess: what CLIP makes of a picture; None for a stage that CLIP tells nothing about.
    """

    size: int | None
    preprocess: Preprocess | None

    def sides(self) -> dict[str, tuple[int, int]]:
        """(side, channels) of the pictures of an example, by the name of their field.

        "image" is what the stage draws, with "clip_image", what CLIP sees, beside it; or, where it draws nothing, what
        CLIP sees.
        """
        found: dict[str, tuple[int, int]] = {}
        if self.preprocess is not None:
            name = "image" if self.size is None else "clip_image"
            found[name] = (self.preprocess.size, len(self.preprocess.config.mean))
        if self.size is not None:
            found["image"] = (self.size, 3)
        return found


class Pictures:
    """Pictures and tokens as a random-access source; a picture is opened and resized when it is asked for."""

    def __init__(self, pictures: Sequence[Any], tokens: Int[np.ndarray, "N L"], seen: Seen):
        """The source of N pictures, each as `open_image` takes it, and of the tokens of their captions."""
        self.pictures, self.tokens, self.seen = pictures, tokens, seen

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The example at `index`.

        Returns:
            tokens: int32 [L].
            image: uint8 [size, size, 3], the square in the middle of the picture; or what CLIP sees, without a size.
            clip_image: uint8, what CLIP sees, where there is a size too.

        Raises:
            UserError: the picture cannot be read; the line begins with its name.
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
    """How a CLIP wants to be shown pictures. Raises UserError for one without an image tower."""
    if clip.vision is None:
        raise UserError("this CLIP has no image tower, and sees no pictures")
    return Preprocess(clip.preprocess, clip.vision.image_size)
