"""`redraw IMAGE PROMPT`: a prompt drawn from a picture under noise (SDEdit, Meng et al. 2022)."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from unclip_jax import edit
from unclip_jax.commands import options as shared
from unclip_jax.commands.drawing import Job
from unclip_jax.commands.originals import drawn_size, picture
from unclip_jax.pipeline import LoadedUnCLIP


@dataclass(frozen=True, kw_only=True)
class Redraw(shared.Sampled):
    """Draws a prompt starting from a picture under noise, which keeps its layout."""

    image: shared.Image
    """The picture; the largest square in its middle is taken."""
    prompt: shared.Prompt
    """What to draw."""
    strength: float = 0.6
    """How much is drawn anew, from 0 to 1: the share of the decoder's steps that are taken."""

    def check(self) -> None:
        """See `System.check`."""
        super().check()
        shared.check_share("strength", self.strength, zero=False)


def job(options: Redraw, loaded: LoadedUnCLIP) -> Job:
    """`options.num` pictures of the prompt from the picture."""
    image = picture(options.image, drawn_size(loaded.unclip))
    tokens = jnp.asarray(loaded.tokenize([options.prompt]))
    redrawn = jax.jit(
        lambda params, image, keys: edit.image_to_image(
            loaded.unclip,
            params,
            image,
            tokens,
            keys,
            strength=options.strength,
            guidance_scale=options.guidance_scale,
        )
    )
    return Job(
        command="redraw",
        titles=[options.prompt],
        originals=[image],
        values=[{}],
        inputs=lambda titles, indices: (),
        program=lambda params, _, keys: redrawn(params, image[None], keys),
    )
