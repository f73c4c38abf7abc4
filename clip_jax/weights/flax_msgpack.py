"""Reading of `flax_model.msgpack` (transformers' Flax models), with names and axes translated to torch's.

`flax.serialization` writes one nested map whose leaves are arrays. The reader supports only the MessagePack types that
such a map needs. The file is memory-mapped, arrays are read lazily, and no more memory is allocated than the file is
long. Names and axes become those of torch, so that one table of rules serves both.
"""

import functools
import math
import mmap
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from clip_jax.errors import UserError
from clip_jax.weights.rules import Entry

NDARRAY, SCALAR = 1, 3  # extension types of flax.serialization
CHUNKED = "__msgpack_chunked_array__"  # the key that marks an array of more than 1 GiB, split into chunks
MAX_DEPTH, MAX_NAMES, MAX_NAME = 32, 1 << 20, 1 << 12
DTYPES = {
    **{name: np.dtype(name) for name in ("float64", "float32", "float16", "int64", "int32", "uint8", "bool")},
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
PARTS = {"kernel": "weight", "scale": "weight", "embedding": "weight"}  # parameter names: Flax -> torch


class _Array(NamedTuple):
    shape: tuple[int, ...]
    dtype: np.dtype
    begin: int  # file offset of its first byte


class _Damaged(Exception):
    """The file is damaged; the message is the end of the sentence "it is not a msgpack file of Flax: …"."""


def read_flax(path: Path) -> dict[str, Entry]:
    """Opens a msgpack file of Flax as lazily read arrays, with the names and axes of transformers' torch models.

    Raises:
        UserError: the file is damaged, or holds anything but named arrays.
    """
    try:
        with open(path, "rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        reader = _Reader(data)
        tree, end = reader.value(0, 0)
        if not isinstance(tree, dict) or end != len(data):
            raise _Damaged("it is not one map of arrays")
        entries = {}
        for name, shape, read in _leaves(data, tree, ""):
            entry = _as_torch(name, Entry(shape, read))
            if entry[0] in entries:
                raise _Damaged(f"two of its arrays are {entry[0]}")
            entries[entry[0]] = entry[1]
    except (OSError, ValueError, _Damaged, struct.error, IndexError) as error:
        text = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"cannot read weights from {path}: it is not a msgpack file of Flax: {text}") from error
    if not entries:
        raise UserError(f"{path} holds no weights: there is no array in it")
    return entries


def _as_torch(name: str, entry: Entry) -> tuple[str, Entry]:
    """Torch's name and axes: a.kernel [in, out] -> a.weight [out, in], HWIO -> OIHW; others only change their name."""
    *parents, last = name.split(".")
    axes = None
    if last == "kernel":
        axes = {2: (1, 0), 4: (3, 2, 0, 1)}.get(len(entry.shape))
        if axes is None:
            raise _Damaged(f"{name} is {list(entry.shape)}: a kernel has two axes, or four")
    name = ".".join([*parents, PARTS.get(last, last)])
    if axes is None:
        return name, entry
    return name, Entry(tuple(entry.shape[axis] for axis in axes), lambda: entry.read().transpose(axes))


def _leaves(
    data: mmap.mmap, tree: dict[str, Any], prefix: str
) -> Iterator[tuple[str, tuple[int, ...], Callable[[], np.ndarray]]]:
    for name, value in tree.items():
        path = f"{prefix}{name}"
        if isinstance(value, _Array):
            yield path, value.shape, functools.partial(_read, data, value)
        elif isinstance(value, dict) and value.get(CHUNKED) is True:
            shape, chunks = _chunks(path, value)
            yield path, shape, functools.partial(_joined, data, shape, chunks)
        elif isinstance(value, dict):
            yield from _leaves(data, value, f"{path}.")
        else:
            raise _Damaged(f"{path} is no array")


def _read(data: mmap.mmap, array: _Array) -> np.ndarray:
    count = math.prod(array.shape)
    return np.frombuffer(data, array.dtype, count, array.begin).reshape(array.shape)


def _chunks(path: str, value: dict[str, Any]) -> tuple[tuple[int, ...], list[_Array]]:
    """The shape of a chunked array, and its chunks, which are flat."""
    shape, chunks = value.get("shape"), value.get("chunks")
    if not isinstance(shape, dict) or not isinstance(chunks, dict):
        raise _Damaged(f"{path} is in chunks, which have no shape")
    sides = [shape.get(str(i)) for i in range(len(shape))]
    pieces = [chunks.get(str(i)) for i in range(len(chunks))]
    known = [side for side in sides if type(side) is int]
    arrays = [piece for piece in pieces if isinstance(piece, _Array)]
    if len(known) != len(sides) or len(arrays) != len(pieces):
        raise _Damaged(f"{path} is in chunks that are no arrays")
    if not arrays or sum(math.prod(piece.shape) for piece in arrays) != math.prod(known):
        raise _Damaged(f"{path} is {known[:8]}, its chunks hold another number of values")
    return tuple(known), arrays


def _joined(data: mmap.mmap, shape: tuple[int, ...], chunks: list[_Array]) -> np.ndarray:
    return np.concatenate([_read(data, chunk).reshape(-1) for chunk in chunks]).reshape(shape)


class _Reader:
    """A MessagePack parser. Its methods take an offset in the file and return (value, offset of its end)."""

    def __init__(self, data: mmap.mmap):
        self.data = data
        self.names = 0

    def value(self, at: int, depth: int) -> tuple[Any, int]:
        """A map, a Flax array, a text, a boolean or a non-negative integer. Raises _Damaged for any other type."""
        head = self._bytes(at, 1)[0]
        if head < 0x80:
            return head, at + 1
        if 0x80 <= head <= 0x8F or head in (0xDE, 0xDF):
            return self._map(at, head, depth)
        if 0xC7 <= head <= 0xC9 or 0xD4 <= head <= 0xD8:
            return self._extension(at, head)
        if head in (0xC2, 0xC3):
            return head == 0xC3, at + 1
        if 0xCC <= head <= 0xCF:
            size = 1 << (head - 0xCC)
            return int.from_bytes(self._bytes(at + 1, size), "big"), at + 1 + size
        return self._text(at)

    def _bytes(self, at: int, count: int) -> bytes:
        if count < 0 or at + count > len(self.data):
            raise _Damaged("it ends too early")
        return self.data[at : at + count]

    def _length(self, at: int, size: int) -> tuple[int, int]:
        return int.from_bytes(self._bytes(at, size), "big"), at + size

    def _text(self, at: int) -> tuple[str, int]:
        head = self._bytes(at, 1)[0]
        if 0xA0 <= head <= 0xBF:
            count, at = head & 0x1F, at + 1
        elif 0xD9 <= head <= 0xDB:
            count, at = self._length(at + 1, 1 << (head - 0xD9))
        else:
            raise _Damaged(f"it holds a value of type {head:#x}, which no checkpoint has")
        if count > MAX_NAME:
            raise _Damaged(f"it holds a name of {count} characters")
        return self._bytes(at, count).decode("utf-8"), at + count

    def _map(self, at: int, head: int, depth: int) -> tuple[dict[str, Any], int]:
        count, at = (head & 0x0F, at + 1) if head <= 0x8F else self._length(at + 1, 2 if head == 0xDE else 4)
        self.names += count
        if depth > MAX_DEPTH or self.names > MAX_NAMES:
            raise _Damaged("it is nested deeper, or holds more names, than any model")
        found: dict[str, Any] = {}
        for _ in range(count):
            name, at = self._text(at)
            if name in found:
                raise _Damaged(f"the name {name!r} stands in it twice")
            found[name], at = self.value(at, depth + 1)
        return found, at

    def _extension(self, at: int, head: int) -> tuple[_Array, int]:
        if head >= 0xD4:
            count, at = 1 << (head - 0xD4), at + 1
        else:
            count, at = self._length(at + 1, 1 << (head - 0xC7))
        kind = self._bytes(at, 1)[0]
        at, end = at + 1, at + 1 + count
        if kind not in (NDARRAY, SCALAR) or end > len(self.data):
            raise _Damaged(f"it holds an extension {kind}, or one that ends after the file")
        shape, dtype, at = self._array_head(at)
        head = self._bytes(at, 1)[0]
        if not 0xC4 <= head <= 0xC6:
            raise _Damaged("an array in it has no bytes")
        count, at = self._length(at + 1, 1 << (head - 0xC4))
        if at + count != end or math.prod(shape) * dtype.itemsize != count:
            raise _Damaged(f"an array of shape {list(shape)[:8]} in it has {count} bytes")
        return _Array(shape, dtype, at), end

    def _array_head(self, at: int) -> tuple[tuple[int, ...], np.dtype, int]:
        """(shape, dtype, offset of the bytes): Flax packs shape, name of the dtype and bytes as an array of three."""
        if self._bytes(at, 1)[0] != 0x93:
            raise _Damaged("an array in it is not written as flax writes it")
        head = self._bytes(at + 1, 1)[0]
        if not 0x90 <= head <= 0x9F:
            raise _Damaged("an array in it has no shape")
        at, shape = at + 2, []
        for _ in range(head & 0x0F):
            side, at = self.value(at, MAX_DEPTH)
            if type(side) is not int or side > len(self.data):
                raise _Damaged("an array in it has a shape that is not of integers, or too large")
            shape.append(side)
        name, at = self._text(at)
        if name not in DTYPES:
            raise _Damaged(f"an array in it is {name!r}, known are {', '.join(DTYPES)}")
        return tuple(shape), DTYPES[name], at
