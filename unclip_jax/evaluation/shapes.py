"""How often a text-to-image system of the shapes world draws all of its caption, and where the errors are made.

    python -m unclip_jax.evaluation.shapes --run runs/shapes        # everything; writes runs/shapes/evaluation.json
    python -m unclip_jax.evaluation.shapes --run shipped --controls full --num 200

A single figure for the whole pipeline does not say which part is at fault, and a decoder that reads the caption can
hide a prior that does nothing. So the same captions, with the same noise, are also drawn from the embedding of a real
picture and from the text embedding, with and without the caption, and beside them stands what the checker and CLIP make
of real pictures. One picture is drawn per caption; nothing is chosen afterwards.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import flax
import jax
import jax.numpy as jnp
import numpy as np

import shapes_world
from clip_jax.config import CLIPConfig
from clip_jax.encode import variables_of
from clip_jax.model import unit_norm
from clip_jax.towers.text import TextFeatures
from clip_jax.weights.native import atomic_path
from image_text.command_line import parse, run_main
from image_text.errors import UserError
from unclip_jax import pipeline
from unclip_jax.diffusion.keys import sample_keys
from unclip_jax.evaluation.judging import (
    SPLITS,
    agreement,
    by_split,
    clip_scores,
    distances_to_real,
    diversity,
    matches,
    render_again,
    score_pictures,
)
from unclip_jax.evaluation.report import table
from unclip_jax.evaluation.scores import cosines, nearest, paired_difference
from unclip_jax.evaluation.system import System, encode_images, encode_text, fitted
from unclip_jax.pipeline import LoadedUnCLIP
from unclip_jax.stage_configs import to_json

Tokenize = Callable[[list[str]], Any]  # captions -> int32 [B, L]

REAL_PER_CAPTION = 32  # renders that the variety within a caption is compared with


class Control(NamedTuple):
    """One way of drawing the captions.

    Attributes:
        image_embed: whose embedding the decoder gets: the "prior"'s, that of the real "image", or the "text" embedding.
        keep_text: whether the decoder also reads the caption.
    """

    image_embed: str
    keep_text: bool
    title: str


CONTROLS = {
    "full": Control("prior", True, "full pipeline"),
    "oracle": Control("image", True, "real z_i, with caption"),
    "oracle_no_text": Control("image", False, "(a) real z_i, no caption"),
    "prior_no_text": Control("prior", False, "(b) prior's z_i, no caption"),
    "text_embed_no_text": Control("text", False, "(c) z_t as if z_i, no caption"),
}
CEILINGS = {
    "checker": "checker on real pictures",
    "clip": "CLIP on real pictures",
    "clip_prior": "CLIP on the prior's z_i",
}
DIFFERENCES = {
    "prior_minus_text_embed": ("prior_no_text", "text_embed_no_text", "(b) - (c): what the prior is worth"),
    "oracle_minus_prior": ("oracle_no_text", "prior_no_text", "(a) - (b): what the prior loses"),
    "oracle_minus_full": ("oracle", "full", "real z_i - full, both with caption"),
}
SECTIONS = ("checker", "clip", *CONTROLS, "diversity", "cosines", "clip_score", "fid")


@dataclass(frozen=True)
class Options:
    """Measures how often pictures of the shapes world show all of their caption, with the controls that say why not."""

    run: str = "shipped"
    """Run directory of train.py, or "shipped": the weights that come with the package."""
    prior: str = "prior"
    """Which prior of the run directory: prior, ar_prior or one_step_prior."""
    num: int = 500
    """Captions per split, each drawn once."""
    seed: int = 0
    """Of the noise, 0 to 4294967295. The captions are always the first ones of a split."""
    out: Path | None = None
    """JSON file; without it evaluation.json in the run directory, or here for the shipped weights."""
    chunk: int = 64
    """Pictures computed together."""
    controls: str = "all"
    """Which to run, separated by commas: all, checker, clip, full, oracle, oracle_no_text, prior_no_text,
    text_embed_no_text, diversity, cosines, clip_score, fid."""
    diversity_captions: int = 32
    """Captions per split whose pictures are compared with each other."""
    diversity_samples: int = 16
    """Pictures of each of them."""
    train_images: int = shapes_world.SPLIT_SIZES["train"]
    """Training pictures among which the one nearest to a generated picture is looked for."""
    train_seed: int = 0
    """--data.seed of the training."""
    candidates: int | None = None
    """Embeddings the prior draws per picture, of which the one closest to the caption is kept."""
    steps: int | None = None
    """Denoising steps of the decoder."""
    guidance_scale: float | None = None
    """Guidance of the decoder; 1 is off."""

    @property
    def sections(self) -> tuple[str, ...]:
        """The controls asked for, in the order of `SECTIONS`."""
        names = self.controls.split(",")
        return tuple(name for name in SECTIONS if name in names or "all" in names)


class Questions(NamedTuple):
    """The first captions of each split, one split after the other, with the real picture each was written for."""

    images: np.ndarray  # uint8 [N, R, R, 3], of CLIP's size
    tokens: np.ndarray  # int32 [N, L]
    labels: np.ndarray  # int [N, 4]


def ask(tokenize: Tokenize, split: str, num: int, resolution: int) -> Questions:
    """The first `num` examples of a split: their captions in whatever words, their real pictures, their labels."""
    examples = [shapes_world.example(split, i, resolution=resolution) for i in range(num)]
    tokens = np.asarray(tokenize([example.caption for example in examples]))
    return Questions(np.stack([e.image for e in examples]), tokens, np.array([e.labels for e in examples]))


def ask_all(tokenize: Tokenize, num: int, resolution: int) -> Questions:
    """The first `num` examples of every split, one split after the other."""
    asked = [ask(tokenize, split, num, resolution) for split in SPLITS]
    return Questions(*(np.concatenate(arrays) for arrays in zip(*asked, strict=True)))


def picture_keys(seed: int, num: int) -> jax.Array:
    """Keys for `ask_all`: the i-th picture of a split has the i-th, whatever it is drawn by."""
    return sample_keys(jax.random.key(seed), jnp.tile(jnp.arange(num), len(SPLITS)))


def caption_embeds(config: CLIPConfig, params: dict[str, Any], tokenize: Tokenize) -> np.ndarray:
    """Text embeddings [192, D] of all combinations, seen or not, in the words of the first template."""
    captions = [shapes_world.caption(labels) for labels in shapes_world.ALL_COMBINATIONS]
    return np.asarray(encode_text(config, params, np.asarray(tokenize(captions))).embed)


def read_embeds(image_embed: np.ndarray, caption_embed: np.ndarray) -> np.ndarray:
    """Zero-shot reading: for each of [N, D], the labels of the most similar of all captions [192, D]; int [N, 4]."""
    best = jnp.argmax(unit_norm(jnp.asarray(image_embed)) @ unit_norm(jnp.asarray(caption_embed)).T, axis=-1)
    return np.array(shapes_world.ALL_COMBINATIONS)[np.asarray(best)]


def retrieval(config: CLIPConfig, params: dict[str, Any], tokenize: Tokenize, split: str, num: int) -> float:
    """How often CLIP finds the caption of a real picture among all 192, in [0, 1].

    The pictures are the first `num` of `split`, encoded as one batch.
    """
    questions = ask(tokenize, split, num, config.vision.image_size)
    image_embed = np.asarray(encode_images(config, params, questions.images))
    found = read_embeds(image_embed, caption_embeds(config, params, tokenize))
    return float(matches(found, questions.labels).mean())


def evaluate(system: System, options: Options) -> dict[str, Any]:
    """Runs the controls of `options`.

    Returns:
        A report of plain JSON values. What `describe` says, and of the controls that were run:
        "results": control -> split -> what `scores.agreement` says, with "median_iou" where pictures were drawn;
        "differences": name -> split -> `scores.paired_difference` of two controls;
        "diversity": see `measure_diversity`; "cosines": split -> see `cosines`;
        "clip_score": split -> see `clip_scores`; "fid": see `distances_to_real`;
        "seconds": part -> seconds, compilation included.
    """
    began = time.perf_counter()
    config, sections = system.unclip.clip, options.sections
    report = describe(system, options)
    results, seconds = report["results"], report["seconds"]
    size = config.vision.image_size

    questions = ask_all(system.tokenize, options.num, size)
    keys = picture_keys(options.seed, options.num)
    with timed(seconds, "clip"):
        text, image_embed = system.encode_text(questions.tokens), system.encode_images(questions.images)
    with timed(seconds, "prior"):
        predicted = system.predict(text, keys)
    sources = {"prior": predicted, "image": image_embed, "text": np.asarray(text.embed)}

    if "checker" in sections:
        results["checker"], _ = score_pictures(questions.images, questions.labels)
    if "clip" in sections:
        captions = caption_embeds(config, system.params["clip"], system.tokenize)
        for name, embeds in (("clip", image_embed), ("clip_prior", predicted)):
            results[name] = by_split(agreement, read_embeds(embeds, captions), questions.labels)

    found, drawn = {}, {}
    for name, control in CONTROLS.items():
        if name in sections:
            with timed(seconds, name):
                images = system.draw(text, sources[control.image_embed], control.keep_text, keys, control.title)
                results[name], found[name] = score_pictures(images, questions.labels)
                drawn[name] = fitted(images, size)
    for name, (first, second, _) in DIFFERENCES.items():
        if first in found and second in found:
            hits = [matches(found[control], questions.labels) for control in (first, second)]
            report["differences"][name] = by_split(paired_difference, *hits)

    if "diversity" in sections:
        with timed(seconds, "diversity"):
            report["diversity"] = measure_diversity(system, text, questions.labels, options)
    if "cosines" in sections or "fid" in sections:
        twins = render_again(questions.labels, size, options.seed)
    if "cosines" in sections:
        report["cosines"] = by_split(cosines, predicted, image_embed, sources["text"], system.encode_images(twins))
    if "clip_score" in sections:
        shown = {"real": image_embed} | {name: system.encode_images(images) for name, images in drawn.items()}
        report["clip_score"] = clip_scores(shown, sources["text"])
    if "fid" in sections:
        with timed(seconds, "fid"):
            seen = {name: system.features(images) for name, images in ({"floor": twins} | drawn).items()}
            report["fid"] = distances_to_real(seen, system.features(questions.images))
    seconds["total"] = round(time.perf_counter() - began, 1)
    return report


def describe(system: System, options: Options) -> dict[str, Any]:
    """The head of a report: what was measured, how, on what; the measurements are still empty."""
    unclip = system.unclip
    stages = {"decoder": unclip.decoder} if unclip.prior is None else {"prior": unclip.prior, "decoder": unclip.decoder}
    stages |= {f"upsampler_{i}": stage for i, stage in enumerate(unclip.upsamplers)}
    return environment(options.run) | {
        "parameters": {name: count(tree) for name, tree in system.params.items()},
        "settings": {
            "prior": options.prior,
            "num_per_split": options.num,
            "samples_per_caption": 1,
            "candidates": unclip.candidates,
            "seed": options.seed,
            "chunk": options.chunk,
            "controls": list(options.sections),
            # A one-step prior has nothing to choose.
            "sampling": {n: to_json(s.sampling) for n, s in stages.items() if hasattr(s, "sampling")},
        },
        "chance": {split: 1 / len(shapes_world.combinations(split)) for split in SPLITS},
        "splits": SPLITS,
        "titles": CEILINGS
        | {name: control.title for name, control in CONTROLS.items()}
        | {name: title for name, (_, _, title) in DIFFERENCES.items()},
        "results": {},
        "differences": {},
        "seconds": {},
    }


def count(tree: dict[str, Any]) -> int:
    """Parameters of a network, without the running statistics of batch norms."""
    return sum(leaf.size for leaf in jax.tree.leaves(variables_of(tree)["params"]))


def environment(run: str) -> dict[str, Any]:
    """Of what run directory, when, with what and on what a report is."""
    device = jax.devices()[0]
    return {
        # Only the last name: where the directory lies is of no interest to a reader elsewhere.
        "run": run if run == "shipped" else Path(run).resolve().name,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version(), "jax": jax.__version__, "flax": flax.__version__},
        "device": {"platform": device.platform, "kind": device.device_kind, "cpu_cores": os.cpu_count()},
    }


def measure_diversity(system: System, text: TextFeatures, labels: np.ndarray, options: Options) -> dict[str, Any]:
    """Per split, how different the full pipeline's pictures of one caption are, and how far from training pictures.

    The first captions of each split are drawn several times, every picture with a key of its own. Compared with them,
    in both respects, are fresh real pictures of the same labels.
    """
    captions, samples = min(options.diversity_captions, options.num), options.diversity_samples
    picked = np.concatenate([np.arange(captions) + i * options.num for i in range(len(SPLITS))])
    several = jax.tree.map(lambda leaf: leaf[np.repeat(picked, samples)], text)
    keys = sample_keys(jax.random.key(options.seed), jnp.arange(len(picked) * samples))
    images = system.draw(several, system.predict(several, keys), True, keys, "diversity")

    size = images.shape[1]
    real = render_again(np.repeat(labels[picked], REAL_PER_CAPTION, axis=0), size, options.seed)
    training = range(options.train_images)
    example = partial(shapes_world.example, "train", seed=options.train_seed, resolution=size)
    references = np.stack([example(i).image for i in training])

    def distances(pictures: np.ndarray) -> dict[str, float]:
        rms = nearest(pictures.reshape(-1, *references.shape[1:]), references)
        return {"median": float(np.median(rms)), "least": float(rms.min())}

    def measure(images: np.ndarray, real: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
        near = {"generated": distances(images), "real": distances(real)}
        return diversity(images, real, labels) | {"nearest_training_image": near}

    shape = (len(picked), -1, *references.shape[1:])
    return {
        "captions": captions,
        "samples": samples,
        "real_per_caption": REAL_PER_CAPTION,
        "train_images": options.train_images,
        "train_seed": options.train_seed,
        "splits": by_split(measure, images.reshape(shape), real.reshape(shape), labels[picked]),
    }


@contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Notes under `name` how long the block took, compilation included."""
    began = time.perf_counter()
    yield
    seconds[name] = round(time.perf_counter() - began, 1)


