"""Classes of a command line: reads their names and prompt templates, and matches the labels of pictures to them."""

import os
import re
import warnings
from collections import Counter
from pathlib import Path

import numpy as np

from clip_jax.errors import UserError
from clip_jax.uses.prompts import TEMPLATES
from image_text.base import integer_of, quoted, some
from image_text.lines import words_of
from image_text.source import Source

_FILE = re.compile(r"\.(txt|csv|tsv|json|jsonl|names)$")
LONGEST_NAME = 1000  # characters; `classify --out` writes the name once per picture


def class_names(given: tuple[str, ...], source: Source) -> list[str]:
    """The names of the classes.

    Args:
        given: the names, or a single file that lists them; empty: the classes of the pictures.
        source: the pictures.

    Raises:
        UserError: If there are no classes, a name is empty or too long, or the file cannot be read.
    """
    names = [name for _, name in _given(given)] or source.classes
    if not names:
        raise UserError("the pictures have no classes of their own: name some by --classes")
    if not given and all(integer_of(name) is not None for name in names):
        warnings.warn(f"prompts are made of the numbers {some(names, 3)}: name the classes by --classes", stacklevel=2)
    duplicates = sorted(name for name, count in Counter(names).items() if count > 1)
    if duplicates:  # a warning only, as OpenAI's names of ImageNet's classes have duplicates
        warnings.warn(f"{len(duplicates)} classes are there more than once: {some(duplicates, 3)}", stacklevel=2)
    for name in names:
        if not name.strip():
            raise UserError("--classes: one of them is empty: name it, or leave it out")
        if len(name) > LONGEST_NAME:
            raise UserError(f"--classes: {quoted(name)} is longer than {LONGEST_NAME:,} characters: one class per line")
    return names


def same_classes(source: Source, classes: list[str], given: tuple[str, ...] = ()) -> np.ndarray | None:
    """The labels of the pictures as indices into `classes`.

    Class names match regardless of case, and with `_` for a space. Labels that are integers are indices into `classes`,
    unless these are integers too. A file of classes may give the label of each, `LABEL<TAB>NAME`, as for the folders of
    ImageNet (`n01440764<TAB>tench`).

    Args:
        source: the pictures.
        classes: as `class_names` returns them.
        given: the argument of `class_names`, whose file may have labels next to the names.

    Returns:
        Indices [N]. None if the pictures have no labels; also, with a warning, if none of their labels matches a class
        (pictures in folders by year, for example).

    Raises:
        UserError: If some labels match a class and others do not; the message names these.
    """
    if source.labels is None or source.classes is None:
        return None
    keys = [key for key, _ in _given(given)] or classes
    places = _places(source.classes, keys)
    used = set(np.unique(source.labels).tolist())
    unknown = [source.classes[i] for i in used if places[i] is None]
    if not unknown:
        return np.array([-1 if place is None else place for place in places])[source.labels]
    mismatch = (
        f"the pictures' {some(unknown, 5)} are none of the {len(keys)} classes ({some(keys, 5)}); "
        "a file with LABEL<TAB>NAME in each line says which is which"
    )
    if len(unknown) < len(used):
        raise UserError(f"--classes: {mismatch}")
    warnings.warn(f"no accuracy: {mismatch}", stacklevel=2)
    return None


def _places(names: list[str], keys: list[str]) -> list[int | None]:
    """Index of each name in `keys`, None without a match; integer names are indices if not all keys are integers."""
    numbers = [integer_of(name) for name in names]
    if None not in numbers and any(integer_of(key) is None for key in keys):
        return [n if n is not None and 0 <= n < len(keys) else None for n in numbers]
    backwards = list(enumerate(keys))[::-1]  # so that the first of equal keys wins
    exact, alike = {key: i for i, key in backwards}, {_plain(key): i for i, key in backwards}
    return [exact.get(name, alike.get(_plain(name))) for name in names]


def templates(given: str) -> tuple[str, ...]:
    """The prompt templates of a named set, or of a file with one per line.

    Raises:
        UserError: If `given` is neither a set nor a file, or the file cannot be read.
    """
    if given in TEMPLATES:
        return TEMPLATES[given]
    if Path(given).is_file():
        return tuple(words_of(Path(given)))
    raise UserError(f"--templates: {given!r} is neither a file nor one of {', '.join(TEMPLATES)}")


def _given(given: tuple[str, ...]) -> list[tuple[str, str]]:
    """(label, name) of each class; the two are equal unless a file has `LABEL<TAB>NAME`."""
    if len(given) == 1 and not Path(given[0]).is_file() and (os.sep in given[0] or _FILE.search(given[0])):
        raise UserError(f"--classes: there is no file {given[0]}")
    if len(given) != 1 or not Path(given[0]).is_file():
        return [(name, name) for name in given]
    lines = words_of(Path(given[0]))
    pairs = [tuple(part.strip() for part in line.split("\t")) for line in lines]
    if all(len(pair) == 1 for pair in pairs):
        return [(line, line) for line in lines]
    for number, pair in enumerate(pairs, 1):
        if len(pair) != 2 or not all(pair):
            raise UserError(
                f"{given[0]}: class {number} is not LABEL<TAB>NAME, as others are: {quoted(lines[number - 1])}"
            )
    return [(pair[0], pair[1]) for pair in pairs]


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").casefold().split())
