"""Text to pictures.

    python sample.py "a small red circle in the top left"                 # with the weights that come with the package
    python sample.py "a large blue star in the bottom right" --run runs/shapes --num 8 --seed 1
    python sample.py --prompts captions.txt --out pictures
    python sample.py "a corgi on a beach" --weights karlo-v1-alpha        # published: a directory, or a name on the hub
    python sample.py --vary picture.png                                   # the same meaning, other details
    python sample.py --interpolate first.png second.png
    python sample.py --edit picture.png --from "a red star" --to "a blue star"
    python sample.py "a green circle" --inpaint picture.png --mask mask.png
    python sample.py "a green circle" --redraw picture.png

Each picture is a PNG of its own, and a contact sheet shows them together.
"""

from __future__ import annotations

import codecs
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

from train_jax.cli import enable_compilation_cache, run_main, tune_cpu
from train_jax.errors import UserError
from train_jax.flags import parse
from unclip_jax.commands import edits

if __name__ == "__main__":
    tune_cpu(training=False)

import tyro

if TYPE_CHECKING:
    import numpy as np

    from unclip_jax.pipeline import LoadedUnCLIP


def shown(metavar: str, default: str, name: str | None = None) -> Any:
    """How `--help` writes an option that may be left out."""
    return tyro.conf.arg(name=name, metavar=metavar, help_behavior_hint=f"(default: {default})")


SHEET_ROWS = 12  # prompts shown on the contact sheet; every picture is a file of its own anyway


@dataclass(frozen=True)
class Options:
    """Makes pictures from prompts, or from pictures.

    A picture depends on what was asked, the seed and its index alone, whatever else is made beside it. With --debug
    errors come with a traceback.
    """

    prompt: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PROMPT ...", help_behavior_hint="")
    ] = ()
    """What to draw; several prompts are drawn one after the other."""
    prompts: Annotated[Path | None, shown("FILE", "none")] = None
    """A UTF-8 text file with one prompt per line; empty lines are skipped."""
    run: Annotated[Path | None, shown("DIR", "the weights that come with the package")] = None
    """Run directory of train.py."""
    prior: Annotated[str, shown("NAME", "prior")] = "prior"
    """Which prior of the run directory: prior, ar_prior or one_step_prior."""
    weights: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, shown("DIR|OWNER/NAME", "none")] = ()
    """Published weights instead of a run: a directory of Karlo or Kandinsky 2.2 in the layout of diffusers, or its name
    on the hub. Give it again for another directory: Kandinsky's prior, or a prior to take the place of the first's."""
    num: int = 4
    """Pictures per prompt."""
    seed: int = 0
    """0 to 4294967295."""
    steps: Annotated[int | None, shown("INT", "as the decoder was saved")] = None
    """Denoising steps of the decoder."""
    guidance_scale: Annotated[float | None, shown("FLOAT", "as the decoder was saved")] = None
    """Guidance of the decoder: 1 is off, larger follows the prompt more closely."""
    sampler: Annotated[str | None, shown("STR", "as the decoder was saved")] = None
    """Sampler of the decoder: ddpm, ddim, dpmpp_2m, or euler and heun on the grid of Karras et al."""
    out: Path = Path("samples")
    """Directory for the PNGs and the contact sheet."""
    chunk: int = 1
    """Pictures computed together: more are faster on a GPU or TPU, but rounding may then depend on the neighbours."""

    vary: Annotated[Path | None, shown("IMAGE", "none")] = None
    """Draw variations of this picture; no prompt is needed."""
    eta: Annotated[float | None, shown("FLOAT", "1 for --vary")] = None
    """How far the variations of --vary may leave the picture: 0 reconstructs it, 1 keeps its meaning only."""
    interpolate: Annotated[tuple[Path, Path] | None, shown("IMAGE IMAGE", "none")] = None
    """Draw the way from one picture to the other."""
    edit: Annotated[Path | None, shown("IMAGE", "none")] = None
    """Change this picture as the caption --to differs from the caption --from."""
    from_: Annotated[str | None, tyro.conf.arg(name="from", metavar="TEXT", help_behavior_hint="(default: none)")] = (
        None
    )
    """What the picture of --edit shows."""
    to: Annotated[str | None, shown("TEXT", "none")] = None
    """What it should show."""
    inpaint: Annotated[Path | None, shown("IMAGE", "none")] = None
    """Draw the prompt into this picture where --mask is white; the rest stays as it is."""
    mask: Annotated[Path | None, shown("IMAGE", "none")] = None
    """For --inpaint: white is drawn anew, black is kept."""
    redraw: Annotated[Path | None, shown("IMAGE", "none")] = None
    """Draw the prompt starting from this picture under noise."""
    strength: Annotated[float | None, shown("FLOAT", "0.5 for --edit, 0.6 for --redraw")] = None
    """How much --redraw changes, or how far --edit goes at most: from 0 to 1."""


