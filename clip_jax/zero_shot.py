"""Using a trained CLIP without training it: classification by prompts, retrieval."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from clip_jax.model import unit_norm


def classifier_weights(
    encode_text: Callable[[Int[Array, "B L"]], Float[Array, "B D"]],
    tokenize: Callable[[list[str]], Int[Array, "B L"]],
    classes: Sequence[str],
    templates: Sequence[str] = ("{}",),
) -> Float[Array, "K D"]:
    """One unit vector per class: each prompt normalised, averaged over the templates, normalised again.

    A template holds one `{}` for the class name. (Prompt ensembling, Radford et al. 2021 §3.1.4.)
    """
    rows = []
    for name in classes:
        features = unit_norm(encode_text(tokenize([template.format(name) for template in templates])))
        rows.append(unit_norm(features.mean(0)))
    return jnp.stack(rows)


def top_k(
    image_features: Float[Array, "B D"], weights: Float[Array, "K D"], k: int = 1
) -> tuple[Float[Array, "B k"], Int[Array, "B k"]]:
    """Similarities and class indices of the k best classes for each image, best first."""
    return jax.lax.top_k(image_features @ weights.T, k)


def retrieval_recall(
    queries: Float[Array, "Q D"],
    candidates: Float[Array, "N D"],
    relevant: Bool[Array, "Q N"],
    ks: Sequence[int] = (1, 5, 10),
) -> dict[int, float]:
    """recall@k: how often one of a query's relevant candidates is among its k most similar ones (in [0, 1])."""
    _, best = jax.lax.top_k(queries @ candidates.T, max(ks))
    hits = jnp.take_along_axis(relevant, best, axis=1)  # [Q, max k]
    return {k: float(hits[:, :k].any(1).mean()) for k in ks}
