"""Step-addressed training data: batch `s` is a pure function of (seed, s).

So the step in a checkpoint is the whole data state: a resumed run goes on with `batches(step)`, whatever the number of
threads. A *source* is anything with `len(source)` and `source[i] -> dict`, such as TFDS's `as_data_source` or a list.

A damaged example does not end a run: the next one replaces it (`Replacing`). A warning names it once, and the batch
counts it, again as a pure function of (seed, s).
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

BAD = "bad"  # field of an example or a batch: number of damaged examples that were skipped for it
TRIES = 10  # examples tried in a row; if all are damaged, something is wrong with the whole source
NAMED = 10  # damaged examples that a warning names; further ones are only counted
# Exceptions of decoders at damaged data. Others, such as TypeError or KeyError, are bugs and end the run.
UNREADABLE = (ValueError, OSError, EOFError, SyntaxError, RuntimeError, zlib.error, struct.error)


class Source(Protocol):
    """Random access to examples, each a mapping from field to value."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Mapping[str, Any]: ...


class Replacing:
    """A source that replaces an unreadable example by the next readable one.

    The replacement has an additional field `bad`, int32: the number of damaged examples skipped. Which example it is
    depends on the index only. A warning names each of the first ten damaged examples.
    """

    def __init__(self, source: Source, *, max_damaged: float = 0.01):
        """Wrap `source`.

        Args:
            source: source whose examples are decoded on access.
            max_damaged: tolerated share of damaged examples, 0 to 1. Unless it is 0, one damaged example is tolerated
                in a source of any size.

        Raises:
            UserError: `max_damaged` is not between 0 and 1.
        """
        self.source, self.max_damaged = source, check_share(max_damaged)
        self.allowed = max(1, int(max_damaged * len(source))) if max_damaged else 0
        self.damaged: set[int] = set()
        self._lock = threading.Lock()  # the threads of `prefetch` read examples concurrently

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        """Example `index`, or the next readable one after it, cyclically.

        Raises:
            RunError: more examples are damaged than `max_damaged` allows, or ten in a row.
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
        """Counts damaged example `at` and names the first ones; raises RunError if there are too many."""
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
    text = " ".join(str(error).split()) or type(error).__name__
    return f"example {index}: {text}"


def check_share(max_damaged: float) -> float:
    """Returns `max_damaged`, a tolerated share of damaged examples, if it is in range.

    Raises:
        UserError: it is not between 0 and 1.
    """
    if not 0 <= max_damaged <= 1:
        raise UserError(f"max_damaged: {max_damaged} is not between 0 and 1")
    return max_damaged


class InMemory:
    """A source held in memory as one array [N, …] per field, so that a batch is read by indexing."""

    def __init__(self, source: Source | Mapping[str, np.ndarray]):
        """Read all examples now.

        Args:
            source: a source, whose damaged examples are replaced as by `Replacing`; or arrays [N, …] by field.

        Raises:
            UserError: the source is empty, or its arrays differ in length.
            RunError: too many examples are damaged.
        """
        if not len(source):
            raise UserError("data: the source is empty")
        if isinstance(source, Mapping):
            arrays = source
        else:
            readable = _replacing(source)
            arrays = _stack([readable[i] for i in range(len(readable))])
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
        """The examples at `indices` [B] as one batch, field -> array [B, …]."""
        return {name: array[indices] for name, array in self.arrays.items()}


def batches(
    source: Source | InMemory,
    *,
    batch_size: int,
    seed: int,
    transform: Callable[[HostBatch], HostBatch] | None = None,
    max_damaged: float = 0.01,
) -> Batches:
    """An endless sequence of batches of `source`, as a function step -> batch.

    Examples are shuffled anew every epoch. A batch may span two epochs, so every batch is full.

    Args:
        source: source of N examples, N >= `batch_size`.
        batch_size: examples per batch, B.
        seed: seed of the shuffling, 0 to 2**32 - 1.
        transform: applied to every stacked batch, such as tokenising all captions in one call. It must leave arrays of
            numbers only.
        max_damaged: tolerated share of damaged examples, 0 to 1.

    Returns:
        Function from a step >= 0 to a batch, field -> array [B, …]. If damaged examples were replaced, the batch has
        the field `bad`, int32 [B]: the number of examples skipped for each (see `Replacing`). The function raises
        RunError if more than the tolerated share is damaged.

    Raises:
        UserError: the source has fewer examples than a batch, or a number is out of range.
    """
    if batch_size < 1:
        raise UserError(f"batch_size: {batch_size} is not one or more")
    if len(source) < batch_size:
        raise UserError(f"data: it has {len(source)} examples, fewer than one batch of {batch_size}")
    if not 0 <= seed < 2**32:
        raise UserError(f"seed: {seed} is not between 0 and 2**32 - 1")
    # Grain permutes indices, not examples, so that the examples of a batch can be read together: an in-memory source
    # does that with a single indexing operation.
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
    """Context manager that reads batches in background threads.

    The batches and their order do not depend on the number of threads.

    Args:
        batches: step -> batch.
        start: first step.
        stop: step after the last.
        threads: number of threads; with 0 every batch is computed when the iterator is advanced.
        ahead: number of batches computed in advance.

    Yields:
        An iterator over the batches of steps `start` to `stop` − 1.
    """
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead if threads else 0)
    iterator = iter(grain.MapDataset.range(start, stop).map(batches).to_iter_dataset(options))
    try:
        yield iterator
    finally:
        iterator.close()  # otherwise the threads outlive the run and complain at exit


def _stack(examples: Sequence[Mapping[str, Any]]) -> HostBatch:
    """A batch of examples with equal fields; it has the field `bad` only if one of them has."""
    names = [name for name in examples[0] if name != BAD]
    stacked = {name: np.stack([np.asarray(example[name]) for example in examples]) for name in names}
    if any(BAD in example for example in examples):
        stacked[BAD] = np.array([example.get(BAD, 0) for example in examples], np.int32)
    return stacked
