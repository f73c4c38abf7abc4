"""The command line of unCLIP: `sample.py`, the console script `unclip`, `python -m unclip_jax`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NoReturn

from image_text.command_line import Command, program, run_command, run_main
from image_text.errors import UserError
from train_jax.cli import missing_device, tune_cpu
from unclip_jax.commands import draw, edit, inpaint, interpolate, redraw, remake, vary
from unclip_jax.commands.drawing import DrawingCommand

DRAWING = {
    "draw": DrawingCommand(draw.Draw, draw.job),
    "vary": DrawingCommand(vary.Vary, vary.job),
    "interpolate": DrawingCommand(interpolate.Interpolate, interpolate.job),
    "edit": DrawingCommand(edit.Edit, edit.job),
    "inpaint": DrawingCommand(inpaint.Inpaint, inpaint.job),
    "redraw": DrawingCommand(redraw.Redraw, redraw.job),
}
COMMANDS = {name: Command(command.options, command.run) for name, command in DRAWING.items()} | {
    "remake": Command(remake.Remake, partial(remake.run, DRAWING))
}
# Options of older versions -> the commands that replace them.
OLD_FLAGS = {
    "--vary": "vary IMAGE",
    "--interpolate": "interpolate FIRST SECOND",
    "--edit": "edit IMAGE --from TEXT --to TEXT",
    "--inpaint": "inpaint IMAGE PROMPT --mask IMAGE",
    "--redraw": "redraw IMAGE PROMPT",
}

ABOUT = """\
Text to pictures, and pictures to other pictures. Each is a PNG of its own, and a contact sheet shows them together.
`{prog} "a prompt"` is short for `{prog} draw "a prompt"`."""
EXAMPLES = """\
examples:
  {prog} "a small red circle in the top left"                 # with the weights that come with the package
  {prog} "a large blue star in the bottom right" --run runs/shapes --num 8 --seed 1
  {prog} --prompts captions.txt --out pictures
  {prog} "a corgi on a beach" --weights karlo-v1-alpha        # published: a directory, or a name on the hub
  {prog} vary picture.png                                     # the same meaning, other details
  {prog} interpolate first.png second.png
  {prog} edit picture.png --from "a red star" --to "a blue star"
  {prog} inpaint picture.png "a green circle" --mask mask.png
  {prog} redraw picture.png "a green circle"
  {prog} remake samples/000-a-green-circle-00.png --out again"""


def command(argv: Sequence[str]) -> None:
    """Runs the command that the arguments begin with; if they begin with none, `draw`.

    Args:
        argv: arguments without the name of the program.

    Raises:
        UserError: an option is unknown or belongs to another command, or the command fails on bad input.
        SystemExit: 0 after help.
    """
    prog = program("unclip_jax")
    if not argv or argv[0] not in (*COMMANDS, "-h", "--help"):
        refuse_other_command(argv, prog)
        argv = ["draw", *argv]
    about, examples = (text.format(prog=prog) for text in (ABOUT, EXAMPLES))
    run_command(COMMANDS, argv, prog=prog, about=about, more=examples)


def refuse_other_command(argv: Sequence[str], prog: str) -> None:
    """Refuses arguments that name a command in a later place than the first.

    Args:
        argv: arguments that do not begin with a command.
        prog: name of the program, for the message.

    Raises:
        UserError: an argument is a command, or an option of an older version that is a command now.
    """
    for i, word in enumerate(argv):
        flag = word.partition("=")[0]
        if flag in OLD_FLAGS:
            raise UserError(f"{flag}: it is a command now: {prog} {OLD_FLAGS[flag]}")
        if word in COMMANDS and not argv[i - 1].startswith("--"):
            raise UserError(f"{word}: a command comes first; to draw this word, write {prog} draw {word}")


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """The console script `unclip`: runs a command and exits.

    The exit code is 0 on success, 1 when `remake` drew a file that differs, 2 for bad input, 130 when interrupted.
    With `--debug` an error is shown with its traceback.

    Args:
        argv: arguments without the name of the program; None takes those of the process.
    """
    tune_cpu(training=False)
    name = program("unclip_jax").removeprefix("python -m ").removesuffix(".py")
    run_main(command, argv, name=name, explain=missing_device)
