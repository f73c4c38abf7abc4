"""Command line `clip-jax embed | classify | retrieve | verify`: runs a trained CLIP on your own pictures.

`python -m clip_jax` is the same. Bad input ends in one line on stderr and exit code 2, and leaves no file behind.
Output files are written atomically.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NoReturn

import numpy as np
import tyro
from tqdm import tqdm

import clip_jax
from clip_jax.errors import UserError
from clip_jax.pretrained import LoadedCLIP
from clip_jax.uses.bulk import BadPictures, Parts, encode_pictures, encode_texts, key_of
from clip_jax.uses.classes import class_names, same_classes, templates
from clip_jax.uses.embed import text_features
from clip_jax.uses.published import IMAGENET, RETRIEVAL
from clip_jax.uses.results import check_output, check_space, write
from clip_jax.uses.retrieval import both_directions, nearest
from clip_jax.uses.zero_shot import accuracy, classifier_weights, rank
from image_text.command_line import Command, program, run_command, run_main, say
from image_text.source import Source, open_source

NAME = "clip_jax"  # prefix of every line on stderr


@dataclass(frozen=True)
class Pictures:
    """Options of every command: the pictures and the model."""

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """A folder, a table (.csv, .tsv, .txt, .jsonl, COCO's .json; columns image, caption, label), or tfds:NAME:SPLIT."""
    model: str
    """Directory or file of the CLIP; anything that clip_jax.load takes."""
    data_dir: Path | None = None
    """Where TFDS keeps its data."""
    batch_size: int = 64
    """Pictures per batch."""
    threads: int = 8
    """Pictures decoded in parallel."""
    max_bad_fraction: float = 0.01
    """Share of the pictures that may be damaged and are skipped (at least two, if that is less than half); 0: none."""


@dataclass(frozen=True)
class Embed(Pictures):
    """Writes the unit-norm features of pictures, and of their captions if they have some.

    A killed run that is started again continues from OUT.part, which is removed at the end. Columns: name,
    image_features, caption, text_features, label. In .npz, texts of very different lengths are stored as NAME_utf8 and
    NAME_ends instead of NAME; clip_jax.uses.results.read_texts reads both.
    """

    out: Path = Path("embeds.npz")
    """.npz, or .parquet with pyarrow."""


@dataclass(frozen=True)
class Classify(Pictures):
    """Zero-shot classification of pictures by prompts; reports the accuracy where the pictures have labels."""

    classes: tuple[str, ...] = ()
    """Names of the classes, or one text file with a name, or LABEL<TAB>NAME, per line. Default: the pictures' own."""
    templates: str = "plain"
    """A set of prompt templates (plain, imagenet, cifar10, ...), or a text file with a template per line."""
    k: int = 5
    """Number of best classes written for each picture."""
    out: Path | None = None
    """.npz, or .parquet with pyarrow. Default: only the summary is printed."""


@dataclass(frozen=True)
class Retrieve(Pictures):
    """Top-k retrieval of pictures by text; without --query, recall@k between pictures and their captions."""

    query: tuple[str, ...] = ()
    """Text to search for; several texts are searched one after the other."""
    k: int = 5
    """Number of pictures printed for each query."""


@dataclass(frozen=True)
class Verify(Pictures):
    """Compares the accuracy (labelled pictures) or recall@1 (captioned pictures) with the published figure."""

    name: str = ""
    """The published model that --model should be, as in clip_jax.uses.published, e.g. ViT-B/32."""
    dataset: str = "imagenet"
    """imagenet, flickr30k or coco."""
    published: float | None = None
    """Accuracy in per cent to compare with, for other data."""
    classes: tuple[str, ...] = ()
    """As for classify. The published ImageNet figures need OpenAI's names of its classes."""
    templates: str = "imagenet"
    """As for classify."""
    tolerance: float = 0.1
    """Difference in points that still counts as equal; more ends with exit code 1."""


# The commands. The last line that each one prints sums up its outcome.


def embed(options: Embed) -> None:
    """Writes the unit-norm features of pictures and captions to `options.out`.

    Raises:
        UserError: If the pictures or the model cannot be used, or the output cannot be written.
    """
    check_output(options.out)
    clip, listing = load(options, without_pictures=True)
    rows, texts = len(listing.names) + len(listing.captions or ()), sum(map(len, listing.captions or ()))
    check_space(options.out, 4 * (clip.model.config.embed_dim or 0) * rows + texts)
    parts = Parts(options.out.with_name(f"{options.out.name}.part"), key_of(clip, listing, options.batch_size))
    try:
        columns: dict[str, Any] = {}
        if listing.names:
            listing, images = encode(options, clip, listing, parts)
            columns |= {"name": listing.names, "image_features": images}
        if listing.captions is not None:
            columns |= {"caption": listing.captions, "text_features": encode_texts(clip, listing.captions, parts=parts)}
        if listing.labels is not None and listing.classes is not None:
            columns["label"] = [listing.classes[label] for label in listing.labels]
        write(options.out, columns)
    except BaseException as error:
        bad_input = getattr(error, "exit_status", 2) == 2 and isinstance(error, UserError)
        parts.close(remove=bad_input or not parts.count)
        raise
    parts.close(remove=True)
    counted = "image_features" if "image_features" in columns else "text_features"
    n, d = columns[counted].shape
    print(f"{n} {'pictures' if counted == 'image_features' else 'captions'}, {d} numbers each, in {options.out}")


def classify(options: Classify) -> None:
    """Classifies pictures zero-shot, and writes the best classes of each picture to `options.out` if that is given.

    Raises:
        UserError: If the pictures, the model or the classes cannot be used, or the output cannot be written.
    """
    if options.out is not None:
        check_output(options.out)
    check(options, "k")
    clip, listing = load(options)
    classes = class_names(options.classes, listing)
    listing = dataclasses.replace(listing, labels=same_classes(listing, classes, options.classes), classes=classes)
    weights = weights_of(clip, classes, templates(options.templates))
    listing, features = encode(options, clip, listing)
    ranked = rank(clip, features, weights, options.k)
    if options.out is not None:
        best = np.array(classes)[ranked.indices]
        write(options.out, {"name": listing.names, "class": best, "probability": ranked.probability})
    outcome = f"{len(features)} pictures, {len(classes)} classes"
    if listing.labels is not None:
        right = accuracy(features, weights, listing.labels)
        outcome += f": top-1 {100 * right[1]:.2f} %, top-5 {100 * right[5]:.2f} %"
    print(outcome + (f", in {options.out}" if options.out else ""))


def retrieve(options: Retrieve) -> None:
    """Prints the pictures nearest to each query; without queries, recall@k between pictures and captions.

    Raises:
        UserError: If the pictures or the model cannot be used, a query is empty, or there are neither queries nor
            captions.
    """
    check(options, "k")
    clip, listing = load(options)
    if not options.query and listing.captions is None:
        raise UserError(f"{options.source} has no captions: say what to look for by --query")
    if not all(query.strip() for query in options.query):
        raise UserError("--query: one of them is empty: say what to look for")
    listing, features = encode(options, clip, listing)
    if not options.query:
        print(recalls(clip, listing, features))
        return
    found = nearest(text_features(clip, options.query), features, options.k)
    for query, indices, similarity in zip(options.query, found.indices, found.similarity, strict=True):
        for i, value in zip(indices, similarity, strict=True):
            print(f"{query}\t{value:.4f}\t{listing.names[i]}")
    print(f"{len(features)} pictures searched for {len(options.query)} texts")


def verify(options: Verify) -> None:
    """Prints the accuracy or recall@1 of a model next to the published figure.

    Raises:
        UserError: If the pictures, the model or an option cannot be used.
        Unequal: If the two figures differ by more than `options.tolerance` percentage points.
    """
    for name in ("published", "tolerance"):
        value = getattr(options, name)
        if value is not None and not np.isfinite(value):  # a comparison with NaN is false, so any model would pass
            raise UserError(f"--{name}: {value} is not a finite number")
    known: dict[str, Any] = RETRIEVAL.get(options.dataset, IMAGENET)
    if options.dataset != "imagenet" and options.dataset not in RETRIEVAL:
        raise UserError(f"--dataset: {options.dataset!r} is none of imagenet, {', '.join(RETRIEVAL)}")
    if options.published is None and options.name not in known:
        raise UserError(f"--name: nothing is published here for {options.name!r}; choose one of {', '.join(known)}")
    clip, listing = load(options)
    if options.dataset in RETRIEVAL and options.published is None:
        if listing.captions is None:
            raise UserError(f"{options.source} has no captions to verify recall with")
        found = both_recalls(clip, *encode(options, clip, listing))
        pairs = [
            (direction.replace("_", " "), 100 * recall[1], published)
            for (direction, recall), published in zip(found.items(), known[options.name], strict=True)
        ]
    else:
        classes = class_names(options.classes, listing)
        listing = dataclasses.replace(listing, labels=same_classes(listing, classes, options.classes), classes=classes)
        if listing.labels is None:
            raise UserError(f"{options.source} has no labels to verify an accuracy with")
        weights = weights_of(clip, classes, templates(options.templates))
        listing, features = encode(options, clip, listing)
        assert listing.labels is not None
        top = 100 * accuracy(features, weights, listing.labels)[1]
        pairs = [("top-1", top, known[options.name] if options.published is None else options.published)]
    lines = [f"{metric} {x:.2f} %, published {y:.2f} %: {x - y:+.2f} points" for metric, x, y in pairs]
    outcome = "; ".join(lines)
    if max(abs(x - y) for _, x, y in pairs) > options.tolerance:
        raise Unequal(outcome)
    print(outcome)


class Unequal(Exception):
    """The measured figure differs from the published one; exit code 1."""

    exit_status = 1


# Helpers of the commands


def load(options: Pictures, *, without_pictures: bool = False) -> tuple[LoadedCLIP, Source]:
    """Opens the pictures, then loads the model: a mistyped path of pictures is reported before the slow step.

    Args:
        options: of the command.
        without_pictures: whether a source of captions alone is accepted.

    Returns:
        (model, source).

    Raises:
        UserError: If an option is out of range, or the pictures or the model cannot be used.
    """
    check(options, "batch_size", "threads")
    if not 0 <= options.max_bad_fraction <= 1:
        raise UserError(f"--max-bad-fraction: {options.max_bad_fraction} is not between 0 and 1")
    listing = open_source(options.source, data_dir=options.data_dir, without_pictures=without_pictures)
    return clip_jax.load(options.model), listing


def check(options: Any, *names: str) -> None:
    """Checks that the fields `names` of the options are at least 1.

    Raises:
        UserError: If one of them is less than 1.
    """
    for name in names:
        if getattr(options, name) < 1:
            raise UserError(f"--{name.replace('_', '-')}: {getattr(options, name)} is less than 1")


def encode(
    options: Pictures, clip: LoadedCLIP, listing: Source, parts: Parts | None = None
) -> tuple[Source, np.ndarray]:
    """Encodes the pictures of a source; a picture that several rows share is encoded once.

    Args:
        options: batch size, threads and the allowed share of damaged pictures.
        clip: the model.
        listing: the pictures, with their captions and labels.
        parts: the checkpoint file that the run continues from; None: no checkpoint.

    Returns:
        The rows whose pictures can be read [N], and their unit-norm features, float32 [N, D].

    Raises:
        UserError: If no picture can be read, or too many are damaged.
    """
    firsts: dict[str, int] = {}
    for i, name in enumerate(listing.names):
        firsts.setdefault(name, i)
    pictures = listing.take(list(firsts.values())).pictures
    bad = BadPictures(len(pictures), options.max_bad_fraction)
    quiet = not sys.stderr.isatty()
    with tqdm(total=len(pictures), desc="encoding", unit=" pictures", disable=quiet, dynamic_ncols=True) as bar:
        features = encode_pictures(
            clip,
            pictures,
            bad=bad,
            batch_size=options.batch_size,
            threads=options.threads,
            progress=bar.update,
            parts=parts,
        )
    if bad.errors:
        say(NAME, str(bad))
    if not len(features):
        raise UserError(f"{options.source}: none of its pictures can be read")
    if len(firsts) == len(listing.names) and not bad.errors:
        return listing, features
    names = [name for i, name in enumerate(firsts) if i not in bad.errors]
    places = {name: i for i, name in enumerate(names)}
    rows = [i for i, name in enumerate(listing.names) if name in places]
    return listing.take(rows), features[[places[listing.names[i]] for i in rows]]


def weights_of(clip: LoadedCLIP, classes: Sequence[str], prompts: Sequence[str]) -> np.ndarray:
    """The weights of a zero-shot classifier: unit-norm text features [classes, D], averaged over the prompts."""
    return classifier_weights(lambda texts: text_features(clip, texts), classes, prompts)


def both_recalls(clip: LoadedCLIP, listing: Source, features: np.ndarray) -> dict[str, dict[int, float]]:
    """recall@k of pictures and captions in both directions. Rows that share a picture are its several captions."""
    assert listing.captions is not None
    places: dict[str, int] = {}
    image_of_text = np.array([places.setdefault(name, len(places)) for name in listing.names])
    _, first = np.unique(image_of_text, return_index=True)
    return both_directions(features[first], text_features(clip, listing.captions), image_of_text)


def recalls(clip: LoadedCLIP, listing: Source, features: np.ndarray) -> str:
    """`both_recalls` as one line of text, in per cent."""
    parts = []
    for direction, recall in both_recalls(clip, listing, features).items():
        values = ", ".join(f"R@{k} {100 * value:.2f} %" for k, value in recall.items())
        parts.append(f"{direction.replace('_', ' ')}: {values}")
    return "; ".join(parts)


# The command line


COMMANDS: dict[str, Command] = {
    "embed": Command(Embed, embed),
    "classify": Command(Classify, classify),
    "retrieve": Command(Retrieve, retrieve),
    "verify": Command(Verify, verify),
}


def command(argv: Sequence[str]) -> None:
    """Runs the command that the arguments name. `main` turns its exceptions into one line and an exit code."""
    about = "A trained CLIP on pictures of your own."
    example = 'example: {} retrieve photos/ --model DIR --query "a dog on a beach"'
    prog = program("clip_jax")
    run_command(COMMANDS, argv, prog=prog, about=about, more=example.format(prog))


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """The console script `clip-jax`: runs a command and exits.

    Exit codes: 0 success; 1 `verify` found another figure, or too many pictures are damaged; 2 bad input; 130
    interrupted. With `--debug` errors end in their traceback.
    """
    run_main(command, argv, name=NAME)
