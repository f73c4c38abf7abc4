"""The Fréchet distance between two sets of pictures, in the features of a CLIP image tower.

Heusel et al. 2017 (FID) compare the means and covariances of Inception features. The features here are named with every
figure, and beside it belongs the distance between two sets of real pictures of the same size: no generator can be
expected to come closer, and a finite set never has distance 0.
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
    """The mean over all positions after each block of the image tower, side by side: float32 [B, F].

    images: uint8 [B, R, R, 3] of the tower's size. The embedding itself is left alone: the pictures were drawn to
    have a given one, and that of a small CLIP is narrow.
    """
    states = image_states(config, params, images).hidden_states
    assert states is not None
    return jnp.concatenate([state.mean(axis=tuple(range(1, state.ndim - 1))) for state in states[1:]], axis=-1)


def frechet_distance(first: Float[np.ndarray, "N F"], second: Float[np.ndarray, "M F"]) -> float:
    """|m₁ − m₂|² + tr(C₁ + C₂ − 2 (C₁C₂)^½) of feature vectors [N, F] and [M, F], in float64; N, M >= 2.

    The eigenvalues of C₁C₂ are those of the symmetric C₁^½ C₂ C₁^½, so the trace of the root needs no root of a matrix
    that is not symmetric, which is where other implementations turn complex or fail.
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
