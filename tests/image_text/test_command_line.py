"""Command lines from dataclasses: what is wrong with them, and how commands end, is one line and an exit code."""

import signal
import subprocess
import sys
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import pytest
import tyro

from image_text.command_line import Command, _line, parse, program, run_command, run_main
from image_text.errors import UserError


@dataclass(frozen=True)
class Pictures:
    """Looks at pictures."""

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """A folder."""
    model: str
    """A directory."""
    batch_size: int = 64
    share: float = 0.5
    data_dir: Path | None = None


@dataclass(frozen=True)
class Classify(Pictures):
    """Sorts pictures.

    Into classes.
    """

    classes: tuple[str, ...] = ()
    k: int = 5


SOURCE = ["photos", "--model", "m"]


@pytest.mark.parametrize(
    ("kind", "argv", "line"),
    [
        (Pictures, [*SOURCE, "--batch-size", "x"], "--batch-size: 'x' is not an integer"),
        (Classify, [*SOURCE, "--k=1.5"], "--k: '1.5' is not an integer"),
        (Pictures, [*SOURCE, "--share", "x"], "--share: 'x' is not a number"),
        (Pictures, [*SOURCE, "--batch-size"], "--batch-size: it needs a value"),
        (Pictures, [*SOURCE, "--data-dir"], "--data-dir: it needs a value"),
        (Pictures, [*SOURCE, "--bach-size", "3"], "--bach-size: there is no such flag; perhaps you meant --batch-size"),
        (Pictures, ["photos", "--modl=m"], "--modl: there is no such flag; perhaps you meant --model"),
        (Pictures, [*SOURCE, "--zzz"], "--zzz: there is no such flag; `prog --help` lists those there are"),
        (Pictures, [*SOURCE, "more"], "more: it follows no flag that takes it; `prog --help` lists the flags"),
        (Pictures, ["photos"], "--model: missing; `prog --help` says what it is"),
        (Pictures, ["--model", "m"], "SOURCE: missing; `prog --help` says what it is"),
        (Pictures, [], "SOURCE, --model: missing; `prog --help` says what it is"),
    ],
)
@pytest.mark.parametrize("columns", ["30", "200"])
def test_what_is_wrong_is_one_line(kind, argv, line, columns, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", columns)
    with pytest.raises(UserError) as error:
        parse(kind, argv, prog="prog")
    assert str(error.value) == line
    assert capsys.readouterr() == ("", "")


def test_what_is_right_is_read(capsys):
    options = parse(Classify, [*SOURCE, "--classes", "a cat", "-1", "--batch_size=3"], prog="prog")
    assert (options.classes, options.batch_size) == (("a cat", "-1"), 3)
    with pytest.raises(SystemExit) as end:
        parse(Pictures, ["--help"], prog="prog")
    assert end.value.code == 0
    assert "--batch-size" in capsys.readouterr().out


@dataclass(frozen=True)
class Positive:
    """A number that must be one."""

    lr: float = 1.0

    def __post_init__(self):
        if not self.lr > 0:
            raise ValueError(f"lr: {self.lr} is not a positive number")


@dataclass(frozen=True)
class Nested:
    """Two of them."""

    optim: Positive = field(default_factory=Positive)


def test_a_nested_refusal_names_the_whole_field():
    with pytest.raises(UserError, match=r"^--optim\.lr: "):
        parse(Nested, ["--optim.lr", "fast"], prog="prog")


def test_the_nearest_flag_may_be_a_nested_one():
    with pytest.raises(UserError, match=r"^--optim\.rl: there is no such flag; perhaps you meant --optim\.lr$"):
        parse(Nested, ["--optim.rl", "1"], prog="prog")


@pytest.mark.parametrize("ascii_only", [True, False])
def test_both_of_tyros_boxes_are_read(ascii_only):
    """It draws them with other signs where the terminal has no others."""
    text = "Error parsing --a.b: invalid literal for int() with base 10: 'x'"
    box = f"╭─ Value error ─╮\n│ {text} │\n│ ───── │\n│ For full helptext, see x --help │\n╰─────╯\n"
    plain = f" Value error  \n -------- \n  {text}  \n  ------ \n  For full helptext, see x --help \n"
    assert _line(plain if ascii_only else box, "x", str) == "--a.b: 'x' is not an integer"


# Subcommands


def commands(seen):
    return {"look": Command(Pictures, seen.append), "sort": Command(Classify, seen.append)}


def test_a_subcommand_gets_its_options():
    seen = []
    run_command(commands(seen), ["sort", *SOURCE, "--k", "3"], prog="prog", about="Pictures.")
    assert seen == [Classify("photos", "m", k=3)]


def test_the_list_of_commands(capsys):
    for argv, code in ((["--help"], 0), ([], 2)):
        with pytest.raises(SystemExit) as end:
            run_command(commands([]), argv, prog="prog", about="Pictures.", more="examples: prog look photos")
        assert end.value.code == code
        shown = capsys.readouterr().out.splitlines()
        assert shown[0] == "usage: prog COMMAND [--flag value ...]"
        assert {"  look  Looks at pictures.", "  sort  Sorts pictures.", "examples: prog look photos"} <= {*shown}


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["lok"], "lok: there is no such command; choose one of look, sort"),
        (
            ["look", *SOURCE, "--classes", "a"],
            "--classes: it belongs to sort, not to look; `prog sort --help` tells more",
        ),
        (["look", *SOURCE, "--k=x"], "--k: it belongs to sort, not to look; `prog sort --help` tells more"),
    ],
)
def test_a_flag_of_another_command_is_refused_by_its_owners_name(argv, line):
    seen = []
    with pytest.raises(UserError) as error:
        run_command(commands(seen), argv, prog="prog", about="")
    assert (str(error.value), seen) == (line, [])


