import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field

import jax
import pytest

from image_text.command_line import parse, run_main
from train_jax.cli import choose, enable_compilation_cache, missing_device, tune_cpu
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


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (("--optim.lrr", "1"), "--optim.lrr: there is no such flag; perhaps you meant --optim.lr"),
        (("--optim.lrr=1",), "--optim.lrr: there is no such flag; perhaps you meant --optim.lr"),
        (("--zzz", "1"), "--zzz: there is no such flag; `train.py tiny --help` lists those there are"),
        (("--seed", "1", "2"), "2: it follows no flag that takes it; `train.py tiny --help` lists the flags"),
        (("--batch-size", "abc"), "batch_size: 'abc' is not an integer"),
        (("--batch-size", "1.5"), "batch_size: '1.5' is not an integer"),
        (("--batch-size", "x" * 150), f"batch_size: '{'x' * 150}' is not an integer"),
        (("--batch-size",), "batch_size: it needs a value"),
        (("--optim.lr", "fast"), "optim.lr: 'fast' is not a number"),
        (("--optim.lr", "nan"), "optim.lr: nan is not a positive number"),
        (("--optim.schedule", "linear"), "optim.schedule: 'linear' is none of 'cosine', 'constant'"),
    ],
)
def test_what_is_wrong_with_a_flag_is_one_line(argv, line, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    with pytest.raises(UserError) as refusal:
        chosen("tiny", *argv)
    assert str(refusal.value) == line
    assert capsys.readouterr() == ("", "")
    assert os.environ["COLUMNS"] == "40"


@dataclass(frozen=True)
class Nested:
    """The optimiser of a stage, and one that stands alone."""

    optim: OptimConfig = field(default_factory=OptimConfig)
    stage: Config = field(default_factory=Config)


def test_a_nested_refusal_names_the_whole_field():
    with pytest.raises(UserError, match=r"^stage\.optim\.lr: -1\.0 is not a positive number$"):
        choose({"two": ("", Nested())}, ("two", "--stage.optim.lr", "-1"), prog="train.py")


def test_a_flag_can_be_named_as_it_is_written():
    with pytest.raises(UserError, match=r"^--batch-size: it needs a value$"):
        parse(Config, ["--batch-size"], prog="sample.py")
    assert parse(Config, ["--seed", "3"], prog="sample.py").seed == 3


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (RunError("disk: full"), 1, "train: disk: full"),
        (Preempted(signal.SIGTERM, 5), 143, "train: stopped by SIGTERM; step 5 is saved"),
        (Preempted(signal.SIGINT, 5), 130, "train: stopped by SIGINT; step 5 is saved"),
    ],
)
def test_how_a_run_ends_is_one_line(error, status, line, capsys):
    def main(argv):
        raise error

    with pytest.raises(SystemExit) as end:
        run_main(main, [], name="train")
    assert end.value.code == status
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith(line)
    assert len(shown.err.splitlines()) == 1


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
def test_a_user_without_a_home_has_no_cache_but_the_one_that_is_named(tmp_path, monkeypatch):
    """A container's uid without an entry in passwd, and no HOME."""

    def nobody():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr("train_jax.cli.Path.home", nobody)
    for name in ("XDG_CACHE_HOME", "JAX_COMPILATION_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    assert enable_compilation_cache() is None
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "mine"))
    assert enable_compilation_cache() == tmp_path / "mine"


@pytest.mark.usefixtures("cache_config")
def test_a_cache_that_cannot_be_written_is_none(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert enable_compilation_cache(tmp_path) is None


@pytest.mark.parametrize(
    ("given", "ours"),
    [
        ({}, True),
        ({"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}, False),
        ({"XLA_FLAGS": "--xla_dump_to=/x --xla_force_host_platform_device_count=3"}, False),
        ({"JAX_NUM_CPU_DEVICES": "5"}, False),
    ],
)
def test_the_devices_that_the_user_asked_for_stay(given, ours, monkeypatch):
    for name in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES"):
        monkeypatch.setenv(name, given.get(name, ""))  # restored afterwards, whatever is done to it
        if name not in given:
            monkeypatch.delenv(name)
    settings = {}
    monkeypatch.setattr(jax.config, "update", settings.__setitem__)
    tune_cpu(training=True)
    assert ("jax_num_cpu_devices" in settings) == ours
    assert os.environ["XLA_FLAGS"].startswith(given.get("XLA_FLAGS", ""))
    assert "--xla_cpu_collective_call_terminate_timeout_seconds=600" in os.environ["XLA_FLAGS"]


def test_devices_are_tuned_after_jax_is_imported():
    """Entry points import the models, and with them JAX, before they can say anything."""
    code = "import jax; from train_jax.cli import tune_cpu; tune_cpu(training=True); print(jax.device_count())"
    plain = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES")}
    env = plain | {"PYTHONPATH": ".", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", code], check=True, env=env, capture_output=True, text=True)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    assert int(done.stdout) == 2 ** (min(cores, 8).bit_length() - 1)


def test_devices_that_are_not_there_are_one_line(monkeypatch):
    def missing():
        raise AssertionError

    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    monkeypatch.setattr(jax, "devices", missing)
    line = missing_device(AssertionError())
    assert line is not None
    assert line.startswith("JAX_PLATFORMS: no device of 'cuda' can be used on this machine")
    monkeypatch.setattr(jax, "devices", list)
    assert missing_device(AssertionError()) is None


@pytest.mark.usefixtures("cache_config")
def test_no_cache_is_no_failure(tmp_path):
    (tmp_path / "file").write_text("")
    assert enable_compilation_cache(tmp_path / "file" / "below") is None


def test_importing_a_piece_is_light():
    code = """
import sys, train_jax, train_jax.cli, train_jax.errors
heavy = {"flax", "orbax", "grain", "tensorboardX", "tensorflow_datasets"} & set(sys.modules)
assert not heavy, heavy
from train_jax import OptimConfig
assert "orbax" not in sys.modules and "grain" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONPATH": "."})
