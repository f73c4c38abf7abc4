"""Weights files as a `Checkpoint`: names, shapes, and arrays that are read when asked for.

Nothing in a file is ever run, and nothing is unpacked to disk. Safetensors and npz hold numbers only. A torch file is a
zip around a pickle, and a pickle is a program: ours knows the handful of functions that rebuild a tensor and refuses
every other name. A TorchScript archive (OpenAI's `.pt`) is such a zip whose classes are made up: they become plain
holders of their attributes, and the code that lies beside them is not looked at.
"""

import functools
import json
import math
import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from clip_jax.errors import UserError
from clip_jax.weights.native import LFS_HEADER
from clip_jax.weights.rules import Checkpoint, Entry

INDEX_SUFFIX = ".index.json"
MAX_INFLATION = 20  # weights hardly compress: what claims to grow more than this (and is big) is a bomb
BIG = 1 << 26

DTYPES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}


def read_checkpoint(path: str | os.PathLike) -> Checkpoint:
    """The arrays of a weights file, whose kind is told from its content: safetensors, npz, a torch zip (state dict or
    TorchScript), or the index of a sharded checkpoint.

    Raises: UserError when it is absent, damaged, a Git LFS pointer, or holds anything but data.
    """
    path = Path(path)
    if path.name.endswith(INDEX_SUFFIX):
        return _read_shards(path)
    try:
        with open(path, "rb") as file:
            start = file.read(len(LFS_HEADER))
    except OSError as error:
        raise UserError(f"cannot read weights from {path}: {one_line(error)}") from error
    if start == LFS_HEADER:
        raise UserError(f"{path} is a Git LFS pointer, not the weights: run `git lfs pull`")
    if start.startswith(b"PK\x03\x04"):
        return _read_zip(path)
    if start.startswith(b"\x80") and start[8:9] != b"{":  # which is where the header of safetensors begins
        raise UserError(
            f"{path} is a bare pickle (torch before 1.6), which can run code: save it again as safetensors "
            "in a place you trust it"
        )
    return _read_safetensors(path)


def one_line(error: object) -> str:
    """An error's text on one line."""
    return " ".join(str(error).split()) or type(error).__name__


def _read_safetensors(path: Path) -> dict[str, Entry]:
    try:
        file = safe_open(path, "np")
        return {
            name: Entry(tuple(file.get_slice(name).get_shape()), functools.partial(_tensor, path, file, name))
            for name in file.keys()  # noqa: SIM118
        }
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read weights from {path}: {one_line(error)}") from error


def _tensor(path: Path, file: Any, name: str) -> np.ndarray:
    try:
        return file.get_tensor(name)
    except (SafetensorError, TypeError, AttributeError, KeyError) as error:  # the last three: a dtype numpy has not
        raise UserError(f"cannot read {name} from {path}: {one_line(error)}") from error


def _read_shards(path: Path) -> dict[str, Entry]:
    data = read_json(path)
    where = data.get("weight_map")
    if not isinstance(where, dict) or not all(isinstance(name, str) for name in where.values()):
        raise UserError(f"{path} is not the index of a sharded checkpoint: it has no weight_map of names")
    shards: dict[str, Checkpoint] = {}
    for shard in sorted(set(where.values())):
        if shard in ("", ".", "..") or "/" in shard or "\\" in shard or shard.endswith(INDEX_SUFFIX):
            raise UserError(f"{path} names the shard {shard!r}: shards must lie beside their index")
        shards[shard] = read_checkpoint(path.parent / shard)
    absent = [name for name, shard in where.items() if name not in shards[shard]]
    if absent:
        raise UserError(f"{path}: {len(absent)} arrays are not in the shard it names, the first is {absent[0]}")
    return {name: shards[shard][name] for name, shard in where.items()}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises UserError when the file is absent or holds something else."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {one_line(error)}") from error
    if not isinstance(data, dict):
        raise UserError(f"{path} is not a JSON object: it is not a CLIP config, nor an index")
    return data


