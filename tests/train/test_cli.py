import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field

import jax
import pytest

from train_jax.cli import choose, enable_compilation_cache, run_main
from train_jax.errors import Preempted, RunError, UserError
from train_jax.optim import OptimConfig


@dataclass(frozen=True)
class Model:
    width: int = 16


@dataclass(frozen=True)
class Config:
    """A run."""

    model: Model = Model()
    optim: OptimConfig = field(default_factory=OptimConfig)
    batch_size: int = 32
    seed: int = 0


PRESETS = {"tiny": ("for tests", Config(Model(8))), "large": ("for the patient", Config(Model(512)))}


def chosen(*argv):
    return choose(PRESETS, argv, prog="train.py", description="Train something.")


def test_a_preset_is_its_config():
    assert chosen("large") == ("large", Config(Model(512)))


def test_fields_are_replaced():
    name, config = chosen("tiny", "--optim.lr", "1e-4", "--batch-size", "8", "--model.width=9")
    assert name == "tiny"
    assert config == Config(Model(9), OptimConfig(lr=1e-4), 8)


def test_help_lists_the_presets(capsys):
    with pytest.raises(SystemExit) as end:
        chosen("--help")
    assert end.value.code == 0
    shown = capsys.readouterr().out
    assert len(shown.splitlines()) < 15
    for part in ("train.py PRESET", "Train something.", "tiny   for tests", "large  for the patient", "tiny --help"):
        assert part in shown


def test_help_of_a_preset_shows_its_values(capsys):
    with pytest.raises(SystemExit) as end:
        chosen("large", "--help")
    assert end.value.code == 0
    shown = capsys.readouterr().out
    assert "--model.width" in shown
    assert "512" in shown
    assert "--optim.lr" in shown


def test_nothing_at_all_is_help_and_a_failure(capsys):
    with pytest.raises(SystemExit) as end:
        chosen()
    assert end.value.code == 2


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("tinny",), "tinny: there is no such preset; perhaps you meant tiny"),
        (("xyz",), "xyz: there is no such preset; there are tiny, large"),
        (("--seed", "1"), "the preset comes first"),
    ],
)
def test_an_unknown_preset_is_one_line(argv, message):
    with pytest.raises(UserError, match=message):
        chosen(*argv)


def test_a_typo_is_guessed(capsys):
    with pytest.raises(SystemExit) as end:
        chosen("tiny", "--optim.warmup-step", "1")
    assert end.value.code == 2
    shown = capsys.readouterr()
    assert "--optim.warmup-steps" in shown.err + shown.out


@pytest.mark.parametrize("argv", [("--batch-size", "abc"), ("--batch-size",), ("--optim.schedule", "linear")])
def test_a_wrong_value_ends_with_2(argv, capsys):
    with pytest.raises(SystemExit) as end:
        chosen("tiny", *argv)
    assert end.value.code == 2


def test_a_refused_value_names_its_field(capsys):
    """tyro either shows the refusal itself or lets it through; the field must be named and the status 2."""

    def main(argv):
        chosen("tiny", "--optim.lr", "nan")

    assert ended(main)[0] == 2
    shown = capsys.readouterr()
    assert "optim.lr: nan is not a positive number" in " ".join((shown.err + shown.out).split())


class Foreign(ValueError):
    pass


def ended(main, *argv, **options):
    with pytest.raises(SystemExit) as end:
        run_main(main, list(argv), name="train", **options)
    return (end.value.code,)


def raising(error):
    def main(argv):
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (UserError("seed: 3 is odd; use 4"), 2, "train: seed: 3 is odd; use 4"),
        (Foreign("a\n  b"), 2, "train: a b"),
        (FileNotFoundError(2, "No such file or directory", "a.json"), 2, "train: a.json: No such file or directory"),
        (RunError("disk: full"), 1, "train: disk: full"),
        (Preempted(signal.SIGTERM, 5), 143, "train: stopped by SIGTERM; step 5 is saved"),
        (Preempted(signal.SIGINT, 5), 130, "train: stopped by SIGINT; step 5 is saved"),
        (KeyboardInterrupt(), 130, "train: stopped"),
    ],
)
def test_errors_are_one_line(error, status, line, capsys):
    assert ended(raising(error), user_errors=(Foreign,)) == (status,)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith(line)
    assert len(shown.err.splitlines()) == 1


def test_success_is_0_and_arguments_arrive():
    seen = []
    assert ended(seen.append, "a", "--b") == (0,)
    assert seen == [["a", "--b"]]


def test_debug_shows_the_traceback_and_is_no_argument():
    seen = []
    assert ended(seen.append, "a", "--debug") == (0,)
    assert seen == [["a"]]
    with pytest.raises(UserError, match="odd"):
        run_main(raising(UserError("odd")), ["--debug"], name="train")


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        run_main(lambda argv: 1 / 0, [], name="train")


@pytest.fixture
def cache_config():
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.mark.usefixtures("cache_config")
def test_the_cache_lies_where_the_user_keeps_caches(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    assert enable_compilation_cache() == tmp_path / "xdg" / "unclip-jax"
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "xdg" / "unclip-jax")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "mine"))
    assert enable_compilation_cache() == tmp_path / "mine"
    assert enable_compilation_cache(tmp_path / "given") == tmp_path / "given"


@pytest.mark.usefixtures("cache_config")
def test_no_cache_is_no_failure(tmp_path):
    (tmp_path / "file").write_text("")
    assert enable_compilation_cache(tmp_path / "file" / "below") is None


def test_importing_a_piece_is_light():
    code = """
import sys, train_jax, train_jax.cli, train_jax.errors
heavy = {"jax", "orbax", "grain", "tensorboardX", "tensorflow_datasets", "tyro"} & set(sys.modules)
assert not heavy, heavy
from train_jax import OptimConfig
assert "orbax" not in sys.modules and "grain" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONPATH": "."})
