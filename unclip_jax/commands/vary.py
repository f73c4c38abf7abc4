"""`vary IMAGE`: variations of a picture (Ramesh et al. 2022, §3.1)."""

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
    """Draws variations of a picture: the same meaning, other details."""

    image: shared.Image
    """The picture; the largest square in its middle is taken."""
    eta: float = 1.0
    """How far the variations may leave the picture: 0 reconstructs it, 1 keeps its meaning only."""

    def check(self) -> None:
        """See `System.check`."""
        super().check()
        shared.check_share("eta", self.eta, zero=True)


def job(options: Vary, loaded: LoadedUnCLIP) -> Job:
    """`options.num` variations of the picture."""
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
