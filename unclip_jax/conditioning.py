"""The conditioning of a stage (caption, image embedding, low-resolution picture) as one pytree of batched arrays."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Key

from clip_jax.towers.text import TextFeatures


class Cond(struct.PyTreeNode):
    """Conditioning of a batch; a network reads the fields that its config names and ignores the others.

    `keep_text` and `keep_image` say per sample whether that condition is present. A network replaces a dropped
    condition by its null embedding (learned, or CLIP's features of the empty caption), so that the unconditional twin
    of a batch has the same shapes and runs in the same program.

    Attributes:
        text_embed: [B, D] float, CLIP text embedding z_t as the encoder returns it (not normalised).
        text_encodings: [B, L, C] float, per-token hidden states of the text tower.
        text_mask: [B, L] bool, True for the tokens of the caption up to and including its end.
        image_embed: [B, D] float, CLIP image embedding z_i as the encoder returns it (not normalised).
        low_res: [B, h, w, 3] float in [−1, 1], the picture that an upsampler starts from.
        low_res_level: [B] float in [0, 1], the level of noise that was mixed into `low_res` (`degrade.add_level`). If
            None, sampling mixes in noise of the level in the stage's `Sampling`.
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
        """Conditioning on captions, and on image embeddings if given.

        Args:
            text: CLIP's features of B captions.
            image_embed: [B, D], from CLIP's image tower or from a prior.
        """
        return cls(text_embed=text.embed, text_encodings=text.encodings, text_mask=text.mask, image_embed=image_embed)

    def with_keep(self, batch_size: int) -> Cond:
        """The same conditioning with `keep_text` and `keep_image` as bool [batch_size] in place of None."""
        everything = jnp.ones((batch_size,), bool)
        return self.replace(
            keep_text=everything if self.keep_text is None else self.keep_text,
            keep_image=everything if self.keep_image is None else self.keep_image,
        )

    def null(self) -> Cond:
        """The unconditional twin: text and image embedding are dropped, `low_res` is kept (it is not guided)."""
        full = self.with_keep(self.batch_size)
        return full.replace(
            keep_text=jnp.zeros_like(need(full.keep_text, "keep_text")),
            keep_image=jnp.zeros_like(need(full.keep_image, "keep_image")),
        )

    @property
    def batch_size(self) -> int:
        """B, the leading dimension of all fields.

        Raises:
            ValueError: no field is given.
        """
        leaves = jax.tree.leaves(self)
        if not leaves:
            raise ValueError("an empty Cond has no batch size; give at least one field")
        return leaves[0].shape[0]

    def repeat(self, n: int) -> Cond:
        """Repeats each sample `n` times in succession: [B, ...] -> [B · n, ...]."""
        return jax.tree.map(lambda a: jnp.repeat(a, n, axis=0), self)


def need(array: Array | None, name: str) -> Array:
    """A field of a `Cond` that a network requires.

    Args:
        array: the field.
        name: name of the field, for the message.

    Raises:
        ValueError: the field is None.
    """
    if array is None:
        raise ValueError(f"the condition has no {name}, which this network reads")
    return array


def concatenate(first: Cond, second: Cond) -> Cond:
    """Concatenates two batches along the first axis; both must have the same fields."""
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), first, second)


EMPTY_CAPTION = 2  # tokens of a caption without words: its start and its end


def with_empty_captions(cond: Cond, encodings: Float[Array, "2 C"], embed: Float[Array, " D"]) -> Cond:
    """Replaces dropped captions by the empty caption, the null condition of Karlo and Kandinsky.

    CLIP's text tower is causal, so the encodings of its two tokens do not depend on the padding.

    Args:
        cond: batch of B samples, with `keep_text` False where a caption was dropped.
        encodings: [2, C], text encodings of the start and the end of the empty caption.
        embed: [D], text embedding of the empty caption.

    Returns:
        The batch with `keep_text` True everywhere.

    Raises:
        ValueError: `cond` has no text encodings or no text mask.
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
    """Condition dropout for classifier-free guidance: drops text and image independently per sample.

    The probabilities of the paper's decoder (Ramesh et al. 2022, §2.1) are 50 % for text and 10 % for the image.

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
