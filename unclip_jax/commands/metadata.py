"""What a picture depends on, as the metadata of its PNG: text under the names of the command's options.

A PNG says which command drew it (`command`), with which values of its options, as which picture (`index`), from which
weights (`weights_digest`), by which version. Of input pictures and masks it holds the file's name and SHA-256. No
path of the machine stands in it.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import unclip_jax
from clip_jax.weights.digest import DIGESTS, digests, file_digest, read_digests
from clip_jax.weights.files import read_json
from clip_jax.weights.find import TOKENIZER, weights_file
from image_text.errors import UserError
from unclip_jax.commands.options import Drawing
from unclip_jax.stage_files import CONFIG, WEIGHTS
from unclip_jax.weights import diffusers

Options = TypeVar("Options", bound=Drawing)

COMMAND, INDEX, VERSION, WEIGHTS_DIGEST = "command", "index", "version", "weights_digest"
# Options that say where things lie, or what else is drawn: a picture depends on none of them, unless a command says so.
LEFT_OUT = frozenset({"run", "weights", "out", "num", "prompts"})


def describe(command: str, options: Drawing, weights: str, values: Mapping[str, Any]) -> dict[str, str]:
    """The metadata of a command's pictures, but for `index`.

    Args:
        command: its name.
        options: its options.
        weights: the `weights_digest`.
        values: those that take the place of the options' own: what a default turned out to be, one prompt of several.
            They are written even where the option is otherwise left out. None is not written.
    """
    given = {field.name.rstrip("_"): getattr(options, field.name) for field in dataclasses.fields(options)}
    text = {COMMAND: command}
    for name, value in ({name: value for name, value in given.items() if name not in LEFT_OUT} | {**values}).items():
        if isinstance(value, Path):
            text |= {name: value.name, digest_name(name): file_digest(value)}
        elif value is not None:
            text[name] = str(value)
    return text | {WEIGHTS_DIGEST: weights, VERSION: unclip_jax.__version__}


def digest_name(option: str) -> str:
    """Under which name the SHA-256 of an input file stands."""
    return f"{option}_digest"


def read_options(kind: type[Options], text: Mapping[str, str], originals: Path, **more: Any) -> Options:
    """The options that metadata was made of.

    Args:
        kind: the dataclass of the command's options.
        text: what `describe` gave, and `index`.
        originals: the directory in which the input pictures and masks are looked for by their names.
        more: options that metadata does not hold.

    Raises:
        UserError: an option is absent or cannot be read, or an input file is not the one that the metadata tells of.
    """
    values: dict[str, Any] = {"num": index_of(text) + 1} | more
    hints = get_type_hints(kind)
    for field in dataclasses.fields(kind):
        name = field.name.rstrip("_")
        if name in text:
            values[field.name] = _value(name, text[name], hints[field.name], originals)
            if isinstance(values[field.name], Path) and file_digest(values[field.name]) != text.get(digest_name(name)):
                raise UserError(f"{values[field.name]}: it is not the {name} of that picture: its SHA-256 differs")
        elif field.default is dataclasses.MISSING:
            raise UserError(f"its metadata has no {name}")
    return kind(**values)


def index_of(text: Mapping[str, str]) -> int:
    """The index of a picture among those of its prompt. Raises UserError where its metadata has none."""
    index = text.get(INDEX, "")
    if not index.isdecimal():
        raise UserError(f"its metadata has {index!r} as {INDEX}")
    return int(index)


def _value(name: str, text: str, hint: Any, originals: Path) -> Any:
    """An option from its text; `hint` is its type: T, `T | None` or, of several prompts, `tuple[T, ...]`."""
    if get_origin(hint) is tuple:
        return (text,)
    kind = hint if isinstance(hint, type) else get_args(hint)[0]
    try:
        return originals / Path(text).name if kind is Path else kind(text)
    except ValueError:
        raise UserError(f"its metadata has {text!r} as {name}") from None


def weights_digest(directories: Sequence[Path], prior: str | None) -> str:
    """One SHA-256, in hex, over those of the files of all networks that draw.

    The digests in the `config.json` of our own networks are taken for it: `load` has compared them with the files.
    Published files have none and are read, a second or two per gigabyte.

    Args:
        directories: a run directory, or those of a published system.
        prior: the folder of the prior in a run directory; None where none is used.
    """
    if diffusers.is_published(directories[0]):
        parts: dict[str, Path] = {}
        for directory in directories:
            parts |= diffusers.parts_of(directory)
        found = {name: _published(folder) for name, folder in parts.items()}
    else:
        (root,) = directories
        names = ["clip", *([prior] if prior else []), "decoder"]
        upsamplers = sorted(folder.name for folder in root.glob("upsampler_*") if folder.is_dir())
        found = {name: _own(root / name) for name in (*names, *upsamplers)}
    lines = [f"{folder}/{file} {digest}\n" for folder, files in found.items() for file, digest in sorted(files.items())]
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


def _own(folder: Path) -> dict[str, str]:
    """The digests of a folder that `save_stage` or `clip_jax.save` wrote; older versions wrote none, and are read."""
    names = (WEIGHTS, TOKENIZER)
    return read_digests(read_json(folder / CONFIG).get(DIGESTS), DIGESTS, names) or digests(folder, names)


def _published(folder: Path) -> dict[str, str]:
    file = weights_file(folder, diffusers.WEIGHTS)
    if file is None:  # a tokenizer, a scheduler
        return {}
    files = {file.name}
    if file.suffix == ".json":  # of shards
        files |= {*read_json(file)["weight_map"].values()}
    return digests(folder, files)