def _read_zip(path: Path) -> dict[str, Entry]:
    try:
        archive = zipfile.ZipFile(path)
        _check_members(path, archive)
        names = archive.namelist()
        if names and all(name.endswith(".npy") for name in names):
            return {name.removesuffix(".npy"): _npy(path, archive, name) for name in names}
        return _read_torch(path, archive)
    except (OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        raise UserError(f"cannot read weights from {path}: {one_line(error)}") from error


def _check_members(path: Path, archive: zipfile.ZipFile) -> None:
    size, infos = path.stat().st_size, archive.infolist()
    if len({info.filename for info in infos}) != len(infos):
        raise UserError(f"{path} holds the same name twice: it is not what a program that saves weights writes")
    for info in infos:
        if info.filename.startswith("/") or "\\" in info.filename or ".." in PurePosixPath(info.filename).parts:
            raise UserError(f"{path} holds the file {info.filename!r}, which points outside: it is not a weights file")
    total = sum(info.file_size for info in infos)
    if sum(info.compress_size for info in infos) > size or (total > BIG and total > MAX_INFLATION * size):
        raise UserError(f"{path} of {size} bytes claims to hold {total}: it is not a weights file")


def _npy(path: Path, archive: zipfile.ZipFile, name: str) -> Entry:
    try:
        with archive.open(name) as file:
            version = np.lib.format.read_magic(file)
            header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = header(file)
            offset = file.tell()
    except ValueError as error:
        raise UserError(f"{path}: {name} is not a numpy array: {one_line(error)}") from error
    if dtype.hasobject:
        raise UserError(f"{path}: {name} holds Python objects, which are read by running code: only numbers are read")
    if math.prod(shape) * dtype.itemsize != archive.getinfo(name).file_size - offset:
        raise UserError(f"{path}: {name} is {list(shape)}, but there are not as many numbers in it")
    if dtype == np.dtype("V2"):  # how numpy writes a bfloat16, of which it knows no name
        dtype = np.dtype(ml_dtypes.bfloat16)

    def read() -> np.ndarray:
        values = np.frombuffer(_member(path, archive, name), dtype, offset=offset)
        return values.reshape(shape, order="F" if fortran else "C")

    return Entry(tuple(shape), read)


def _member(path: Path, archive: zipfile.ZipFile, name: str) -> bytes:
    try:
        return archive.read(name)
    except (OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        raise UserError(f"cannot read {name} from {path}: {one_line(error)}") from error


# torch


class _Module:
    """An object of a TorchScript archive: its attributes, nothing else."""

    def __setstate__(self, state: Any) -> None:
        self.attributes = state if isinstance(state, dict) else {}


class _Name(str):
    """The name of a torch storage or dtype."""


def _read_torch(path: Path, archive: zipfile.ZipFile) -> dict[str, Entry]:
    roots = [name.removesuffix("/data.pkl") for name in archive.namelist() if name.endswith("/data.pkl")]
    if len(roots) != 1 or "/" in roots[0]:
        raise UserError(f"{path} is a zip, but neither of numpy arrays nor written by torch.save")
    root, members = roots[0], set(archive.namelist())
    if f"{root}/byteorder" in members and _member(path, archive, f"{root}/byteorder") != b"little":
        raise UserError(f"{path} was written on a big-endian machine: save it again as safetensors")

    @functools.lru_cache(maxsize=1)  # tensors that share a storage follow each other
    def record(name: str) -> bytes:
        return _member(path, archive, name)

    def storage(kind: Any, key: Any) -> tuple[np.dtype, int, Callable[[], bytes]]:
        name = f"{root}/data/{key}"
        if kind not in DTYPES or name not in members:
            raise pickle.UnpicklingError(f"there is no storage {key!r}")
        return np.dtype(DTYPES[kind]), archive.getinfo(name).file_size, functools.partial(record, name)

    class Reader(pickle.Unpickler):
        def persistent_load(self, pid: Any) -> Any:
            match pid:
                case ("storage", kind, str(key), str(), int()):
                    return storage(kind, key)
            raise pickle.UnpicklingError(f"unknown reference {pid!r}")

        def find_class(self, module: str, name: str) -> Any:
            return _known(module, name)

    try:
        with archive.open(f"{root}/data.pkl") as file:
            data = Reader(file, encoding="utf-8").load()  # type: ignore[arg-type]
    except UserError as error:
        raise UserError(f"{path} {error}") from error
    except Exception as error:  # a pickle can be wrong in every way; none of them gets further than this
        raise UserError(f"cannot read weights from {path}: {one_line(error)}") from error
    found = dict(_tensors(_state_dict(data)))
    if not found:
        raise UserError(f"{path} holds no weights: {type(data).__name__} without a tensor")
    return found


def _known(module: str, name: str) -> Any:
    """What a name in a pickle may stand for. Raises UserError for any other.

    Functions are handed out as fresh ones, since a pickle may also set the attributes of what it names.
    """
    if (module, name) == ("collections", "OrderedDict"):
        return OrderedDict
    if module == "torch._utils" and name in ("_rebuild_tensor_v2", "_rebuild_tensor"):
        return lambda *args: _rebuild_tensor(*args)
    if (module, name) in (("torch._utils", "_rebuild_parameter"), ("torch.jit._pickle", "restore_type_tag")):
        return lambda value, *_: value
    if module in ("torch", "torch.storage") and name in DTYPES:
        return _Name(name)
    if (module, name) == ("torch", "Size"):
        return tuple
    if module == "torch.jit._pickle" and name in (
        "build_intlist",
        "build_boollist",
        "build_doublelist",
        "build_tensorlist",
    ):
        return list
    if module.startswith("__torch__.") or module == "__torch__":
        return _Module
    if module == "torch" and name in ("float64", "float32", "float16", "bfloat16", "int64", "int32", "uint8", "bool"):
        return _Name(name)
    raise UserError(
        f"asks for {one_line(module)}.{one_line(name)}, which is not part of a tensor: a pickle can run code, and this "
        "one is not read; save the weights alone, as safetensors"
    )


def _rebuild_tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Entry:
    dtype, num_bytes, read = storage
    shape, steps = tuple(size), tuple(stride)
    numbers = (offset, *shape, *steps)
    if len(shape) != len(steps) or any(isinstance(n, bool) or not isinstance(n, int) or n < 0 for n in numbers):
        raise pickle.UnpicklingError("a tensor has no proper shape")
    count = num_bytes // dtype.itemsize
    last = offset + sum((n - 1) * step for n, step in zip(shape, steps, strict=True))
    if math.prod(shape) > count or (math.prod(shape) and last >= count):
        raise pickle.UnpicklingError(f"a tensor of shape {list(shape)} does not fit its storage of {count} numbers")

    def load() -> np.ndarray:
        values = np.frombuffer(read(), dtype, count=count)[offset:]
        strides = [step * dtype.itemsize for step in steps]
        return np.lib.stride_tricks.as_strided(values, shape, strides, writeable=False)

    return Entry(shape, load)


def _state_dict(data: Any) -> Any:
    """What of a file is the model: training checkpoints keep it beside the optimiser."""
    for name in ("state_dict", "model", "module"):
        inner = data.get(name) if isinstance(data, Mapping) else None
        if isinstance(inner, Mapping | _Module):
            return inner
    return data


def _tensors(data: Any, prefix: str = "", depth: int = 0) -> list[tuple[str, Entry]]:
    attributes = data.attributes if isinstance(data, _Module) else data
    if not isinstance(attributes, Mapping) or depth > 16:
        return []
    found: list[tuple[str, Entry]] = []
    for name, value in attributes.items():
        if isinstance(value, Entry):
            found.append((f"{prefix}{name}", value))
        elif isinstance(value, _Module):  # only modules nest: a dict inside a state dict is not weights
            found.extend(_tensors(value, f"{prefix}{name}.", depth + 1))
    return found
