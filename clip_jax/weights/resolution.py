"""Change of a model's image size by bicubic interpolation of its position embeddings.

Two kernels are in use. transformers (`interpolate_pos_encoding=True`) and EVA use torch's bicubic interpolation
(a = −0.75); OpenCLIP (`force_image_size`) uses the antialiased one (a = −0.5). Weights in OpenAI's names, which
OpenCLIP reads, get the latter and all others the former, so that the result is that of the weights' own project.
"""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from clip_jax.config import CLIPConfig, EVA02Config, ViTConfig
from clip_jax.errors import UserError

POSITIONS = {ViTConfig: "visual/positional_embedding", EVA02Config: "visual/pos_embed"}


def at_resolution(config: CLIPConfig, image_size: int) -> CLIPConfig:
    """The config with another image size, in pixels.

    Raises:
        UserError: the model has no image tower or no learned position embeddings to interpolate, its preprocessing
            crops, or the size is not valid for the tower.
    """
    vision = config.vision
    if vision is None:
        raise UserError(f"image_size={image_size} is for a model with an image tower, this one encodes texts only")
    if image_size == vision.image_size:
        return config
    if type(vision) not in POSITIONS or getattr(vision, "positions", "learned") != "learned":
        raise UserError(
            f"image_size={image_size}: the positions of a {type(vision).__name__} cannot be interpolated, it takes "
            f"{vision.image_size} pixels only"
        )
    if config.preprocess.resize_to is not None:
        raise UserError(
            f"image_size={image_size}: the pictures of this model are resized to {config.preprocess.resize_to} and "
            f"cropped to {vision.image_size} pixels, and at another size nobody says how: leave image_size out"
        )
    return dataclasses.replace(config, vision=dataclasses.replace(vision, image_size=image_size))


def interpolated(
    flat: Mapping[str, np.ndarray], before: CLIPConfig, after: CLIPConfig, *, antialias: bool
) -> dict[str, np.ndarray]:
    """Interpolates the position embeddings in flat parameters; that of the class token is kept.

    Args:
        flat: parameters by path.
        before: the config of the parameters.
        after: the same config with another image size.
        antialias: True: OpenCLIP's antialiased kernel; False: transformers' kernel.
    """
    old, new = before.vision.grid, after.vision.grid
    if old == new:
        return dict(flat)
    name = POSITIONS[type(before.vision)]
    table = flat[name]
    rows = table.reshape(-1, table.shape[-1]).astype(np.float64)
    first = rows[: len(rows) - old * old]  # the class token, where there is one
    weights = bicubic(old, new, antialias=antialias)
    grid = np.einsum("ai,bj,ijc->abc", weights, weights, rows[len(first) :].reshape(old, old, -1), optimize=True)
    rows = np.concatenate([first, grid.reshape(new * new, -1)]).astype(np.float32)
    return {**flat, name: rows.reshape(*table.shape[:-2], *rows.shape)}


def bicubic(n: int, m: int, *, antialias: bool) -> Float[np.ndarray, "m n"]:
    """The [m, n] matrix of torch's `interpolate(mode="bicubic", align_corners=False)` from n to m samples."""
    scale = n / m
    matrix = np.zeros((m, n))
    for i in range(m):
        if antialias:
            centre, wide = scale * (i + 0.5), max(scale, 1.0)
            low, high = max(int(centre - 2 * wide + 0.5), 0), min(int(centre + 2 * wide + 0.5), n)
            weights = [_kernel((j - centre + 0.5) / wide, -0.5) for j in range(low, high)]
            matrix[i, low:high] = np.array(weights) / sum(weights)
            continue
        at = scale * (i + 0.5) - 0.5
        for j in range(math.floor(at) - 1, math.floor(at) + 3):  # samples beyond the edge repeat the last one
            matrix[i, min(max(j, 0), n - 1)] += _kernel(at - j, -0.75)
    return matrix


def _kernel(x: float, a: float) -> float:
    """Keys' cubic convolution kernel with parameter a."""
    x = abs(x)
    if x < 1:
        return ((a + 2) * x - (a + 3)) * x * x + 1
    return (((x - 5) * x + 8) * x - 4) * a if x < 2 else 0.0
