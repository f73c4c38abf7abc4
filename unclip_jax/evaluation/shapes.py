"""Evaluates a text-to-image system on the shapes world: exact match of captions, and controls that locate the errors.

    python -m unclip_jax.evaluation.shapes --run runs/shapes        # everything; writes runs/shapes/evaluation.json
    python -m unclip_jax.evaluation.shapes --run shipped --controls full --num 200

A single figure for the whole pipeline does not say which network is at fault, and a decoder that reads the caption can
hide a prior that does nothing. So the same captions are also drawn, with the same noise, from the embedding of a real
picture and from the text embedding, with and without the caption. The report also has the scores of the checker and of
CLIP on real pictures. One picture is drawn per caption; none is selected afterwards.
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

REAL_PER_CAPTION = 32  # real pictures per caption, whose variety is the reference


class Control(NamedTuple):
    """One way of drawing the captions.

    Attributes:
        image_embed: source of the image embedding that the decoder reads: "prior", "image" (CLIP's of a real picture),
            or "text" (the text embedding in its place).
        keep_text: whether the decoder also reads the caption.
        title: name in the report.
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
    """Measures how often pictures of the shapes world show all of their caption, with controls that locate errors."""

    run: str = "shipped"
    """Run directory written by train.py, or "shipped": the weights that come with the package."""
    prior: str = "prior"
    """Prior to use, by its folder in the run directory: prior (diffusion), ar_prior or one_step_prior."""
    num: int = 500
    """Captions per split, each drawn once."""
    seed: int = 0
    """Seed of the noise, 0 to 4294967295. The captions are always the first ones of a split."""
    out: Path | None = None
    """JSON file of the report. By default evaluation.json in the run directory, or in the current directory for the
    shipped weights."""
    chunk: int = 64
    """Batch size: pictures computed together."""
    controls: str = "all"
    """Parts of the evaluation to run, separated by commas: all, checker, clip, full, oracle, oracle_no_text,
    prior_no_text, text_embed_no_text, diversity, cosines, clip_score, fid."""
    diversity_captions: int = 32
    """Captions per split for which the variety of pictures is measured."""
    diversity_samples: int = 16
    """Pictures drawn for each of these captions."""
    train_images: int = shapes_world.SPLIT_SIZES["train"]
    """Number of training pictures that are searched for the one nearest to a generated picture."""
    train_seed: int = 0
    """Value of --data.seed in the training."""
    candidates: int | None = None
    """Embeddings that the prior samples per picture, of which reranking keeps the one closest to the caption."""
    steps: int | None = None
    """Sampling steps of the decoder; by default as it was saved."""
    guidance_scale: float | None = None
    """Guidance scale of the decoder, 0 to 100; 1 is off; by default as it was saved."""

    @property
    def sections(self) -> tuple[str, ...]:
        """The parts of the evaluation to run, in the order of `SECTIONS`."""
        names = self.controls.split(",")
        return tuple(name for name in SECTIONS if name in names or "all" in names)


class Questions(NamedTuple):
    """Captions with their labels and the real pictures that they were written for.

    Attributes:
        images: uint8 [N, R, R, 3], of CLIP's image size.
        tokens: int32 [N, L].
        labels: int [N, 4].
    """

    images: np.ndarray
    tokens: np.ndarray
    labels: np.ndarray


def ask(tokenize: Tokenize, split: str, num: int, resolution: int) -> Questions:
    """The first `num` examples of a split.

    Args:
        tokenize: tokenizer of the system.
        split: name of the split.
        num: number of examples.
        resolution: side of the pictures in pixels.
    """
    examples = [shapes_world.example(split, i, resolution=resolution) for i in range(num)]
    tokens = np.asarray(tokenize([example.caption for example in examples]))
    return Questions(np.stack([e.image for e in examples]), tokens, np.array([e.labels for e in examples]))


def ask_all(tokenize: Tokenize, num: int, resolution: int) -> Questions:
    """The first `num` examples of every split, one split after the other; see `ask`."""
    asked = [ask(tokenize, split, num, resolution) for split in SPLITS]
    return Questions(*(np.concatenate(arrays) for arrays in zip(*asked, strict=True)))


def picture_keys(seed: int, num: int) -> jax.Array:
    """Keys for the examples of `ask_all`: example i of every split has the key of index i."""
    return sample_keys(jax.random.key(seed), jnp.tile(jnp.arange(num), len(SPLITS)))


def caption_embeds(config: CLIPConfig, params: dict[str, Any], tokenize: Tokenize) -> np.ndarray:
    """Text embeddings [192, D] of captions of all combinations of attributes, in the words of the first template."""
    captions = [shapes_world.caption(labels) for labels in shapes_world.ALL_COMBINATIONS]
    return np.asarray(encode_text(config, params, np.asarray(tokenize(captions))).embed)


def read_embeds(image_embed: np.ndarray, caption_embed: np.ndarray) -> np.ndarray:
    """Zero-shot classification of image embeddings.

    Args:
        image_embed: [N, D].
        caption_embed: [192, D], see `caption_embeds`.

    Returns:
        Labels of the most similar caption, int [N, 4].
    """
    best = jnp.argmax(unit_norm(jnp.asarray(image_embed)) @ unit_norm(jnp.asarray(caption_embed)).T, axis=-1)
    return np.array(shapes_world.ALL_COMBINATIONS)[np.asarray(best)]


def retrieval(config: CLIPConfig, params: dict[str, Any], tokenize: Tokenize, split: str, num: int) -> float:
    """Accuracy of CLIP in finding the caption of a real picture among all 192, in [0, 1].

    The pictures are the first `num` of `split`, encoded as one batch.

    Args:
        config: config of the CLIP.
        params: its weights as one tree.
        tokenize: its tokenizer.
        split: name of the split.
        num: number of pictures.
    """
    questions = ask(tokenize, split, num, config.vision.image_size)
    image_embed = np.asarray(encode_images(config, params, questions.images))
    found = read_embeds(image_embed, caption_embeds(config, params, tokenize))
    return float(matches(found, questions.labels).mean())


def evaluate(system: System, options: Options) -> dict[str, Any]:
    """Runs the parts of the evaluation that the options name.

    Args:
        system: the system.
        options: the options.

    Returns:
        A report of plain JSON values: the result of `describe`, and of the parts that were run:
        "results": control -> split -> result of `judging.agreement`, with "median_iou" where pictures were checked;
        "differences": name -> split -> `scores.paired_difference` of two controls;
        "diversity": see `measure_diversity`; "cosines": split -> see `scores.cosines`;
        "clip_score": see `judging.clip_scores`; "fid": see `judging.distances_to_real`;
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
    """The head of a report (system, settings, versions, device), with empty measurements."""
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
            # A one-step prior has no sampling options.
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
    """Number of parameters of a network, without the running statistics of batch norms."""
    return sum(leaf.size for leaf in jax.tree.leaves(variables_of(tree)["params"]))


def environment(run: str) -> dict[str, Any]:
    """Origin of a report: run directory, date, versions and device."""
    device = jax.devices()[0]
    return {
        # Only the last name, as a report may be published.
        "run": run if run == "shipped" else Path(run).resolve().name,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version(), "jax": jax.__version__, "flax": flax.__version__},
        "device": {"platform": device.platform, "kind": device.device_kind, "cpu_cores": os.cpu_count()},
    }


def measure_diversity(system: System, text: TextFeatures, labels: np.ndarray, options: Options) -> dict[str, Any]:
    """Measures the variety of pictures of one caption, and their distance to training pictures, per split.

    The full pipeline draws the first captions of each split several times, every picture with its own key. New real
    pictures of the same labels are the reference for both measures.

    Args:
        system: the system.
        text: features of the captions of `ask_all`.
        labels: their labels, int [N, 4].
        options: the options.

    Returns:
        The settings, and "splits": split -> `judging.diversity` with "nearest_training_image".
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
    """Context manager that stores the seconds of its block in `seconds[name]`, compilation included."""
    began = time.perf_counter()
    yield
    seconds[name] = round(time.perf_counter() - began, 1)


def check(options: Options) -> None:
    """Checks the options before anything is loaded.

    Raises:
        UserError: an option is out of range, or a control is unknown.
    """
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
    """Loads the system to evaluate, with the sampling options replaced.

    Raises:
        UserError: it cannot be loaded, its CLIP has no image tower, or its decoder does not support an option.
    """
    loaded = with_image_tower(pipeline.load(run_directory(options.run), prior=options.prior), options.run)
    changes = {"num_steps": options.steps, "guidance_scale": options.guidance_scale}
    loaded = pipeline.with_sampling(loaded, **{name: value for name, value in changes.items() if value is not None})
    if options.candidates is None:
        return loaded
    return loaded._replace(unclip=dataclasses.replace(loaded.unclip, candidates=options.candidates))


def with_image_tower(loaded: LoadedUnCLIP, run: str) -> LoadedUnCLIP:
    """Checks that the CLIP of a system has an image tower, which that of a published system may lack.

    Args:
        loaded: the system, which is returned.
        run: its name, for the message.

    Raises:
        UserError: there is no image tower.
    """
    if loaded.unclip.clip.vision is None:
        raise UserError(f"--run: the CLIP in {run} has no image tower, so what is drawn cannot be measured with it")
    return loaded


def run_directory(run: str) -> Path:
    """The directory that `--run` names; "shipped" is that of the weights that come with the package."""
    return pipeline.SHIPPED if run == "shipped" else Path(run)


def command(argv: list[str]) -> None:
    """Runs the evaluation, writes the JSON report and prints it as tables.

    Args:
        argv: arguments without the name of the program.

    Raises:
        UserError: an option is wrong, or the system cannot be loaded.
        OSError: the report cannot be written.
    """
    options = parse(Options, argv, prog="python -m unclip_jax.evaluation.shapes")
    check(options)
    system = System(load(options), options.chunk)
    out = options.out or Path("." if options.run == "shipped" else options.run) / "evaluation.json"
    if out.is_dir():
        raise UserError(f"--out: {out} is a directory; give a file")
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(
        out
    ) as temporary:  # opened before the work, which takes minutes, so that an unwritable file fails at once
        report = evaluate(system, options)
        temporary.write_text(json.dumps(report, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    print(f"{table(report)}\n\nwritten to {out}")


def main(argv: list[str] | None = None) -> NoReturn:
    """Runs `command` and exits: 0, 2 for bad input, 130 when interrupted; see `image_text.command_line.run_main`."""
    run_main(command, argv, name="evaluate")


if __name__ == "__main__":
    main()
