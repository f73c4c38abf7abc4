"""Checks of a cascade: every upsampler must start from pictures of the size that the stage before it draws."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from clip_jax.errors import UserError
from unclip_jax.models.movq import MoVQConfig
from unclip_jax.stage import Stage
from unclip_jax.stage_files import read_stage


class Drawn(NamedTuple):
    """What one stage of a cascade draws.

    Attributes:
        name: name of its folder: "decoder", "upsampler_0", …
        image_size: side of its pictures, in pixels.
        channels: channels of its pictures.
        low_res_size: side of the pictures that an upsampler was trained to start from; None for a decoder, and where
            the config does not say.
    """

    name: str
    image_size: int
    channels: int
    low_res_size: int | None = None


def drawn(name: str, model: Any) -> Drawn:
    """What a decoder or an upsampler draws.

    Args:
        name: name of its folder.
        model: its `UNetConfig`.
    """
    return Drawn(name, model.image_size, model.channels, None if model.low_res is None else model.low_res.size)


def starts_from(upsampler: Stage) -> int:
    """Side in pixels of the pictures that an upsampler starts from.

    Raises:
        UserError: the config does not say it.
    """
    size = drawn("upsampler", upsampler.model).low_res_size
    if size is None:
        raise UserError("low_res.size is None: this upsampler does not say what it starts from")
    return size


def starting_from(upsampler: Stage, low_res_size: int) -> Stage:
    """The same upsampler with the size of its low-resolution input set in its config.

    Args:
        upsampler: the stage.
        low_res_size: side in pixels; must divide the size that the upsampler draws.

    Raises:
        UserError: the stage is no upsampler, or the size does not fit.
    """
    model: Any = upsampler.model
    if model.low_res is None:
        raise UserError("low_res is None: this network is no upsampler, it starts from no picture")
    low_res = dataclasses.replace(model.low_res, size=low_res_size)
    return dataclasses.replace(upsampler, model=dataclasses.replace(model, low_res=low_res))


def check_cascade(decoder: Any, movq: MoVQConfig | None, upsamplers: Sequence[Stage]) -> None:
    """Checks the cascade of a whole system with `check_seams`.

    Args:
        decoder: the `UNetConfig` of the decoder.
        movq: decodes the latents that the decoder draws to pictures; None where the decoder draws pictures.
        upsamplers: stages whose model is a `UNetConfig`.

    Raises:
        UserError: two neighbours do not fit.
    """
    first = drawn("decoder", decoder)
    if movq is not None:
        first = Drawn("movq", decoder.image_size * movq.scale, movq.channels)
    check_seams([first, *(drawn(f"upsampler_{i}", stage.model) for i, stage in enumerate(upsamplers))])


def check_seams(cascade: Sequence[Drawn]) -> None:
    """Refuses a cascade in which an upsampler does not start from the pictures drawn before it.

    Each size must be a multiple of the one before. Where a config says from which size it starts (those of published
    systems and of older versions do not), that size must be equal to the one before.

    Args:
        cascade: the stages, decoder first.

    Raises:
        UserError: two neighbours do not fit.
    """
    for before, after in itertools.pairwise(cascade):
        size = before.image_size
        if after.low_res_size not in (None, size):
            raise UserError(
                f"{after.name}: it starts from pictures of {after.low_res_size} pixels, but {before.name} draws "
                f"{size}: they do not belong together"
            )
        if after.image_size <= size or after.image_size % size:
            raise UserError(
                f"{after.name}: its {after.image_size} pixels are not 2 times or more, in whole numbers, the {size} "
                f"that {before.name} draws"
            )
        if after.channels != before.channels:
            raise UserError(
                f"{after.name}: its pictures have {after.channels} channels, those of {before.name} {before.channels}"
            )


def cascade_with(run: Path, own: dict[str, Drawn]) -> list[list[Drawn]]:
    """The cascade of a run directory after new stages are written to it.

    Args:
        run: the run directory.
        own: the new stages by the name of their folder; they replace those in the directory.

    Returns:
        Rows of neighbours, decoder first. A stage that is neither in `own` nor in the directory ends a row.

    Raises:
        UserError: the config of a neighbour is damaged.
    """
    rows: list[list[Drawn]] = [[]]
    last = max((int(name.rpartition("_")[2]) for name in own if name != "decoder"), default=-1)
    names, index = ["decoder"], 0
    while index <= last or (run / f"upsampler_{index}").is_dir():
        names.append(f"upsampler_{index}")
        index += 1
    for name in names:
        stage = own.get(name) or _read(run / name)
        if stage is None:
            rows.append([])
        else:
            rows[-1].append(stage)
    return rows


def _read(folder: Path) -> Drawn | None:
    """What the stage in a folder draws, read from its config; None if there is no config."""
    file = folder / "config.json"
    if not file.is_file():
        return None
    model: Any = read_stage(folder).model
    if model.role == "prior":
        raise UserError(f"{file} does not describe a decoder or an upsampler")
    return drawn(folder.name, model)
