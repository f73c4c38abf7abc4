"""`inpaint IMAGE PROMPT --mask MASK`: draws a prompt into a part of a picture (RePaint, Lugmayr et al. 2022)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from unclip_jax import edit
from unclip_jax.commands import options as shared
from unclip_jax.commands.drawing import Job
from unclip_jax.commands.originals import drawn_size, mask_of, picture
from unclip_jax.pipeline import LoadedUnCLIP


@dataclass(frozen=True, kw_only=True)
class Inpaint(shared.FromPrompt):
    """Inpainting: draws a prompt into a picture where a mask is white; the rest stays as it is.

    The decoder samples by DDPM and takes every step 4 times (RePaint), which is slower than `draw`.
    """

    image: shared.Image
    """Input picture; its largest centred square is used."""
    prompt: shared.Prompt
    """What to draw."""
    mask: Annotated[Path, tyro.conf.arg(metavar="IMAGE")]
    """Mask picture: white (grey level 128 to 255) is drawn anew, black and transparent pixels are kept.
    It has the size of IMAGE, or the same aspect ratio."""


def job(options: Inpaint, loaded: LoadedUnCLIP) -> Job:
    """The job of `inpaint`: `options.num` pictures with the prompt drawn where the mask is white.

    Args:
        options: options of the command.
        loaded: the system that draws.
    """
    size = drawn_size(loaded.unclip)
    image, mask = picture(options.image, size), mask_of(options.mask, options.image, size)
    tokens = jnp.asarray(loaded.tokenize([options.prompt]))
    inpainted = jax.jit(
        lambda params, image, mask, keys: edit.inpaint(
            loaded.unclip, params, image, mask, tokens, keys, guidance_scale=options.guidance_scale
        )
    )
    # The contact sheet also shows the mask: pixels to be drawn anew are blended three quarters of the way to white.
    masked = np.where(mask[..., None], image // 4 + 191, image).astype(np.uint8)
    return Job(
        command="inpaint",
        titles=[options.prompt],
        originals=[image, masked],
        values=[{}],
        inputs=lambda titles, indices: (),
        program=lambda params, _, keys: inpainted(params, image[None], mask, keys),
    )
