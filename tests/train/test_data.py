import collections
import time

import numpy as np
import pytest

from train_jax.data import InMemory, batches, prefetch
from train_jax.errors import UserError

SOURCE = [{"index": np.int32(i), "image": np.full((2, 2, 3), i, np.uint8), "caption": f"number {i}"} for i in range(50)]


def lengths(batch):
    return {"index": batch["index"], "length": np.array([len(c) for c in batch["caption"]], np.int32)}


def same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])


def test_a_batch_depends_on_seed_and_step_only():
    one, two = (batches(SOURCE, batch_size=8, seed=1) for _ in range(2))
    expected = {step: one(step) for step in (5, 0, 17)}
    for step in (17, 5, 0):  # in another order, from another object
        same(two(step), expected[step])
    other = batches(SOURCE, batch_size=8, seed=2)
    assert any((other(step)["index"] != expected[step]["index"]).any() for step in expected)


def test_every_epoch_shows_everything_once_in_a_new_order():
    of_step = batches(SOURCE, batch_size=10, seed=0)
    epochs = [np.concatenate([of_step(5 * epoch + i)["index"] for i in range(5)]) for epoch in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(50))
    assert (epochs[0] != epochs[1]).any()
    assert (epochs[1] != epochs[2]).any()


def test_batches_are_full_across_epochs():
    of_step = batches(SOURCE, batch_size=8, seed=0)
    seen = collections.Counter(int(i) for step in range(25) for i in of_step(step)["index"])  # 200 = 4 epochs
    assert set(seen.values()) == {4}


def test_in_memory_is_the_same_data():
    memory = InMemory(SOURCE)
    assert len(memory) == 50
    assert memory[3]["caption"] == "number 3"
    listed, cached = batches(SOURCE, batch_size=8, seed=4), batches(memory, batch_size=8, seed=4)
    for step in range(10):
        same(listed(step), cached(step))
    assert cached(0)["image"].dtype == np.uint8
    assert cached(0)["image"].shape == (8, 2, 2, 3)


def test_in_memory_reads_each_example_once():
    class Counting(list):
        reads = 0

        def __getitem__(self, index):
            self.reads += 1
            return super().__getitem__(index)

    source = Counting(SOURCE)
    of_step = batches(InMemory(source), batch_size=8, seed=0)
    for step in range(20):
        of_step(step)
    assert source.reads == 50


def test_transform_sees_the_stacked_batch():
    of_step = batches(SOURCE, batch_size=8, seed=0, transform=lengths)
    assert of_step(0).keys() == {"index", "length"}
    np.testing.assert_array_equal(of_step(3)["length"], [len(f"number {i}") for i in of_step(3)["index"]])


@pytest.mark.parametrize("threads", [0, 1, 2, 5])
@pytest.mark.parametrize("start", [0, 7])
def test_threads_change_nothing(threads, start):
    of_step = batches(SOURCE, batch_size=8, seed=0)

    def uneven(step):  # the later batch is often ready first
        time.sleep(0.003 * (step % 3 == 0))
        return of_step(step)

    with prefetch(uneven, start, 12, threads=threads) as stream:
        found = list(stream)
    assert len(found) == 12 - start
    for step, batch in enumerate(found, start):
        same(batch, of_step(step))


def test_nothing_left_to_read():
    with prefetch(batches(SOURCE, batch_size=8, seed=0), 5, 5) as stream:
        assert list(stream) == []


@pytest.mark.parametrize("threads", [0, 2])
def test_an_error_in_the_data_arrives_as_it_is(threads):
    def bad(batch):
        raise UserError("data: record 7 is not an image")

    of_step = batches(SOURCE, batch_size=8, seed=0, transform=bad)
    with prefetch(of_step, 0, 4, threads=threads) as stream, pytest.raises(UserError, match="record 7"):
        next(stream)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 51}, "50 examples, fewer than one batch of 51"),
        ({"batch_size": 0}, "batch_size: 0"),
        ({"seed": -1}, "seed: -1"),
        ({"seed": 2**32}, "seed: 4294967296"),
    ],
)
def test_what_cannot_be_is_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        batches(SOURCE, **{"batch_size": 8, "seed": 0, **arguments})


def test_arrays_that_do_not_match_are_refused():
    with pytest.raises(UserError, match="differ in length"):
        InMemory({"a": np.zeros(3), "b": np.zeros(4)})
    with pytest.raises(UserError, match="empty"):
        InMemory([])
