"""Classification by prompts, without training (Radford et al. 2021 §3.1)."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from clip_jax.arrays import AnyArray
from clip_jax.embed import image_features, text_features
from clip_jax.errors import UserError
from clip_jax.images import Picture
from clip_jax.model import unit_norm
from clip_jax.pretrained import LoadedCLIP
from clip_jax.prompts import TEMPLATES

ClassName = str | Sequence[str]  # several names of one class are averaged, as OpenAI does for FER 2013


def prompts(classes: Sequence[ClassName], templates: Sequence[str]) -> list[list[str]]:
    """The prompts of each class: every template with every name of it.

    Raises: UserError when there is no class, a name is empty, or a template has no place for a name.
    """
    if not classes or not templates:
        raise UserError("zero-shot classification needs at least one class and one template")
    for template in templates:
        if "{}" not in template:
            raise UserError(f"the template {template!r} has no {{}} for the name of the class")
    named = [[name] if isinstance(name, str) else list(name) for name in classes]
    for i, names in enumerate(named):
        if not names or not all(name.strip() for name in names):
            raise UserError(f"class {i} has no name")
    return [[template.replace("{}", name) for name in names for template in templates] for names in named]


def classifier_weights(
    encode_text: Callable[[list[str]], Float[AnyArray, "P D"]],
    classes: Sequence[ClassName],
    templates: Sequence[str] = TEMPLATES["plain"],
) -> Float[np.ndarray, "K D"]:
    """One unit vector per class: each prompt normalised, averaged over the templates, normalised again.

    `encode_text` gives the features of texts, as `partial(text_features, clip)` does.
    (Prompt ensembling, Radford et al. 2021 §3.1.4.)
    """
    asked = prompts(classes, templates)
    features = unit_norm(jnp.asarray(encode_text([prompt for one in asked for prompt in one])))
    ends = np.cumsum([len(one) for one in asked])
    sums = np.add.reduceat(np.asarray(features), [0, *ends[:-1]], axis=0)  # a mean up to its length
    return np.asarray(unit_norm(jnp.asarray(sums)))


def top_k(
    image_features: Float[AnyArray, "B D"], weights: Float[AnyArray, "K D"], k: int = 1
) -> tuple[Float[np.ndarray, "B k"], Int[np.ndarray, "B k"]]:
    """Similarities and class indices of the k best classes for each image, best first."""
    similarity, index = jax.lax.top_k(jnp.asarray(image_features) @ jnp.asarray(weights).T, min(k, len(weights)))
    return np.asarray(similarity), np.asarray(index)


class Classified(NamedTuple):
    """The best classes of each picture, best first."""

    indices: Int[np.ndarray, "B k"]
    probability: Float[np.ndarray, "B k"]


def classify(
    clip: LoadedCLIP,
    pictures: Sequence[Picture],
    classes: Sequence[ClassName],
    templates: Sequence[str] = TEMPLATES["plain"],
    k: int = 5,
) -> Classified:
    """The k likeliest classes of each picture and their probabilities.

    They are those of a choice among the classes, or, for SigLIP, of each class being right for itself.

    Raises: UserError for what is not a picture, and as `prompts` does.
    """
    weights = classifier_weights(lambda texts: text_features(clip, texts), classes, templates)
    return rank(clip, image_features(clip, pictures), weights, k)


def rank(clip: LoadedCLIP, features: Float[AnyArray, "B D"], weights: Float[AnyArray, "K D"], k: int = 5) -> Classified:
    """`classify` for features and classes that are already encoded."""
    scale, bias = scale_and_bias(clip)
    logits = scale * jnp.asarray(features) @ jnp.asarray(weights).T
    probability = jax.nn.softmax(logits, axis=-1) if bias is None else jax.nn.sigmoid(logits + bias)
    best, index = jax.lax.top_k(probability, min(k, weights.shape[0]))
    return Classified(np.asarray(index), np.asarray(best))


def scale_and_bias(clip: LoadedCLIP) -> tuple[float, float | None]:
    """What similarities are multiplied with, and what is then added (None but for SigLIP)."""
    params, config = clip.variables["params"], clip.model.config
    bias = params.get("logit_bias")
    return float(np.exp(params.get("logit_scale", config.logit_scale_init))), None if bias is None else float(bias)


def accuracy(
    features: Float[AnyArray, "N D"],
    weights: Float[AnyArray, "K D"],
    labels: Int[AnyArray, " N"],
    ks: Sequence[int] = (1, 5),
) -> dict[int, float]:
    """Top-k accuracies in [0, 1] (with as many classes as there are, when k is more)."""
    _, best = top_k(features, weights, max(ks))
    hits = best == np.asarray(labels)[:, None]
    return {k: float(hits[:, :k].any(1).mean()) for k in ks}