def read_prompts(options: Options) -> list[str]:
    """The prompts of the command line and then those of the file."""
    prompts = list(options.prompt)
    if options.prompts is not None:
        prompts += [line.strip() for line in lines_of(options.prompts) if line.strip()]
    if not prompts:
        where = f"{options.prompts} is empty" if options.prompts else "none was given"
        raise UserError(f'prompt: {where}; say what to draw, as in sample.py "a small red circle in the top left"')
    return prompts


def lines_of(path: Path) -> list[str]:
    """The lines of a text file in UTF-8, or in UTF-16 if it says so; the mark at the beginning is no part of them."""
    content = path.read_bytes()
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        try:
            text = content.decode("utf-16")
        except UnicodeDecodeError:
            text = "\0"
        if "\0" in text:  # UTF-32 begins so, too
            raise UserError(f"{path} begins like UTF-16 and is not; save the file as UTF-8")
        return text.splitlines()
    if b"\0" in content:
        raise UserError(f"{path} holds NUL characters, as UTF-16 does; save the file as UTF-8")
    lines = []
    for number, line in enumerate(content.removeprefix(codecs.BOM_UTF8).splitlines(), 1):
        try:
            lines.append(line.decode("utf-8"))
        except UnicodeDecodeError:
            raise UserError(f"{path}: line {number} is not UTF-8; save the file as UTF-8") from None
    return lines


def check(options: Options) -> None:
    """Refuses numbers out of range before anything is loaded."""
    for name, least in (("num", 1), ("chunk", 1), ("steps", 1)):
        value = getattr(options, name)
        if value is not None and value < least:
            raise UserError(f"--{name}: {value} is less than {least}")
    if not 0 <= options.seed < 2**32:
        raise UserError(f"--seed: {options.seed} is not between 0 and 4294967295")
    if options.guidance_scale is not None and not 0 <= options.guidance_scale <= 100:
        raise UserError(f"--guidance-scale: {options.guidance_scale} is not between 0 and 100")


def load(options: Options) -> LoadedUnCLIP:
    """The system to sample, with the decoder's sampling as the options say."""
    from unclip_jax import pipeline

    if options.weights and options.run is not None:
        raise UserError("--weights: pictures are drawn from published weights or from a run; leave out --run")
    sources = options.weights or (options.run,)
    loaded = pipeline.load(*sources, prior=options.prior)
    if options.guidance_scale is not None and loaded.unclip.decoder.sampling.guidance_scale is None:
        raise UserError("--guidance-scale: this decoder is drawn without guidance, as distilled ones are; leave it out")
    changes = {"num_steps": options.steps, "sampler": options.sampler}
    return pipeline.with_sampling(loaded, **{name: value for name, value in changes.items() if value is not None})


def guidance_scale(loaded: LoadedUnCLIP, options: Options) -> float | None:
    """The decoder's guidance: that of the options, or as it was saved; None for a decoder that is drawn without."""
    saved = loaded.unclip.decoder.sampling.guidance_scale
    return saved if options.guidance_scale is None else options.guidance_scale


def draw(loaded: LoadedUnCLIP, prompts: list[str], options: Options) -> Iterator[tuple[int, int, np.ndarray]]:
    """Yields (prompt number, picture index, uint8 [H, W, 3]), prompt by prompt.

    They are computed in chunks of one size, the last filled up with repetitions: one program makes every picture. In
    chunks of one, a picture's bytes cannot depend on the others: matmuls round a row by its place and its batch.
    """
    import jax.numpy as jnp
    import numpy as np

    from unclip_jax.devices import Devices
    from unclip_jax.diffusion.keys import sample_keys, seed_key
    from unclip_jax.pipeline import Guidance, check_drawn, generate_jit
    from unclip_jax.tasks import to_uint8

    key, devices = seed_key(options.seed), Devices(options.chunk)
    params = devices.everywhere(loaded.params)
    scale = guidance_scale(loaded, options)
    # As data, so that another scale compiles nothing; a decoder saved with guidance off is spared the second branch.
    own = options.guidance_scale is None and scale in (None, 1.0)
    guidance = Guidance() if own else Guidance(decoder=jnp.float32(scale))
    total = len(prompts) * options.num
    for start in range(0, total, options.chunk):
        jobs = [divmod(min(i, total - 1), options.num) for i in range(start, start + options.chunk)]
        tokens = loaded.tokenize([prompts[p] for p, _ in jobs])
        keys = sample_keys(key, np.array([index for _, index in jobs]))
        drawn = generate_jit(loaded.unclip, params, *devices.split((tokens, keys)), guidance=guidance)
        check_drawn(drawn, [f"picture {index} of {one_line(prompts[p])!r}" for p, index in jobs])
        images = np.asarray(to_uint8(drawn.images))
        for (p, index), image in list(zip(jobs, images, strict=True))[: total - start]:
            yield p, index, image


