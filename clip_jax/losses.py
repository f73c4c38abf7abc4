"""Contrastive losses, written for the global batch: under `jit` over a mesh the compiler inserts the collectives.

    loss = ½ [ CE(s · I Tᵀ, P) + CE(s · T Iᵀ, Pᵀ) ],   s = exp(min(logit_scale, ln 100))

I and T are unit-norm features [B, D]; P says which texts are right for which image, each row normalised to sum 1.
With P the identity this is the loss of CLIP (Radford et al. 2021, figure 3).
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num

MAX_LOGIT_SCALE = math.log(100.0)


@jax.custom_vjp
def clamp_logit_scale(logit_scale: Float[Array, ""]) -> Float[Array, ""]:
    """min(logit_scale, ln 100), with a gradient that can lead back below the limit but not further above it.

    A plain minimum has no gradient above the limit, so a scale that oversteps it once would be stuck there for good.
    """
    return jnp.minimum(logit_scale, MAX_LOGIT_SCALE)


clamp_logit_scale.defvjp(
    lambda s: (clamp_logit_scale(s), s),
    lambda s, g: (jnp.where((s < MAX_LOGIT_SCALE) | (g > 0), g, 0.0),),
)


def same_rows(tokens: Int[Array, "B L"]) -> Bool[Array, "B B"]:
    """True where two captions are equal: they are then right for each other's image, not negatives."""
    return (tokens[:, None] == tokens[None]).all(-1)


def clip_loss(
    image_features: Float[Array, "B D"],
    text_features: Float[Array, "B D"],
    logit_scale: Float[Array, ""],
    targets: Num[Array, "B B"] | Bool[Array, "B B"] | None = None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Symmetric softmax loss of unit-norm features; `logit_scale` is the log, as stored.

    `targets[i, j]` is the weight of text j for image i (≥ 0, every row and column with something positive); each
    direction normalises its own rows, so `same_rows(tokens)` can be passed as it is. None means the identity.
    Metrics: `loss`; `loss_floor`, the entropy of the targets, below which no model can get; `accuracy`, how often the
    best match within the batch is a right one (mean of both directions); `logit_scale` as the factor it stands for.
    """
    scale = jnp.exp(clamp_logit_scale(logit_scale))
    logits = scale * jnp.einsum("id,jd->ij", image_features, text_features, preferred_element_type=jnp.float32)
    weights = jnp.eye(logits.shape[0]) if targets is None else targets.astype(jnp.float32)

    def one_direction(logits: Array, weights: Array) -> tuple[Array, Array, Array]:
        p = weights / weights.sum(-1, keepdims=True)
        loss = -(p * jax.nn.log_softmax(logits, axis=-1)).sum(-1).mean()
        floor = jax.scipy.special.entr(p).sum(-1).mean()
        right = jnp.take_along_axis(weights, logits.argmax(-1, keepdims=True), axis=-1) > 0
        return loss, floor, right.mean()

    by_image, by_text = one_direction(logits, weights), one_direction(logits.T, weights.T)
    loss, floor, accuracy = ((a + b) / 2 for a, b in zip(by_image, by_text, strict=True))
    return loss, {"loss": loss, "loss_floor": floor, "accuracy": accuracy, "logit_scale": scale}
