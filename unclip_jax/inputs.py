"""Validates the arguments of sampling and editing functions, and broadcasts them to one batch.

Every function raises UserError with a message that names the argument. Shapes and dtypes are checked under `jit` too,
values only if they are concrete. An argument of batch size 1 is broadcast: one prompt with four keys gives 4 pictures.
"""

from __future__ import annotations

import numbers
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from clip_jax.errors import UserError
from unclip_jax.diffusion.keys import threefry

ONE_KEY_EACH = "give one key per picture, unclip_jax.sample_keys(jax.random.key(0), jnp.arange(4)) for four"


def picture_keys(keys: Any) -> Key[Array, " B"]:
    """Converts the keys of pictures to threefry keys.

    Args:
        keys: [B], of any kind that `diffusion.keys.threefry` takes; B at least 1.

    Returns:
        Threefry keys [B].

    Raises:
        UserError: `keys` are no keys, or not [B].
    """
    keys = threefry(keys)
    if keys.ndim != 1:
        raise UserError(f"keys are {list(keys.shape) if keys.ndim else 'one key'}; {ONE_KEY_EACH}")
    if not len(keys):
        raise UserError(f"keys are none; {ONE_KEY_EACH}")
    return keys


def prompt_tokens(tokens: Any, count: int, text: Any, name: str = "tokens") -> Int[Array, "B L"]:
    """Checks tokens and broadcasts them to all pictures.

    Args:
        tokens: integers [count, L] or [1, L].
        count: number of pictures.
        text: config of the text tower, whose context length and vocabulary are checked.
        name: name of the argument, for the message.

    Returns:
        int32 [count, L].

    Raises:
        UserError: the tokens have another shape or dtype, or an id outside the vocabulary.
    """
    dtype, shape = _described(tokens)
    if dtype is None or not jnp.issubdtype(dtype, jnp.integer) or len(shape) != 2:
        what = type(tokens).__name__ if dtype is None else f"{dtype} {list(shape)}"
        raise UserError(f"{name} are {what}; give integers [B, L], tokenize([prompt, …])")
    if not shape[0]:
        raise UserError(f"{name} are of no prompt; give one at least")
    if shape[1] != text.context_length:
        raise UserError(f"{name} are {list(shape)}; this system reads {text.context_length} tokens of a prompt")
    seen = values(tokens)
    if seen is not None and not (seen.min() >= 0 and seen.max() < text.vocab_size):
        raise UserError(
            f"{name} hold ids from {seen.min()} to {seen.max()}, this system knows 0 to {text.vocab_size - 1}; "
            "make them by its own tokenize"
        )
    return for_all(jnp.asarray(tokens).astype(jnp.int32), count, f"{name} are of {shape[0]} prompts")


def for_all(array: Array, count: int, what: str) -> Array:
    """Broadcasts [1, ...] or [count, ...] to [count, ...].

    Args:
        array: the array.
        count: number of pictures.
        what: beginning of the message, "images are 3" for example.

    Raises:
        UserError: the first axis has another size.
    """
    if array.shape[0] not in (1, count):
        raise UserError(f"{what}, keys are {count}; give as many of both, or one for all pictures")
    return jnp.broadcast_to(array, (count, *array.shape[1:]))


def floats(given: Any, shape: tuple[int, ...], name: str) -> Float[Array, "..."]:
    """Checks an array of finite floats and broadcasts its first axis.

    Args:
        given: array-like of `shape`, or with a first axis of 1.
        shape: shape of the result.
        name: name of the argument, for the message.

    Returns:
        float32 of `shape`.

    Raises:
        UserError: it has another shape or dtype, or a value that is not finite.
    """
    try:
        array, seen = jnp.asarray(given), values(given)
    except (TypeError, ValueError):
        raise UserError(f"{name} is {type(given).__name__}; give float {list(shape)}") from None
    if not jnp.issubdtype(array.dtype, jnp.floating) or array.ndim != len(shape) or array.shape[1:] != shape[1:]:
        raise UserError(f"{name} is {array.dtype} {list(array.shape)}; give float {list(shape)}")
    array = for_all(array.astype(jnp.float32), shape[0], f"{name} is of {array.shape[0]} pictures")
    if seen is not None and not np.isfinite(seen.astype(np.float32)).all():
        raise UserError(f"{name} has numbers that are NaN or infinite; give finite ones")
    return array


def weights(given: Any, count: int, name: str, low: float = 0.0, high: float = float("inf")) -> Float[Array, " B"]:
    """Checks one number per picture, or one for all.

    Args:
        given: a scalar, [1] or [count].
        count: number of pictures.
        name: name of the argument, for the message.
        low: smallest value.
        high: largest value.

    Returns:
        float32 [count].

    Raises:
        UserError: it has another shape, or a value that is out of range or not finite.
    """
    try:
        array, seen = jnp.asarray(given, jnp.float32), values(given)
    except (TypeError, ValueError):
        raise UserError(f"{name} is {type(given).__name__}; give a number or [B] of them") from None
    if array.shape not in ((), (1,), (count,)):
        raise UserError(f"{name} is {list(array.shape)}; give a number, or {count} of them: one per key")
    seen = None if seen is None else seen.astype(np.float32)
    if seen is not None and not ((seen >= low) & (seen <= high) & np.isfinite(seen)).all():
        raise UserError(f"{name} is {seen.tolist()}; give finite numbers from {low:g} to {high:g}")
    return jnp.broadcast_to(array, (count,))


