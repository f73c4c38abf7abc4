"""Damaged examples: others stand in for them, they are named and counted, and too many are a fault."""

import dataclasses
import json

import numpy as np
import pytest

from train_jax.data import InMemory, Replacing, batches, prefetch
from train_jax.errors import RunError, UserError
from train_jax.loop import fit
from train_jax.optim import OptimConfig


class Source:
    """Numbers, of which some cannot be read."""

    def __init__(self, count, damaged, error=OSError):
        self.count, self.damaged, self.error = count, set(damaged), error

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if index in self.damaged:
            raise self.error(f"{index}.png: image file is truncated")
        return {"x": np.full(4, index, np.float32), "y": np.zeros(2, np.float32)}


def test_the_next_one_stands_in():
    source = Replacing(Source(6, {2, 3, 5}), max_damaged=0.5)
    assert [int(source[i]["x"][0]) for i in range(6)] == [0, 1, 4, 4, 4, 0]
    assert [int(source[i].get("bad", 0)) for i in range(6)] == [0, 0, 2, 1, 0, 1]


@pytest.mark.parametrize("threads", [0, 1, 4])
def test_batches_are_full_counted_and_the_same_whatever_the_threads(threads):
    damaged = {3, 4, 17}
    of_step = batches(Source(400, damaged), batch_size=8, seed=0, max_damaged=0.01)
    with prefetch(of_step, 0, 50, threads=threads) as stream:
        epoch = list(stream)
    assert all(batch["x"].shape == (8, 4) for batch in epoch)
    # An epoch meets each once: 3 passes over itself and over 4, which passes over itself, as does 17.
    assert sum(int(batch["bad"].sum()) for batch in epoch if "bad" in batch) == 4
    alone = [of_step(step) for step in (7, 3, 49)]
    for step, batch in zip((7, 3, 49), alone, strict=True):
        assert batch.keys() == epoch[step].keys()
        assert all(np.array_equal(batch[name], epoch[step][name]) for name in batch)


def test_a_transform_does_not_see_the_count():
    seen = []

    def transform(batch):
        seen.append(set(batch))
        return {"x": batch["x"]}

    of_step = batches(Source(8, {3}), batch_size=8, seed=0, transform=transform)
    assert of_step(0).keys() == {"x", "bad"}
    assert seen == [{"x", "y"}]


def test_the_first_are_named(caplog):
    source = Replacing(Source(4000, range(0, 300, 20)), max_damaged=0.01)
    for index in (0, 0, *range(300)):
        source[index]
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 10
    assert lines[0] == "data: example 0: 0.png: image file is truncated; the next example stands in for it"
    assert "counted, not named" in lines[-1]


def test_more_than_the_share_is_a_fault_that_names_the_last():
    within, beyond = Source(200, {10, 20}), Source(200, {10, 20, 30})
    assert len([Replacing(within)[i] for i in range(200)]) == 200
    source = Replacing(beyond)
    with pytest.raises(
        RunError, match=r"more than 1 % of 200 examples.* 3 so far, the last: example 30: 30.png"
    ) as end:
        [source[i] for i in range(200)]
    assert "\n" not in str(end.value)


def test_one_may_always_be_damaged_unless_none_may():
    assert int(Replacing(Source(16, {3}))[3]["x"][0]) == 4
    with pytest.raises(RunError, match=r"more than 0 % of 16 examples"):
        Replacing(Source(16, {3}), max_damaged=0)[3]


def test_nothing_but_damage_is_no_accident():
    with pytest.raises(RunError, match="10 examples in a row cannot be read, the last: example 9"):
        Replacing(Source(100, range(100)), max_damaged=1.0)[0]


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_a_share_that_is_none(share):
    with pytest.raises(UserError, match="max_damaged: "):
        batches(Source(8, ()), batch_size=2, seed=0, max_damaged=share)


@pytest.mark.parametrize("error", [KeyError, TypeError, ZeroDivisionError])
def test_a_fault_of_the_program_is_none_of_the_data(error):
    with pytest.raises(error):
        Replacing(Source(8, {3}, error))[3]


@pytest.mark.parametrize("error", [ValueError, OSError, EOFError, SyntaxError, RuntimeError])
def test_what_decoders_raise(error):
    assert int(Replacing(Source(8, {3}, error))[3]["x"][0]) == 4


def test_in_memory_too(caplog):
    memory = InMemory(Source(8, {3}))
    assert memory.arrays.keys() == {"x", "y"}
    assert memory.arrays["x"][:, 0].tolist() == [0, 1, 2, 4, 4, 5, 6, 7]
    assert "example 3" in caplog.text


OPTIM = OptimConfig(lr=1e-2, warmup_steps=2)


def test_a_run_counts_them_and_a_resumed_one_too(toy, tmp_path):
    of_step = batches(Source(24, {3, 11}), batch_size=8, seed=0, max_damaged=0.1)
    whole = fit(toy(batches=of_step, optim=OPTIM, directory=tmp_path / "whole"))
    assert int(whole.bad) == 2 * 4  # 12 batches of 8 are four epochs

    def stop(step, _):
        if step == 8:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fit(toy(batches=of_step, optim=OPTIM, on_log=stop))
    resumed = fit(toy(batches=of_step, optim=OPTIM))
    assert int(resumed.bad) == 8
    logs = [
        [json.loads(line).get("bad") for line in (directory / "metrics.jsonl").read_text().splitlines()]
        for directory in (tmp_path / "whole", tmp_path / "run")
    ]
    assert logs[0] == logs[1]
    assert logs[0][-1] == 8


@pytest.mark.slow
def test_too_many_end_a_run_and_what_was_saved_stays(toy, tmp_path):
    source = Source(100, {1, 2, 3})
    run = toy(batches=batches(source, batch_size=4, seed=0), optim=OPTIM, num_steps=25, save_every=1)
    with pytest.raises(RunError, match="more than 1 % of 100 examples cannot be read"):
        fit(run)
    source.damaged = {1}
    assert int(fit(dataclasses.replace(run, batches=batches(source, batch_size=4, seed=0))).step) == 25
