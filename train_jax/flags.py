"""Command lines from dataclasses: tyro reads them, and what is wrong with them is one line."""

import contextlib
import difflib
import io
import os
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from train_jax.errors import UserError

__all__ = ["parse"]

T = TypeVar("T")

FITS = "{what} does not fit {kind}"
# What tyro writes into its boxes, and the same in a line. `flag` is the culprit, `what` is wrong with it.
SAYINGS = (
    (
        r"Error parsing (?P<flag>\S+): invalid literal for int\(\) with base 10: (?P<what>.*)",
        "{what} is not an integer",
    ),
    (r"Error parsing (?P<flag>\S+): could not convert string to float: (?P<what>.*)", "{what} is not a number"),
    (r"Error parsing (?P<flag>\S+): no type matching (?P<kind>.*) could be instantiated from \[(?P<what>.*)\]\.", FITS),
    (r"Error parsing (?P<flag>\S+): Could not find valid parse for arguments: \[(?P<what>.*)\]", "{what} does not fit"),
    (r"Error parsing (?P<flag>\S+): (?P<what>.*)", "{what}"),
    (r"Missing value for argument '(?P<flag>[^']+)'\.(?P<what>.*)", "it needs a value"),
    (
        r"invalid choice (?P<what>.*) for argument '(?P<flag>[^']+)'\. Expected one of \((?P<choices>.*?),?\)\.",
        "{what} is none of {choices}",
    ),
)


def parse(
    kind: type[T],
    argv: Sequence[str],
    *,
    prog: str,
    default: T | None = None,
    description: str | None = None,
    culprit: Callable[[str], str] = str,
) -> T:
    """A dataclass of type `kind` from the flags `argv`; `--help` prints the flags with their values and exits with 0.

    Args:
        kind: the dataclass; each of its fields, and of the dataclasses in it, is a flag.
        default: the values of the flags that are not given; None: those of the class.
        culprit: how an error names a flag, given as it is written (`--optim.warmup-steps`); as it is written if None.

    Raises:
        UserError: a flag is unknown (the line names the nearest one), its value is missing, or cannot be what it is
            for. The line begins with the flag.
    """
    import tyro

    def read(argv: Sequence[str]) -> tuple[T, list[str]]:
        options: dict[str, Any] = {} if default is None else {"default": default}
        return tyro.cli(
            kind,
            args=list(argv),
            prog=prog,
            description=description,
            config=(tyro.conf.AvoidSubcommands,),
            return_unknown_args=True,
            **options,
        )

    if {"-h", "--help"} & set(argv):
        read(argv)
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box), _wide():
            found, unknown = read(argv)
    except SystemExit as end:
        if not end.code:
            raise
        raise UserError(_line(box.getvalue(), culprit)) from None
    if unknown:
        raise UserError(_unknown(unknown, lambda: _flags(read), prog, culprit))
    return found


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


def _line(box: str, culprit: Callable[[str], str]) -> str:
    """What one of tyro's boxes says: a title, what is wrong, a rule, help. In ASCII a rule follows the title too."""
    lines = [line.strip() for line in re.sub(r"\x1b\[[\d;]*m", "", box).splitlines() if line.strip()]
    inside = [line.strip("│ ") for line in lines[1 if lines[:1] and lines[0].startswith("╭") else 2 :]]
    end = next((i for i, line in enumerate(inside) if not line.strip("-─")), len(inside))
    text = " ".join(inside[:end]) or " ".join(box.split())
    for pattern, saying in SAYINGS:
        if found := re.fullmatch(pattern, text):
            flag = culprit(found["flag"])
            what = saying.format(**found.groupdict())
            # A dataclass that refuses its values has named its field: `optim.lr: …`, which may be `clip.optim.lr`.
            outer, _, inner = flag.rpartition(".")
            if what.startswith(f"{inner}."):
                return f"{outer}.{what}".removeprefix(".")
            return f"{flag}: {what}"
    return text


def _flags(read: Callable[[Sequence[str]], Any]) -> list[str]:
    """All flags there are, from the help."""
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit), _wide():
        read(["--help"])
    return list(dict.fromkeys(re.findall(r"(?<![\w-])--[a-z][\w.-]*", shown.getvalue())))


def _unknown(tokens: Sequence[str], flags: Callable[[], list[str]], prog: str, culprit: Callable[[str], str]) -> str:
    given = next((token.partition("=")[0] for token in tokens if token.startswith("-")), None)
    if given is None:
        return f"{tokens[0]}: it follows no flag that takes it; `{prog} --help` lists the flags"
    close = difflib.get_close_matches(given, flags(), n=1)
    hint = f"perhaps you meant {close[0]}" if close else f"`{prog} --help` lists those there are"
    return f"{given}: there is no such flag; {hint}"
