"""`interpolate FIRST SECOND`: interpolates between two pictures (Ramesh et al. 2022, §3.2)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import jax
import numpy as np
import tyro

from unclip_jax import edit
from unclip_jax.commands import options as shared
from unclip_jax.commands.drawing import Job
from unclip_jax.commands.originals import inverted
from unclip_jax.pipeline import LoadedUnCLIP


@dataclass(frozen=True, kw_only=True)
class Interpolate(shared.FromPicture):
    """Interpolates between two pictures: the first of the pictures drawn reconstructs FIRST, the last one SECOND."""

    first: Annotated[Path, tyro.conf.Positional, shared.positional("FIRST")]
    """Picture to start from; its largest centred square is used."""
    second: Annotated[Path, tyro.conf.Positional, shared.positional("SECOND")]
    """Picture to end at; its largest centred square is used."""


def job(options: Interpolate, loaded: LoadedUnCLIP) -> Job:
    """The job of `interpolate`: `options.num` pictures at evenly spaced weights from 0 to 1.

    Args:
        options: options of the command.
        loaded: the system that draws.
    """
    (first, a), (second, b) = (inverted(path, loaded) for path in (options.first, options.second))
    between = jax.jit(
        lambda params, a, b, weights, keys: edit.interpolate(
            loaded.unclip, params, a, b, weights, keys, guidance_scale=options.guidance_scale
        )
    )
    weights = np.linspace(0.0, 1.0, options.num, dtype=np.float32)
    return Job(
        command="interpolate",
        titles=[f"{options.first.name} to {options.second.name}"],
        originals=[first, second],
        values=[{"num": options.num}],
        inputs=lambda titles, indices: weights[indices],
        program=lambda params, weights, keys: between(params, a, b, weights, keys),
    )
