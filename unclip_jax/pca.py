"""PCA of CLIP image embeddings, whose coordinates the autoregressive prior predicts.

Ramesh et al. 2022, §2.2: 319 principal components of 1,024 dimensions keep nearly all of the information.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


class PCA(NamedTuple):
    """Principal components in the order of decreasing variance, float32.

    Attributes:
        mean: mean of the data, [D].
        components: axes as rows of unit norm, [K, D].
        variances: variance of the data along each axis, [K].
    """

    mean: Float[Array, " D"]
    components: Float[Array, "K D"]
    variances: Float[Array, " K"]


def principal_components(embeds: Float[np.ndarray, "N D"], num_components: int | None = None) -> PCA:
    """Computes principal components in float64; the entry of largest magnitude of each axis is positive.

    Args:
        embeds: [N, D], N at least 2.
        num_components: K, 1 to D; None takes all D.

    Raises:
        ValueError: N or K is out of range.
    """
    count, width = embeds.shape
    num_kept = width if num_components is None else num_components
    if count < 2 or not 1 <= num_kept <= width:
        raise ValueError(f"num_components is {num_kept} of {count} embeddings of {width} dimensions")
    data = np.asarray(embeds, np.float64)
    mean = data.mean(axis=0)
    variances, axes = np.linalg.eigh(np.cov(data.T).reshape(width, width))
    components = axes.T[::-1][:num_kept]
    signs = np.sign(components[np.arange(num_kept), np.abs(components).argmax(axis=1)])
    arrays = mean, components * signs[:, None], np.maximum(variances[::-1][:num_kept], 0.0)
    return PCA(*(jnp.asarray(a, jnp.float32) for a in arrays))


def project(pca: PCA, embeds: Float[Array, "*B D"]) -> Float[Array, "*B K"]:
    """Embeddings [..., D] -> coordinates [..., K]."""
    return (embeds - pca.mean) @ pca.components.T


def reconstruct(pca: PCA, coordinates: Float[Array, "*B K"]) -> Float[Array, "*B D"]:
    """Coordinates [..., K] -> embeddings [..., D] in the span of the components."""
    return coordinates @ pca.components + pca.mean
