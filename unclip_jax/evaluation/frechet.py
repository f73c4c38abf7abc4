"""The Fréchet distance (FID) between two sets of pictures, in the features of a CLIP image tower.

Heusel et al. 2017 compare the means and covariances of Inception features; a report must say that the features here are
others. The distance between two sets of real pictures of the same number belongs beside every figure: it is the least
that a generator can be expected to reach, and for finite sets it is not 0.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from clip_jax.config import CLIPConfig
from clip_jax.encode import image_states


@partial(jax.jit, static_argnums=0)
def features(config: CLIPConfig, params: dict[str, Any], images: UInt8[Array, "B H W 3"]) -> Float[Array, "B F"]:
    """Features for the Fréchet distance: the states after each block of the image tower, averaged over positions.

    The image embedding itself is not used: the pictures were drawn for a given embedding, and that of a small CLIP has
    few dimensions.

    Args:
        config: config of the CLIP.
        params: its weights as one tree.
        images: uint8 [B, R, R, 3], of the image size of the tower.

    Returns:
        float32 [B, F], the means of all blocks concatenated.
    """
    states = image_states(config, params, images).hidden_states
    assert states is not None
    return jnp.concatenate([state.mean(axis=tuple(range(1, state.ndim - 1))) for state in states[1:]], axis=-1)


def frechet_distance(first: Float[np.ndarray, "N F"], second: Float[np.ndarray, "M F"]) -> float:
    """Fréchet distance |m₁ − m₂|² + tr(C₁ + C₂ − 2 (C₁C₂)^½) of two sets of features, in float64.

    C₁C₂ has the eigenvalues of the symmetric matrix C₁^½ C₂ C₁^½, whose square root is computed instead: the root of a
    matrix that is not symmetric can become complex or fail.

    Args:
        first: [N, F], N at least 2.
        second: [M, F], M at least 2.

    Raises:
        ValueError: N or M is less than 2.
    """
    first, second = (np.asarray(a, np.float64) for a in (first, second))
    if min(len(first), len(second)) < 2:
        raise ValueError(f"{len(first)} and {len(second)} feature vectors have no covariance; give at least 2 of each")
    cov_1, cov_2 = (np.atleast_2d(np.cov(a, rowvar=False)) for a in (first, second))
    values, vectors = np.linalg.eigh(cov_1)
    root = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    trace_of_root = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ cov_2 @ root), 0.0)).sum()
    difference = first.mean(0) - second.mean(0)
    return float(difference @ difference + np.trace(cov_1) + np.trace(cov_2) - 2.0 * trace_of_root)
