"""`remake PICTURE`: a picture of one of the other commands, made again from its metadata."""

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
    """Makes a picture again from what stands in its PNG."""

    picture: Annotated[Path, tyro.conf.Positional, positional("PICTURE")]
    """A PNG of one of the other commands. Weights other than the package's are named by --run or --weights again."""
    originals: Annotated[Path, shown("DIR", "the current directory")] = Path()
    """Where the pictures and masks lie that it was made of."""


class Differs(Exception):
    """The picture that was made is another one."""

    exit_status = 1


def run(commands: Mapping[str, DrawingCommand], options: Remake) -> None:
    """Makes the picture again in `options.out`.

    On the same kind of machine, with the same versions, it is the same file byte for byte, unless it was computed in
    chunks with pictures of other prompts.

    Args:
        commands: those that draw, by their names.
        options: of this command.

    Raises:
        UserError: the picture does not say how it was made, or the weights or the input pictures are others.
        Differs: it was made, and is not the same.
    """
    options.check()
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
    """The options that drew a picture. Raises UserError where its weights or its input pictures are not those at hand.

    Args:
        kind: the dataclass of its command's options.
        text: its metadata.
        options: where things lie.
    """
    where = {"run": options.run, "weights": options.weights, "out": options.out}
    again = metadata.read_options(kind, text, options.originals, **where)
    digest = metadata.weights_digest(directories(again), again.prior_folder())
    if digest != text.get(metadata.WEIGHTS_DIGEST):
        raise UserError("it was drawn with other weights than these; name them by --run or --weights")
    return again
