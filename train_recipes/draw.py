"""Seeded random subsets of a source, to measure something on: the first rows of a sorted table would be biased."""

from __future__ import annotations

import numpy as np

from train_jax.data import Source


def drawn_indices(total: int, limit: int, seed: int) -> np.ndarray:
    """Draws `limit` of the indices 0 … `total` − 1 without replacement; all of them if `total` <= `limit`.

    A pure function of its arguments.

    Returns:
        Indices [min(limit, total)], int64, in ascending order.
    """
    if total <= limit:
        return np.arange(total)
    return np.sort(np.random.default_rng(seed).choice(total, limit, replace=False))


def drawn_examples(source: Source, limit: int, seed: int) -> dict[str, np.ndarray]:
    """The examples at `drawn_indices` as one batch.

    Returns:
        Field -> array [min(limit, len(source)), …]. A field that only some examples have, such as `bad`, is left out.
    """
    examples = [source[int(i)] for i in drawn_indices(len(source), limit, seed)]
    shared = [name for name in examples[0] if all(name in example for example in examples)]
    return {name: np.stack([np.asarray(example[name]) for example in examples]) for name in shared}
