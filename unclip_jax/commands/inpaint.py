"""`inpaint IMAGE PROMPT --mask MASK`: a prompt drawn into a part of a picture (RePaint, Lugmayr et al. 2022)."""

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
    """Draws a prompt into a picture where a mask is white; the rest stays as it is."""

    image: shared.Image
    """The picture; the largest square in its middle is taken."""
    prompt: shared.Prompt
    """What to draw."""
    mask: Annotated[Path, tyro.conf.arg(metavar="IMAGE")]
    """White is drawn anew, black is kept; of the size of the picture, or of its shape."""


def job(options: Inpaint, loaded: LoadedUnCLIP) -> Job:
    """`options.num` pictures of the prompt in the picture."""
    size = drawn_size(loaded.unclip)
    image, mask = picture(options.image, size), mask_of(options.mask, options.image, size)
    tokens = jnp.asarray(loaded.tokenize([options.prompt]))
    inpainted = jax.jit(
        lambda params, image, mask, keys: edit.inpaint(
            loaded.unclip, params, image, mask, tokens, keys, guidance_scale=options.guidance_scale
        )
    )
    # What will be drawn anew is shown pale: three quarters of the way to white.
    masked = np.where(mask[..., None], image // 4 + 191, image).astype(np.uint8)
    return Job(
        command="inpaint",
        titles=[options.prompt],
        originals=[image, masked],
        values=[{}],
        inputs=lambda titles, indices: (),
        program=lambda params, _, keys: inpainted(params, image[None], mask, keys),
    )
