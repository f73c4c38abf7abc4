"""Encodes images and texts with a frozen CLIP whose weights are one tree, as other packages hold it.

The tree is `variables["params"]`; for a CLIP with batch norms it also has their running statistics, under the key
"batch_stats". `clip_jax.save` stores the same tree.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Num

from clip_jax.arrays import AnyArray
from clip_jax.config import CLIPConfig
from clip_jax.images import normalise
from clip_jax.model import CLIP
from clip_jax.towers.text import TextFeatures
from clip_jax.towers.vit import ImageFeatures

BATCH_STATS = "batch_stats"
LUMA = (19595, 38470, 7471)  # of 65536: Pillow's weights of red, green and blue


def joined(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Joins the variables `{"params": …, "batch_stats": …}` that `load` returns into one tree."""
    return {**variables["params"], **{name: tree for name, tree in variables.items() if name != "params"}}


def variables_of(params: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `joined`: splits one tree into the collections that `CLIP.apply` takes."""
    if BATCH_STATS not in params:
        return {"params": params}
    rest = {name: tree for name, tree in params.items() if name != BATCH_STATS}
    return {"params": rest, BATCH_STATS: params[BATCH_STATS]}


def encode_images(
    config: CLIPConfig, params: Mapping[str, Any], images: Num[AnyArray, "B H W c"], *, dtype: Any = jnp.float32
) -> Float[Array, "B D"]:
    """Image embeddings, not normalised; works under `jit`.

    Args:
        config: of the CLIP.
        params: its weights as one tree, see `joined`.
        images: [B, H, W, c] of the image size of the CLIP; uint8, or float in [−1, 1]; see `network_input`.
        dtype: of the matrix products.

    Returns:
        [B, D] in `dtype`.

    Raises:
        UserError: If the images have another size, or the CLIP has no image tower.
    """
    return CLIP(config, dtype).apply(variables_of(params), network_input(config, images), method="encode_image")


def image_states(
    config: CLIPConfig, params: Mapping[str, Any], images: Num[AnyArray, "B H W c"], *, dtype: Any = jnp.float32
) -> ImageFeatures:
    """As `encode_images`, with the hidden states before and after each block of the image tower.

    Args:
        config: of the CLIP.
        params: its weights as one tree, see `joined`.
        images: [B, H, W, c] of the image size of the CLIP; uint8, or float in [−1, 1].
        dtype: of the matrix products.

    Raises:
        UserError: If the images have another size, or the CLIP has no image tower.
    """
    return CLIP(config, dtype).apply(variables_of(params), network_input(config, images), method="image_states")


def encode_texts(
    config: CLIPConfig, params: Mapping[str, Any], tokens: Int[AnyArray, "B L"], *, dtype: Any = jnp.float32
) -> TextFeatures:
    """Text embeddings (not normalised), per-token hidden states and their mask; works under `jit`.

    Args:
        config: of the CLIP.
        params: its weights as one tree, see `joined`.
        tokens: int32 [B, L] of its tokenizer.
        dtype: of the matrix products.

    Raises:
        UserError: If the tokens do not fit the CLIP, or it has no text tower.
    """
    return CLIP(config, dtype).apply(variables_of(params), tokens, method="encode_text")


def network_input(config: CLIPConfig, images: Num[AnyArray, "B H W c"]) -> Float[Array, "B H W c2"]:
    """The input of the image tower: CLIP-normalised float32 [B, H, W, c].

    Args:
        config: of the CLIP.
        images: [B, H, W, c]; uint8, or float in [−1, 1]. A CLIP with one channel also takes RGB, which becomes grey as
            in its `preprocess`.
    """
    if config.vision is not None and config.vision.channels == 1 and images.shape[-1] == 3:
        images = luma(images)
    return normalise(images, config.preprocess)


def luma(images: Num[AnyArray, "*B H W 3"]) -> Num[Array, "*B H W 1"]:
    """RGB to grey by ITU-R 601: uint8 with Pillow's rounding (mode "L"), floats without rounding."""
    if images.dtype == jnp.uint8:
        total = (images.astype(jnp.int32) * jnp.array(LUMA, jnp.int32)).sum(-1, keepdims=True)
        return (total + 32768 >> 16).astype(jnp.uint8)
    return (images * (jnp.array(LUMA, images.dtype) / 65536)).sum(-1, keepdims=True)
