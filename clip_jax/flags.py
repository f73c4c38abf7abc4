"""Command lines from dataclasses: tyro reads them, and what is wrong with them is one line."""

import contextlib
import difflib
import io
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any, TypeVar

import tyro

from clip_jax.errors import UserError

T = TypeVar("T")

# What tyro writes into its boxes, and the same in a line.
_SAYINGS = (
    (r"Error parsing (\S+): invalid literal for int\(\) with base 10: (.*)", r"\1: \2 is not an integer"),
    (r"Error parsing (\S+): could not convert string to float: (.*)", r"\1: \2 is not a number"),
    (r"Error parsing (\S+): (.*)", r"\1: \2"),
    (r"Missing value for argument '([^']+)'.*", r"\1: it needs a value"),
)


def parse(kind: type[T], argv: Sequence[str], *, prog: str) -> T:
    """A dataclass from flags; `--help` prints them with their values and exits with 0.

    Args:
        kind: a dataclass of plain fields, each of which is a flag.
        argv: the command line after the name of the command.
        prog: what the help calls the program.

    Raises:
        UserError: a flag is unknown (the nearest is named), is missing or lacks its value, or cannot have it.
    """
    if {"-h", "--help"} & set(argv):
        return tyro.cli(kind, args=list(argv), prog=prog)
    flags = [f"--{field.name.replace('_', '-')}" for field in fields(kind)]  # type: ignore[arg-type] # T is a dataclass
    for word in argv:
        flag = word.partition("=")[0].replace("_", "-")
        if re.match(r"--[a-z]", flag) and flag not in flags:
            close = difflib.get_close_matches(flag, flags, n=1)
            hint = f"perhaps you meant {close[0]}" if close else f"`{prog} --help` lists those there are"
            raise UserError(f"{word.partition('=')[0]}: there is no such flag; {hint}")
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box), _wide():
            found: Any = tyro.cli(kind, args=list(argv), prog=prog, return_unknown_args=True)
    except SystemExit:
        raise UserError(_line(box.getvalue(), prog)) from None
    options, unknown = found
    if unknown:
        raise UserError(f"{unknown[0]}: it follows no flag that takes it; `{prog} --help` lists the flags")
    return options


@contextlib.contextmanager
def _wide() -> Iterator[None]:
    """Tyro breaks its lines, and long words in them, at the terminal's width; for as long as this, it is endless."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "100000"
    try:
        yield
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before


def _line(box: str, prog: str) -> str:
    """What one of tyro's boxes says: a title, a rule, what is wrong, a rule, help."""
    inside = [re.sub(r"[│╭╰╮╯|+]", " ", line).strip() for line in box.splitlines()]
    rules = [i for i, line in enumerate(inside) if line.startswith(("─", "--- ")) or (line and not line.strip("-─"))]
    first = rules[0] if rules else -1
    end = rules[1] if len(rules) > 1 else len(inside)
    lines = [line for line in inside[first + 1 : end] if line]
    if lines and lines[0].startswith("Missing from"):
        missing = [line.split()[0] for line in lines[1:] if re.match(r"(--[a-z-]+( |$)|[A-Z]+$)", line)]
        flags = [word for word in missing if word.startswith("--")]
        return f"{', '.join(flags or ['SOURCE'])}: missing; `{prog} --help` says what it is"
    text = " ".join(lines) or " ".join(box.split())
    for pattern, saying in _SAYINGS:
        if found := re.fullmatch(pattern, text):
            return found.expand(saying)
    return text
