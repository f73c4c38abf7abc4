"""`edit IMAGE --from TEXT --to TEXT`: a picture changed as two captions differ (Ramesh et al. 2022, §3.3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from unclip_jax import edit
from unclip_jax.commands import options as shared
from unclip_jax.commands.drawing import Job
from unclip_jax.commands.originals import inverted
from unclip_jax.pipeline import LoadedUnCLIP


@dataclass(frozen=True, kw_only=True)
class Edit(shared.FromPicture):
    """Changes a picture as one caption differs from another."""

    image: shared.Image
    """The picture; the largest square in its middle is taken."""
    from_: Annotated[str, tyro.conf.arg(name="from", metavar="TEXT")]
    """What the picture shows."""
    to: Annotated[str, tyro.conf.arg(metavar="TEXT")]
    """What it should show."""
    strength: float = 0.5
    """How far the last of the pictures goes, from 0 to 1; the others lie evenly on the way to it."""

    def check(self) -> None:
        """See `System.check`."""
        super().check()
        shared.check_share("strength", self.strength, zero=False)


def job(options: Edit, loaded: LoadedUnCLIP) -> Job:
    """`options.num` pictures of rising strength."""
    image, latent = inverted(options.image, loaded)
    before, after = (jnp.asarray(loaded.tokenize([text])) for text in (options.from_, options.to))
    text_diff = jax.jit(
        lambda params, latent, strength, keys: edit.text_diff(
            loaded.unclip, params, latent, before, after, strength, keys, guidance_scale=options.guidance_scale
        )
    )
    strengths = np.linspace(0.0, options.strength, options.num + 1, dtype=np.float32)[1:]
    return Job(
        command="edit",
        titles=[f"{options.from_} to {options.to}"],
        originals=[image],
        values=[{"num": options.num}],
        inputs=lambda titles, indices: strengths[indices],
        program=lambda params, strengths, keys: text_diff(params, latent, strengths, keys),
    )
