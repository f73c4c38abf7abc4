"""Top-k retrieval: images by text and texts by image, and recall@k.

Similarities are computed piece by piece: there is no Q × N matrix in memory.
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
    """The k candidates with the largest dot product for each query; of equal ones, the first.

    Of fewer candidates than k it gives all.

    At most `chunk` queries and `chunk` candidates are compared at once.

    Raises:
        UserError: either is empty, their dimensions differ, k is below 1, or a row has NaN or Inf.
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
    # Those from before come first: of equal ones `top_k` takes the first.
    both, places = jnp.concatenate([best, similarity], 1), jnp.concatenate([index, places], 1)
    best, order = jax.lax.top_k(both, k)
    return best, jnp.take_along_axis(places, order, axis=1)


def _alike(queries: Array, candidates: Array) -> tuple[Array, Array]:
    """Both in their common dtype, which for anything but half precision is float32."""
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
    """recall@k: how often one of a query's relevant candidates is among its k most similar ones (in [0, 1]).

    Args:
        queries: features [Q, D].
        candidates: features [N, D].
        ks: for each of which there is a recall.
        chunk: how many rows are compared at once.
        relevant: for each query the indices of its relevant candidates, or the index of the only one.

    Raises:
        UserError: as `nearest`, and for indices that belong to no candidate.
    """
    ks = check_ks(ks)
    if len(relevant) != len(queries):
        raise UserError(f"there are {len(queries)} queries, but relevant candidates for {len(relevant)}")
    found = nearest(queries, candidates, max(ks), chunk=chunk).indices
    wanted = [np.atleast_1d(np.asarray(one)) for one in relevant]
    for i, one in enumerate(wanted):
        if one.size and (not np.issubdtype(one.dtype, np.integer) or one.min() < 0 or one.max() >= len(candidates)):
            raise UserError(
                f"relevant: query {i} has {one.tolist()[:4]}, the candidates are 0 to {len(candidates) - 1}"
            )
    hits = np.stack([np.isin(row, one) for row, one in zip(found, wanted, strict=True)])
    return {k: float(hits[:, :k].any(1).mean()) for k in ks}


def both_directions(
    image_features: Float[AnyArray, "I D"],
    text_features: Float[AnyArray, "T _D"],
    image_of_text: Any,
    ks: Sequence[int] = (1, 5, 10),
    *,
    chunk: int = 4096,
) -> dict[str, dict[int, float]]:
    """Recall of images by text and of texts by image, as for Flickr30k and COCO (five captions per image).

    `image_of_text[t]` is the image that caption t belongs to; an image without captions asks nothing.
    """
    image_features = check_features("image_features", image_features)
    image_of_text = check_labels("image_of_text", image_of_text, len(text_features))
    if len(image_of_text) and not 0 <= image_of_text.min() <= image_of_text.max() < len(image_features):
        raise UserError(f"image_of_text: there are {len(image_features)} images, but an index beyond them")
    order = np.argsort(image_of_text, kind="stable")
    asking, starts = np.unique(image_of_text[order], return_index=True)
    captions = np.split(order, starts[1:])
    return {
        "text_to_image": recall(text_features, image_features, image_of_text, ks, chunk=chunk),
        "image_to_text": recall(image_features[asking], text_features, captions, ks, chunk=chunk),
    }
