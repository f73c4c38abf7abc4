"""Contrastive losses, written for the global batch: under `jit` over a mesh the compiler inserts the collectives.

    loss = ½ [ CE(s · I Tᵀ, P) + CE(s · T Iᵀ, Pᵀ) ],   s = exp(clip(logit_scale, −ln 100, ln 100))

I and T are unit-norm features [B, D]; P holds the targets, the positive texts of each image, each row normalised to
sum 1. With P the identity this is the loss of CLIP (Radford et al. 2021, figure 3). If the temperature is not learned
(`CLIPConfig.logit_scale_learned`), `logit_scale` is a constant; the losses are the same.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Num

from clip_jax.arrays import AnyArray
from clip_jax.errors import UserError

MAX_LOGIT_SCALE = math.log(100.0)
MAX_SIGMOID_LOGIT_SCALE = math.log(1000.0)  # SigLIP's published scales were learned without a limit, and exceed 100
MIN_LOGIT_SCALE = -MAX_LOGIT_SCALE

Metrics = dict[str, Float[Array, ""]]
Direction = Literal["both", "image_to_text", "text_to_image"]


def clamp_logit_scale(logit_scale: Float[ArrayLike, ""], maximum: float = MAX_LOGIT_SCALE) -> Float[Array, ""]:
    """Clips `logit_scale` to [−ln 100, `maximum`] in float32, with a gradient that leads back into the range.

    Out of range the gradient of `jnp.clip` is 0, so that a scale which oversteps a limit once would stay there.
    Here the gradient passes straight through where descent moves towards the range, and is 0 where descent would move
    further out of it. The lower limit keeps the factor exp(logit_scale), and with it the gradient, away from 0.

    Args:
        logit_scale: log of the inverse temperature.
        maximum: upper limit, a log as well.
    """
    return _clamp(jnp.asarray(logit_scale, jnp.float32), maximum)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _clamp(logit_scale: Float[Array, ""], maximum: float) -> Float[Array, ""]:
    return jnp.clip(logit_scale, MIN_LOGIT_SCALE, maximum)


def _clamp_gradient(maximum: float, logit_scale: Array, gradient: Array) -> tuple[Array]:
    may_rise, may_fall = logit_scale < maximum, logit_scale > MIN_LOGIT_SCALE  # descent goes against the gradient
    return (jnp.where(jnp.where(gradient > 0, may_fall, may_rise), gradient, jnp.zeros_like(gradient)),)


_clamp.defvjp(lambda s, maximum: (_clamp(s, maximum), s), _clamp_gradient)


def same_rows(tokens: Int[AnyArray, "B L"]) -> Bool[Any, "B B"]:
    """Targets [B, B] by which equal captions are positives for each other's image: True where two rows are equal."""
    return (tokens[:, None] == tokens[None]).all(-1)


def similarity(
    image_features: Float[AnyArray, "B D"], text_features: Float[AnyArray, "_B _D"], scale: Float[Array, ""]
) -> Float[Array, "B B"]:
    """Scaled cosine similarities, float32 [B, B]: row i is an image, column j a text.

    Args:
        image_features: of unit norm, [B, D].
        text_features: of unit norm, [B, D].
        scale: factor, exp(logit_scale).

    Raises:
        UserError: If the features are not both [B, D].
    """
    if (a := image_features.shape) != (b := text_features.shape) or len(a) != 2:
        raise UserError(f"image_features {list(a)} and text_features {list(b)} must both be [B, D]")
    return scale * jnp.einsum("id,jd->ij", image_features, text_features, preferred_element_type=jnp.float32)


def clip_loss(
    image_features: Float[AnyArray, "B D"],
    text_features: Float[AnyArray, "_B _D"],
    logit_scale: Float[ArrayLike, ""],
    targets: Num[AnyArray, "B B"] | Bool[AnyArray, "B B"] | None = None,
    *,
    direction: Direction | str = "both",
) -> tuple[Float[Array, ""], Metrics]:
    """Softmax contrastive loss (Radford et al. 2021, figure 3).

    Args:
        image_features: of unit norm, [B, D].
        text_features: of unit norm, [B, D].
        logit_scale: log of the inverse temperature; clipped to ±ln 100.
        targets: [B, B], the weight of text j for image i: ≥ 0, with a positive value in every row and column. Each
            direction normalises its own rows, so `same_rows(tokens)` can be passed as it is. None: the identity.
        direction: "image_to_text" keeps only the half of the loss that finds the text of an image, "text_to_image" the
            other half; "both" is their mean.

    Returns:
        (loss, metrics). Metrics: `loss`; `loss_floor`, the entropy of the targets and lower bound of the loss;
        `accuracy`, how often the best match in the batch is a positive, in [0, 1] (mean of the directions);
        `logit_scale` as the factor exp(logit_scale).

    Raises:
        UserError: If the features are not both [B, D], or the direction is unknown.
    """
    scale = jnp.exp(clamp_logit_scale(logit_scale))
    logits = similarity(image_features, text_features, scale)
    weights = jnp.eye(logits.shape[0], dtype=jnp.float32) if targets is None else targets.astype(jnp.float32)

    def one_direction(logits: Array, weights: AnyArray) -> tuple[Array, Array, Array]:
        p = weights / weights.sum(-1, keepdims=True)
        correct = jnp.take_along_axis(weights, logits.argmax(-1, keepdims=True), axis=-1) > 0
        return _cross_entropy(logits, p), _entropy(p), correct.mean()

    loss, floor, accuracy = _in_directions(one_direction, direction, (logits, weights))
    return loss, {"loss": loss, "loss_floor": floor, "accuracy": accuracy, "logit_scale": scale}


