"""Measures of shapes-world pictures per split: exact match, variety within a caption, distance to real pictures.

All results are plain JSON values. Every proportion of pictures has its 95 % interval. A value that cannot be computed
(because no picture was right, for example) is None, never NaN.
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
    """Applies a measure to the rows of each split.

    Args:
        measure: function of as many arrays as are given.
        arrays: arrays of the rows of all splits, one split after the other, with equally many rows each.

    Returns:
        Split -> result of `measure`.
    """
    shares = zip(*(np.split(array, len(SPLITS)) for array in arrays), strict=True)
    return {split: measure(*share) for split, share in zip(SPLITS, shares, strict=True)}


def matches(found: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Whether all four attributes agree: labels int [..., 4] and [..., 4], which broadcast -> bool [...]."""
    return (found == wanted).all(axis=-1)


def agreement(found: np.ndarray, wanted: np.ndarray) -> dict[str, Any]:
    """Agreement of labels that were read from pictures or embeddings with the labels of their captions.

    Args:
        found: labels that were read, int [N, 4], N at least 2; −1 (nothing found) counts as wrong.
        wanted: labels of the captions, int [N, 4].

    Returns:
        "exact_match": proportion with all four attributes right; "attributes": proportion right of each attribute;
        "rolled": exact match with the labels of other captions, an estimate of chance. The last is a number without an
        interval: the mean over all N − 1 rotations of the list, because a single rotation varies too much (5 % where
        3 % are expected, for 500 held-out captions).
    """
    pairs = matches(found[:, None], wanted)  # [N, N]; the diagonal belongs together
    n = len(found)
    return {
        "exact_match": proportion(np.diagonal(pairs)),
        "attributes": {name: proportion(found[:, i] == wanted[:, i]) for i, name in enumerate(Labels._fields)},
        "rolled": float((pairs.sum() - np.trace(pairs)) / (n * (n - 1))),
    }


def score_pictures(images: np.ndarray, labels: np.ndarray) -> tuple[dict[str, Any], np.ndarray]:
    """Reads pictures with the checker of the shapes world, and compares them with the labels of their captions.

    Args:
        images: uint8 [N, R, R, 3], one split after the other.
        labels: int [N, 4].

    Returns:
        (split -> `agreement` and "median_iou"; the labels that the checker read, int [N, 4]).
    """
    checked = shapes_world.check(images)

    def score(found: np.ndarray, wanted: np.ndarray, iou: np.ndarray) -> dict[str, Any]:
        return agreement(found, wanted) | {"median_iou": float(np.median(iou))}

    return by_split(score, checked.labels, labels, checked.iou), checked.labels


def diversity(images: np.ndarray, real: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Variety: how much pictures of one caption differ from each other, relative to real pictures.

    Only pictures with all attributes right are compared: a star in the wrong corner is a mistake, not variety. A model
    that draws one prototype per caption has ratio 0.

    Args:
        images: uint8 [K, S, R, R, 3], S samples for each of K captions.
        real: uint8 [K, M, R, R, 3], renders of the same labels.
        labels: int [K, 4], labels of the captions.

    Returns:
        For each of "position", "size" and "background" the standard deviations "generated" and "real" and their
        "ratio"; "ratio", the mean of the three ratios; "drawn", the number K·S of pictures, and "right", how many of
        them were compared. A value is None if no caption has two right pictures.
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
    """(Standard deviations within captions, pooled over K captions of S pictures; which pictures are right, [K·S])."""
    samples = images.shape[1]
    checked = check(images.reshape(-1, *images.shape[2:]))
    right = exact_match(checked, np.repeat(labels, samples, axis=0))
    measured = {"position": checked.centre, "size": checked.extent[:, None], "background": checked.background[:, None]}
    captions = [np.flatnonzero(rows) + k * samples for k, rows in enumerate(right.reshape(-1, samples))]
    return {name: _pooled_std([values[rows] for rows in captions]) for name, values in measured.items()}, right


def _pooled_std(groups: list[np.ndarray]) -> float | None:
    """Pooled standard deviation around the mean of each group [n_k, A], over A axes too; None if every n_k < 2."""
    groups = [group for group in groups if len(group) > 1]
    freedom = sum((len(group) - 1) * group.shape[1] for group in groups)
    squares = sum(float(((group - group.mean(0)) ** 2).sum()) for group in groups)
    return math.sqrt(squares / freedom) if freedom else None


def _ratio(value: float | None, reference: float | None) -> float | None:
    return value / reference if value is not None and reference else None


def clip_scores(embeds: dict[str, np.ndarray], text_embed: np.ndarray) -> dict[str, dict[str, float]]:
    """CLIP score: mean cosine between the embeddings of pictures and those of their captions.

    Hessel et al. 2021 multiply the cosine by 2.5 and clip it at 0; here it is neither.

    Args:
        embeds: name of a set of pictures -> image embeddings [N, D], one split after the other.
        text_embed: text embeddings of their captions, [N, D].

    Returns:
        Split -> name -> mean cosine.
    """
    scores = {name: np.asarray(similarity(jnp.asarray(a), jnp.asarray(text_embed))) for name, a in embeds.items()}
    means = {name: by_split(lambda cosine: float(cosine.mean()), cosine) for name, cosine in scores.items()}
    return {split: {name: mean[split] for name, mean in means.items()} for split in SPLITS}


def distances_to_real(seen: dict[str, np.ndarray], real: np.ndarray) -> dict[str, Any]:
    """Fréchet distances of sets of pictures to real pictures.

    Args:
        seen: name of a set -> features [N, F], one split after the other. The set "floor" is of other real pictures of
            the same labels, whose distance is the smallest to be expected.
        real: features of real pictures, [N, F].

    Returns:
        "features", a description of the features; "splits", split -> name -> distance.
    """
    distances = {name: by_split(frechet_distance, found, real) for name, found in seen.items()}
    return {
        "features": f"mean over positions after each block of this system's CLIP image tower, {real.shape[1]} numbers",
        "splits": {split: {name: distance[split] for name, distance in distances.items()} for split in SPLITS},
    }


def render_again(labels: np.ndarray, resolution: int, seed: int) -> np.ndarray:
    """Renders new real pictures of given labels.

    Args:
        labels: int [N, 4].
        resolution: side R in pixels.
        seed: seed of what the labels leave open (exact position, size, background).

    Returns:
        uint8 [N, R, R, 3].
    """
    rng = np.random.default_rng(seed)
    return np.stack([shapes_world.render(shapes_world.Labels(*row), rng, resolution) for row in labels.tolist()])
