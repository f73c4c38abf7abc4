"""What a stage is conditioned on, as one pytree of batch-first arrays."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Key

from clip_jax.towers.text import TextFeatures


class Cond(struct.PyTreeNode):
    """Conditioning of a batch; a stage reads the fields its model was configured for and ignores the rest.

    `keep_text` and `keep_image` say per sample whether that condition is present. A dropped condition is replaced
    by the model's own null embedding (learned, or what CLIP says of the empty caption), so the unconditional twin of a
    batch has the same shapes and runs in the same program.

    Attributes:
        text_embed: [B, D] float, CLIP text embedding z_t as the encoder returns it (not normalised).
        text_encodings: [B, L, C] float, per-token hidden states of the text tower.
        text_mask: [B, L] bool, True for the tokens of the caption up to and including its end.
        image_embed: [B, D] float, CLIP image embedding z_i as the encoder returns it (not normalised).
        low_res: [B, h, w, 3] float in [-1, 1], the picture an upsampler starts from.
        low_res_level: [B] float in [0, 1], how much noise was mixed into `low_res` (`degrade.add_level`). None in
            sampling means that of the stage's `Sampling`, which then adds the noise.
        keep_text: [B] bool. None means all True.
        keep_image: [B] bool. None means all True.
    """

    text_embed: Float[Array, "B D"] | None = None
    text_encodings: Float[Array, "B L C"] | None = None
    text_mask: Bool[Array, "B L"] | None = None
    image_embed: Float[Array, "B D"] | None = None
    low_res: Float[Array, "B h w c"] | None = None
    low_res_level: Float[Array, " B"] | None = None
    keep_text: Bool[Array, " B"] | None = None
    keep_image: Bool[Array, " B"] | None = None

    @classmethod
    def of(cls, text: TextFeatures, image_embed: Float[Array, "B D"] | None = None) -> Cond:
        """All that CLIP says of B captions, and of their pictures where it is given.

        Args:
            text: features of the captions.
            image_embed: [B, D], of the pictures or of a prior.
        """
        return cls(text_embed=text.embed, text_encodings=text.encodings, text_mask=text.mask, image_embed=image_embed)

    def with_keep(self, batch_size: int) -> Cond:
        """The same conditioning with `keep_text` and `keep_image` spelled out as [batch_size] arrays."""
        everything = jnp.ones((batch_size,), bool)
        return self.replace(
            keep_text=everything if self.keep_text is None else self.keep_text,
            keep_image=everything if self.keep_image is None else self.keep_image,
        )

    def null(self) -> Cond:
        """The unconditional twin: text and image dropped, `low_res` kept (nothing is guided away from its input)."""
        full = self.with_keep(self.batch_size)
        return full.replace(
            keep_text=jnp.zeros_like(need(full.keep_text, "keep_text")),
            keep_image=jnp.zeros_like(need(full.keep_image, "keep_image")),
        )

    @property
    def batch_size(self) -> int:
        """Leading dimension shared by all fields."""
        leaves = jax.tree.leaves(self)
        if not leaves:
            raise ValueError("an empty Cond has no batch size; give at least one field")
        return leaves[0].shape[0]

    def repeat(self, n: int) -> Cond:
        """Each sample `n` times in a row: [B, ...] -> [B * n, ...]."""
        return jax.tree.map(lambda a: jnp.repeat(a, n, axis=0), self)


def need(array: Array | None, name: str) -> Array:
    """A field of a condition that a network reads.

    Args:
        array: the field.
        name: of the field.

    Raises:
        ValueError: it was not given.
    """
    if array is None:
        raise ValueError(f"the condition has no {name}, which this network reads")
    return array


def concatenate(first: Cond, second: Cond) -> Cond:
    """The two batches one after the other (same fields present in both)."""
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), first, second)


EMPTY_CAPTION = 2  # tokens of a caption without words: its start and its end


def with_empty_captions(cond: Cond, encodings: Float[Array, "2 C"], embed: Float[Array, " D"]) -> Cond:
    """Dropped captions become the empty caption, and none is dropped any more: the null of Karlo and Kandinsky.

    CLIP's text tower is causal, so two tokens say all there is of it, however it is padded.

    Args:
        cond: batch of B samples, with `keep_text` False where a caption was dropped.
        encodings: [2, C], what CLIP's text tower says of the start and the end.
        embed: [D], its text embedding.
    """
    text_encodings, text_mask = need(cond.text_encodings, "text_encodings"), need(cond.text_mask, "text_mask")
    length = text_encodings.shape[1]
    short = max(0, EMPTY_CAPTION - length)
    captions = jnp.pad(text_encodings, ((0, 0), (0, short), (0, 0)))
    masks = jnp.pad(text_mask, ((0, 0), (0, short)))
    empty = jnp.pad(encodings, ((0, length + short - EMPTY_CAPTION), (0, 0)))
    keep = need(cond.with_keep(cond.batch_size).keep_text, "keep_text")[:, None]
    return cond.replace(
        text_encodings=jnp.where(keep[..., None], captions, empty),
        text_mask=jnp.where(keep, masks, jnp.arange(length + short) < EMPTY_CAPTION),
        text_embed=None if cond.text_embed is None else jnp.where(keep, cond.text_embed, embed),
        keep_text=jnp.ones_like(keep[:, 0]),
    )


def drop(cond: Cond, key: Key[Array, ""], *, text: float, image: float) -> Cond:
    """Drops text and image independently per sample, for training with classifier-free guidance.

    The paper's probabilities (Ramesh et al. 2022, §2.1) are 50 % for text and 10 % for the image.

    Args:
        cond: batch of B samples.
        key: one PRNG key.
        text: probability in [0, 1] of dropping the caption.
        image: probability in [0, 1] of dropping the image embedding.
    """
    key_text, key_image = jax.random.split(key)
    full = cond.with_keep(cond.batch_size)
    keep_text, keep_image = need(full.keep_text, "keep_text"), need(full.keep_image, "keep_image")
    return full.replace(
        keep_text=keep_text & jax.random.bernoulli(key_text, 1.0 - text, keep_text.shape),
        keep_image=keep_image & jax.random.bernoulli(key_image, 1.0 - image, keep_image.shape),
    )