def sigmoid_loss(
    image_features: Float[AnyArray, "B D"],
    text_features: Float[AnyArray, "_B _D"],
    logit_scale: Float[ArrayLike, ""],
    logit_bias: Float[Array, ""],
    targets: Bool[AnyArray, "B B"] | None = None,
) -> tuple[Float[Array, ""], Metrics]:
    """Sigmoid loss: each pair is a binary classification (Zhai et al. 2023, arXiv:2303.15343, algorithm 1).

        loss = −1/B Σ_ij log σ(z_ij (exp(logit_scale) i_i · t_j + logit_bias)),   z = 1 for a positive pair, else −1

    Args:
        image_features: of unit norm, [B, D].
        text_features: of unit norm, [B, D].
        logit_scale: log of the inverse temperature; clipped to [−ln 100, ln 1000], as SigLIP's learned scales exceed
            the limit of `clip_loss`.
        logit_bias: added to every logit.
        targets: [B, B], True for positive pairs, as `same_rows(tokens)` gives them. None: the diagonal.

    Returns:
        (loss, metrics). Metrics: `loss`, `accuracy` and `logit_scale` as of `clip_loss`, and `logit_bias`.

    Raises:
        UserError: If the features are not both [B, D].
    """
    scale = jnp.exp(clamp_logit_scale(logit_scale, MAX_SIGMOID_LOGIT_SCALE))
    logits = similarity(image_features, text_features, scale) + jnp.asarray(logit_bias, jnp.float32)
    right = jnp.eye(logits.shape[0], dtype=bool) if targets is None else targets.astype(bool)
    loss = -jax.nn.log_sigmoid(jnp.where(right, logits, -logits)).sum(-1).mean()

    def best_is_right(logits: Array, right: AnyArray) -> tuple[Array]:
        return (jnp.take_along_axis(right, logits.argmax(-1, keepdims=True), axis=-1).mean(),)

    (accuracy,) = _in_directions(best_is_right, "both", (logits, right))
    return loss, {"loss": loss, "accuracy": accuracy, "logit_scale": scale, "logit_bias": logit_bias}


def distillation_loss(
    image_features: Float[AnyArray, "B D"],
    text_features: Float[AnyArray, "_B _D"],
    logit_scale: Float[ArrayLike, ""],
    teacher_image_features: Float[AnyArray, "B E"],
    teacher_text_features: Float[AnyArray, "B E"],
    teacher_logit_scale: Float[ArrayLike, ""],
    *,
    direction: Direction | str = "both",
) -> tuple[Float[Array, ""], Metrics]:
    """Distillation loss: the teacher's similarities in the batch are the targets (CLIP-KD, Yang et al. 2023).

    It is the cross entropy between the teacher's and the student's softmax (arXiv:2307.12732). No gradient reaches the
    teacher.

    Args:
        image_features: of the student, of unit norm, [B, D].
        text_features: of the student, of unit norm, [B, D].
        logit_scale: of the student, log of the inverse temperature; clipped to ±ln 100.
        teacher_image_features: of unit norm, [B, E]; E may differ from D.
        teacher_text_features: of unit norm, [B, E].
        teacher_logit_scale: log of the teacher's inverse temperature.
        direction: as of `clip_loss`.

    Returns:
        (loss, metrics). Metrics: `loss`; `loss_floor`, the teacher's entropy, so that loss − loss_floor is the KL
        divergence; `agreement`, how often both have the same best match, in [0, 1]; the student's `logit_scale` as the
        factor exp(logit_scale).

    Raises:
        UserError: If the features of either are not both [B, D], or the direction is unknown.
    """
    scale = jnp.exp(clamp_logit_scale(logit_scale))
    logits = similarity(image_features, text_features, scale)
    teacher = similarity(
        teacher_image_features, teacher_text_features, jnp.exp(jnp.asarray(teacher_logit_scale, jnp.float32))
    )
    teacher = jax.lax.stop_gradient(teacher)

    def one_direction(logits: Array, teacher: Array) -> tuple[Array, Array, Array]:
        p = jax.nn.softmax(teacher, axis=-1)
        return _cross_entropy(logits, p), _entropy(p), (logits.argmax(-1) == teacher.argmax(-1)).mean()

    loss, floor, agreement = _in_directions(one_direction, direction, (logits, teacher))
    return loss, {"loss": loss, "loss_floor": floor, "agreement": agreement, "logit_scale": scale}


def _cross_entropy(logits: Float[Array, "B B"], p: Float[AnyArray, "B B"]) -> Float[Array, ""]:
    return -(p * jax.nn.log_softmax(logits, axis=-1)).sum(-1).mean()


def _entropy(p: Float[AnyArray, "B B"]) -> Float[Array, ""]:
    logs = jnp.log(jnp.where(p > 0, p, jnp.ones_like(p)))  # avoids log 0, which `jax_debug_infs` would report
    return -(p * logs).sum(-1).mean()


def _in_directions(
    measure: Callable[..., Any], direction: Direction | str, matrices: tuple[AnyArray, AnyArray]
) -> tuple[Array, ...]:
    """Applies `measure` to the matrices (image to text), to their transposes (text to image), or averages both."""
    if direction not in get_args(Direction):
        raise UserError(f"direction is {direction!r}: choose one of {', '.join(get_args(Direction))}")
    results = []
    if direction != "text_to_image":
        results.append(measure(*matrices))
    if direction != "image_to_text":
        results.append(measure(*(matrix.T for matrix in matrices)))
    return tuple(sum(values) / len(values) for values in zip(*results, strict=True))
