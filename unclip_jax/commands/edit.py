"""`edit IMAGE --from TEXT --to TEXT`: a text diff applied to a picture (Ramesh et al. 2022, §3.3)."""

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
    """Edits a picture by the difference between two captions (text diff)."""

    image: shared.Image
    """Input picture; its largest centred square is used."""
    from_: Annotated[str, tyro.conf.arg(name="from", metavar="TEXT")]
    """Caption of the picture as it is."""
    to: Annotated[str, tyro.conf.arg(metavar="TEXT")]
    """Caption of the picture as it should be."""
    strength: float = 0.5
    """How far the last picture is moved towards --to, above 0 and up to 1 (the paper: 0.25 to 0.5).
    The pictures before it are evenly spaced on the way."""

    def check(self) -> None:
        """See `System.check`."""
        super().check()
        shared.check_share("strength", self.strength, zero=False)


def job(options: Edit, loaded: LoadedUnCLIP) -> Job:
    """The job of `edit`: `options.num` pictures of rising strength.

    Args:
        options: options of the command.
        loaded: the system that draws.
    """
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