# How a command ends


class Stopped(SystemExit):
    def __init__(self, status):
        super().__init__(status)
        self.exit_status = status

    def __str__(self):
        return "stopped by SIGTERM; step 5 is saved"


class Fault(RuntimeError):
    exit_status = 1


class Foreign(RuntimeError):
    pass


def ended(main, *argv, **options):
    with pytest.raises(SystemExit) as end:
        run_main(main, list(argv), name="train", **options)
    return end.value.code


def raising(error):
    def main(argv):
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (UserError("seed: 3 is odd; use 4"), 2, "train: seed: 3 is odd; use 4"),
        (UserError("a\n  b"), 2, "train: a b"),
        (FileNotFoundError(2, "No such file or directory", "a.json"), 2, "train: a.json: No such file or directory"),
        (OSError(28, "No space left on device"), 2, "train: No space left on device"),
        (Fault("disk: full"), 1, "train: disk: full"),
        (Stopped(128 + signal.SIGTERM), 143, "train: stopped by SIGTERM; step 5 is saved"),
        (KeyboardInterrupt(), 130, "train: stopped"),
    ],
)
def test_errors_are_one_line(error, status, line, capsys):
    assert ended(raising(error)) == status
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", f"{line}\n")


def test_success_is_0_and_arguments_arrive():
    seen = []
    assert ended(seen.append, "a", "--b") == 0
    assert seen == [["a", "--b"]]


def test_debug_shows_the_traceback_and_is_no_argument():
    seen = []
    assert ended(seen.append, "a", "--debug") == 0
    assert seen == [["a"]]
    with pytest.raises(UserError, match="odd"):
        run_main(raising(UserError("odd")), ["--debug"], name="train")


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        run_main(lambda argv: 1 / 0, [], name="train")


def test_a_foreign_error_can_be_explained(capsys):
    assert ended(raising(Foreign()), explain=lambda error: f"a {type(error).__name__} error") == 2
    assert capsys.readouterr().err == "train: a Foreign error\n"
    with pytest.raises(Foreign):
        run_main(raising(Foreign()), [], name="train", explain=lambda error: None)


def test_warnings_are_one_line(capsys):
    assert ended(lambda argv: warnings.warn("too\nlong", stacklevel=1)) == 0
    assert capsys.readouterr().err == "train: warning: too long\n"


def test_the_program_is_called_as_it_was_started(monkeypatch):
    for argv0, name in (("/usr/bin/unclip", "unclip"), ("sample.py", "sample.py"), ("/x/__main__.py", "python -m m")):
        monkeypatch.setattr(sys, "argv", [argv0])
        assert program("m") == name


def test_no_jax_is_loaded():
    code = "import image_text.command_line, sys; assert not {'jax', 'clip_jax', 'train_jax'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