def main(argv: list[str]) -> None:
    options = parse(Options, argv, prog="sample.py")
    check(options)
    name = edits.chosen(options)
    prompts = [] if name else read_prompts(options)

    import jax
    from tqdm import tqdm

    from unclip_jax.pictures import contact_sheet, file_stem, holds_other, output_directory, save_png

    jax.config.update("jax_threefry_partitionable", True)  # the numbers of a seed depend on it
    loaded = load(options)
    enable_compilation_cache()
    edit = edits.prepare(name, options, loaded) if name else None
    titles = [edit.title] if edit else prompts
    settings = prompt_settings(loaded, options)
    if edit:
        settings = {"edit": f"--{name}", "seed": options.seed, **edit.settings, "chunk": options.chunk}
    stated = {name: str(value) for name, value in settings.items()}

    def target(number: int, index: int) -> tuple[Path, dict[str, str]]:
        """The file of a picture and what is written into it."""
        stem = f"{name}-{file_stem(titles[number])}" if edit else file_stem(titles[number])
        seed = f"-seed-{options.seed}" if options.seed else ""
        file = options.out / f"{number:03d}-{stem}{seed}-{index:02d}.png"
        return file, {"prompt": titles[number], **stated, "index": str(index)}

    def refuse(file: Path) -> NoReturn:
        raise UserError(f"{file}: there is another picture already, which is not overwritten; choose another --out")

    for number in range(len(titles)):
        for index in range(options.num):
            file, text = target(number, index)
            if holds_other(file, text):
                refuse(file)
    out = output_directory(options.out)
    began = time.perf_counter()
    rows: list[tuple[str, list[Any]]] = [(title, list(edit.originals) if edit else []) for title in titles[:SHEET_ROWS]]
    count = len(titles) * options.num
    with tqdm(total=count, desc="sampling", unit="image", disable=not sys.stderr.isatty()) as progress:
        for number, index, image in edits.draw(edit, options) if edit else draw(loaded, prompts, options):
            if number < SHEET_ROWS:
                rows[number][1].append(image)
            file, text = target(number, index)
            if holds_other(file, text, image):  # of other weights, which the file does not name
                refuse(file)
            save_png(file, image, text)
            progress.update()
    picture = contact_sheet(rows)
    names = (f"sheet{n}.png" for n in ("", *(f"-{n}" for n in range(2, 10**6))))
    sheet = next(out / name for name in names if not holds_other(out / name, {}, picture))
    save_png(sheet, picture)
    seconds = time.perf_counter() - began
    which = "all of them" if len(titles) <= SHEET_ROWS else f"those of the first {SHEET_ROWS} prompts"
    print(f"{count} pictures in {out}{os.sep}, {which} on {sheet} ({seconds:.1f} s)")


def prompt_settings(loaded: LoadedUnCLIP, options: Options) -> dict[str, Any]:
    """What pictures of prompts depend on beside the prompt and the index; kept in their files."""
    sampling = loaded.unclip.decoder.sampling
    return {
        "prior": options.prior,
        "seed": options.seed,
        "steps": sampling.num_steps,
        "sampler": sampling.sampler.name,
        "guidance_scale": guidance_scale(loaded, options),
        "chunk": options.chunk,
    }


def one_line(prompt: str, limit: int = 60) -> str:
    """A prompt short enough for an error."""
    words = " ".join(prompt.split())
    return words if len(words) <= limit else words[: limit - 1] + "…"


if __name__ == "__main__":
    from clip_jax.errors import UserError as ModelUserError

    run_main(main, sys.argv[1:], name="sample", user_errors=(ModelUserError,))
