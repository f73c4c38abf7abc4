"""PNG metadata that a picture can be drawn again from: command, options, index, digest of the weights, version.

The keys are `command`, the names of the command's options, `index` (of the picture among those of its prompt),
`weights_digest` and `version`. Of input pictures and masks the file name and the SHA-256 are written, but no directory.
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
# Options that a picture does not depend on: directories, and what else is drawn. `Job.values` may write them anyway.
LEFT_OUT = frozenset({"run", "weights", "out", "num", "prompts"})


def describe(command: str, options: Drawing, weights: str, values: Mapping[str, Any]) -> dict[str, str]:
    """The metadata of a command's pictures, without `index`.

    Args:
        command: name of the command.
        options: options of the command.
        weights: the digest of `weights_digest`.
        values: replace values of the options (a default that depends on the system, one of several prompts), and are
            written even for an option in `LEFT_OUT`. A value of None is not written.

    Returns:
        Key -> text.
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
    """Metadata key of the SHA-256 of the input file that an option names."""
    return f"{option}_digest"


def read_options(kind: type[Options], text: Mapping[str, str], originals: Path, **more: Any) -> Options:
    """Reads the options of a command back from metadata; the inverse of `describe`.

    Args:
        kind: dataclass of the command's options.
        text: the metadata of a picture, with `index`.
        originals: directory of the input pictures and masks, which are looked up by file name.
        more: options that metadata does not hold.

    Raises:
        UserError: an option is missing or unreadable, or an input file has another SHA-256 than the metadata says.
        OSError: an input file cannot be read.
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
    """Reads the index of a picture among those of its prompt from its metadata.

    Raises:
        UserError: there is no index, or it is not a number.
    """
    index = text.get(INDEX, "")
    if not index.isdecimal():
        raise UserError(f"its metadata has {index!r} as {INDEX}")
    return int(index)


def _value(name: str, text: str, hint: Any, originals: Path) -> Any:
    """Parses an option; `hint` is its type: T, `T | None`, or `tuple[T, ...]`, which becomes a tuple of one."""
    if get_origin(hint) is tuple:
        return (text,)
    kind = hint if isinstance(hint, type) else get_args(hint)[0]
    try:
        return originals / Path(text).name if kind is Path else kind(text)
    except ValueError:
        raise UserError(f"its metadata has {text!r} as {name}") from None


def weights_digest(directories: Sequence[Path], prior: str | None) -> str:
    """SHA-256, in hex, over the digests of the weight files of all networks that draw.

    For a run directory the digests in each `config.json` are taken: `load` has compared them with the files. The files
    of a published system have no such digests and are hashed here, a second or two per gigabyte.

    Args:
        directories: a run directory, or the directories of a published system.
        prior: folder of the prior in a run directory; None if none is used.
    """
    if diffusers.is_published(directories[0]):
        parts: dict[str, Path] = {}
        for directory in directories:
            parts |= diffusers.parts_of(directory)
        files_of = {name: _published(folder) for name, folder in parts.items()}
    else:
        (root,) = directories
        names = ["clip", *([prior] if prior else []), "decoder"]
        upsamplers = sorted(folder.name for folder in root.glob("upsampler_*") if folder.is_dir())
        files_of = {name: _own(root / name) for name in (*names, *upsamplers)}
    lines = [
        f"{folder}/{file} {digest}\n" for folder, files in files_of.items() for file, digest in sorted(files.items())
    ]
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


def _own(folder: Path) -> dict[str, str]:
    """File name -> digest of a folder written by `save_stage` or `clip_jax.save`; hashed if the config has none."""
    names = (WEIGHTS, TOKENIZER)
    return read_digests(read_json(folder / CONFIG).get(DIGESTS), DIGESTS, names) or digests(folder, names)


def _published(folder: Path) -> dict[str, str]:
    """File name -> digest of the weights in a folder of a published system; empty for a folder without weights."""
    file = weights_file(folder, diffusers.WEIGHTS)
    if file is None:  # the folder of a tokenizer or a scheduler
        return {}
    files = {file.name}
    if file.suffix == ".json":  # the index of a checkpoint in several shards
        files |= {*read_json(file)["weight_map"].values()}
    return digests(folder, files)
