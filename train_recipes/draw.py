"""Which examples of a source something is measured on: a seeded draw over all of it, for a table may be sorted."""

from __future__ import annotations

import numpy as np

from train_jax.data import Source


def drawn_indices(total: int, limit: int, seed: int) -> np.ndarray:
    """`limit` of the indices 0 … total − 1, each at most once, in ascending order; all of them if there are no more.

    The draw depends on the three numbers alone.
    """
    if total <= limit:
        return np.arange(total)
    return np.sort(np.random.default_rng(seed).choice(total, limit, replace=False))


def drawn_examples(source: Source, limit: int, seed: int) -> dict[str, np.ndarray]:
    """The examples of `drawn_indices`, field by field: arrays of as many rows. What only some have is left out."""
    examples = [source[int(i)] for i in drawn_indices(len(source), limit, seed)]
    shared = [name for name in examples[0] if all(name in one for one in examples)]
    return {name: np.stack([np.asarray(one[name]) for one in examples]) for name in shared}
