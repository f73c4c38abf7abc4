"""`python -m clip_jax embed | classify | retrieve | verify`: a trained CLIP on pictures of one's own.

Bad input ends in one line on stderr and exit code 2, and leaves no file behind. Files appear whole or not at all.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import numpy as np
import tyro

from clip_jax.errors import UserError

if TYPE_CHECKING:
    from clip_jax.listing import Listing
    from clip_jax.pretrained import LoadedCLIP

SUFFIXES = (".npz", ".parquet")


@dataclass(frozen=True)
class Pictures:
    """Which pictures, and with which model."""

    source: Annotated[str, tyro.conf.Positional]
    """A folder, a table (.csv, .tsv, .jsonl with columns image, caption, label), or tfds:NAME:SPLIT."""
    model: str
    """Directory or file of the CLIP; anything that clip_jax.load takes."""
    data_dir: Path | None = None
    """Where TFDS keeps its data."""
    batch_size: int = 64
    """Pictures encoded together."""
    threads: int = 8
    """Pictures decoded at once."""


@dataclass(frozen=True)
class Embed(Pictures):
    """Writes the unit-norm features of pictures, and of their captions if they have some."""

    out: Path = Path("embeds.npz")
    """.npz, or .parquet with pyarrow."""


@dataclass(frozen=True)
class Classify(Pictures):
    """Sorts pictures into classes by prompts; reports the accuracy where the classes are known."""

    classes: tuple[str, ...] = ()
    """Names of the classes, or one text file with a name per line. Default: those of the pictures."""
    templates: str = "plain"
    """A set of prompts (plain, imagenet, cifar10, ...), or a text file with a template per line."""
    k: int = 5
    """Best classes written for each picture."""
    out: Path | None = None
    """.npz, or .parquet with pyarrow. Default: nothing is written but the outcome."""


@dataclass(frozen=True)
class Retrieve(Pictures):
    """Finds pictures by text; without --query, measures how well captions and pictures find each other."""

    query: tuple[str, ...] = ()
    """What to look for; several texts are looked for one after the other."""
    k: int = 5
    """Pictures named for each query."""


@dataclass(frozen=True)
class Verify(Pictures):
    """Compares the accuracy (of labelled pictures) or recall (of captioned ones) with what was published."""

    name: str = ""
    """The published model that --model should be, as in clip_jax.published, e.g. ViT-B/32."""
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


COMMANDS: dict[str, type[Pictures]] = {"embed": Embed, "classify": Classify, "retrieve": Retrieve, "verify": Verify}


def embed(options: Embed) -> str:
    """Runs the command and returns its outcome in one line, as the three below do."""
    from clip_jax.embed import text_features

    check_output(options.out)
    clip, listing = load(options)
    columns: dict[str, Any] = {"name": np.array(listing.names), "image_features": encode(options, clip, listing)}
    if listing.captions is not None:
        columns |= {"caption": np.array(listing.captions), "text_features": text_features(clip, listing.captions)}
    if listing.labels is not None and listing.classes is not None:
        columns["label"] = np.array(listing.classes)[listing.labels]
    write(options.out, columns)
    n, d = columns["image_features"].shape
    return f"{n} pictures, {d} numbers each, in {options.out}"


def classify(options: Classify) -> str:
    from clip_jax.zero_shot import accuracy, rank

    if options.out is not None:
        check_output(options.out)
    check(options, "k")
    clip, listing = load(options)
    classes = class_names(options.classes, listing)
    weights = weights_of(clip, classes, templates(options.templates))
    features = encode(options, clip, listing)
    found = rank(clip, features, weights, options.k)
    if options.out is not None:
        best = np.array(classes)[found.indices]
        write(options.out, {"name": np.array(listing.names), "class": best, "probability": found.probability})
    outcome = f"{len(features)} pictures, {len(classes)} classes"
    if (labels := same_classes(listing, classes)) is not None:
        right = accuracy(features, weights, labels)
        outcome += f": top-1 {100 * right[1]:.2f} %, top-5 {100 * right[5]:.2f} %"
    return outcome + (f", in {options.out}" if options.out else "")


def retrieve(options: Retrieve) -> str:
    from clip_jax.embed import text_features
    from clip_jax.retrieval import nearest

    check(options, "k")
    clip, listing = load(options)
    if not options.query and listing.captions is None:
        raise UserError(f"{options.source} has no captions: say what to look for by --query")
    features = encode(options, clip, listing)
    if not options.query:
        return recalls(clip, listing, features)
    found = nearest(text_features(clip, options.query), features, options.k)
    for query, indices, similarity in zip(options.query, found.indices, found.similarity, strict=True):
        for i, value in zip(indices, similarity, strict=True):
            print(f"{query}\t{value:.4f}\t{listing.names[i]}")
    return f"{len(features)} pictures searched for {len(options.query)} texts"


def verify(options: Verify) -> str:
    from clip_jax.published import IMAGENET, RETRIEVAL
    from clip_jax.zero_shot import accuracy

    known: dict[str, Any] = RETRIEVAL.get(options.dataset, IMAGENET)
    if options.dataset != "imagenet" and options.dataset not in RETRIEVAL:
        raise UserError(f"--dataset: {options.dataset!r} is none of imagenet, {', '.join(RETRIEVAL)}")
    if options.published is None and options.name not in known:
        raise UserError(f"--name: nothing is published here for {options.name!r}; choose one of {', '.join(known)}")
    clip, listing = load(options)
    if options.dataset in RETRIEVAL and options.published is None:
        if listing.captions is None:
            raise UserError(f"{options.source} has no captions to verify recall with")
        found = both_recalls(clip, listing, encode(options, clip, listing))
        pairs = [
            (direction.replace("_", " "), 100 * recall[1], published)
            for (direction, recall), published in zip(found.items(), known[options.name], strict=True)
        ]
    else:
        classes = class_names(options.classes, listing)
        labels = same_classes(listing, classes)
        if labels is None:
            raise UserError(f"{options.source} has no labels to verify an accuracy with")
        weights = weights_of(clip, classes, templates(options.templates))
        top = 100 * accuracy(encode(options, clip, listing), weights, labels)[1]
        pairs = [("top-1", top, known[options.name] if options.published is None else options.published)]
    lines = [f"{what} {x:.2f} %, published {y:.2f} %: {x - y:+.2f} points" for what, x, y in pairs]
    outcome = "; ".join(lines)
    if max(abs(x - y) for _, x, y in pairs) > options.tolerance:
        raise Unequal(outcome)
    return outcome


class Unequal(Exception):
    """The measurement is not the published one."""


# What the commands share


def load(options: Pictures) -> tuple[LoadedCLIP, Listing]:
    """The pictures first: they are what is mistyped, and cost nothing to look for."""
    check(options, "batch_size", "threads")
    from clip_jax.listing import read_listing

    listing = read_listing(options.source, data_dir=options.data_dir)
    import clip_jax

    return clip_jax.load(options.model), listing


def check(options: Any, *names: str) -> None:
    for name in names:
        if getattr(options, name) < 1:
            raise UserError(f"--{name.replace('_', '-')}: {getattr(options, name)} is less than 1")


def encode(options: Pictures, clip: LoadedCLIP, listing: Listing) -> np.ndarray:
    from tqdm import tqdm

    from clip_jax.embed import image_features

    quiet = not sys.stderr.isatty()
    with tqdm(total=len(listing.names), desc="encoding", unit=" pictures", disable=quiet, dynamic_ncols=True) as bar:
        return image_features(
            clip, listing.pictures, batch_size=options.batch_size, threads=options.threads, progress=bar.update
        )


def weights_of(clip: LoadedCLIP, classes: Sequence[str], prompts: Sequence[str]) -> np.ndarray:
    from clip_jax.embed import text_features
    from clip_jax.zero_shot import classifier_weights

    return classifier_weights(lambda texts: text_features(clip, texts), classes, prompts)


def lines_of(path: Path) -> list[str]:
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8: save it as UTF-8") from None
    if not any(lines):
        raise UserError(f"{path} is empty")
    return [line for line in lines if line]


def class_names(given: tuple[str, ...], listing: Listing) -> list[str]:
    if len(given) == 1 and Path(given[0]).is_file():
        return lines_of(Path(given[0]))
    names = list(given) or listing.classes
    if not names:
        raise UserError("the pictures have no classes of their own: name some by --classes")
    return names


def same_classes(listing: Listing, classes: list[str]) -> np.ndarray | None:
    """The labels of the pictures as indices of `classes`; None when they have none, or of other classes.

    The same number of classes may have other names: they are then taken to be the same, in the same order.
    """
    if listing.labels is None or listing.classes is None:
        return None
    if set(listing.classes) <= set(classes):
        return np.array([classes.index(name) for name in listing.classes])[listing.labels]
    return listing.labels if len(classes) == len(listing.classes) else None


def templates(given: str) -> tuple[str, ...]:
    from clip_jax.prompts import TEMPLATES

    if given in TEMPLATES:
        return TEMPLATES[given]
    if Path(given).is_file():
        return tuple(lines_of(Path(given)))
    raise UserError(f"--templates: {given!r} is neither a file nor one of {', '.join(TEMPLATES)}")


def both_recalls(clip: LoadedCLIP, listing: Listing, features: np.ndarray) -> dict[str, dict[int, float]]:
    """Rows of the same picture are one picture with several captions."""
    from clip_jax.embed import text_features
    from clip_jax.retrieval import both_directions

    assert listing.captions is not None
    _, first, image_of_text = np.unique(listing.names, return_index=True, return_inverse=True)
    return both_directions(features[first], text_features(clip, listing.captions), image_of_text.ravel())


def recalls(clip: LoadedCLIP, listing: Listing, features: np.ndarray) -> str:
    parts = []
    for direction, recall in both_recalls(clip, listing, features).items():
        values = ", ".join(f"R@{k} {100 * value:.2f} %" for k, value in recall.items())
        parts.append(f"{direction.replace('_', ' ')}: {values}")
    return "; ".join(parts)


# Files


def check_output(path: Path) -> None:
    """Refuses what cannot be written before anything is computed."""
    if path.suffix not in SUFFIXES:
        raise UserError(f"--out: {path} is neither {' nor '.join(SUFFIXES)}")
    if not path.absolute().parent.is_dir():
        raise UserError(f"--out: {path.parent} is not a directory: make it first")
    if path.is_dir():
        raise UserError(f"--out: {path} is a directory")
    if path.suffix == ".parquet":
        pyarrow()


def pyarrow() -> Any:
    try:
        import pyarrow.parquet
    except ImportError:
        raise UserError("--out: .parquet needs the package pyarrow: pip install pyarrow, or write .npz") from None
    return pyarrow


def write(path: Path, columns: dict[str, np.ndarray]) -> None:
    """One array per column; in parquet those of more than one axis are lists."""
    from clip_jax.weights.native import atomic_path

    with atomic_path(path) as temporary:
        if path.suffix == ".parquet":
            arrow = pyarrow()
            table = arrow.table({name: list(a) if a.ndim > 1 else a.tolist() for name, a in columns.items()})
            arrow.parquet.write_table(table, temporary)
        else:
            with open(temporary, "wb") as file:
                np.savez(file, **columns)  # type: ignore[arg-type] # its first own argument is no column


# The way in and out


def main(argv: Sequence[str]) -> None:
    """Raises what `run` turns into one line and an exit code."""
    if not argv or argv[0] in ("-h", "--help"):
        width = max(map(len, COMMANDS))
        print("usage: python -m clip_jax COMMAND SOURCE --model MODEL [--field value ...]\n")
        for name, kind in COMMANDS.items():
            print(f"  {name:<{width}}  {kind.__doc__}")
        print("\n`python -m clip_jax COMMAND --help` lists the fields of a command.")
        sys.exit(0 if argv else 2)
    name, *rest = argv
    if name not in COMMANDS:
        raise UserError(f"{name}: there is no such command; choose one of {', '.join(COMMANDS)}")
    options = tyro.cli(COMMANDS[name], args=rest, prog=f"python -m clip_jax {name}")
    print({"embed": embed, "classify": classify, "retrieve": retrieve, "verify": verify}[name](options))  # type: ignore[operator]


def run(argv: Sequence[str] | None = None) -> NoReturn:
    """The command, and exit: 0, 1 when what was verified is not so, 2 for bad input, 130 when stopped.

    With `--debug` errors end in their traceback.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in argv
    argv = [arg for arg in argv if arg != "--debug"]
    with one_line_warnings():
        try:
            main(argv)
            status = 0
        except KeyboardInterrupt:
            status = say("stopped", 130)
        except Unequal as error:
            status = say(str(error), 1)
        except (UserError, OSError) as error:
            if debug:
                raise
            text = " ".join(str(error).split())
            if isinstance(error, OSError) and error.strerror and error.filename is not None:
                text = f"{error.filename}: {error.strerror}"
            status = say(text, 2)
    sys.exit(status)


def say(text: str, status: int) -> int:
    print(f"clip_jax: {text}", file=sys.stderr, flush=True)
    return status


@contextmanager
def one_line_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.showwarning = _show
        yield


def _show(message: Warning | str, *_: Any, **__: Any) -> None:
    say(f"warning: {message}", 0)
