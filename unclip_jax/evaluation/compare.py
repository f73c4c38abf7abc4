"""How one choice changes what a system of the shapes world draws: the guidance, the sampler and its steps, the prior.

    python -m unclip_jax.evaluation.compare guidance                       # of the shipped weights
    python -m unclip_jax.evaluation.compare samplers --num 100 --samplers dpmpp_2m:15 ddpm:250
    python -m unclip_jax.evaluation.compare priors --run runs/shapes       # every prior in the run directory

Each variant draws the same captions with the same noise. One table, one JSON file, and one picture beside it.
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
    """What is varied: the decoder's guidance, its sampler and steps, or the prior (the caption hidden from the
    decoder, which would read there what a prior left out)."""
    run: str = "shipped"
    """Run directory of train.py, or "shipped": the weights that come with the package."""
    num: int = 200
    """Captions per split, each drawn once."""
    seed: int = 0
    """Of the noise, 0 to 4294967295. The captions are always the first ones of a split."""
    out: Path | None = None
    """JSON file, the picture goes beside it; without it compare-WHAT.json in the run directory, or here for the
    shipped weights."""
    chunk: int = 50
    """Pictures computed together."""
    guidance_scales: tuple[float, ...] = (1.0, 1.5, 2.0, 3.0, 5.0, 8.0)
    """Of "guidance"; 1 is off."""
    samplers: tuple[str, ...] = ("dpmpp_2m:4", "dpmpp_2m:8", "dpmpp_2m:15", "ddim:15", "ddpm:50", "ddpm:250")
    """Of "samplers": each a sampler's name, a colon, the number of steps."""


class Variant(NamedTuple):
    """One way to draw: the system, and whose embedding the decoder gets ("prior", "image" or "text")."""

    title: str
    loaded: LoadedUnCLIP
    image_embed: str = "prior"
    keep_text: bool = True


def evaluations(stage: Stage) -> int:
    """Network evaluations per sample of a stage: both branches of guidance count, and both calls of a Heun step."""
    sampling = stage.sampling
    branches = 1 if sampling.guidance_scale in (None, 1.0) else 2
    return sampling.num_steps * branches * (2 if sampling.sampler.name == "heun" else 1)


def variants(options: Options) -> Iterator[Variant]:
    """What there is to compare. Raises UserError for a sampler there is none of, or a run directory without priors."""
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
    """Each prior of a run directory, between what any of them should beat and what none can."""
    loaded = evaluate.with_image_tower(pipeline.load(root), str(root))
    yield Variant("z_t as if z_i", loaded, "text", keep_text=False)
    for name in PRIORS:
        if (root / name).is_dir():
            yield Variant(name, pipeline.load(root, prior=name), keep_text=False)
    yield Variant("real z_i", loaded, "image", keep_text=False)


class Asked(NamedTuple):
    """What every variant is asked to draw, and what CLIP makes of it: the same CLIP reads and sees for all."""

    labels: np.ndarray  # int [N, 4]
    keys: jax.Array  # [N]
    text: TextFeatures
    image_embed: np.ndarray  # [N, D] of the real pictures the captions were written for
    twin_embed: np.ndarray  # [N, D] of other real pictures of the same labels
    features: np.ndarray  # [N, F] for the Fréchet distance, of the real pictures
    twin_features: np.ndarray


def ask(loaded: LoadedUnCLIP, options: Options) -> Asked:
    """The first captions of every split, and what CLIP makes of them."""
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
    """What a variant draws: (plain JSON values that say what it is worth, the pictures uint8 [N, H, W, 3])."""
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
    """A line per variant; percent, cosines and Fréchet distances of seen / held-out pairs."""
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
    """Refuses what makes no sense before anything is loaded. Raises UserError."""
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
    """Compares as the command line says, writes report and picture, prints the table. Raises UserError or OSError."""
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
    with atomic_path(out) as temporary:  # opened first: minutes of work must not end at a file that cannot be written
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
    """Compares and exits: 0, 2 for bad input, 130 when stopped; see `image_text.command_line.run_main`."""
    run_main(command, argv, name="compare")


if __name__ == "__main__":
    main()
