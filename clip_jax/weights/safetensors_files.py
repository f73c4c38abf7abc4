"""A safetensors reader of our own: eight bytes of length, a JSON header, and the bytes of the arrays, read lazily.

The library `safetensors` accepts duplicate names (the last one wins) and has no float8 for numpy.
"""

import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from clip_jax.errors import UserError, reading
from clip_jax.weights.jsons import parse_json
from clip_jax.weights.untrusted import MAX_HEADER, check_names

DTYPES: dict[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "F8_E8M0": ml_dtypes.float8_e8m0fnu,
    "C64": np.complex64,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
PREFIX = 8  # size in bytes of the field with the length of the header
MAX_DIMS = 64  # numpy's limit


class Tensor(NamedTuple):
    """Type, shape and place of an array; `begin` and `end` are offsets in bytes from the start of the file."""

    dtype: np.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


class SafetensorsFile:
    """A safetensors file: its header, and its arrays on demand.

    Attributes:
        path: the file.
        metadata: the texts in the header.
        tensors: {name: `Tensor`}.

    Raises:
        UserError: the file is absent, cut off, or holds a name twice, or its arrays do not fill it exactly.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        with reading(self.path), open(self.path, "rb") as file:
            self._identity = _identity(file.fileno())
            self.metadata, self.tensors = _header(file.read, os.fstat(file.fileno()).st_size)

    def read(self, name: str) -> np.ndarray:
        """Reads an array into memory.

        Raises:
            UserError: the file has changed since it was opened.
        """
        tensor = self.tensors[name]
        with reading(self.path, name), open(self.path, "rb") as file:
            if _identity(file.fileno()) != self._identity:
                raise UserError(f"{self.path} was changed while it was being read: load it again")
            file.seek(tensor.begin)
            array = np.fromfile(file, np.uint8, tensor.end - tensor.begin)
            if array.size != tensor.end - tensor.begin:
                raise UserError(f"{self.path} was cut off while it was being read: load it again")
            return array.view(tensor.dtype).reshape(tensor.shape)


def _identity(fd: int) -> tuple[int, ...]:
    stat = os.fstat(fd)
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns


def _header(read: Callable[[int], bytes], size: int) -> tuple[dict[str, str], dict[str, Tensor]]:
    length = int.from_bytes(read(PREFIX), "little")
    if size < PREFIX or length > size - PREFIX:
        raise UserError(
            f"it is cut off, or no safetensors file: its header claims {length} bytes, and the file has {size}; "
            "download it again"
        )
    if length > MAX_HEADER:
        raise UserError(f"its header claims {length} bytes, at most {MAX_HEADER} are read: it is not a weights file")
    data = parse_json(read(length))
    if not isinstance(data, dict):
        raise UserError("its header is not a JSON object: it is not a safetensors file")
    metadata = data.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise UserError("the __metadata__ of its header is not a table of texts: it is not a safetensors file")
    check_names(data)
    start = PREFIX + length
    tensors = {name: _tensor(name, entry, start, size) for name, entry in data.items()}
    _check_filled(tensors, start, size)
    return metadata, tensors


def _tensor(name: str, entry: Any, start: int, size: int) -> Tensor:
    if not isinstance(entry, Mapping) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise UserError(f"its header does not say dtype, shape and data_offsets of {name}")
    kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(kind, str) or kind not in DTYPES:
        raise UserError(f"{name} is of the type {kind!r}, which is not supported: save it as F32, F16 or BF16")
    if not _integers(shape) or len(shape) > MAX_DIMS or not _integers(offsets) or len(offsets) != 2:
        raise UserError(f"its header gives {name} no proper shape or data_offsets")
    dtype = np.dtype(DTYPES[kind])
    begin, end = start + offsets[0], start + offsets[1]
    if end < begin or end > size:
        raise UserError(f"{name} ends at byte {end} of {size}: the file is cut off or damaged; download it again")
    if math.prod(shape) * dtype.itemsize != end - begin:
        raise UserError(f"{name} is {kind} of shape {shape}, but {end - begin} bytes are kept for it")
    return Tensor(dtype, tuple(shape), begin, end)


def _integers(values: Any) -> bool:
    return isinstance(values, list) and all(type(n) is int and 0 <= n < 1 << 63 for n in values)


def _check_filled(tensors: Mapping[str, Tensor], start: int, size: int) -> None:
    """Raises UserError unless the arrays fill the file from `start` to its end, without overlaps and gaps."""
    at = start
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if tensor.begin != at:
            raise UserError(f"{name} begins at byte {tensor.begin}, not {at}: arrays overlap, or there is a hole")
        at = tensor.end
    if at != size:
        raise UserError(f"its arrays end at byte {at}, and the file at {size}: the file is damaged; download it again")
