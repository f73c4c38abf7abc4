"""What pictures of the shapes world are worth, as plain JSON values: numpy only, nothing learned.

Every proportion of pictures comes with its 95 % interval. What cannot be had (no picture was right, say) is None,
never NaN.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from shapes_world import Labels, check, exact_match

NEAREST_CHUNK = 1000  # references compared at a time: bounds the memory
Z = 1.959963984540054  # half-width of a 95 % interval of the standard normal distribution


def wilson(hits: int, n: int) -> tuple[float, float]:
    """95 % interval of a proportion of ``hits`` in ``n`` >= 1 (Wilson 1927).

    It stays within [0, 1] and keeps a width where all or none hit, as the textbook's ± 1.96 standard errors does not.
    """
    p, spread = hits / n, Z**2 / n
    centre = (p + spread / 2) / (1 + spread)
    half = math.sqrt(spread * (p * (1 - p) + spread / 4)) / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)


def proportion(hits: np.ndarray) -> dict[str, Any]:
    """How many of bool [N] are true: {"value", "low", "high"} in [0, 1], and "n"."""
    low, high = wilson(int(hits.sum()), len(hits))
    return {"value": float(hits.mean()), "low": low, "high": high, "n": len(hits)}


def paired_difference(first: np.ndarray, second: np.ndarray) -> dict[str, Any]:
    """How much more often ``first`` is true than ``second``, both bool [N] for the same N questions; in [−1, 1].

    The interval is that of Agresti & Min (2005) for matched proportions: Wald's after half an observation more in each
    of the four cells, so it too keeps a width where the two never differ. It is clipped to [−1, 1].
    """
    n, gained, lost = len(first), int((first & ~second).sum()), int((second & ~first).sum())
    centre = (gained - lost) / (n + 2)
    half = Z * math.sqrt((gained + lost + 1) / (n + 2) - centre**2) / math.sqrt(n + 2)
    low, high = max(-1.0, centre - half), min(1.0, centre + half)
    return {"value": (gained - lost) / n, "low": low, "high": high, "n": n}


def matches(found: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Whether all four attributes agree: int [..., 4] and [..., 4] -> bool [...], broadcast."""
    return (found == wanted).all(axis=-1)


def agreement(found: np.ndarray, wanted: np.ndarray) -> dict[str, Any]:
    """How well the labels read off N >= 2 things are those asked for, int [N, 4] both; −1 (nothing found) is wrong.

    Returns:
      "exact_match": proportion with all four right; "attributes": that of each by name; "rolled": exact match with the
      labels that another was asked for, what chance gives. It is a plain number, the mean over all N − 1 ways of
      rolling the list: a single one of 500 held-out captions can be at 5 % where 3 % are due.
    """
    pairs = matches(found[:, None], wanted)  # [N, N]; the diagonal belongs together
    n = len(found)
    return {
        "exact_match": proportion(np.diagonal(pairs)),
        "attributes": {name: proportion(found[:, i] == wanted[:, i]) for i, name in enumerate(Labels._fields)},
        "rolled": float((pairs.sum() - np.trace(pairs)) / (n * (n - 1))),
    }


def diversity(images: np.ndarray, real: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """How much pictures of one caption differ from each other, as a fraction of how much real ones do.

    Only pictures that show what they should are compared: a star in the wrong corner is a mistake, not variety. A model
    that draws one prototype per caption has ratio 0.

    Args:
      images: uint8 [K, S, R, R, 3], S samples for each of K captions.
      real: uint8 [K, M, R, R, 3], renders of the same labels.
      labels: int [K, 4].

    Returns:
      For each of "position", "size" and "background" the standard deviations "generated" and "real" and their "ratio";
      "ratio", the mean of the three; "right", how many of the "drawn" K·S pictures were compared. What fewer than two
      right pictures per caption leave unknown is None.
    """
    generated, right = _deviations(images, labels)
    reference, _ = _deviations(real, labels)
    report: dict[str, Any] = {
        name: {"generated": std, "real": reference[name], "ratio": _ratio(std, reference[name])}
        for name, std in generated.items()
    }
    ratios = [part["ratio"] for part in report.values()]
    return {
        "ratio": None if None in ratios else float(np.mean(ratios)),
        **report,
        "right": int(right.sum()),
        "drawn": len(right),
    }


def _deviations(images: np.ndarray, labels: np.ndarray) -> tuple[dict[str, float | None], np.ndarray]:
    """Standard deviations within a caption, pooled over K captions of S pictures; and which are right, [K·S]."""
    samples = images.shape[1]
    checked = check(images.reshape(-1, *images.shape[2:]))
    right = exact_match(checked, np.repeat(labels, samples, axis=0))
    measured = {"position": checked.centre, "size": checked.extent[:, None], "background": checked.background[:, None]}
    captions = [np.flatnonzero(rows) + k * samples for k, rows in enumerate(right.reshape(-1, samples))]
    return {name: _pooled_std([values[rows] for rows in captions]) for name, values in measured.items()}, right


def _pooled_std(groups: list[np.ndarray]) -> float | None:
    """Standard deviation around each group's mean, of groups [n_k, A] of A like axes; None if every n_k < 2."""
    groups = [group for group in groups if len(group) > 1]
    freedom = sum((len(group) - 1) * group.shape[1] for group in groups)
    squares = sum(float(((group - group.mean(0)) ** 2).sum()) for group in groups)
    return math.sqrt(squares / freedom) if freedom else None


def _ratio(value: float | None, reference: float | None) -> float | None:
    return value / reference if value is not None and reference else None


def nearest(images: np.ndarray, references: np.ndarray) -> np.ndarray:
    """How far each picture is from the most similar reference: root mean square over its grey levels (0 to 255), [N].

    images: uint8 [N, R, R, 3]; references: uint8 [M, R, R, 3].
    """
    # Centred before squaring: |a − b|² = |a|² + |b|² − 2ab cancels, and smaller squares lose less of float32.
    a = images.reshape(len(images), -1).astype(np.float32) - 128
    lengths, least = np.square(a).sum(1), np.full(len(a), np.inf, np.float32)
    for start in range(0, len(references), NEAREST_CHUNK):
        b = references[start : start + NEAREST_CHUNK].reshape(-1, a.shape[1]).astype(np.float32) - 128
        least = np.minimum(least, (lengths[:, None] + np.square(b).sum(1) - 2 * a @ b.T).min(1))
    return np.sqrt(np.maximum(least, 0) / a.shape[1])
