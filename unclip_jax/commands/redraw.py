"""`redraw IMAGE PROMPT`: image to image, draws a prompt from a noised picture (SDEdit, Meng et al. 2022)."""

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
    """Image to image (SDEdit): draws a prompt starting from a noised picture, whose layout is kept."""

    image: shared.Image
    """Input picture; its largest centred square is used."""
    prompt: shared.Prompt
    """What to draw."""
    strength: float = 0.6
    """How much is drawn anew, above 0 and up to 1: the share of the decoder's sampling steps that are taken."""

    def check(self) -> None:
        """See `System.check`."""
        super().check()
        shared.check_share("strength", self.strength, zero=False)


def job(options: Redraw, loaded: LoadedUnCLIP) -> Job:
    """The job of `redraw`: `options.num` pictures of the prompt, started from the noised picture.

    Args:
        options: options of the command.
        loaded: the system that draws.
    """
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