def check(options: Options) -> None:
    """Refuses what makes no sense before anything is loaded. Raises UserError."""
    least = {"num": 2, "chunk": 1, "diversity_captions": 1, "diversity_samples": 1, "train_images": 1}
    for name, low in (least | {"candidates": 1, "steps": 1}).items():
        value = getattr(options, name)
        if value is not None and value < low:
            raise UserError(f"--{name.replace('_', '-')}: {value} is less than {low}")
    if not 0 <= options.seed < 2**32:
        raise UserError(f"--seed: {options.seed} is not between 0 and 4294967295")
    if options.guidance_scale is not None and not 0 <= options.guidance_scale <= 100:
        raise UserError(f"--guidance-scale: {options.guidance_scale} is not between 0 and 100")
    unknown = [name for name in options.controls.split(",") if name not in (*SECTIONS, "all")]
    if unknown:
        raise UserError(f"--controls: there is no {unknown[0]!r}; choose from all, {', '.join(SECTIONS)}")


def load(options: Options) -> LoadedUnCLIP:
    """The system to measure, with the sampling that the options ask for."""
    loaded = with_image_tower(pipeline.load(run_directory(options.run), prior=options.prior), options.run)
    changes = {"num_steps": options.steps, "guidance_scale": options.guidance_scale}
    loaded = pipeline.with_sampling(loaded, **{name: value for name, value in changes.items() if value is not None})
    if options.candidates is None:
        return loaded
    return loaded._replace(unclip=dataclasses.replace(loaded.unclip, candidates=options.candidates))


