"""Zero-shot classification: the class whose prompts are most similar to the picture (Radford et al. 2021 §3.1)."""

import numbers
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from clip_jax.arrays import AnyArray, check_features, check_ks, check_labels
from clip_jax.errors import UserError
from clip_jax.images import Picture
from clip_jax.model import unit_norm
from clip_jax.pretrained import LoadedCLIP
from clip_jax.uses.embed import image_features, text_features
from clip_jax.uses.prompts import TEMPLATES

ClassName = str | Sequence[str]  # several names of one class are averaged, as OpenAI does for FER 2013


def prompts(classes: Iterable[Any] | Any, templates: Iterable[Any]) -> list[list[str]]:
    """The prompts of each class: every template filled with every name of the class.

    Args:
        classes: names, or lists of several names of one class.
        templates: texts with "{}" for the name.

    Raises:
        UserError: If there is no class or template, a name is empty, or a template has no "{}"; or if either argument
            is a single str, whose letters would each be a class or a template.
    """
    for argument, value in (("classes", classes), ("templates", templates)):
        if isinstance(value, str | bytes):
            raise UserError(
                f"{argument} is one {type(value).__name__}, {value[:40]!r}: give a list, as [{value[:40]!r}]"
            )
        if not isinstance(value, Iterable):
            raise UserError(f"{argument}: got {type(value).__name__}: give a list of texts")
    classes, templates = list(classes), list(templates)
    if not classes or not templates:
        raise UserError("zero-shot classification needs at least one class and one template")
    for template in templates:
        if not isinstance(template, str):
            raise UserError(f"templates: got {type(template).__name__}, not text")
        if "{}" not in template:
            raise UserError(f"the template {template!r} has no {{}} for the name of the class")
    named = [_names(i, name) for i, name in enumerate(classes)]
    for i, names in enumerate(named):
        if wrong := [name for name in names if not isinstance(name, str)]:
            raise UserError(f"classes: class {i} has a name of {type(wrong[0]).__name__}, not text")
        if not names or not all(name.strip() for name in names):
            raise UserError(f"class {i} has no name")
    return [[template.replace("{}", name) for name in names for template in templates] for names in named]


def _names(i: int, name: Any) -> list[Any]:
    if isinstance(name, str | bytes | numbers.Number | None):
        return [name]
    try:
        return list(name)
    except TypeError:
        raise UserError(f"classes: class {i} is a {type(name).__name__}, not text") from None


def classifier_weights(
    encode_text: Callable[[list[str]], Float[AnyArray, "P D"]],
    classes: Iterable[ClassName],
    templates: Iterable[str] = TEMPLATES["plain"],
) -> Float[np.ndarray, "K D"]:
    """Prompt ensembling: one unit-norm vector per class, the mean of its normalised prompt embeddings.

    Source: Radford et al. 2021 §3.1.4.

    Args:
        encode_text: returns the features [P, D] of P texts, as `partial(text_features, clip)` does.
        classes: names, or lists of several names of one class.
        templates: texts with "{}" for the name.

    Returns:
        Weights of the zero-shot classifier, float32 [K, D].

    Raises:
        UserError: As `prompts`.
    """
    prompts_of_classes = prompts(classes, templates)
    features = unit_norm(jnp.asarray(encode_text([prompt for group in prompts_of_classes for prompt in group])))
    ends = np.cumsum([len(group) for group in prompts_of_classes])
    # Sums suffice in place of means, as they are normalised.
    sums = np.add.reduceat(np.asarray(features), [0, *ends[:-1]], axis=0)
    return np.asarray(unit_norm(jnp.asarray(sums)))


def top_k(
    image_features: Float[AnyArray, "B D"], weights: Float[AnyArray, "K D"], k: int = 1
) -> tuple[Float[np.ndarray, "B k"], Int[np.ndarray, "B k"]]:
    """The k most similar classes of each image, best first.

    Args:
        image_features: [B, D].
        weights: of the classes, [K, D], see `classifier_weights`.
        k: at most K.

    Returns:
        (similarities, class indices), [B, k] each.

    Raises:
        UserError: If features have NaN or Inf, dimensions differ, or k is below 1.
    """
    (k,) = check_ks(k, "k")
    image_features, weights = _comparable("image_features", image_features, weights)
    similarity, index = jax.lax.top_k(_product(image_features, weights), min(k, len(weights)))
    return np.asarray(similarity), np.asarray(index)


