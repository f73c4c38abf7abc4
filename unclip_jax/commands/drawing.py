"""From a job to PNGs and a contact sheet: what all commands that draw have in common."""

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

SHEET_ROWS = 12  # titles shown on the contact sheet; every picture is a file of its own anyway


class Job(NamedTuple):
    """What a command draws: `num` pictures under each of its titles.

    Attributes:
        command: its name.
        titles: what is written above the pictures on the contact sheet: each prompt, or what is done to a picture.
        originals: uint8 [H, W, 3] each, shown before the pictures.
        values: under each title, what `metadata.describe` shall write beside the options.
        inputs: (titles int [n], indices int [n]) -> the arrays [n, …] that differ between pictures, as a pytree.
        program: (params, inputs, keys [n]) -> n pictures.
    """

    command: str
    titles: Sequence[str]
    originals: Sequence[UInt8[np.ndarray, "H W 3"]]
    values: Sequence[Mapping[str, Any]]
    inputs: Callable[[np.ndarray, np.ndarray], Any]
    program: Callable[[dict[str, Any], Any, Key[Array, " n"]], Generation]


class DrawingCommand(NamedTuple):
    """A command that draws: the dataclass of its options, and the job that it makes of them and the loaded system."""

    options: type[Any]
    job: Callable[[Any, LoadedUnCLIP], Job]

    def run(self, options: Drawing, only: int | None = None) -> list[Path]:
        """Draws into `options.out`: a PNG for each picture, and a contact sheet of all.

        Args:
            options: of the command.
            only: the index of the one picture to draw under each title; None for all `options.num`.

        Returns:
            The PNGs, in the order of titles and indices.

        Raises:
            UserError: an option cannot be, the system or an input picture cannot be read, there is another picture in
                the place of a PNG, or a picture turned out NaN.
        """
        options.check()
        loaded = load(options)
        return write_pictures(options, self.job(options, loaded), loaded, only)


def directories(options: System) -> list[Path]:
    """Where the weights lie that the options name; those on the hub are fetched."""
    return [pipeline.local(source) for source in options.weights] or [options.run or pipeline.SHIPPED]


def load(options: Drawing) -> LoadedUnCLIP:
    """The system that the options name, with its decoder's sampling as they say.

    Raises:
        UserError: there is no such system, or an option is not for its decoder.
    """
    jax.config.update("jax_threefry_partitionable", True)  # the numbers of a seed depend on it
    loaded = pipeline.load(*directories(options), prior=options.prior_folder() or "prior")
    enable_compilation_cache()
    saved = loaded.unclip.decoder.sampling
    if saved.guidance_scale is None and options.guidance_scale not in (None, 1.0):
        raise UserError("--guidance-scale: this decoder is drawn without guidance, as distilled ones are; leave it out")
    changes = {name: value for name, value in options.sampling().items() if value not in (None, getattr(saved, name))}
    return pipeline.with_sampling(loaded, **changes)


def guidance_scale(options: Drawing, loaded: LoadedUnCLIP) -> float | None:
    """The decoder's guidance: as the options say, or as it was saved; None for a decoder that is drawn without."""
    return loaded.unclip.decoder.sampling.guidance_scale if options.guidance_scale is None else options.guidance_scale


def describe(options: Drawing, job: Job, loaded: LoadedUnCLIP) -> list[dict[str, str]]:
    """The metadata of the pictures under each title, but for their indices."""
    sampling = loaded.unclip.decoder.sampling
    used: dict[str, Any] = {"steps": sampling.num_steps, "guidance_scale": guidance_scale(options, loaded)}
    if "sampler" in options.sampling():
        used["sampler"] = sampling.sampler.name
    digest = metadata.weights_digest(directories(options), options.prior_folder())
    return [metadata.describe(job.command, options, digest, used | {**values}) for values in job.values]


def write_pictures(options: Drawing, job: Job, loaded: LoadedUnCLIP, only: int | None = None) -> list[Path]:
    """Draws a job and writes its files: see `DrawingCommand.run`."""
    indices = range(options.num) if only is None else [only]
    texts = describe(options, job, loaded)
    stem = "" if job.command == "draw" else f"{job.command}-"
    seed = f"-seed-{options.seed}" if options.seed else ""

    def target(title: int, index: int, image: np.ndarray | None = None) -> tuple[Path, dict[str, str]]:
        """The file of a picture and what is written into it. Raises UserError where there is another picture."""
        file = options.out / f"{title:03d}-{stem}{file_stem(job.titles[title])}{seed}-{index:02d}.png"
        text = texts[title] | {metadata.INDEX: str(index)}
        # Another version may draw the same, which its pixels will show.
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
    """Yields (title, index, picture uint8 [H, W, 3]), title by title.

    They are computed in chunks of one size, the last filled up with repetitions: one program makes every picture. In
    chunks of one, a picture's bytes cannot depend on the others: matmuls round a row by its place and its batch.
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
    """Writes a contact sheet beside those that are there; returns where."""
    picture = contact_sheet(rows)
    names = (f"sheet{n}.png" for n in ("", *(f"-{n}" for n in range(2, 10**6))))
    sheet = next(out / name for name in names if not holds_other(out / name, {}, picture))
    save_png(sheet, picture)
    return sheet


def one_line(prompt: str, limit: int = 60) -> str:
    """A prompt short enough for an error."""
    words = " ".join(prompt.split())
    return words if len(words) <= limit else words[: limit - 1] + "…"
