"""Encodes many pictures or texts to unit-norm features, in batches of one size, so that one program is compiled."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from clip_jax.errors import UserError
from clip_jax.images import Picture
from clip_jax.model import CLIP, unit_norm
from clip_jax.pretrained import LoadedCLIP
from clip_jax.tokenizer.base import as_texts
from image_text.decode import is_one

Progress = Callable[[int], Any]  # called after each batch with its number of items


@partial(jax.jit, static_argnums=0)
def _encode_image(model: CLIP, variables: dict[str, Any], images: Array) -> Array:
    return unit_norm(model.apply(variables, images, method="encode_image"))


@partial(jax.jit, static_argnums=0)
def _encode_text(model: CLIP, variables: dict[str, Any], tokens: Array) -> Array:
    return unit_norm(model.apply(variables, tokens, method="encode_text").embed)


def image_features(
    clip: LoadedCLIP,
    pictures: Picture | Iterable[Picture],
    *,
    batch_size: int | Any = 64,
    threads: int = 8,
    progress: Progress | None = None,
) -> Float[np.ndarray, "N D"]:
    """Unit-norm float32 features [N, D] of pictures.

    Args:
        clip: the model.
        pictures: one picture or any iterable of them, which is read batch by batch.
        batch_size: pictures per batch.
        threads: pictures decoded in parallel.
        progress: called after each batch with its number of pictures.

    Raises:
        UserError: If something is not a picture or cannot be decoded, the batch size is not an integer of at least 1,
            or the model has no image tower.
    """
    encode = partial(_encode_image, clip.model, clip.variables)
    prepare = partial(clip.preprocess, threads=threads)
    several: Any = [pictures] if is_one(pictures) else pictures
    return _in_batches(encode, prepare, several, batch_size, progress)


def features_of_prepared(
    clip: LoadedCLIP, images: Float[np.ndarray, "B H W c"], batch_size: int
) -> Float[np.ndarray, "B D"]:
    """Unit-norm float32 features of one batch of preprocessed pictures.

    Args:
        clip: the model.
        images: 1 to `batch_size` pictures, as `clip.preprocess` returns them.
        batch_size: the batch is padded to it, so that one compiled program serves all batches.
    """
    padded = np.concatenate([images, np.repeat(images[-1:], batch_size - len(images), axis=0)])
    return np.asarray(_encode_image(clip.model, clip.variables, padded))[: len(images)]


def text_features(
    clip: LoadedCLIP, texts: str | Iterable[str], *, batch_size: int | Any = 256, progress: Progress | None = None
) -> Float[np.ndarray, "N D"]:
    """Unit-norm float32 features [N, D] of texts.

    Args:
        clip: the model.
        texts: one text or an iterable of texts.
        batch_size: texts per batch.
        progress: called after each batch with its number of texts.

    Raises:
        UserError: If something is not text, the batch size is not an integer of at least 1, or the model has no text
            tower or tokenizer.
    """
    encode = partial(_encode_text, clip.model, clip.variables)
    return _in_batches(encode, clip.tokenize, as_texts(texts), batch_size, progress)


def _in_batches(
    encode: Callable[[np.ndarray], Array],
    prepare: Callable[[list[Any]], np.ndarray],
    items: Iterable[Any],
    batch_size: int | Any,
    progress: Progress | None,
) -> np.ndarray:
    if isinstance(batch_size, bool) or not isinstance(batch_size, int | np.integer):
        raise UserError(f"batch_size: {batch_size!r} is not an integer")
    if batch_size < 1:
        raise UserError(f"batch_size: {batch_size} is less than 1")
    if isinstance(items, Sequence):
        batch_size = min(batch_size, max(1, len(items)))
    rows: list[np.ndarray] = []
    for batch in _batched(items, int(batch_size)):
        inputs = prepare(batch)
        # The last batch is padded, so that one compiled program serves all.
        inputs = np.concatenate([inputs, np.repeat(inputs[-1:], batch_size - len(batch), axis=0)])
        rows.append(np.asarray(encode(inputs))[: len(batch)])
        if progress is not None:
            progress(len(batch))
    # Without items the result is [0, D].
    return np.concatenate(rows) if rows else np.zeros(jax.eval_shape(encode, prepare([])).shape, np.float32)


def _batched(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
