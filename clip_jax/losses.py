"""Contrastive losses, written for the global batch: under `jit` over a mesh the compiler inserts the collectives.

    loss = ½ [ CE(s · I Tᵀ, P) + CE(s · T Iᵀ, Pᵀ) ],   s = exp(clip(logit_scale, −ln 100, ln 100))

I and T are unit-norm features [B, D]; P says which texts are right for which image, each row normalised to sum 1.
With P the identity this is the loss of CLIP (Radford et al. 2021, figure 3). A temperature that is not learned is one
that has no parameter (`CLIPConfig.logit_scale_learned`): nothing here has to know.
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
MAX_SIGMOID_LOGIT_SCALE = math.log(1000.0)  # SigLIP's learned scales, which nothing limited, are above 100
MIN_LOGIT_SCALE = -MAX_LOGIT_SCALE

Metrics = dict[str, Float[Array, ""]]
Direction = Literal["both", "image_to_text", "text_to_image"]


def clamp_logit_scale(logit_scale: Float[ArrayLike, ""], maximum: float = MAX_LOGIT_SCALE) -> Float[Array, ""]:
    """`logit_scale` in float32 between −ln 100 and `maximum`, with a gradient that can lead back from beyond them.

    A plain limit has no gradient beyond it, so a scale that oversteps it once would be stuck there for good; and far
    below, where the factor is almost 0, there would be none either. Further away no gradient leads.
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
    """True where two captions are equal: they are then right for each other's image, not negatives."""
    return (tokens[:, None] == tokens[None]).all(-1)


def similarity(
    image_features: Float[AnyArray, "B D"], text_features: Float[AnyArray, "_B _D"], scale: Float[Array, ""]
) -> Float[Array, "B B"]:
    """Scaled cosines in float32, images down, texts across."""
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
    """Softmax loss of unit-norm features; `logit_scale` is the log, as stored.

    `targets[i, j]` is the weight of text j for image i (≥ 0, every row and column with something positive); each
    direction normalises its own rows, so `same_rows(tokens)` can be passed as it is. None means the identity.
    `direction` leaves one half of the loss out: "image_to_text" asks only which text belongs to an image.
    Metrics: `loss`; `loss_floor`, the entropy of the targets, below which no model can get; `accuracy`, how often the
    best match within the batch is a right one (mean of the directions); `logit_scale` as the factor it stands for.
    """
    scale = jnp.exp(clamp_logit_scale(logit_scale))
    logits = similarity(image_features, text_features, scale)
    weights = jnp.eye(logits.shape[0], dtype=jnp.float32) if targets is None else targets.astype(jnp.float32)

    def one_direction(logits: Array, weights: AnyArray) -> tuple[Array, Array, Array]:
        p = weights / weights.sum(-1, keepdims=True)
        right = jnp.take_along_axis(weights, logits.argmax(-1, keepdims=True), axis=-1) > 0
        return _cross_entropy(logits, p), _entropy(p), right.mean()

    loss, floor, accuracy = _in_directions(one_direction, direction, (logits, weights))
    return loss, {"loss": loss, "loss_floor": floor, "accuracy": accuracy, "logit_scale": scale}


def sigmoid_loss(
    image_features: Float[AnyArray, "B D"],
    text_features: Float[AnyArray, "_B _D"],
    logit_scale: Float[ArrayLike, ""],
    logit_bias: Float[Array, ""],
    targets: Bool[AnyArray, "B B"] | None = None,
) -> tuple[Float[Array, ""], Metrics]:
    """Each pair on its own: right or not (Zhai et al. 2023, arXiv:2303.15343, algorithm 1).

        loss = −1/B Σ_ij log σ(z_ij (exp(logit_scale) i_i · t_j + logit_bias)),   z = 1 where right, else −1

    `targets` is True where they belong together (None: the diagonal); `same_rows(tokens)` takes equal captions out of
    the negatives. The factor is limited to 1000, and not to 100 as in `clip_loss`: SigLIP's learned ones are above.
    Metrics: as of `clip_loss`, without a floor, as it is 0; and `logit_bias`.
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
    """The teacher's similarities within the batch are the targets (CLIP-KD, Yang et al. 2023, arXiv:2307.12732).

    Cross entropy of the student's softmax with the teacher's. The spaces may differ in dimension; no gradient reaches
    the teacher. Metrics: `loss`; `loss_floor`, the teacher's entropy, so that their difference is the KL divergence;
    `agreement`, how often both have the same best match; `logit_scale` of the student as the factor it stands for.
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
    logs = jnp.log(jnp.where(p > 0, p, jnp.ones_like(p)))  # no log of 0 on the way, which `jax_debug_infs` would report
    return -(p * logs).sum(-1).mean()


def _in_directions(
    measure: Callable[..., Any], direction: Direction | str, matrices: tuple[AnyArray, AnyArray]
) -> tuple[Array, ...]:
    """`measure` of both matrices for the images (rows), of both transposed for the texts, or the mean of the two."""
    if direction not in get_args(Direction):
        raise UserError(f"direction is {direction!r}: choose one of {', '.join(get_args(Direction))}")
    found = []
    if direction != "text_to_image":
        found.append(measure(*matrices))
    if direction != "image_to_text":
        found.append(measure(*(matrix.T for matrix in matrices)))
    return tuple(sum(values) / len(values) for values in zip(*found, strict=True))
