"""Command lines from dataclasses, for all commands of this project: flags, subcommands, one-line errors, exit codes.

    @dataclass(frozen=True)
    class Options:
        '''Counts pictures.'''

        source: tyro.conf.Positional[str]
        limit: int = 10

    def main(argv: list[str]) -> None:
        options = parse(Options, argv, prog="count")
        ...

    run_main(main, name="count")

`tyro` turns a dataclass into flags. Its error messages, boxes of several lines, are converted to one line: the flag,
what is wrong with it, what to do.
"""

import contextlib
import difflib
import io
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeVar

import tyro

from image_text.errors import UserError, printable

__all__ = ["Command", "overview", "parse", "program", "run_command", "run_main", "say"]

T = TypeVar("T")


class Command(NamedTuple):
    """A subcommand.

    Attributes:
        options: the dataclass of its options; the list of commands shows the first line of its docstring.
        run: the function that runs the command with an instance of `options`; its result is ignored.
    """

    options: type[Any]
    run: Callable[[Any], object]


# Running


def run_main(
    main: Callable[[list[str]], None],
    argv: Sequence[str] | None = None,
    *,
    name: str,
    explain: Callable[[Exception], str | None] = lambda error: None,
) -> NoReturn:
    """Runs `main(argv)` as a command and exits.

    The exit code is 0 on success, 2 for bad input (`UserError` and `OSError`), 130 after Ctrl-C, or the attribute
    `exit_status` of an exception that has one (1 for a fault while running, 128 + signal for a stopped run). These
    errors and warnings are printed to stderr as one line, `name: culprit: what is wrong; what to do`. Any other
    exception is a bug of the program and keeps its traceback.

    Args:
        main: the command; its argument is `argv` without `--debug`.
        argv: the arguments; None: those of the process. With `--debug`, errors keep their traceback and libraries log.
        name: the beginning of each line.
        explain: from another exception to a line for the user if it means bad input (such as a device that does not
            exist), else None.

    Raises:
        SystemExit: always, with the exit code.
        Exception: a bug of the program; with `--debug`, any error.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in argv
    argv = [word for word in argv if word != "--debug"]
    for stream in (sys.stdout, sys.stderr):  # printing a name that the terminal cannot encode must not fail
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if not debug:
        quiet_libraries()
    status = 0
    with _one_line_warnings(name):
        try:
            main(argv)
        except KeyboardInterrupt:
            say(name, "stopped")
            status = 130
        except SystemExit as end:  # after `--help`, or from a stopped run
            if not hasattr(end, "exit_status"):
                raise
            say(name, str(end))
            status = end.exit_status
        except Exception as error:
            expected = isinstance(error, UserError | OSError) or hasattr(error, "exit_status")
            line = _described(error) if expected else explain(error)
            if debug or line is None:
                raise
            say(name, line)
            status = getattr(error, "exit_status", 2)
    sys.exit(status)


def say(name: str, text: str) -> None:
    """Prints `name: text` to stderr as one line; line breaks and control characters in the text are replaced."""
    print(f"{name}: {' '.join(printable(text).split())}", file=sys.stderr, flush=True)


def program(module: str) -> str:
    """The command that started this process, for help texts: `sample.py`, `unclip`, or `python -m MODULE`."""
    name = Path(sys.argv[0]).name
    return f"python -m {module}" if name in ("", "-c", "-m", "__main__.py") else name


def quiet_libraries() -> None:
    """Silences logs and warnings of JAX, orbax, grain and TFDS. Our own warnings are still shown."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    for library in ("absl", "orbax", "jax", "grain"):
        logging.getLogger(library).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(orbax|grain|tensorboardX|tensorflow_datasets)\b")
    logging.basicConfig(level=logging.WARNING)
    for handler in logging.getLogger().handlers:  # an import may have configured logging already
        handler.setFormatter(logging.Formatter("%(message)s"))
    # When a restore fails on a damaged file, orbax closes its event loop before all reads have finished, and asyncio
    # reports those. The restore itself has already reported the error.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    hook = sys.unraisablehook
    sys.unraisablehook = lambda what: None if str(what.exc_value) == "Event loop is closed" else hook(what)


