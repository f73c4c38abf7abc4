"""Top-k retrieval: images by text and texts by image, and recall@k.

Similarities are computed in chunks: the Q × N matrix is never in memory.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from clip_jax.arrays import AnyArray, Features, check_features, check_ks, check_labels
from clip_jax.errors import UserError


class Nearest(NamedTuple):
    """The candidates most similar to each query, best first."""

    indices: Int[np.ndarray, "Q k"]
    similarity: Float[np.ndarray, "Q k"]


def nearest(
    queries: Features,
    candidates: Features,
    k: int = 10,
    *,
    chunk: int = 4096,
) -> Nearest:
    """Top-k retrieval: the k candidates with the largest dot product for each query; ties go to the lower index.

    Args:
        queries: features [Q, D].
        candidates: features [N, D].
        k: at most; of fewer candidates all are returned.
        chunk: number of queries, and of candidates, that are compared at a time.

    Raises:
        UserError: If either is empty, their dimensions differ, k or chunk is below 1, or a row has NaN or Inf.
    """
    queries, candidates = check_features("queries", queries), check_features("candidates", candidates)
    ((k,), (chunk,)) = check_ks(k, "k"), check_ks(chunk, "chunk")
    if not len(queries) or not len(candidates) or queries.shape[1] != candidates.shape[1]:
        raise UserError(f"cannot compare queries {list(queries.shape)} with candidates {list(candidates.shape)}")
    k = min(k, len(candidates))
    parts = [_nearest(queries[i : i + chunk], candidates, k, chunk) for i in range(0, len(queries), chunk)]
    return Nearest(*(np.concatenate(part) for part in zip(*parts, strict=True)))


def _nearest(queries: AnyArray, candidates: AnyArray, k: int, chunk: int) -> tuple[np.ndarray, np.ndarray]:
    best = jnp.full((len(queries), k), jnp.finfo(jnp.float32).min, jnp.float32)
    index = jnp.zeros((len(queries), k), jnp.int32)
    for start in range(0, len(candidates), chunk):
        best, index = _merge(k, best, index, queries, candidates[start : start + chunk], np.int32(start))
    return np.asarray(index), np.asarray(best)


@partial(jax.jit, static_argnums=0)
def _merge(k: int, best: Array, index: Array, queries: Array, candidates: Array, start: Array) -> tuple[Array, Array]:
    queries, candidates = _alike(queries, candidates)
    similarity = jnp.einsum("qd,nd->qn", queries, candidates, preferred_element_type=jnp.float32)
    places = jnp.broadcast_to((start + jnp.arange(len(candidates), dtype=jnp.int32))[None], similarity.shape)
    # The earlier candidates come first: `top_k` prefers the first of equal values.
    both, places = jnp.concatenate([best, similarity], 1), jnp.concatenate([index, places], 1)
    best, order = jax.lax.top_k(both, k)
    return best, jnp.take_along_axis(places, order, axis=1)


def _alike(queries: Array, candidates: Array) -> tuple[Array, Array]:
    """Both in bfloat16 or float16 if they share that dtype, else in float32."""
    dtype = queries.dtype if queries.dtype == candidates.dtype else jnp.dtype(jnp.float32)
    dtype = dtype if dtype in (jnp.bfloat16, jnp.float16) else jnp.dtype(jnp.float32)
    return queries.astype(dtype), candidates.astype(dtype)


def recall(
    queries: Features,
    candidates: Features,
    relevant: Sequence[Sequence[int] | np.ndarray | int] | Int[AnyArray, " _Q"],
    ks: Sequence[int] = (1, 5, 10),
    *,
    chunk: int = 4096,
) -> dict[int, float]:
    """recall@k: share of the queries that have a relevant candidate among their k most similar ones.

    Args:
        queries: features [Q, D].
        candidates: features [N, D].
        relevant: for each query the indices of its relevant candidates, or a single index.
        ks: the values of k.
        chunk: number of rows that are compared at a time.

    Returns:
        {k: recall in [0, 1]}.

    Raises:
        UserError: If `nearest` raises one, `relevant` has another length, or an index belongs to no candidate.
    """
    ks = check_ks(ks)
    if len(relevant) != len(queries):
        raise UserError(f"there are {len(queries)} queries, but relevant candidates for {len(relevant)}")
    retrieved = nearest(queries, candidates, max(ks), chunk=chunk).indices
    targets = [np.atleast_1d(np.asarray(indices)) for indices in relevant]
    for i, t in enumerate(targets):
        if t.size and (not np.issubdtype(t.dtype, np.integer) or t.min() < 0 or t.max() >= len(candidates)):
            raise UserError(f"relevant: query {i} has {t.tolist()[:4]}, the candidates are 0 to {len(candidates) - 1}")
    hits = np.stack([np.isin(row, t) for row, t in zip(retrieved, targets, strict=True)])
    return {k: float(hits[:, :k].any(1).mean()) for k in ks}


def both_directions(
    image_features: Float[AnyArray, "I D"],
    text_features: Float[AnyArray, "T _D"],
    image_of_text: Any,
    ks: Sequence[int] = (1, 5, 10),
    *,
    chunk: int = 4096,
) -> dict[str, dict[int, float]]:
    """recall@k of images by text and of texts by image, as for Flickr30k and COCO (five captions per image).

    Args:
        image_features: [I, D].
        text_features: [T, D].
        image_of_text: integers [T], the index of the image that each caption belongs to. An image without captions is
            a candidate, but no query.
        ks: the values of k.
        chunk: number of rows that are compared at a time.

    Returns:
        {"text_to_image": {k: recall in [0, 1]}, "image_to_text": …}.

    Raises:
        UserError: If `nearest` raises one, or `image_of_text` is not one index of an image for each text.
    """
    image_features = check_features("image_features", image_features)
    image_of_text = check_labels("image_of_text", image_of_text, len(text_features))
    if len(image_of_text) and not 0 <= image_of_text.min() <= image_of_text.max() < len(image_features):
        raise UserError(f"image_of_text: there are {len(image_features)} images, but an index beyond them")
    order = np.argsort(image_of_text, kind="stable")
    captioned, starts = np.unique(image_of_text[order], return_index=True)
    captions = np.split(order, starts[1:])
    return {
        "text_to_image": recall(text_features, image_features, image_of_text, ks, chunk=chunk),
        "image_to_text": recall(image_features[captioned], text_features, captions, ks, chunk=chunk),
    }
