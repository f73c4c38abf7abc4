"""The classes of a command line: their names, from flags or a file; their prompts; labels of pictures as theirs."""

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
LONGEST_NAME = 1000  # characters; what is longer is no name, and would be written once per picture


def class_names(given: tuple[str, ...], source: Source) -> list[str]:
    """The names of the classes: those given, or in the one file given, or else those of the pictures."""
    names = [name for _, name in _given(given)] or source.classes
    if not names:
        raise UserError("the pictures have no classes of their own: name some by --classes")
    if not given and all(integer_of(name) is not None for name in names):
        warnings.warn(f"prompts are made of the numbers {some(names, 3)}: name the classes by --classes", stacklevel=2)
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:  # as in OpenAI's names of ImageNet's classes
        warnings.warn(f"{len(twice)} classes are there more than once: {some(twice, 3)}", stacklevel=2)
    for name in names:
        if not name.strip():
            raise UserError("--classes: one of them is empty: name it, or leave it out")
        if len(name) > LONGEST_NAME:
            raise UserError(f"--classes: {quoted(name)} is longer than {LONGEST_NAME:,} characters: one class per line")
    return names


def same_classes(source: Source, classes: list[str], given: tuple[str, ...] = ()) -> np.ndarray | None:
    """The labels of the pictures as indices of `classes`; None when they have none, or all of other classes.

    Classes are the same if their names are, but for upper and lower case and `_` for a space. Labels that are integers
    are indices of `classes`, unless these are integers too. A file of classes may name the label of each,
    `LABEL<TAB>NAME`, as for the folders of ImageNet (`n01440764<TAB>tench`). That none is the same (pictures in folders
    by year, say) is warned of.

    Args:
        source: the pictures.
        classes: as `class_names` returns them.
        given: what it was given, if there may be labels beside the names.

    Raises:
        UserError: some classes of the pictures are none of `classes`, and others are; they are named.
    """
    if source.labels is None or source.classes is None:
        return None
    keys = [key for key, _ in _given(given)] or classes
    places = _places(source.classes, keys)
    used = set(np.unique(source.labels).tolist())
    unknown = [source.classes[i] for i in used if places[i] is None]
    if not unknown:
        return np.array([-1 if place is None else place for place in places])[source.labels]
    what = (
        f"the pictures' {some(unknown, 5)} are none of the {len(keys)} classes ({some(keys, 5)}); "
        "a file with LABEL<TAB>NAME in each line says which is which"
    )
    if len(unknown) < len(used):
        raise UserError(f"--classes: {what}")
    warnings.warn(f"no accuracy: {what}", stacklevel=2)
    return None


def _places(names: list[str], keys: list[str]) -> list[int | None]:
    """Where each name is among the keys; an integer is where it says, if the keys are no integers."""
    numbers = [integer_of(name) for name in names]
    if None not in numbers and any(integer_of(key) is None for key in keys):
        return [n if n is not None and 0 <= n < len(keys) else None for n in numbers]
    backwards = list(enumerate(keys))[::-1]  # of the same key twice, the first
    exact, alike = {key: i for i, key in backwards}, {_plain(key): i for i, key in backwards}
    return [exact.get(name, alike.get(_plain(name))) for name in names]


def templates(given: str) -> tuple[str, ...]:
    """A set of prompts by its name, or those in a file, one per line."""
    if given in TEMPLATES:
        return TEMPLATES[given]
    if Path(given).is_file():
        return tuple(words_of(Path(given)))
    raise UserError(f"--templates: {given!r} is neither a file nor one of {', '.join(TEMPLATES)}")


def _given(given: tuple[str, ...]) -> list[tuple[str, str]]:
    """(label, name) of each class; they are the same but where a file says otherwise."""
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