@contextlib.contextmanager
def _one_line_warnings(name: str) -> Iterator[None]:
    def show(message: Warning | str, category: type[Warning], filename: str, *_: Any, **__: Any) -> None:
        # Pillow's warnings do not name the picture: drop them. A picture that cannot be decoded raises an error.
        if Path(filename).parent.name != "PIL":
            say(name, f"warning: {message}")

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def _described(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    return str(error) or type(error).__name__


# Subcommands


def run_command(commands: Mapping[str, Command], argv: Sequence[str], *, prog: str, about: str, more: str = "") -> None:
    """Parses `COMMAND [--flag value ...]` and runs that command.

    Without arguments, or with `--help` alone, the commands are listed. `COMMAND --help` lists its flags.

    Args:
        commands: name -> command, in the order in which they are listed.
        argv: the arguments after the program.
        prog: the name of the program in the help.
        about: the text before the list of commands.
        more: the text after the list, such as examples.

    Raises:
        UserError: there is no such command, or its flags are wrong (see `parse`).
        SystemExit: 0 after help, 2 if there are no arguments.
    """
    if not argv or argv[0] in ("-h", "--help"):
        rows = {name: _first_line(command.options) for name, command in commands.items()}
        hint = f"`{prog} COMMAND --help` lists the flags of a command. With --debug errors come with a traceback."
        usage = f"usage: {prog} COMMAND [--flag value ...]"
        print(overview(usage, about, "commands", rows, "\n\n".join(filter(None, (more.strip("\n"), hint)))))
        sys.exit(0 if argv else 2)
    name, *rest = argv
    if name not in commands:
        raise UserError(f"{name}: there is no such command; choose one of {', '.join(commands)}")
    others = {other: command.options for other, command in commands.items() if other != name}
    options = parse(commands[name].options, rest, prog=f"{prog} {name}", others=others)
    commands[name].run(options)


def overview(usage: str, about: str, title: str, rows: Mapping[str, str], more: str) -> str:
    """The text of a program's `--help`.

    Args:
        usage: the usage line.
        about: what the program is for.
        title: the title of the table.
        rows: {name: description}, the table.
        more: the text after the table.
    """
    width = max(map(len, rows))
    table = "\n".join([f"{title}:", *(f"  {name:<{width}}  {what}" for name, what in rows.items())])
    return "\n\n".join(part for part in (usage, about, table, more) if part)


def _first_line(kind: type) -> str:
    return (kind.__doc__ or "").partition("\n")[0]


# Flags


def parse(
    kind: type[T],
    argv: Sequence[str],
    *,
    prog: str,
    default: T | None = None,
    description: str | None = None,
    culprit: Callable[[str], str] = str,
    others: Mapping[str, type] | None = None,
) -> T:
    """Parses flags into a dataclass; `--help` prints the flags with their defaults and exits with 0.

    Args:
        kind: the dataclass; each of its fields, nested dataclasses included, is a flag.
        argv: the command line after the name of the command.
        prog: the name of the program in the help.
        default: an instance with the defaults of the flags; None: the defaults of the class.
        description: the description in the help; None: the docstring of the class.
        culprit: from a flag (`--optim.warmup-steps`) to its name in an error.
        others: {name of another command: its dataclass}, so that an error tells which command has an unknown flag.

    Returns:
        An instance of `kind`.

    Raises:
        UserError: a flag is unknown (the error names the command that has it, or the most similar flag), is missing,
            lacks its value, or has a wrong value. The error begins with the flag.
        SystemExit: 0 after help.
    """

    def read(argv: Sequence[str]) -> tuple[T, list[str]]:
        return _read(kind, argv, prog, default, description)

    if {"-h", "--help"} & set(argv):
        read(argv)
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box), _wide():
            options, unknown = read(argv)
    except SystemExit as end:
        if not end.code:
            raise
        unknown, line = [], _line(box.getvalue(), prog, culprit)
    else:
        if not unknown:
            return options
        line = f"{unknown[0]}: it follows no flag that takes it; `{prog} --help` lists the flags"
    # Report an unknown flag first, even if tyro reports its value or a missing flag.
    known = _flags(kind, prog, default)
    for word in [word for word in argv if re.match(r"--[a-z]", word)] + [word for word in unknown if word[:1] == "-"]:
        flag = word.partition("=")[0]
        if flag.replace("_", "-") not in known:
            raise UserError(f"{flag}: {_belongs(flag.replace('_', '-'), prog, known, others or {})}")
    raise UserError(line)