def _comparable(name: str, features: AnyArray, weights: AnyArray) -> tuple[AnyArray, AnyArray]:
    features, weights = check_features(name, features), check_features("weights", weights)
    if not len(weights) or features.shape[1] != weights.shape[1]:
        raise UserError(f"cannot compare {name} {list(features.shape)} with weights {list(weights.shape)}")
    return features, weights


def _product(features: AnyArray, weights: AnyArray) -> Array:
    return jnp.asarray(features, jnp.float32) @ jnp.asarray(weights, jnp.float32).T


class Classified(NamedTuple):
    """The best classes of each picture, best first."""

    indices: Int[np.ndarray, "B k"]
    probability: Float[np.ndarray, "B k"]


def classify(
    clip: LoadedCLIP,
    pictures: Sequence[Picture],
    classes: Iterable[ClassName],
    templates: Iterable[str] = TEMPLATES["plain"],
    k: int = 5,
) -> Classified:
    """The k most probable classes of each picture.

    Args:
        clip: the model.
        pictures: B of them.
        classes: names, or lists of several names of one class.
        templates: prompt templates, with "{}" for the name.
        k: at most the number of classes.

    Returns:
        Class indices and probabilities [B, k]: softmax over the classes; for SigLIP the sigmoid of each class.

    Raises:
        UserError: If something is not a picture, or classes or templates do not fit (see `prompts`).
    """
    weights = classifier_weights(lambda texts: text_features(clip, texts), classes, templates)
    return rank(clip, image_features(clip, pictures), weights, k)


def rank(clip: LoadedCLIP, features: Float[AnyArray, "B D"], weights: Float[AnyArray, "K D"], k: int = 5) -> Classified:
    """`classify` for features and classes that are already encoded.

    Args:
        clip: the model, for its scale and bias.
        features: of the images, [B, D].
        weights: of the classes, [K, D].
        k: at most K.

    Raises:
        UserError: As `top_k`.
    """
    (k,) = check_ks(k, "k")
    features, weights = _comparable("features", features, weights)
    scale, bias = scale_and_bias(clip)
    logits = _product(scale * jnp.asarray(features, jnp.float32), weights)
    probability = jax.nn.softmax(logits, axis=-1) if bias is None else jax.nn.sigmoid(logits + bias)
    best, index = jax.lax.top_k(probability, min(k, weights.shape[0]))
    return Classified(np.asarray(index), np.asarray(best))


def scale_and_bias(clip: LoadedCLIP) -> tuple[float, float | None]:
    """The factor exp(logit_scale) of a model, and its bias, which is None unless it is a SigLIP."""
    params, config = clip.variables["params"], clip.model.config
    bias = params.get("logit_bias")
    return float(np.exp(params.get("logit_scale", config.logit_scale_init))), None if bias is None else float(bias)


def accuracy(
    features: Float[AnyArray, "N D"],
    weights: Float[AnyArray, "K D"],
    labels: Any,
    ks: Sequence[int] = (1, 5),
) -> dict[int, float]:
    """Top-k accuracy for each k.

    Args:
        features: of the images, [N, D].
        weights: of the classes, [K, D].
        labels: class indices [N].
        ks: the values of k; one above K counts as K.

    Returns:
        {k: accuracy in [0, 1]}.

    Raises:
        UserError: If there are no rows, features have NaN or Inf, or labels are not one class index for each row.
    """
    ks = check_ks(ks)
    labels = check_labels("labels", labels, len(features))
    if not len(features):
        raise UserError("features: there are no rows, so there is no accuracy")
    if unknown := sorted(set(labels[(labels < 0) | (labels >= len(weights))].tolist())):
        raise UserError(
            f"labels: {unknown[0]} is none of the {len(weights)} classes, which are 0 to {len(weights) - 1}"
        )
    _, best = top_k(features, weights, max(ks))
    hits = best == np.asarray(labels)[:, None]
    return {k: float(hits[:, :k].any(1).mean()) for k in ks}
