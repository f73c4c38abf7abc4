"""Dequantization of float8 weights with a scale, as ComfyUI and compressed-tensors store them.

The weight is the product of the float8 array and its scale. A float8 array without a scale is read as it is.
"""

from pathlib import Path

import numpy as np

from clip_jax.errors import UserError, reading
from clip_jax.weights.rules import Checkpoint, Entry

WEIGHT = ".weight"
SCALES = (".scale_weight", ".weight_scale")  # ComfyUI, compressed-tensors
# Ignored: scales of the activations, for float8 matrix products (ours are computed in a wider dtype), and ComfyUI's
# marker `scaled_fp8`.
PASSED_OVER = (".scale_input", ".input_scale", "scaled_fp8")
REFUSED = (".weight_scale_inv", ".weight_zero_point", ".qweight", ".qzeros", ".absmax", ".quant_map", ".comfy_quant")


def scaled(checkpoint: Checkpoint, path: Path) -> Checkpoint:
    """The checkpoint with dequantized weights (float32, multiplied by their scale when read) and without the scales.

    Raises:
        UserError: there is a scale without a weight, or the weights are quantized in another way.
    """
    for name in checkpoint:
        if name.endswith(REFUSED):
            raise UserError(
                f"{path} holds {name}: its weights are quantized in a way that is not read; take the original"
            )
    scales = {name: suffix for name in checkpoint for suffix in SCALES if name.endswith(suffix)}
    if not scales:
        return checkpoint
    found = {name: entry for name, entry in checkpoint.items() if name not in scales and not name.endswith(PASSED_OVER)}
    for name, suffix in scales.items():
        weight = name.removesuffix(suffix) + WEIGHT
        if weight not in found:
            raise UserError(f"{path} holds {name} without {weight}, which it scales: take the original")
        found[weight] = _product(found[weight], checkpoint[name], weight, path)
    return found


def _product(weight: Entry, scale: Entry, name: str, path: Path) -> Entry:
    rows = weight.shape[:1] + (1,) * (len(weight.shape) - 1)
    if scale.shape not in ((), (1,), rows, weight.shape[:1]):
        raise UserError(f"{path}: the scale of {name} is {list(scale.shape)}, not one number, nor one for each row")

    def read() -> np.ndarray:
        with reading(path, name):
            factor = np.asarray(scale.read(), np.float32).reshape(rows if scale.shape[:1] == rows[:1] else ())
            values = weight.read()
            if not values.dtype.name.startswith("float8"):
                raise UserError(
                    f"{name} is {values.dtype} with a scale beside it, supported is float8: take the original"
                )
            return values.astype(np.float32) * factor

    return Entry(weight.shape, read)
