"""Data addressed by the step: batch `s` is a pure function of (seed, s).

So the step in a checkpoint is the whole data state: a resumed run reads `batches(step)` and goes on, whatever the
number of threads. A *source* is anything with `len(source)` and `source[i] -> dict` (TFDS's `as_data_source`, a list).

A damaged example does not end a run: the next one stands in for it (`Replacing`), it is named once, and counted in the
batch, again as a pure function of (seed, s).
"""

import logging
import struct
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import grain
import numpy as np

from train_jax.errors import RunError, UserError

__all__ = ["BAD", "Batches", "InMemory", "Replacing", "Source", "batches", "check_share", "prefetch"]

log = logging.getLogger(__name__)

HostBatch = dict[str, np.ndarray]
Batches = Callable[[int], HostBatch]

BAD = "bad"  # in an example or a batch: how many damaged examples were passed over for it
TRIES = 10  # examples in a row that are damaged: then it is no accident
NAMED = 10  # damaged examples that are named; the others are only counted
# What decoders raise at damaged data. A TypeError or a KeyError is a fault of the program, and ends it.
UNREADABLE = (ValueError, OSError, EOFError, SyntaxError, RuntimeError, zlib.error, struct.error)


class Source(Protocol):
    """Examples by their index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Mapping[str, Any]: ...


class Replacing:
    """A source in which the next example that can be read stands in for one that cannot.

    Such an example has a field `bad` more, the number of damaged ones passed over; which one it is depends on the index
    alone. The first damaged examples are named in a warning each.
    """

    def __init__(self, source: Source, *, max_damaged: float = 0.01):
        """Wrap `source`.

        Args:
            source: of examples; its pictures are decoded when they are asked for.
            max_damaged: the share of the examples, 0 to 1, that may be damaged. One always may, unless the share is 0.

        Raises:
            UserError: the share is none.
        """
        self.source, self.max_damaged = source, check_share(max_damaged)
        self.allowed = max(1, int(max_damaged * len(source))) if max_damaged else 0
        self.damaged: set[int] = set()
        self._lock = threading.Lock()  # several threads read

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        """Example `index`, or the next that can be read.

        Raises:
            RunError: more examples are damaged than may be, or ten in a row.
        """
        for bad in range(TRIES):
            at = (index + bad) % len(self)
            try:
                example = self.source[at]
            except RunError:
                raise
            except UNREADABLE as error:
                self._note(at, error)
                fault = error
            else:
                return {**example, BAD: np.int32(bad)} if bad else example
        raise RunError(f"data: {TRIES} examples in a row cannot be read, the last: {_told(at, fault)}") from fault

    def _note(self, at: int, error: Exception) -> None:
        with self._lock:
            new = at not in self.damaged
            self.damaged.add(at)
            count = len(self.damaged)
        if count > self.allowed:
            share = f"more than {100 * self.max_damaged:g} % of {len(self)} examples cannot be read"
            rest = "mend or remove them, or let max_damaged be higher"
            raise RunError(f"data: {share}, {count} so far, the last: {_told(at, error)}; {rest}") from error
        if new and count <= NAMED:
            more = "; further ones are counted, not named" if count == NAMED else ""
            log.warning("data: %s; the next example stands in for it%s", _told(at, error), more)


def _told(index: int, error: Exception) -> str:
    what = " ".join(str(error).split()) or type(error).__name__
    return f"example {index}: {what}"


def check_share(max_damaged: float) -> float:
    """The share of the examples that may be damaged, if it is one.

    Raises:
        UserError: it is not between 0 and 1.
    """
    if not 0 <= max_damaged <= 1:
        raise UserError(f"max_damaged: {max_damaged} is not between 0 and 1")
    return max_damaged


class InMemory:
    """A source decoded once into one array per field: reading a batch becomes an index.

    Give it a source (every example is read now, in order, and `Replacing` where it is damaged) or a mapping of arrays
    that share their first axis.
    """

    def __init__(self, source: Source | Mapping[str, np.ndarray]):
        if not len(source):
            raise UserError("data: the source is empty")
        if isinstance(source, Mapping):
            arrays = source
        else:
            whole = _replacing(source)
            arrays = _stack([whole[i] for i in range(len(whole))])
            arrays.pop(BAD, None)
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
    max_damaged: float = 0.01,
) -> Batches:
    """The endless stream of batches of `source` as a function of the step.

    Examples come in a new order every epoch; an epoch runs on into the next, so every batch is full. `transform` sees
    the stacked batch (tokenise all captions in one call) and must leave arrays of numbers only.

    Where examples stand in for damaged ones, the batch has `bad` int32 [B], how many for each; `fit` sums them. More
    than the share `max_damaged` of the source is a `RunError` when a batch is read.

    Raises:
        UserError: the source has fewer examples than a batch, or the seed or the share is out of range.
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
    reader = source if isinstance(source, InMemory) else _replacing(source, max_damaged)

    def batch(step: int) -> HostBatch:
        indices = np.asarray(order[step])
        taken = reader.take(indices) if isinstance(reader, InMemory) else _stack([reader[int(i)] for i in indices])
        if transform is None:
            return taken
        bad = {BAD: taken.pop(BAD)} if BAD in taken else {}
        return {**transform(taken), **bad}

    return batch


def _replacing(source: Source, max_damaged: float = 0.01) -> Replacing:
    return source if isinstance(source, Replacing) else Replacing(source, max_damaged=max_damaged)


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
    names = [name for name in examples[0] if name != BAD]
    stacked = {name: np.stack([np.asarray(example[name]) for example in examples]) for name in names}
    if any(BAD in example for example in examples):
        stacked[BAD] = np.array([example.get(BAD, 0) for example in examples], np.int32)
    return stacked