def guidance(value: Any, count: int, name: str = "guidance_scale") -> Any:
    """Checks a guidance scale and returns it unchanged.

    Args:
        value: None, a number, or an array [], [1] or [count] of non-negative numbers.
        count: number of pictures.
        name: name of the argument, for the message.

    Raises:
        UserError: it is something else.
    """
    if value is not None:
        weights(value, count, name)
    return value


def number(value: Any, low: float, high: float, name: str) -> Any:
    """Checks a number that must be concrete (static under `jit`), and returns it unchanged.

    Args:
        value: the number; a whole number if `low` is an int.
        low: smallest value.
        high: largest value.
        name: name of the argument, for the message.

    Raises:
        UserError: it is no such number, or a traced value.
    """
    kind: Any = numbers.Integral if isinstance(low, int) else numbers.Real
    if isinstance(value, bool) or not isinstance(value, kind) or not low <= value <= high:
        whole = ", a whole number" if isinstance(low, int) else ""
        raise UserError(f"{name} is {str(value)[:40]}; give {low} to {high}{whole}")
    return value


def pictures(images: Any, sizes: tuple[int, ...], name: str = "images") -> Float[Array, "B H W 3"]:
    """Checks pictures and converts them to float32 in [−1, 1].

    Args:
        images: [B, H, W, 3], float in [−1, 1] or uint8. If `sizes` are given, square, with a side that is a multiple of
            each of them.
        sizes: sides in pixels of the networks that read them; empty for pictures of any size.
        name: name of the argument, for the message.

    Returns:
        float32 [B, H, W, 3] in [−1, 1].

    Raises:
        UserError: the pictures have another shape, dtype or range.
    """
    dtype, shape = _described(images)
    if dtype is None or len(shape) != 4 or shape[-1] != 3 or not shape[0]:
        what = type(images).__name__ if dtype is None else f"{dtype} {list(shape)}"
        raise UserError(f"{name} are {what}; give [B, H, W, 3], float in [−1, 1] or uint8")
    if (sizes and (shape[1] != shape[2] or any(shape[1] % size for size in sizes))) or not shape[1] * shape[2]:
        side = max(sizes, default=1)
        raise UserError(f"{name} are of {shape[1]}×{shape[2]} pixels; give {side}×{side}, or a multiple of it")
    if dtype == jnp.uint8:
        return jnp.asarray(images).astype(jnp.float32) / 127.5 - 1.0
    if not jnp.issubdtype(dtype, jnp.floating):
        raise UserError(f"{name} are {dtype}; give float in [−1, 1] or uint8")
    seen = values(images)
    if seen is not None:
        low, high = float(seen.min()), float(seen.max())
        if not (low >= -1.01 and high <= 1.01):  # a network's output may round beyond ±1; NaN fails too
            raise UserError(
                f"{name} are from {low:g} to {high:g}; give float in [−1, 1] or uint8, unclip_jax.to_signed makes one "
                "of the other"
            )
    return jnp.asarray(images).astype(jnp.float32)


def free_pixels(mask: Any, shape: tuple[int, ...], name: str = "mask") -> Bool[Array, "B H W 1"]:
    """Checks a mask for inpainting and broadcasts it.

    Args:
        mask: bool [H, W], [1, H, W] or [B, H, W], each with or without a last axis of 1; True where the picture is
            drawn anew.
        shape: shape of the pictures, (B, H, W, 3).
        name: name of the argument, for the message.

    Returns:
        bool [B, H, W, 1].

    Raises:
        UserError: the mask has another shape or dtype.
    """
    dtype, given = _described(mask)
    batch, height, width = shape[:3]
    if dtype is None or not jnp.issubdtype(dtype, jnp.bool_):
        what = type(mask).__name__ if dtype is None else str(dtype)
        raise UserError(f"{name} is {what}; give bool, True where it is drawn anew (grey levels: mask >= 128)")
    bare = given[:-1] if len(given) > 2 and given[-1] == 1 and given[-2] == width else given
    if bare[-2:] != (height, width) or len(bare) not in (2, 3) or bare[:-2] not in ((), (1,), (batch,)):
        raise UserError(f"{name} is {list(given)}; the pictures are {height}×{width}: give {[batch, height, width, 1]}")
    mask = jnp.asarray(mask).reshape(bare if len(bare) == 3 else (1, *bare))
    return jnp.broadcast_to(mask[..., None], (batch, height, width, 1))


def values(array: Any) -> np.ndarray | None:
    """The values of a concrete array as a numpy array.

    numpy, because within `jit` even an operation of JAX on a concrete array is traced.

    Args:
        array: array-like.

    Returns:
        None if the array is traced, or if a part of it is on other hosts.
    """
    leaves = jax.tree.leaves(array)
    if any(isinstance(leaf, jax.core.Tracer) or not getattr(leaf, "is_fully_addressable", True) for leaf in leaves):
        return None
    return np.asarray(array)


def _described(array: Any) -> tuple[Any, tuple[int, ...]]:
    """(dtype, shape) of an array; (None, ()) of any other object."""
    return getattr(array, "dtype", None), tuple(getattr(array, "shape", ()))
