"""General measures: proportions with intervals, cosines of embeddings, nearest pictures."""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from unclip_jax.tasks import similarity

NEAREST_CHUNK = 1000  # references compared at a time, to bound the memory
Z = 1.959963984540054  # half-width of a 95 % interval of the standard normal distribution


def wilson(hits: int, n: int) -> tuple[float, float]:
    """95 % Wilson interval of a proportion (Wilson 1927).

    Unlike ± 1.96 standard errors it stays within [0, 1], and has a width above 0 if all or none are hits.

    Args:
        hits: number of hits.
        n: number of trials, at least 1.

    Returns:
        (low, high).
    """
    p, spread = hits / n, Z**2 / n
    centre = (p + spread / 2) / (1 + spread)
    half = math.sqrt(spread * (p * (1 - p) + spread / 4)) / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)


def proportion(hits: np.ndarray) -> dict[str, Any]:
    """Proportion of True in bool [N] with its 95 % interval: {"value", "low", "high", "n"}."""
    low, high = wilson(int(hits.sum()), len(hits))
    return {"value": float(hits.mean()), "low": low, "high": high, "n": len(hits)}


def paired_difference(first: np.ndarray, second: np.ndarray) -> dict[str, Any]:
    """Difference of two proportions over the same N questions, with its 95 % interval for matched pairs.

    The interval is that of Agresti & Min (2005), clipped to [−1, 1]: Wald's with half an observation added to each of
    the four cells, which has a width above 0 even if the two never differ.

    Args:
        first: bool [N].
        second: bool [N].

    Returns:
        {"value", "low", "high", "n"}; the value, in [−1, 1], is positive if `first` is True more often.
    """
    n, gained, lost = len(first), int((first & ~second).sum()), int((second & ~first).sum())
    centre = (gained - lost) / (n + 2)
    half = Z * math.sqrt((gained + lost + 1) / (n + 2) - centre**2) / math.sqrt(n + 2)
    low, high = max(-1.0, centre - half), min(1.0, centre + half)
    return {"value": (gained - lost) / n, "low": low, "high": high, "n": n}


def nearest(images: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Distance of each picture to its nearest reference: root mean square difference of levels (0 to 255).

    Args:
        images: uint8 [N, R, R, 3].
        references: uint8 [M, R, R, 3].

    Returns:
        float32 [N].
    """
    # Centred first, as smaller squares lose less precision to the cancellation in |a − b|² = |a|² + |b|² − 2ab.
    a = images.reshape(len(images), -1).astype(np.float32) - 128
    lengths, least = np.square(a).sum(1), np.full(len(a), np.inf, np.float32)
    for start in range(0, len(references), NEAREST_CHUNK):
        b = references[start : start + NEAREST_CHUNK].reshape(-1, a.shape[1]).astype(np.float32) - 128
        least = np.minimum(least, (lengths[:, None] + np.square(b).sum(1) - 2 * a @ b.T).min(1))
    return np.sqrt(np.maximum(least, 0) / a.shape[1])


def cosines(
    predicted: np.ndarray, image_embed: np.ndarray, text_embed: np.ndarray, twin: np.ndarray
) -> dict[str, dict[str, float]]:
    """Mean cosines between embeddings, and their mean lengths.

    Args:
        predicted: image embeddings of the prior, [N, D].
        image_embed: image embeddings of the real pictures that the captions were written for, [N, D].
        text_embed: text embeddings of the captions, [N, D].
        twin: image embeddings of other real pictures of the same labels, [N, D]. A caption has many pictures, so the
            cosine of `image_embed` and `twin`, not 1, is the most that a prior can reach.

    Returns:
        "cosine": pair -> mean cosine; "length": set -> mean length.
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
