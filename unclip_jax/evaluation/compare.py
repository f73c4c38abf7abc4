"""Compares guidance scales, samplers or priors of a system of the shapes world.

    python -m unclip_jax.evaluation.compare guidance                       # of the shipped weights
    python -m unclip_jax.evaluation.compare samplers --num 100 --samplers dpmpp_2m:15 ddpm:250
    python -m unclip_jax.evaluation.compare priors --run runs/shapes       # every prior in the run directory

Each variant draws the same captions with the same noise. The result is a table, a JSON file, and a contact sheet.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, NoReturn

import jax
import numpy as np
import tyro

from clip_jax.towers.text import TextFeatures
from clip_jax.weights.native import atomic_path
from image_text.command_line import parse, run_main
from image_text.errors import UserError
from unclip_jax import pipeline
from unclip_jax.diffusion.samplers import SAMPLERS
from unclip_jax.evaluation import shapes as evaluate
from unclip_jax.evaluation.judging import SPLITS, by_split, clip_scores, distances_to_real, render_again, score_pictures
from unclip_jax.evaluation.scores import cosines
from unclip_jax.evaluation.system import System, fitted
from unclip_jax.pictures import contact_sheet, save_png
from unclip_jax.pipeline import LoadedUnCLIP, with_sampling
from unclip_jax.stage import Stage

PRIORS = ("prior", "ar_prior", "one_step_prior")  # folders of a run directory
SHOWN = 8  # pictures per variant on the sheet, half of them of each split


@dataclass(frozen=True)
class Options:
    """Compares guidance scales, samplers or priors on the shapes world."""

    what: Annotated[Literal["guidance", "samplers", "priors"], tyro.conf.Positional]
    """What is varied: the guidance scale of the decoder, its sampler and steps, or the prior.
    When priors are compared the decoder does not read the caption, in which it could find what a prior left out."""
    run: str = "shipped"
    """Run directory written by train.py, or "shipped": the weights that come with the package."""
    num: int = 200
    """Captions per split, each drawn once."""
    seed: int = 0
    """Seed of the noise, 0 to 4294967295. The captions are always the first ones of a split."""
    out: Path | None = None
    """JSON file; the contact sheet is written beside it as a PNG. By default compare-WHAT.json in the run directory,
    or in the current directory for the shipped weights."""
    chunk: int = 50
    """Batch size: pictures computed together."""
    guidance_scales: tuple[float, ...] = (1.0, 1.5, 2.0, 3.0, 5.0, 8.0)
    """Guidance scales to compare with "guidance", each 0 to 100; 1 is off."""
    samplers: tuple[str, ...] = ("dpmpp_2m:4", "dpmpp_2m:8", "dpmpp_2m:15", "ddim:15", "ddpm:50", "ddpm:250")
    """Samplers to compare with "samplers", each as NAME:STEPS."""


class Variant(NamedTuple):
    """One way of drawing the captions.

    Attributes:
        title: its name in table and contact sheet.
        loaded: the system.
        image_embed: source of the image embedding that the decoder reads: "prior", "image" (CLIP's of a real picture),
            or "text" (the text embedding in its place).
        keep_text: whether the decoder reads the caption.
    """

    title: str
    loaded: LoadedUnCLIP
    image_embed: str = "prior"
    keep_text: bool = True


def evaluations(stage: Stage) -> int:
    """Network evaluations per sample of a stage: two per denoiser call with guidance, two calls per step with Heun."""
    sampling = stage.sampling
    branches = 1 if sampling.guidance_scale in (None, 1.0) else 2
    return sampling.num_steps * branches * (2 if sampling.sampler.name == "heun" else 1)


def variants(options: Options) -> Iterator[Variant]:
    """Yields the variants to compare, with their systems loaded.

    Raises:
        UserError: a system cannot be loaded, its CLIP has no image tower, or a sampler is unknown.
    """
    root = evaluate.run_directory(options.run)
    if options.what == "priors":
        yield from prior_variants(root)
        return
    loaded = evaluate.with_image_tower(pipeline.load(root), options.run)
    if options.what == "guidance":
        for scale in options.guidance_scales:
            off = scale == 1  # the unconditional branch is not run then
            yield Variant(f"guidance {scale:g}", with_sampling(loaded, guidance_scale=None if off else scale))
        return
    for row in options.samplers:
        name, _, steps = row.partition(":")
        if name not in SAMPLERS or not steps.isdecimal():
            raise UserError(f"--samplers: {row!r} is not NAME:STEPS with a name of {', '.join(SAMPLERS)}")
        yield Variant(f"{name}, {steps} steps", with_sampling(loaded, sampler=name, num_steps=int(steps)))


def prior_variants(root: Path) -> Iterator[Variant]:
    """Yields each prior of a run directory, after a lower bound and before an upper bound for a prior.

    The lower bound is the text embedding in place of an image embedding, the upper bound the embedding of a real
    picture.

    Args:
        root: the run directory.

    Raises:
        UserError: a system cannot be loaded, or its CLIP has no image tower.
    """
    loaded = evaluate.with_image_tower(pipeline.load(root), str(root))
    yield Variant("z_t as if z_i", loaded, "text", keep_text=False)
    for name in PRIORS:
        if (root / name).is_dir():
            yield Variant(name, pipeline.load(root, prior=name), keep_text=False)
    yield Variant("real z_i", loaded, "image", keep_text=False)


class Asked(NamedTuple):
    """The captions that every variant draws, with keys, and CLIP's features of captions and real pictures.

    Attributes:
        labels: int [N, 4].
        keys: [N].
        text: features of the captions.
        image_embed: [N, D], of the real pictures that the captions were written for.
        twin_embed: [N, D], of other real pictures of the same labels.
        features: [N, F], features for the Fréchet distance of the real pictures.
        twin_features: [N, F], of the other real pictures.
    """

    labels: np.ndarray
    keys: jax.Array
    text: TextFeatures
    image_embed: np.ndarray
    twin_embed: np.ndarray
    features: np.ndarray
    twin_features: np.ndarray


def ask(loaded: LoadedUnCLIP, options: Options) -> Asked:
    """Makes the captions, keys and features for all variants.

    Args:
        loaded: a system, whose CLIP is used for all variants.
        options: `num`, `seed` and `chunk` are read.
    """
    system, size = System(loaded, options.chunk), loaded.unclip.clip.vision.image_size
    questions = evaluate.ask_all(loaded.tokenize, options.num, size)
    twins = render_again(questions.labels, size, options.seed)
    return Asked(
        questions.labels,
        evaluate.picture_keys(options.seed, options.num),
        system.encode_text(questions.tokens),
        system.encode_images(questions.images),
        system.encode_images(twins),
        system.features(questions.images),
        system.features(twins),
    )


def measure(variant: Variant, asked: Asked, options: Options) -> tuple[dict[str, Any], np.ndarray]:
    """Draws the captions by a variant and measures the pictures.

    Args:
        variant: how to draw.
        asked: captions, keys and reference features.
        options: `chunk` is read.

    Returns:
        (a row of the report, of plain JSON values; the pictures uint8 [N, H, W, 3]).

    Raises:
        UserError: a picture has NaN or infinite values.
    """
    system, text_embed = System(variant.loaded, options.chunk), np.asarray(asked.text.embed)
    if variant.image_embed == "prior":
        image_embed = system.predict(asked.text, asked.keys)
    else:
        image_embed = {"image": asked.image_embed, "text": text_embed}[variant.image_embed]
    began = time.perf_counter()
    images = system.draw(asked.text, image_embed, variant.keep_text, asked.keys, variant.title)
    seconds = time.perf_counter() - began
    results, _ = score_pictures(images, asked.labels)
    seen = fitted(images, variant.loaded.unclip.clip.vision.image_size)
    fid = {"generated": system.features(seen), "floor": asked.twin_features}
    scored = {"generated": system.encode_images(seen), "real": asked.image_embed}
    decoder = variant.loaded.unclip.decoder
    row = {
        "title": variant.title,
        "sampling": dataclasses.asdict(decoder.sampling),
        "evaluations": evaluations(decoder),
        "seconds": round(seconds, 1),
        "results": results,
        "clip_score": clip_scores(scored, text_embed),
        "fid": distances_to_real(fid, asked.features),
        "cosines": by_split(cosines, image_embed, asked.image_embed, text_embed, asked.twin_embed),
    }
    return row, images


def table(rows: list[dict[str, Any]]) -> str:
    """Formats the rows of a report as text: a line per variant, each cell with seen / held-out pairs."""
    lines = [f"{'':<24}{'evaluations':>12}{'exact match, %':>18}{'picture·caption':>18}{'Fréchet':>18}{'z·image':>16}"]

    def pair(splits: dict[str, Any], *path: str, form: str, factor: float = 1.0) -> str:
        values = []
        for split in SPLITS:
            value = splits[split]
            for name in path:
                value = value[name]
            values.append(format(factor * value, form))
        return " / ".join(values)

    for row in rows:
        lines.append(
            f"{row['title']:<24}{row['evaluations']:>12}"
            f"{pair(row['results'], 'exact_match', 'value', form='.1f', factor=100):>18}"
            f"{pair(row['clip_score'], 'generated', form='.3f'):>18}"
            f"{pair(row['fid']['splits'], 'generated', form='.2f'):>18}"
            f"{pair(row['cosines'], 'cosine', 'predicted_image', form='.3f'):>16}"
        )
    real = rows[0]
    lines.append(
        f"{'real pictures':<54}{pair(real['clip_score'], 'real', form='.3f'):>18}"
        f"{pair(real['fid']['splits'], 'floor', form='.2f'):>18}"
        f"{pair(real['cosines'], 'cosine', 'image_twin', form='.3f'):>16}"
    )
    return "\n".join([*lines, f"Fréchet distance in: {real['fid']['features']}"])


def check(options: Options) -> None:
    """Checks the options before anything is loaded.

    Raises:
        UserError: an option is out of range.
    """
    for name, low in {"num": 2, "chunk": 1}.items():
        if getattr(options, name) < low:
            raise UserError(f"--{name}: {getattr(options, name)} is less than {low}")
    if not 0 <= options.seed < 2**32:
        raise UserError(f"--seed: {options.seed} is not between 0 and 4294967295")
    for name in ("guidance_scales", "samplers"):
        if not getattr(options, name):
            raise UserError(f"--{name.replace('_', '-')}: give at least one")
    for scale in options.guidance_scales:
        if not 0 <= scale <= 100:
            raise UserError(f"--guidance-scales: {scale} is not between 0 and 100")


def command(argv: list[str]) -> None:
    """Runs the comparison: writes the JSON report and the contact sheet, and prints the table.

    Args:
        argv: arguments without the name of the program.

    Raises:
        UserError: an option is wrong, or a system cannot be loaded.
        OSError: a file cannot be written.
    """
    options = parse(Options, argv, prog="python -m unclip_jax.evaluation.compare")
    check(options)
    compared = list(variants(options))
    folder = Path("." if options.run == "shipped" else options.run)
    out = options.out or folder / f"compare-{options.what}.json"
    if out.is_dir():
        raise UserError(f"--out: {out} is a directory; give a file")
    out.parent.mkdir(parents=True, exist_ok=True)

    asked = ask(compared[0].loaded, options)
    shown = np.concatenate([np.arange(min(SHOWN // 2, options.num)) + i * options.num for i in range(len(SPLITS))])
    rows, sheet = [], []
    with atomic_path(
        out
    ) as temporary:  # opened before the work, which takes minutes, so that an unwritable file fails at once
        for variant in compared:
            row, images = measure(variant, asked, options)
            rows.append(row)
            exact = row["results"]
            share = " / ".join(f"{100 * exact[split]['exact_match']['value']:.1f}" for split in SPLITS)
            sheet.append((f"{variant.title}: {share} %", list(images[shown])))
        head = evaluate.environment(options.run) | {
            "what": options.what,
            "num_per_split": options.num,
            "seed": options.seed,
        }
        report = head | {"splits": SPLITS, "rows": rows}
        temporary.write_text(json.dumps(report, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    save_png(out.with_suffix(".png"), contact_sheet(sheet))
    print(f"{table(rows)}\n\nwritten to {out} and {out.with_suffix('.png')}")


def main(argv: list[str] | None = None) -> NoReturn:
    """Runs `command` and exits: 0, 2 for bad input, 130 when interrupted; see `image_text.command_line.run_main`."""
    run_main(command, argv, name="compare")


if __name__ == "__main__":
    main()