def _read(
    kind: type[T], argv: Sequence[str], prog: str, default: T | None = None, description: str | None = None
) -> tuple[T, list[str]]:
    """Calls tyro: (the dataclass, the words that tyro could not parse)."""
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


@contextlib.contextmanager
def _wide() -> Iterator[None]:
    """Sets a very wide terminal in a block, as tyro breaks lines, and even words, at the terminal's width."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "100000"
    try:
        yield
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before


def _flags(kind: type[Any], prog: str, default: Any = None) -> list[str]:
    """All flags of a dataclass, parsed from the help: flags begin the lines of its boxes, which may be side by side."""
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit), _wide():
        _read(kind, ["--help"], prog, default)
    text = _plain(shown.getvalue())
    heads = re.findall(r"(?:^|[│|]|  ) *((?:-\w, )?--[a-z][\w.-]*(?:, --[a-z][\w.-]*)*)", text, re.M)
    return [flag for head in heads for flag in head.split(", ")]


def _belongs(flag: str, prog: str, known: Sequence[str], others: Mapping[str, type]) -> str:
    """The end of the error for a flag that the command does not have."""
    owners = [name for name, kind in others.items() if flag in _flags(kind, prog)]
    if owners:
        program, _, command = prog.rpartition(" ")
        owner = " and ".join(owners)
        return f"it belongs to {owner}, not to {command}; `{program} {owners[0]} --help` tells more"
    close = difflib.get_close_matches(flag, known, n=1)
    return "there is no such flag; " + (
        f"perhaps you meant {close[0]}" if close else f"`{prog} --help` lists those there are"
    )


# (regular expression for tyro's message, our message). Groups: `flag`, the flag; `what`, its wrong value.
_SAYINGS = (
    (r"invalid literal for int\(\) with base 10: (?P<what>.*)", "{what} is not an integer"),
    (r"could not convert string to float: (?P<what>.*)", "{what} is not a number"),
    (r"no type matching (?P<kind>.*) could be instantiated from \[(?P<what>.*)\]\.", "{what} does not fit {kind}"),
    (r"Could not find valid parse for arguments: \[(?P<what>.*)\]", "{what} does not fit"),
    (r"(?P<what>.*)", "{what}"),
)
_SENTENCES = (
    *((rf"Error parsing (?P<flag>\S+): {pattern}", saying) for pattern, saying in _SAYINGS),
    (r"Missing value for argument '(?P<flag>[^']+)'\.(?P<what>.*)", "it needs a value"),
    (
        r"invalid choice (?P<what>.*) for argument '(?P<flag>[^']+)'\. Expected one of \((?P<choices>.*?),?\)\.",
        "{what} is none of {choices}",
    ),
)


def _plain(text: str) -> str:
    """A text without the colours of a terminal."""
    return re.sub(r"\x1b\[[\d;]*m", "", text)


def _line(box: str, prog: str, culprit: Callable[[str], str]) -> str:
    """One of tyro's boxes as one line. A box has a title (in ASCII with a rule below), the message, a rule and help."""
    lines = [line.strip() for line in _plain(box).splitlines() if line.strip()]
    inside = [line.strip("│ ") for line in lines[1 if lines[:1] and lines[0].startswith("╭") else 2 :]]
    end = next((i for i, line in enumerate(inside) if not line.strip("-─")), len(inside))
    if inside[:1] and inside[0].startswith("Missing from"):
        missing = [line.split()[0] for line in inside[1:end] if re.match(r"--[a-z]|[A-Z][A-Z0-9_]*$", line)]
        return f"{', '.join(missing)}: missing; `{prog} --help` says what it is"
    text = " ".join(inside[:end]) or " ".join(box.split())
    for pattern, saying in _SENTENCES:
        if found := re.fullmatch(pattern, text):
            flag = culprit(found["flag"])
            what = saying.format(**found.groupdict())
            # The message of a dataclass that rejects its values begins with the field (`optim.lr: …`): keep only the
            # outer part of the flag (`clip` of `clip.optim`) before it.
            outer, _, inner = flag.rpartition(".")
            if what.startswith(f"{inner}."):
                return f"{outer}.{what}".removeprefix(".")
            return f"{flag}: {what}"
    return text
