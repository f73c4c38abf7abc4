"""CLIP as something to train: satisfies `train_jax`'s Task protocol by shape, without knowing it."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from clip_jax.config import CLIPConfig
from clip_jax.images import normalise
from clip_jax.losses import clip_loss, same_rows
from clip_jax.model import CLIP, init
from clip_jax.text import eot_index


def drop_tokens(tokens: Int[Array, "B L"], key: Array, prob: float, *, eos_id: int | None, pad_id: int) -> Array:
    """Removes each ordinary token with probability `prob`; the rest closes up, the row is padded at its end.

    Start and end always stay. A shortened caption still describes its image, but as it describes others of the batch
    too, which then count as wrong, it slows learning. On the shapes world it did not help unseen pairs of words.
    """
    length = tokens.shape[1]
    place, end = jnp.arange(length), eot_index(tokens, eos_id)[:, None]
    ordinary = (place > 0) & (place < end)
    keep = (place <= end) & ~(ordinary & jax.random.bernoulli(key, prob, tokens.shape))
    order = jnp.argsort(~keep, axis=-1, stable=True)  # kept tokens first, in their order
    closed = jnp.take_along_axis(tokens, order, axis=-1)
    return jnp.where(place < keep.sum(-1, keepdims=True), closed, pad_id)


@dataclass(frozen=True)
class CLIPTask:
    """Contrastive training on batches {"image": uint8 [B, H, W, 3], "tokens": int32 [B, L]}.

    Args:
        token_drop_prob: see `drop_tokens`. Captions count as equal, and thus as right for each other's image, after it.
        patch_drop_prob: fraction of the patches left out of each training image.
        dtype: of the matrix products; parameters, loss and optimiser stay float32.
    """

    config: CLIPConfig
    token_drop_prob: float = 0.0
    patch_drop_prob: float = 0.0
    dtype: Any = jnp.float32

    def init(self, key: Array) -> tuple[dict[str, Any], dict[str, Any]]:
        """-> (params, model_state); CLIP's towers keep no state."""
        return init(self.config, key)["params"], {}

    def loss(
        self, params: dict[str, Any], model_state: dict[str, Any], batch: dict[str, Array], key: Array, *, train: bool
    ) -> tuple[Array, tuple[dict[str, Array], dict[str, Any]]]:
        """-> (loss, (metrics, model_state)); the metrics are those of `clip_loss`."""
        config, tokens, keep_patches = self.config, batch["tokens"], None
        if train:
            token_key, patch_key = jax.random.split(key)
            if self.token_drop_prob:
                text = config.text
                tokens = drop_tokens(tokens, token_key, self.token_drop_prob, eos_id=text.eos_id, pad_id=text.pad_id)
            if self.patch_drop_prob:
                patches = config.vision.grid**2
                kept = max(1, round(patches * (1 - self.patch_drop_prob)))
                order = jax.random.uniform(patch_key, (tokens.shape[0], patches)).argsort(-1)
                keep_patches = order[:, :kept]
        images = normalise(batch["image"], config.preprocess)
        out = CLIP(config, self.dtype).apply({"params": params}, images, tokens, keep_patches)
        loss, metrics = clip_loss(out.image_features, out.text_features, out.logit_scale, same_rows(tokens))
        return loss, (metrics, model_state)
