"""Data addressed by the step: batch `s` is a pure function of (seed, s).

So the step in a checkpoint is the whole data state: a resumed run reads `batches(step)` and goes on, whatever the
number of threads. A *source* is anything with `len(source)` and `source[i] -> dict` (TFDS's `as_data_source`, a list).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import grain
import numpy as np

from train_jax.errors import UserError

__all__ = ["Batches", "InMemory", "Source", "batches", "prefetch"]

HostBatch = dict[str, np.ndarray]
Batches = Callable[[int], HostBatch]


class Source(Protocol):
    """Examples by their index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Mapping[str, Any]: ...


class InMemory:
    """A source decoded once into one array per field: reading a batch becomes an index.

    Give it a source (every example is read now, in order) or a mapping of arrays that share their first axis.
    """

    def __init__(self, source: Source | Mapping[str, np.ndarray]):
        if not len(source):
            raise UserError("data: the source is empty")
        arrays = source if isinstance(source, Mapping) else _stack([source[i] for i in range(len(source))])
        self.arrays: HostBatch = {name: np.asarray(value) for name, value in arrays.items()}
        if len({len(array) for array in self.arrays.values()}) > 1:
            sizes = {name: len(array) for name, array in self.arrays.items()}
            raise UserError(f"data: its arrays differ in length: {sizes}")

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {name: array[index] for name, array in self.arrays.items()}

    def take(self, indices: np.ndarray) -> HostBatch:
        """Examples [n] as one batch."""
        return {name: array[indices] for name, array in self.arrays.items()}


def batches(
    source: Source | InMemory,
    *,
    batch_size: int,
    seed: int,
    transform: Callable[[HostBatch], HostBatch] | None = None,
) -> Batches:
    """The endless stream of batches of `source` as a function of the step.

    Examples come in a new order every epoch; an epoch runs on into the next, so every batch is full. `transform` sees
    the stacked batch (tokenise all captions in one call) and must leave arrays of numbers only.

    Raises:
        UserError: the source has fewer examples than a batch, or the seed is out of range.
    """
    if batch_size < 1:
        raise UserError(f"batch_size: {batch_size} is not one or more")
    if len(source) < batch_size:
        raise UserError(f"data: it has {len(source)} examples, fewer than one batch of {batch_size}")
    if not 0 <= seed < 2**32:
        raise UserError(f"seed: {seed} is not between 0 and 2**32 - 1")
    # Grain permutes indices, not examples: the examples of a batch are then fetched together, and an in-memory source
    # does that with a single index.
    order = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat().batch(batch_size)
    take = source.take if isinstance(source, InMemory) else lambda indices: _stack([source[int(i)] for i in indices])

    def batch(step: int) -> HostBatch:
        taken = take(np.asarray(order[step]))
        return taken if transform is None else transform(taken)

    return batch


@contextmanager
def prefetch(
    batches: Batches, start: int, stop: int, *, threads: int = 2, ahead: int = 4
) -> Iterator[Iterator[HostBatch]]:
    """Iterate over the batches of steps `start` to `stop`, computed up to `ahead` steps early by `threads` threads.

    The order and the batches are those of `batches` whatever the threads; 0 threads computes each when asked.
    """
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead if threads else 0)
    iterator = iter(grain.MapDataset.range(start, stop).map(batches).to_iter_dataset(options))
    try:
        yield iterator
    finally:
        iterator.close()  # otherwise the threads outlive the run and complain at exit


def _stack(examples: Sequence[Mapping[str, Any]]) -> HostBatch:
    return {name: np.stack([np.asarray(example[name]) for example in examples]) for name in examples[0]}
