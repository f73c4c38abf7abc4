"""`fit`, whole: what it leaves behind, and that no interruption shows in the result."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.support import toy_run
from tests.support.toy_run import ToyTask, prints
from train_jax.errors import Preempted, RunError, UserError
from train_jax.files import hold
from train_jax.loop import Run, fit
from train_jax.optim import OptimConfig

SCRIPT = Path(toy_run.__file__)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Prints of 12 steps in one go."""
    return prints(fit(toy_run.make_run(tmp_path_factory.mktemp("undisturbed"), devices=1)))


def logged(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def stop_after(step, signum=signal.SIGTERM):
    """An `on_log` that sends a signal once `step` is logged."""

    def on_log(at, _):
        if at == step:
            signal.raise_signal(signum)

    return on_log


def test_what_a_run_leaves(toy, tmp_path, undisturbed):
    seen, ended = [], []
    evaluate = lambda state: {"eval/step": state.step, "grid": np.zeros((4, 4, 3), np.uint8)}  # noqa: E731
    run = toy(evaluate=evaluate, evaluate_every=6, on_log=lambda step, _: seen.append(step), on_end=ended.append)
    state = fit(run)
    assert prints(state) == undisturbed
    assert seen == [4, 8, 12]
    assert [int(state.step) for state in ended] == [12]
    left = {path.name for path in (tmp_path / "run").iterdir()}
    assert left == {".lock", "checkpoints", "config.json", "metrics.jsonl", "tensorboard"}
    assert sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir()) == ["10", "12", "5"]
    train = [line for line in logged(tmp_path / "run") if "loss" in line]
    assert [line["step"] for line in train] == [4, 8, 12]
    assert train[0].keys() == {"step", "loss", "mae", "grad_norm", "lr", "skipped", "images_per_second"}
    assert train[0]["loss"] > train[-1]["loss"]
    assert [line["eval/step"] for line in logged(tmp_path / "run") if "eval/step" in line] == [6, 12]
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["config"] == {"width": 16, "levels": [1, 2]}
    assert config["optim"]["lr"] == 3e-2


@pytest.mark.parametrize("step", [4, 8])
def test_stopped_and_resumed_is_undisturbed(toy, tmp_path, undisturbed, step):
    with pytest.raises(Preempted) as stopped:
        fit(toy(on_log=stop_after(step)))
    assert stopped.value.step == step
    assert (tmp_path / "run" / "checkpoints" / str(step)).is_dir()
    assert prints(fit(toy())) == undisturbed
    assert [line["step"] for line in logged(tmp_path / "run")] == [4, 8, 12]


def test_a_crash_loses_only_what_was_not_saved(toy, tmp_path, undisturbed):
    def crash(step, _):
        if step == 8:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fit(toy(on_log=crash))
    started = []
    run = toy()

    def watched(step):
        started.append(step)
        return run.batches(step)

    assert prints(fit(dataclasses.replace(run, batches=watched))) == undisturbed
    assert sorted(set(started) - {0}) == [5, 6, 7, 8, 9, 10, 11]
    assert [line["step"] for line in logged(tmp_path / "run")] == [4, 8, 12]


def test_a_finished_run_is_read_back(toy, undisturbed):
    fit(toy())
    ended = []

    def batches(step):
        assert step == 0, "a finished run needs no data but the first batch, to check it"
        return toy_run.batches(toy_run.source(), batch_size=16, seed=7)(step)

    state = fit(dataclasses.replace(toy(on_end=ended.append), batches=batches))
    assert prints(state) == undisturbed
    assert len(ended) == 1


def test_the_last_step_is_stopped_too(toy, undisturbed):
    """Otherwise the stages that follow would never hear of the signal."""
    ended = []
    with pytest.raises(Preempted) as stopped:
        fit(toy(on_log=stop_after(12), on_end=ended.append))
    assert stopped.value.step == 12
    assert not ended
    assert prints(fit(toy(on_end=ended.append))) == undisturbed
    assert len(ended) == 1


@pytest.mark.slow
def test_a_run_moves_to_other_devices(toy):
    with pytest.raises(Preempted):
        fit(toy(devices=8, on_log=stop_after(8)))
    assert int(fit(toy(devices=2)).step) == 12


def test_a_bad_batch_is_counted(toy, tmp_path):
    run = toy()

    def poisoned(step):
        batch = run.batches(step)
        return batch | {"y": batch["y"] * np.nan} if step == 6 else batch

    state = fit(dataclasses.replace(run, batches=poisoned))
    assert int(state.skipped) == 1
    assert [line["skipped"] for line in logged(tmp_path / "run")] == [0, 1, 1]


def test_nothing_but_bad_batches_is_a_fault(toy):
    run = toy()

    def poisoned(step):
        batch = run.batches(step)
        return batch | {"y": batch["y"] * np.nan}

    with pytest.raises(RunError, match="toy: no finite loss in 10 steps"):
        fit(dataclasses.replace(run, batches=poisoned))
    assert int(fit(run).step) == 12  # what was saved is sound, and the run goes on from there