def with_image_tower(loaded: LoadedUnCLIP, run: str) -> LoadedUnCLIP:
    """The system itself. Raises UserError for one whose CLIP sees no pictures, which published ones may lack."""
    if loaded.unclip.clip.vision is None:
        raise UserError(f"--run: the CLIP in {run} has no image tower, so what is drawn cannot be measured with it")
    return loaded


def run_directory(run: str) -> Path:
    """What `--run` names: a directory of one's own, or that of the weights that come with the package."""
    return pipeline.SHIPPED if run == "shipped" else Path(run)


def command(argv: list[str]) -> None:
    """Evaluates as the command line says, writes the report and prints it. Raises UserError or OSError."""
    options = parse(Options, argv, prog="python -m unclip_jax.evaluation.shapes")
    check(options)
    system = System(load(options), options.chunk)
    out = options.out or Path("." if options.run == "shipped" else options.run) / "evaluation.json"
    if out.is_dir():
        raise UserError(f"--out: {out} is a directory; give a file")
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(out) as temporary:  # opened first: minutes of work must not end at a file that cannot be written
        report = evaluate(system, options)
        temporary.write_text(json.dumps(report, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    print(f"{table(report)}\n\nwritten to {out}")


def main(argv: list[str] | None = None) -> NoReturn:
    """Evaluates and exits: 0, 2 for bad input, 130 when stopped; see `image_text.command_line.run_main`."""
    run_main(command, argv, name="evaluate")


if __name__ == "__main__":
    main()
