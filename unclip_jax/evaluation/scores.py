"""Measures of any data: proportions and their intervals, cosines of embeddings, distances of pictures."""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from unclip_jax.tasks import similarity

NEAREST_CHUNK = 1000  # references compared at a time: bounds the memory
Z = 1.959963984540054  # half-width of a 95 % interval of the standard normal distribution


def wilson(hits: int, n: int) -> tuple[float, float]:
    """95 % interval of a proportion of `hits` in `n` >= 1 (Wilson 1927).

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
    """How much more often `first` is true than `second`, both bool [N] for the same N questions; in [−1, 1].

    The interval is that of Agresti & Min (2005) for matched proportions: Wald's after half an observation more in each
    of the four cells, so it too keeps a width where the two never differ. It is clipped to [−1, 1].
    """
    n, gained, lost = len(first), int((first & ~second).sum()), int((second & ~first).sum())
    centre = (gained - lost) / (n + 2)
    half = Z * math.sqrt((gained + lost + 1) / (n + 2) - centre**2) / math.sqrt(n + 2)
    low, high = max(-1.0, centre - half), min(1.0, centre + half)
    return {"value": (gained - lost) / n, "low": low, "high": high, "n": n}


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


def cosines(
    predicted: np.ndarray, image_embed: np.ndarray, text_embed: np.ndarray, twin: np.ndarray
) -> dict[str, dict[str, float]]:
    """Mean cosines between embeddings [N, D], and their mean lengths.

    Args:
        predicted: the prior's, for each caption.
        image_embed: of the real picture the caption was written for.
        text_embed: of the caption.
        twin: of another real picture of the same labels. One caption has many pictures, so this, not 1,
            is the ceiling.
    """
    unrelated = np.roll(image_embed, 1, axis=0)
    pairs = {
        "predicted_image": (predicted, image_embed),
        "predicted_text": (predicted, text_embed),
        "predicted_unrelated": (predicted, unrelated),
        "image_twin": (image_embed, twin),
        "image_text": (image_embed, text_embed),
        "image_unrelated": (image_embed, unrelated),
    }
    lengths = {"predicted": predicted, "image": image_embed, "text": text_embed}
    return {
        "cosine": {name: float(similarity(jnp.asarray(a), jnp.asarray(b)).mean()) for name, (a, b) in pairs.items()},
        "length": {name: float(np.linalg.norm(embeds, axis=-1).mean()) for name, embeds in lengths.items()},
    }
