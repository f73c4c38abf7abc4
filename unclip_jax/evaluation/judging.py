"""Judging pictures of the shapes world, per split: what they show, how they differ, how near they are to real ones.

All values are plain JSON. Every proportion of pictures comes with its 95 % interval; what cannot be had (no picture was
right, say) is None, never NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

import shapes_world
from shapes_world import Labels, check, exact_match
from unclip_jax.evaluation.frechet import frechet_distance
from unclip_jax.evaluation.scores import proportion
from unclip_jax.tasks import similarity

SPLITS = {"test": "seen pairs", "heldout": "held-out pairs"}


def by_split(measure: Callable[..., Any], *arrays: np.ndarray) -> dict[str, Any]:
    """`measure` of each split's share of arrays that hold equally many rows of every split, one after the other."""
    shares = zip(*(np.split(array, len(SPLITS)) for array in arrays), strict=True)
    return {split: measure(*share) for split, share in zip(SPLITS, shares, strict=True)}


def matches(found: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Whether all four attributes agree: int [..., 4] and [..., 4] -> bool [...], broadcast."""
    return (found == wanted).all(axis=-1)


def agreement(found: np.ndarray, wanted: np.ndarray) -> dict[str, Any]:
    """How well the labels read off N >= 2 things are those asked for, int [N, 4] both; −1 (nothing found) is wrong.

    Returns:
        "exact_match": proportion with all four right; "attributes": that of each by name; "rolled": exact match with
        the labels that another was asked for, what chance gives. It is a plain number, the mean over all N − 1 ways of
        rolling the list: a single one of 500 held-out captions can be at 5 % where 3 % are due.
    """
    pairs = matches(found[:, None], wanted)  # [N, N]; the diagonal belongs together
    n = len(found)
    return {
        "exact_match": proportion(np.diagonal(pairs)),
        "attributes": {name: proportion(found[:, i] == wanted[:, i]) for i, name in enumerate(Labels._fields)},
        "rolled": float((pairs.sum() - np.trace(pairs)) / (n * (n - 1))),
    }


def score_pictures(images: np.ndarray, labels: np.ndarray) -> tuple[dict[str, Any], np.ndarray]:
    """Per split, the checker's agreement with the labels and its median IoU; and what it found, int [N, 4]."""
    checked = shapes_world.check(images)

    def score(found: np.ndarray, wanted: np.ndarray, iou: np.ndarray) -> dict[str, Any]:
        return agreement(found, wanted) | {"median_iou": float(np.median(iou))}

    return by_split(score, checked.labels, labels, checked.iou), checked.labels


def diversity(images: np.ndarray, real: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """How much pictures of one caption differ from each other, as a fraction of how much real ones do.

    Only pictures that show what they should are compared: a star in the wrong corner is a mistake, not variety. A model
    that draws one prototype per caption has ratio 0.

    Args:
        images: uint8 [K, S, R, R, 3], S samples for each of K captions.
        real: uint8 [K, M, R, R, 3], renders of the same labels.
        labels: int [K, 4].

    Returns:
        For each of "position", "size" and "background" the standard deviations "generated" and "real" and their
        "ratio"; "ratio", the mean of the three; "right", how many of the "drawn" K·S pictures were compared. What fewer
        than two right pictures per caption leave unknown is None.
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


def clip_scores(embeds: dict[str, np.ndarray], text_embed: np.ndarray) -> dict[str, dict[str, float]]:
    """Per split, the mean cosine of each set of pictures' embeddings [N, D] with those of their captions.

    Hessel et al. 2021 multiply by 2.5 and cut at 0; this is the bare cosine.
    """
    scores = {name: np.asarray(similarity(jnp.asarray(a), jnp.asarray(text_embed))) for name, a in embeds.items()}
    means = {name: by_split(lambda cosine: float(cosine.mean()), cosine) for name, cosine in scores.items()}
    return {split: {name: mean[split] for name, mean in means.items()} for split in SPLITS}


def distances_to_real(seen: dict[str, np.ndarray], real: np.ndarray) -> dict[str, Any]:
    """Fréchet distances of sets of features [N, F] to those of as many real pictures, per split.

    "floor" among the sets is other real pictures of the same labels.
    """
    distances = {name: by_split(frechet_distance, found, real) for name, found in seen.items()}
    return {
        "features": f"mean over positions after each block of this system's CLIP image tower, {real.shape[1]} numbers",
        "splits": {split: {name: distance[split] for name, distance in distances.items()} for split in SPLITS},
    }


def render_again(labels: np.ndarray, resolution: int, seed: int) -> np.ndarray:
    """Fresh real pictures of labels int [N, 4]: uint8 [N, R, R, 3]."""
    rng = np.random.default_rng(seed)
    return np.stack([shapes_world.render(shapes_world.Labels(*row), rng, resolution) for row in labels.tolist()])
