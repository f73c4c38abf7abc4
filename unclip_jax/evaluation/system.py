"""The networks of a loaded system as separate batched functions, for evaluations that combine them in other ways."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, UInt8
from tqdm import tqdm

from clip_jax import encode
from clip_jax.config import CLIPConfig
from clip_jax.towers.text import TextFeatures
from unclip_jax import pipeline
from unclip_jax.conditioning import Cond
from unclip_jax.diffusion.keys import fold_in_each
from unclip_jax.evaluation.frechet import features
from unclip_jax.pipeline import LoadedUnCLIP, UnCLIP
from unclip_jax.tasks import to_uint8


@partial(jax.jit, static_argnums=0)
def encode_images(config: CLIPConfig, params: dict[str, Any], images: UInt8[Array, "B R R 3"]) -> Float[Array, "B D"]:
    """CLIP image embeddings [B, D] of pictures uint8 [B, R, R, 3] of CLIP's image size."""
    return encode.encode_images(config, params, images)


@partial(jax.jit, static_argnums=0)
def encode_text(config: CLIPConfig, params: dict[str, Any], tokens: Int[Array, "B L"]) -> TextFeatures:
    """CLIP's features of captions int32 [B, L]."""
    return encode.encode_texts(config, params, tokens)


@partial(jax.jit, static_argnums=0)
def predict(unclip: UnCLIP, params: dict[str, Any], text: TextFeatures, keys: Key[Array, " B"]) -> Float[Array, "B D"]:
    """Image embeddings [B, D] sampled from the prior, with the keys of the pictures."""
    return pipeline.sample_prior(unclip, params, text, fold_in_each(keys, 0))


@partial(jax.jit, static_argnums=0)
def draw(unclip: UnCLIP, params: dict[str, Any], cond: Cond, keys: Key[Array, " B"]) -> UInt8[Array, "B H W 3"]:
    """Pictures uint8 [B, H, W, 3] drawn by decoder and upsamplers, with the keys of the pictures."""
    return to_uint8(pipeline.decode(unclip, params, cond, fold_in_each(keys, 1)))


def fitted(images: np.ndarray, size: int) -> np.ndarray:
    """Resizes pictures by antialiased bicubic interpolation.

    Args:
        images: uint8 [N, R, R, 3].
        size: side of the result in pixels.

    Returns:
        uint8 [N, size, size, 3].
    """
    if images.shape[1] == size:
        return images
    resized = jax.image.resize(images.astype(np.float32), (len(images), size, size, 3), "cubic")
    return np.asarray(jnp.clip(jnp.round(resized), 0, 255).astype(jnp.uint8))


class System:
    """The networks of a loaded system as methods over any number N of rows, which return numpy arrays.

    Rows are computed in batches of `chunk` (the last is padded), so each network is compiled once. `predict` and `draw`
    use the keys as `pipeline.generate` does, so that `draw` after `predict` gives the same pictures.

    Args:
        loaded: the system.
        chunk: batch size.
    """

    def __init__(self, loaded: LoadedUnCLIP, chunk: int):
        self.unclip, self.params, self.tokenize = loaded
        self.chunk = chunk

    def encode_images(self, images: UInt8[np.ndarray, "N R R 3"]) -> Float[np.ndarray, "N D"]:
        """CLIP image embeddings [N, D] of pictures uint8 [N, R, R, 3] of CLIP's image size."""
        return self._chunked(partial(encode_images, self.unclip.clip, self.params["clip"]), (images,), "images")

    def features(self, images: UInt8[np.ndarray, "N R R 3"]) -> Float[np.ndarray, "N F"]:
        """Features [N, F] for the Fréchet distance, of pictures uint8 [N, R, R, 3] of CLIP's image size."""
        return self._chunked(partial(features, self.unclip.clip, self.params["clip"]), (images,), "features")

    def encode_text(self, tokens: Int[np.ndarray, "N L"]) -> TextFeatures:
        """CLIP's features of captions int32 [N, L]."""
        return self._chunked(partial(encode_text, self.unclip.clip, self.params["clip"]), (tokens,), "captions")

    def predict(self, text: TextFeatures, keys: Key[Array, " N"]) -> Float[np.ndarray, "N D"]:
        """Image embeddings [N, D] sampled from the prior for N captions."""
        return self._chunked(partial(predict, self.unclip, self.params), (text, keys), "prior")

    def draw(
        self,
        text: TextFeatures,
        image_embed: Float[np.ndarray, "N D"],
        keep_text: bool,
        keys: Key[Array, " N"],
        title: str,
    ) -> UInt8[np.ndarray, "N H W 3"]:
        """Draws pictures from image embeddings and captions.

        Args:
            text: features of N captions.
            image_embed: [N, D].
            keep_text: whether the decoder reads the captions.
            keys: [N], one per picture.
            title: name of the progress bar.

        Returns:
            uint8 [N, H, W, 3].
        """
        cond = Cond.of(text, jnp.asarray(image_embed)).replace(keep_text=jnp.full(len(image_embed), keep_text))
        return self._chunked(partial(draw, self.unclip, self.params), (cond, keys), title)

    def _chunked(self, program: Callable[..., Any], rows: tuple, title: str) -> Any:
        """Calls `program(*rows)` in batches, for pytrees whose leaves have N rows; returns numpy arrays of N rows."""
        total = len(jax.tree.leaves(rows)[0])
        parts, began = [], time.perf_counter()
        with tqdm(total=total, desc=title, unit="row", disable=None) as progress:
            for start in range(0, total, self.chunk):
                take = np.minimum(np.arange(start, start + self.chunk), total - 1)
                count = min(self.chunk, total - start)
                part = program(*jax.tree.map(lambda leaf, take=take: leaf[take], rows))
                parts.append(jax.tree.map(lambda leaf, count=count: np.asarray(leaf)[:count], part))
                progress.update(count)
        if progress.disable:  # not on a terminal: one line when it is done
            print(f"{title}: {total} rows in {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
        return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
