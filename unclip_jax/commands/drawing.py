"""Samples the pictures of a job and writes them as PNGs and a contact sheet, for all commands that draw."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Key, UInt8
from tqdm import tqdm

from image_text.errors import UserError
from train_jax.cli import enable_compilation_cache
from unclip_jax import pipeline
from unclip_jax.commands import metadata
from unclip_jax.commands.options import Drawing, System
from unclip_jax.devices import Devices
from unclip_jax.diffusion.keys import sample_keys, seed_key
from unclip_jax.pictures import contact_sheet, file_stem, holds_other, output_directory, save_png
from unclip_jax.pipeline import Generation, LoadedUnCLIP, check_drawn
from unclip_jax.tasks import to_uint8

SHEET_ROWS = 12  # most titles on a contact sheet; pictures of further titles are in their own files only


class Job(NamedTuple):
    """What a command draws: `num` pictures under each of its titles.

    Attributes:
        command: name of the command.
        titles: captions of the rows of the contact sheet: each prompt, or the edit of a picture.
        originals: input pictures, uint8 [H, W, 3] each, shown at the start of every row.
        values: per title, the metadata that `metadata.describe` writes in addition to the options.
        inputs: function (titles int [n], indices int [n]) -> pytree of arrays [n, …] that differ between pictures.
        program: function (params, inputs, keys [n]) -> `Generation` of n pictures.
    """

    command: str
    titles: Sequence[str]
    originals: Sequence[UInt8[np.ndarray, "H W 3"]]
    values: Sequence[Mapping[str, Any]]
    inputs: Callable[[np.ndarray, np.ndarray], Any]
    program: Callable[[dict[str, Any], Any, Key[Array, " n"]], Generation]


class DrawingCommand(NamedTuple):
    """A command that draws pictures.

    Attributes:
        options: dataclass of the command's options.
        job: function (options, loaded system) -> `Job`.
    """

    options: type[Any]
    job: Callable[[Any, LoadedUnCLIP], Job]

    def run(self, options: Drawing, only: int | None = None) -> list[Path]:
        """Draws into `options.out`: one PNG per picture, and a contact sheet.

        Args:
            options: options of the command.
            only: index of the one picture to draw under each title; None draws all `options.num`.

        Returns:
            Paths of the PNGs, ordered by title and index.

        Raises:
            UserError: an option is out of range, the system or an input picture cannot be read, a PNG would overwrite
                another picture, or a picture has NaN or infinite values.
        """
        options.check()
        loaded = load(options)
        return write_pictures(options, self.job(options, loaded), loaded, only)


def directories(options: System) -> list[Path]:
    """Directories of the weights that the options name; names on the Hugging Face hub are downloaded.

    Args:
        options: `run` and `weights` are read; with neither, the weights that come with the package are taken.

    Raises:
        UserError: a name on the hub cannot be downloaded.
    """
    return [pipeline.local(source) for source in options.weights] or [options.run or pipeline.SHIPPED]


def load(options: Drawing) -> LoadedUnCLIP:
    """Loads the system that the options name, and replaces the sampling of its decoder by the options given.

    Args:
        options: options of the command.

    Raises:
        UserError: there is no such system, or its decoder does not support an option.
    """
    jax.config.update("jax_threefry_partitionable", True)  # without it a seed draws other random numbers
    loaded = pipeline.load(*directories(options), prior=options.prior_folder() or "prior")
    enable_compilation_cache()
    saved = loaded.unclip.decoder.sampling
    if saved.guidance_scale is None and options.guidance_scale not in (None, 1.0):
        raise UserError("--guidance-scale: this decoder is drawn without guidance, as distilled ones are; leave it out")
    changes = {name: value for name, value in options.sampling().items() if value not in (None, getattr(saved, name))}
    return pipeline.with_sampling(loaded, **changes)


def guidance_scale(options: Drawing, loaded: LoadedUnCLIP) -> float | None:
    """Guidance scale of the decoder: that of the options, else the saved one; None for a decoder without guidance."""
    return loaded.unclip.decoder.sampling.guidance_scale if options.guidance_scale is None else options.guidance_scale


def describe(options: Drawing, job: Job, loaded: LoadedUnCLIP) -> list[dict[str, str]]:
    """PNG metadata, one dict per title, without the index of a picture."""
    sampling = loaded.unclip.decoder.sampling
    used: dict[str, Any] = {"steps": sampling.num_steps, "guidance_scale": guidance_scale(options, loaded)}
    if "sampler" in options.sampling():
        used["sampler"] = sampling.sampler.name
    digest = metadata.weights_digest(directories(options), options.prior_folder())
    return [metadata.describe(job.command, options, digest, used | {**values}) for values in job.values]


def write_pictures(options: Drawing, job: Job, loaded: LoadedUnCLIP, only: int | None = None) -> list[Path]:
    """Samples the pictures of a job and writes its PNGs and contact sheet.

    Args:
        options: options of the command.
        job: what to draw.
        loaded: the system that draws.
        only: index of the one picture to draw under each title; None draws all `options.num`.

    Returns:
        Paths of the PNGs, ordered by title and index.

    Raises:
        UserError: a PNG would overwrite another picture, or a picture has NaN or infinite values.
    """
    indices = range(options.num) if only is None else [only]
    texts = describe(options, job, loaded)
    stem = "" if job.command == "draw" else f"{job.command}-"
    seed = f"-seed-{options.seed}" if options.seed else ""

    def target(title: int, index: int, image: np.ndarray | None = None) -> tuple[Path, dict[str, str]]:
        """Path and metadata of a PNG; refuses to overwrite another picture."""
        file = options.out / f"{title:03d}-{stem}{file_stem(job.titles[title])}{seed}-{index:02d}.png"
        text = texts[title] | {metadata.INDEX: str(index)}
        # The version is not compared: another version may draw the same pixels, and those are compared.
        if holds_other(file, {name: value for name, value in text.items() if name != metadata.VERSION}, image):
            raise UserError(f"{file}: there is another picture already, which is not overwritten; choose another --out")
        return file, text

    for title in range(len(job.titles)):
        for index in indices:
            target(title, index)
    out, began, files = output_directory(options.out), time.perf_counter(), []
    rows = [(title, list(job.originals)) for title in job.titles[:SHEET_ROWS]]
    total = len(job.titles) * len(indices)
    with tqdm(total=total, desc="sampling", unit="image", disable=not sys.stderr.isatty()) as progress:
        for title, index, image in draw(options, job, loaded.params, only):
            if title < SHEET_ROWS:
                rows[title][1].append(image)
            file, text = target(title, index, image)
            save_png(file, image, text)
            files.append(file)
            progress.update()
    sheet = write_sheet(out, rows)
    which = "all of them" if len(job.titles) <= SHEET_ROWS else f"those of the first {SHEET_ROWS} prompts"
    print(f"{total} pictures in {out}{os.sep}, {which} on {sheet} ({time.perf_counter() - began:.1f} s)")
    return files


def draw(
    options: Drawing, job: Job, params: dict[str, Any], only: int | None = None
) -> Iterator[tuple[int, int, UInt8[np.ndarray, "H W 3"]]]:
    """Samples the pictures of a job in chunks of `options.chunk`.

    The last chunk is padded with repetitions, so that one compiled program serves all chunks. With a chunk size of 1
    the bytes of a picture do not depend on the others; in larger chunks they may, because a matrix product rounds a row
    by its place in the batch and by the batch size.

    Args:
        options: `seed`, `num` and `chunk` are read.
        job: what to draw.
        params: variables of the networks of the system.
        only: index of the one picture to draw under each title; None draws all `options.num`.

    Yields:
        (index of the title, index of the picture, picture uint8 [H, W, 3]), title by title.

    Raises:
        UserError: a picture has NaN or infinite values.
    """
    key, devices = seed_key(options.seed), Devices(options.chunk)
    params = devices.everywhere(params)
    total = len(job.titles) * options.num
    for start in range(0, total, options.chunk):
        titles, indices = np.divmod(np.minimum(np.arange(start, start + options.chunk), total - 1), options.num)
        if only is not None and only not in indices[: total - start]:
            continue
        inputs, keys = devices.split((job.inputs(titles, indices), sample_keys(key, indices)))
        drawn = job.program(params, inputs, keys)
        check_drawn(
            drawn, [f"picture {i} of {one_line(job.titles[t])!r}" for t, i in zip(titles, indices, strict=True)]
        )
        images = np.asarray(to_uint8(drawn.images))
        for title, index, image in list(zip(titles, indices, images, strict=True))[: total - start]:
            if only in (None, index):
                yield int(title), int(index), image


def write_sheet(out: Path, rows: list[tuple[str, list[np.ndarray]]]) -> Path:
    """Writes a contact sheet and returns its path.

    Args:
        out: directory of the sheet.
        rows: (caption, [uint8 [H, W, 3], …]) per row.

    Returns:
        "sheet.png" in `out`, or "sheet-2.png", … where other sheets have those names.
    """
    picture = contact_sheet(rows)
    names = (f"sheet{n}.png" for n in ("", *(f"-{n}" for n in range(2, 10**6))))
    sheet = next(out / name for name in names if not holds_other(out / name, {}, picture))
    save_png(sheet, picture)
    return sheet


def one_line(prompt: str, limit: int = 60) -> str:
    """A prompt on one line, cut to `limit` characters, for an error message."""
    words = " ".join(prompt.split())
    return words if len(words) <= limit else words[: limit - 1] + "…"
