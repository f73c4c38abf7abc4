"""`vary IMAGE`: draws variations of a picture (Ramesh et al. 2022, §3.1)."""

from __future__ import annotations

from dataclasses import dataclass

import jax

from unclip_jax import edit
from unclip_jax.commands import options as shared
from unclip_jax.commands.drawing import Job
from unclip_jax.commands.originals import inverted
from unclip_jax.pipeline import LoadedUnCLIP


@dataclass(frozen=True, kw_only=True)
class Vary(shared.FromPicture):
    """Draws variations of a picture: the same content and style, other details."""

    image: shared.Image
    """Input picture; its largest centred square is used."""
    eta: float = 1.0
    """DDIM stochasticity, 0 to 1: 0 reconstructs the picture, 1 keeps only what CLIP sees in it."""

    def check(self) -> None:
        """See `System.check`."""
        super().check()
        shared.check_share("eta", self.eta, zero=True)


def job(options: Vary, loaded: LoadedUnCLIP) -> Job:
    """The job of `vary`: `options.num` variations of the picture.

    Args:
        options: options of the command.
        loaded: the system that draws.
    """
    image, latent = inverted(options.image, loaded)
    variations = jax.jit(
        lambda params, latent, keys: edit.variations(
            loaded.unclip, params, latent, keys, eta=options.eta, guidance_scale=options.guidance_scale
        )
    )
    return Job(
        command="vary",
        titles=[f"variations of {options.image.name}"],
        originals=[image],
        values=[{}],
        inputs=lambda titles, indices: (),
        program=lambda params, _, keys: variations(params, latent, keys),
    )