# Bad input: nothing is compiled and nothing is made.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": -1}, "seed: -1"),
        ({"seed": 2**32}, "seed: 4294967296"),
        ({"num_steps": 0}, "num_steps: 0"),
        ({"save_every": 0}, "save_every: 0"),
        ({"log_every": -5}, "log_every: -5"),
        ({"keep": 2}, "keep: 2"),
        ({"devices": 9}, "devices: 9"),
        ({"devices": 8, "batch_size": 12}, r"12 examples cannot be divided over 8 device\(s\)"),
        ({"optim": OptimConfig(warmup_steps=13)}, "optim.warmup_steps: 13"),
        ({"optim": OptimConfig(warmup_steps=1, accum=3)}, "3 microbatches"),
        ({"batch_size": 61}, "60 examples, fewer than one batch of 61"),
    ],
)
def test_bad_input_makes_nothing(toy, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        fit(toy(**changes))
    assert not (tmp_path / "run").exists()


def test_another_config_is_refused(toy, tmp_path):
    with pytest.raises(Preempted):
        fit(toy(on_log=stop_after(4)))
    before = sorted((p, p.stat().st_mtime_ns) for p in (tmp_path / "run").rglob("*") if p.is_file())
    changed = toy(seed=4, optim=OptimConfig(lr=1.0, warmup_steps=2), config={"width": 32})
    with pytest.raises(UserError, match=r"config\.levels .*config\.width 16 → 32.*optim\.ema_decay .*and 1 more"):
        fit(changed)
    after = sorted((p, p.stat().st_mtime_ns) for p in (tmp_path / "run").rglob("*") if p.is_file())
    assert before == after


def test_another_model_is_refused(toy):
    class Wider(ToyTask):
        def init(self, key):
            params, model_state = super().init(key)
            return params | {"more": jax.numpy.zeros(3)}, model_state

    fit(toy())
    with pytest.raises(UserError, match="params/more: checkpoint has nothing"):
        fit(toy(task=Wider()))


def test_a_second_writer_is_refused(toy, tmp_path):
    with hold(tmp_path / "run"), pytest.raises(UserError, match="another process is training here"):
        fit(toy())


def test_a_read_only_place_is_an_os_error(toy):
    with pytest.raises(OSError, match="/proc"):
        fit(toy(directory="/proc/nowhere/run"))


def test_run_is_a_value():
    assert dataclasses.is_dataclass(Run)
    assert Run.__dataclass_params__.frozen


# Killed processes


def start(directory, *arguments):
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    environment["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # compiled as here, so as to be equal to the bit
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), str(directory), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def wait_for_step(process, directory, step):
    """Return when the log of `directory` has reached `step` or the process has ended."""
    log = directory / "metrics.jsonl"
    while process.poll() is None:
        if log.exists() and log.read_text().count("\n") >= step:
            return
        time.sleep(0.005)


def kill_loop(directory, signals, seed, *, steps, arguments):
    """Start the toy once per signal, sent a little after a step; return the steps it was seen at.

    The steps are random and spread over the run, so that a slow machine that overshoots still meets most of them.
    """
    rng = np.random.default_rng(seed)
    at, seen = 0, []
    for signum, stop in zip(signals, np.sort(rng.integers(1, steps - 2, len(signals))), strict=True):
        process = start(directory, "--steps", steps, *arguments)
        at = max(at + 1, int(stop))
        wait_for_step(process, directory, at)
        time.sleep(rng.uniform(0, 0.05))
        process.send_signal(signum)
        _, said = process.communicate(timeout=600)
        if process.returncode == 0:  # it was quicker
            break
        assert process.returncode == (-9 if signum == signal.SIGKILL else 128 + signum), said
        if signum != signal.SIGKILL:
            assert said.splitlines()[-1].startswith(f"toy: stopped by {signal.Signals(signum).name}; step ")
        assert "Traceback" not in said
        at = len(logged(directory))
        seen.append(at)
    return seen


def finish(directory, steps):
    """Run to the end; return the prints of the final state and the lines on stderr."""
    process = start(directory, "--steps", steps)
    out, said = process.communicate(timeout=600)
    assert process.returncode == 0, said
    return json.loads(out), said.splitlines()


def test_a_damaged_checkpoint_costs_its_steps_and_a_line(toy, tmp_path, undisturbed):
    with pytest.raises(Preempted):
        fit(toy(on_log=stop_after(8)))
    for path in (tmp_path / "run" / "checkpoints" / "8").rglob("d/*"):
        path.write_bytes(bytes(path.stat().st_size))
    found, said = finish(tmp_path / "run", 12)
    assert found == undisturbed
    assert (tmp_path / "run" / "checkpoints" / "damaged-8").is_dir()
    assert "damaged-8: this checkpoint is damaged" in said[0]
    assert said[1] == "toy: continues from step 5"
    assert all(line.startswith("toy: step ") for line in said[2:])


@pytest.mark.slow
def test_killed_and_rerun_ends_the_same(tmp_path):
    arguments = ("--save-every", 5, "--pause", 0.01)
    signals = (signal.SIGKILL, signal.SIGTERM)
    seen = kill_loop(tmp_path / "run", signals, 0, steps=60, arguments=arguments)
    assert seen
    assert finish(tmp_path / "run", 60)[0] == prints(
        fit(toy_run.make_run(tmp_path / "undisturbed", num_steps=60, devices=1))
    )
    assert [line["step"] for line in logged(tmp_path / "run")] == list(range(1, 61))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_killed_a_dozen_times(tmp_path, seed):
    arguments = ("--save-every", 4, "--pause", 0.01)
    rng = np.random.default_rng(seed)
    signals = [signal.Signals(s) for s in rng.choice([9, 9, 9, signal.SIGTERM, signal.SIGINT], 12)]
    seen = kill_loop(tmp_path / "run", signals, seed, steps=400, arguments=arguments)
    assert len(seen) >= 6
    assert finish(tmp_path / "run", 400)[0] == finish(tmp_path / "undisturbed", 400)[0]
    assert [line["step"] for line in logged(tmp_path / "run")] == list(range(1, 401))
