"""`remake PICTURE`: draws a picture of another command again from its PNG metadata, and compares the files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from image_text.errors import UserError
from unclip_jax.commands import metadata
from unclip_jax.commands.drawing import DrawingCommand, directories
from unclip_jax.commands.options import Drawing, System, positional, shown
from unclip_jax.pictures import read_text


@dataclass(frozen=True, kw_only=True)
class Remake(System):
    """Draws a picture again from the metadata in its PNG, and compares the two files."""

    picture: Annotated[Path, tyro.conf.Positional, positional("PICTURE")]
    """PNG drawn by one of the other commands. If it was drawn with --run or --weights, give that option again."""
    out: Path = Path("remade")
    """Directory for the PNG, created if absent; another one than that of PICTURE, so that the original stays."""
    originals: Annotated[Path, shown("DIR", "the current directory")] = Path()
    """Directory of the input pictures and masks that PICTURE was drawn from."""


class Differs(Exception):
    """The picture drawn again is not the same file; the exit code is 1."""

    exit_status = 1


def run(commands: Mapping[str, DrawingCommand], options: Remake) -> None:
    """Draws the picture again in `options.out`, and compares it with the original.

    On the same kind of machine, with the same versions, it is the same file byte for byte, unless the original was
    computed in one batch (`--chunk`) with pictures of other prompts.

    Args:
        commands: the commands that draw, by name.
        options: options of `remake`.

    Raises:
        UserError: the metadata is missing or incomplete, or the weights or the input pictures are not the same, or
            `options.out` is the directory of the original.
        Differs: the picture was drawn, and its file is not the same.
    """
    options.check()
    if options.out.resolve() == options.picture.resolve().parent:
        raise UserError(f"--out: {options.out} holds {options.picture} itself; name another directory")
    text = read_text(options.picture)
    command = text.get(metadata.COMMAND, "")
    if command not in commands:
        raise UserError(f"{options.picture}: it does not say which command drew it, or was drawn by an older version")
    try:
        again = read_command(commands[command].options, text, options)
        index = metadata.index_of(text)
    except UserError as error:
        raise UserError(f"{options.picture} cannot be made again: {error}") from error
    (file,) = commands[command].run(again, only=index)
    if file.read_bytes() != options.picture.read_bytes():
        version = text.get(metadata.VERSION)
        raise Differs(f"{file} differs from {options.picture}: another machine, or another version than its {version}?")
    print(f"{file} is {options.picture}, byte for byte")


def read_command(kind: type[Drawing], text: Mapping[str, str], options: Remake) -> Drawing:
    """Reads the options that drew a picture from its metadata.

    Args:
        kind: dataclass of the options of the command that drew it.
        text: the metadata of the picture.
        options: options of `remake`: directories of the weights, the input pictures and the output.

    Raises:
        UserError: an option cannot be read, or the weights or the input pictures are not the same.
    """
    where = {"run": options.run, "weights": options.weights, "out": options.out}
    again = metadata.read_options(kind, text, options.originals, **where)
    digest = metadata.weights_digest(directories(again), again.prior_folder())
    if digest != text.get(metadata.WEIGHTS_DIGEST):
        raise UserError("it was drawn with other weights than these; name them by --run or --weights")
    return again
