"""Every way to damage a checkpoint that we could think of. None may be read as if nothing had happened."""

import json
import logging
import os
import shutil
from collections import namedtuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from tests.support.toy_run import ToyTask, prints
from train_jax.checkpoint import WEIGHTS, Checkpoints, _digest
from train_jax.errors import RunError, UserError
from train_jax.optim import OptimConfig, make_optimizer
from train_jax.sharding import make_mesh, state_shardings
from train_jax.state import init_state

TX = make_optimizer(OptimConfig(), 1000)


@jax.jit
def state_at(step):
    state = init_state(ToyTask(), TX, jax.random.fold_in(jax.random.key(0), step))
    return state._replace(step=jnp.int32(step), skipped=jnp.int32(step // 2))


ABSTRACT = jax.eval_shape(state_at, 0)


def restore(checkpoints, abstract=ABSTRACT, *, devices=1, rules=()):
    return checkpoints.restore(abstract, state_shardings(abstract, make_mesh(devices), rules))


def files(directory):
    return sorted(path for path in directory.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    directory = tmp_path_factory.mktemp("checkpoints")
    with Checkpoints(directory) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(state_at(step))
    return directory


@pytest.fixture
def copied(template, tmp_path):
    return shutil.copytree(template, tmp_path / "checkpoints")


def test_what_was_saved_comes_back(copied):
    with Checkpoints(copied) as checkpoints:
        assert checkpoints.steps() == [1, 2, 3]
        state = restore(checkpoints)
    assert prints(state) == prints(state_at(3))
    assert jax.tree.structure(state) == jax.tree.structure(state_at(3))


def test_nothing_saved_is_none(tmp_path):
    with Checkpoints(tmp_path / "new") as checkpoints:
        assert restore(checkpoints) is None


@pytest.mark.parametrize(("devices", "rules"), [(2, ()), (8, ((r"kernel", P(None, "data")),))])
def test_any_devices_read_it(copied, devices, rules):
    rules = [(pattern.replace("kernel", "dense_0/kernel"), spec) for pattern, spec in rules]
    with Checkpoints(copied) as checkpoints:
        state = restore(checkpoints, devices=devices, rules=rules)
    assert prints(state) == prints(state_at(3))
    assert len(state.params["dense_0"]["kernel"].sharding.device_set) == devices


def test_the_newest_are_kept(tmp_path):
    with Checkpoints(tmp_path, keep=3) as checkpoints:
        for step in (1, 2, 3, 4, 5):
            checkpoints.save(state_at(step))
        checkpoints.wait()
        assert checkpoints.steps() == [3, 4, 5]


def test_a_relative_path_is_made_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Checkpoints("here") as checkpoints:
        checkpoints.save(state_at(1))
        checkpoints.wait()
        assert checkpoints.steps() == [1]
    assert (tmp_path / "here" / "1").is_dir()


def test_a_save_is_never_dropped_in_silence(copied):
    with Checkpoints(copied) as checkpoints:
        for step in (2, 3):
            with pytest.raises(RunError, match=f"step {step} is not saved, for step 3 is there already"):
                checkpoints.save(state_at(step))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_state_that_is_not_finite_is_not_saved(copied, bad):
    state = state_at(4)
    poisoned = jax.tree.map(jnp.copy, state.ema_params)
    poisoned["dense_1"]["bias"] = poisoned["dense_1"]["bias"].at[1].set(bad)
    with Checkpoints(copied) as checkpoints:
        with pytest.raises(RunError, match="ema_params/dense_1/bias is not finite"):
            checkpoints.save(state._replace(ema_params=poisoned))
        assert checkpoints.steps() == [1, 2, 3]


def test_a_failed_background_save_is_not_lost(copied, monkeypatch):
    with Checkpoints(copied) as checkpoints:

        def full():
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(checkpoints._manager, "check_for_errors", full)
        with pytest.raises(RunError, match=r"the last save failed .*No space left"):
            checkpoints.wait()


def test_too_small_a_disk_is_refused(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")(0, 0, 100)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(UserError, match="0 MiB are free"):
        checkpoints.check_space(ABSTRACT)


def test_what_a_killed_save_left_is_removed(copied):
    leftover = copied / "4.orbax-checkpoint-tmp-1"
    shutil.copytree(copied / "3", leftover)
    with Checkpoints(copied) as checkpoints:
        assert checkpoints.steps() == [1, 2, 3]
    assert not leftover.exists()


def mutated(**changes):
    return ABSTRACT._replace(**changes)


def with_kernel(shape, dtype):
    params = jax.tree.map(lambda x: x, ABSTRACT.params)
    params["dense_0"]["kernel"] = jax.ShapeDtypeStruct(shape, dtype)
    return mutated(params=params)


@pytest.mark.parametrize(
    ("abstract", "message"),
    [
        (
            with_kernel((4, 16), jnp.bfloat16),
            r"params/dense_0/kernel: checkpoint has float32\[4, 16\], model wants bflo",
        ),
        (with_kernel((4, 16), jnp.int32), r"params/dense_0/kernel: .* model wants int32\[4, 16\]"),
        (with_kernel((4, 17), jnp.float32), r"params/dense_0/kernel: .* model wants float32\[4, 17\]"),
        (with_kernel((16, 4), jnp.float32), r"params/dense_0/kernel: .* model wants float32\[16, 4\]"),
        (
            mutated(model_state=ABSTRACT.model_state | {"extra": jax.ShapeDtypeStruct((1,), jnp.float32)}),
            r"model_state/extra: checkpoint has nothing, model wants float32\[1\]",
        ),
        (mutated(model_state={}), r"model_state/mean: checkpoint has float32\[4\], model wants nothing"),
    ],
)
def test_another_model_is_told_what_differs(copied, abstract, message):
    with Checkpoints(copied) as checkpoints:
        with pytest.raises(UserError, match=message) as refusal:
            restore(checkpoints, abstract)
        assert checkpoints.steps() == [1, 2, 3]
    assert "\n" not in str(refusal.value)


# Damage


def flip(path, rng):
    content = bytearray(path.read_bytes())
    bit = int(rng.integers(8 * len(content)))
    content[bit // 8] ^= 1 << (bit % 8)
    path.write_bytes(content)


DAMAGE = {
    "deleted": lambda path, rng: path.unlink(),
    "empty": lambda path, rng: path.write_bytes(b""),
    "half": lambda path, rng: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "last byte gone": lambda path, rng: path.write_bytes(path.read_bytes()[:-1]),
    "zeroed": lambda path, rng: path.write_bytes(bytes(path.stat().st_size)),
    "bit flipped": flip,
}


def survives(directory):
    """Whether step 3 was read; otherwise step 2 must have been, and 3 set aside."""
    with Checkpoints(directory) as checkpoints:
        found = prints(restore(checkpoints))
        if found == prints(state_at(3)):
            return True
        assert found == prints(state_at(2))
        assert checkpoints.steps() == [1, 2]
        assert (directory / "damaged-3").is_dir()
        # The run goes on over the gap.
        checkpoints.save(state_at(3))
        checkpoints.wait()
        assert checkpoints.steps() == [1, 2, 3]
    return False


def holds_arrays(path):
    return path.parent.name == "d"  # OCDBT keeps values there


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_arrays_fall_back(template, tmp_path, kind, caplog):
    rng = np.random.default_rng(0)
    damaged = [p.relative_to(template) for p in files(template / "3" / "params") if holds_arrays(p)]
    read = []
    for number, path in enumerate(damaged):
        directory = shutil.copytree(template, tmp_path / str(number))
        DAMAGE[kind](directory / path, rng)
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="train_jax.checkpoint"):
            read.append(survives(directory))
        # asyncio may add what it thinks of tensorstore's unread errors, whenever they are collected
        messages = [record.getMessage() for record in caplog.records if record.name == "train_jax.checkpoint"]
        assert len(messages) == (not read[-1])
        assert all("\n" not in message for message in messages)
    assert not all(read)  # the damage was real


@pytest.mark.slow
@pytest.mark.parametrize("kind", DAMAGE)
def test_any_damaged_file_falls_back(template, tmp_path, kind):
    rng = np.random.default_rng(1)
    for number, path in enumerate(files(template / "3")):
        directory = shutil.copytree(template, tmp_path / str(number))
        DAMAGE[kind](directory / path.relative_to(template), rng)
        survives(directory)
        shutil.rmtree(directory)


@pytest.mark.slow
def test_no_flipped_bit_is_accepted(template, tmp_path):
    rng = np.random.default_rng(2)
    arrays = [p.relative_to(template) for p in files(template / "3") if holds_arrays(p)]
    sizes = np.array([(template / p).stat().st_size for p in arrays], float)
    for number in range(200):
        directory = shutil.copytree(template, tmp_path / str(number))
        flip(directory / arrays[rng.choice(len(arrays), p=sizes / sizes.sum())], rng)
        survives(directory)
        shutil.rmtree(directory)


def test_a_changed_digit_in_the_metadata_falls_back(copied):
    (path,) = (p for p in files(copied / "3" / "meta") if b'"fingerprint"' in p.read_bytes())
    text = path.read_text()
    at = text.index('"shape": [') + len('"shape": [')
    assert text[at].isdigit()
    path.write_text(text[:at] + str((int(text[at]) + 1) % 10) + text[at + 1 :])
    assert not survives(copied)


def test_a_half_deleted_old_step_is_no_obstacle(copied):
    for path in files(copied / "1")[::2]:
        path.unlink()
    with Checkpoints(copied) as checkpoints:
        assert prints(restore(checkpoints)) == prints(state_at(3))
        checkpoints.save(state_at(4))
        checkpoints.wait()
        assert checkpoints.steps() == [2, 3, 4]


def test_damage_twice_keeps_both(copied):
    for _ in range(2):
        shutil.rmtree(copied / "3" / "params")
        assert not survives(copied)
    assert {p.name for p in copied.glob("damaged-*")} == {"damaged-3", "damaged-3-2"}


def test_all_damaged_is_a_fault_and_nothing_is_touched(copied):
    for step in (1, 2, 3):
        shutil.rmtree(copied / str(step) / "params")
    before = files(copied)
    with Checkpoints(copied) as checkpoints:
        with pytest.raises(RunError, match=r"all 3 checkpoints are damaged \(step 3: ") as refusal:
            restore(checkpoints)
        assert checkpoints.steps() == [1, 2, 3]
    assert files(copied) == before
    assert "\n" not in str(refusal.value)


# Older checkpoints, and those of other runs


def test_a_checkpoint_older_than_a_counter_is_read(copied):
    (path,) = (p for p in files(copied / "3" / "meta") if b'"fingerprint"' in p.read_bytes())
    meta = json.loads(path.read_text())
    del meta["bad"]
    path.write_text(json.dumps(meta | {"digest": _digest(meta)}))
    assert survives(copied)


def test_only_the_weights_are_read(copied):
    """Of another optimiser too, whose state would not fit."""
    muon = make_optimizer(OptimConfig(kind="muon"), 1000)
    abstract = jax.eval_shape(lambda: init_state(ToyTask(), muon, jax.random.key(0)))
    shardings = state_shardings(abstract, make_mesh(1), ())
    with Checkpoints(copied, read_only=True) as checkpoints:
        state = checkpoints.restore(abstract, shardings, items=WEIGHTS)
        with pytest.raises(UserError, match="opt_state/"):
            checkpoints.restore(abstract, shardings)
    for name in WEIGHTS:
        assert prints(getattr(state, name)) == prints(getattr(state_at(3), name))


def test_reading_touches_nothing(copied):
    (copied / "4.orbax-checkpoint-tmp-1").mkdir()
    shutil.rmtree(copied / "3" / "params")
    before = sorted((path, path.stat().st_mtime_ns) for path in copied.rglob("*"))
    with Checkpoints(copied, read_only=True) as checkpoints:
        assert prints(restore(checkpoints)) == prints(state_at(2))
    assert before == sorted((path, path.stat().st_mtime_ns) for path in copied.rglob("*"))


@pytest.mark.parametrize("links", [True, False])
def test_a_step_is_kept_aside(copied, tmp_path, monkeypatch, links):
    def no_links(source, copy):
        raise OSError

    if not links:
        monkeypatch.setattr(os, "link", no_links)
    with Checkpoints(copied) as checkpoints:
        checkpoints.keep_aside(3, tmp_path / "aside" / "checkpoints")
    shutil.rmtree(copied)
    with Checkpoints(tmp_path / "aside" / "checkpoints") as checkpoints:
        assert prints(restore(checkpoints)) == prints(state_at(3))
    assert [path.name for path in (tmp_path / "aside").iterdir()] == ["checkpoints"]
