"""A reader of torch files without torch: a pickle that describes tensors, and the bytes of their storages.

`torch.save` writes a zip (since torch 1.6) or a legacy container of pickles and bytes. A TorchScript archive (OpenAI's
`.pt`) is such a zip with classes of its own: their instances become plain holders of attributes, and the archive's code
is ignored. `clip_jax.weights.pickles` reads the pickle and runs no code; this module lists the global names that a
pickle may use. Every other name is refused.
"""

import io
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from clip_jax.errors import UserError, printable
from clip_jax.weights.pickles import (
    MAX_PROGRAM,
    Bounded,
    Function,
    Kind,
    Names,
    Object,
    PickleError,
    brief,
    read_pickle,
)
from clip_jax.weights.rules import Entry
from clip_jax.weights.untrusted import MAX_ARRAYS, MAX_NAME
from clip_jax.weights.zips import Archive

STORAGES: dict[str, Any] = {
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
    "ComplexFloatStorage": np.complex64,
    "ComplexDoubleStorage": np.complex128,
    "UntypedStorage": np.uint8,  # bytes: the tensor has the dtype
}
DTYPES: dict[str, Any] = {
    **{name: getattr(np, name) for name in ("float64", "float32", "float16", "complex64", "complex128")},
    **{name: getattr(np, name) for name in ("int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8")},
    "bool": np.bool_,
    "bfloat16": ml_dtypes.bfloat16,
    "float8_e4m3fn": ml_dtypes.float8_e4m3fn,
    "float8_e5m2": ml_dtypes.float8_e5m2,
    "float8_e4m3fnuz": ml_dtypes.float8_e4m3fnuz,
    "float8_e5m2fnuz": ml_dtypes.float8_e5m2fnuz,
    "float8_e8m0fnu": ml_dtypes.float8_e8m0fnu,
}

# Classes of what training scripts save beside the weights (settings, counters, paths): accepted, and replaced by empty
# objects.
BESIDE = {  # module -> names in it
    "_codecs": "encode",
    "argparse": "Namespace",
    "builtins": "list dict tuple set frozenset int float bool str bytes bytearray complex slice object",
    "__builtin__": "list dict tuple set frozenset int long float bool str unicode bytearray complex slice object",
    "collections": "Counter deque",
    "datetime": "date datetime time timedelta timezone",
    "easydict": "EasyDict",
    "lightning.fabric.utilities.parsing": "AttributeDict",
    "lightning.pytorch.utilities.parsing": "AttributeDict",
    "lightning_fabric.utilities.parsing": "AttributeDict",
    "numpy": "dtype ndarray",
    "numpy._core.multiarray": "scalar _reconstruct",
    "numpy.core.multiarray": "scalar _reconstruct",
    "omegaconf.base": "ContainerMetadata Metadata",
    "omegaconf.dictconfig": "DictConfig",
    "omegaconf.listconfig": "ListConfig",
    "omegaconf.nodes": "AnyNode StringNode IntegerNode FloatNode BooleanNode",
    "pathlib": "Path PosixPath WindowsPath PurePosixPath PureWindowsPath",
    "pathlib._local": "PosixPath WindowsPath PurePosixPath PureWindowsPath",
    "pytorch_lightning.utilities.parsing": "AttributeDict",
    "torch": "device Generator",
    "torch.serialization": "_get_layout",
    "types": "SimpleNamespace",
    "typing": "Any Dict List Optional Tuple Union",
    "uuid": "UUID",
    "yacs.config": "CfgNode",
}

# The keys under which training scripts keep the model, the usual one first.
MODELS = ("state_dict", "model_state_dict", "model", "module", "net", "network", "weights", "params", "model_state")
MAX_DEPTH = 32  # of nested modules, and of nested dicts around the weights
MAX_DIMS = 64  # numpy's limit
MAX_SIZE = 1 << 62  # limit of sizes, offsets and strides
SUFFIX = "/data.pkl"

# The legacy container: pickles of this magic number, the protocol version, the system's properties, the data and the
# keys of the storages; then the bytes of each storage, after its number of elements.
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


@dataclass(frozen=True, slots=True, eq=False)
class Storage:
    """Bytes of a file member or legacy storage: `num_bytes` from `begin` on, with elements of `dtype`."""

    key: str
    dtype: np.dtype
    begin: int
    num_bytes: int


@dataclass(frozen=True, slots=True, eq=False)
class Tensor:
    """A strided view of a storage. `offset` and `steps` (strides) count elements; it was checked to lie inside."""

    storage: Storage
    dtype: np.dtype
    offset: int
    shape: tuple[int, ...]
    steps: tuple[int, ...]


Read = Callable[[str], bytes]  # key of a storage -> all its bytes


def read_torch_zip(archive: Archive) -> dict[str, Entry]:
    """Opens a zip of `torch.save` or `torch.jit.save`; the tensors are read lazily.

    Raises:
        UserError: the zip is of another kind or big-endian, holds no weights, or asks for code.
        PickleError: the pickle is damaged.
    """
    roots = [name.removesuffix(SUFFIX) for name in archive.names if name.endswith(SUFFIX)]
    if len(roots) != 1 or "/" in roots[0]:
        raise UserError("it is a zip, but neither of numpy arrays nor written by torch.save")
    root = roots[0]
    if f"{root}/byteorder" in archive and archive.start(f"{root}/byteorder", 16) != b"little":
        raise UserError("it was written on a big-endian machine: save it again as safetensors")
    if archive.size(root + SUFFIX) > MAX_PROGRAM:
        raise UserError(f"its pickle has more than {MAX_PROGRAM} bytes: save the weights alone, as safetensors")

    def refer(pid: Any) -> Storage:
        kind, key, _, _ = _reference(pid, 5)
        name = f"{root}/data/{key}"
        if name not in archive:
            raise PickleError(f"there is no storage {brief(key)}")
        return Storage(name, kind, 0, archive.size(name))

    beside: set[str] = set()
    data = read_pickle(io.BytesIO(archive.read(root + SUFFIX)), _names(refer, beside))
    return _entries(data, beside, archive.recent)


def read_legacy(path: Path) -> dict[str, Entry]:
    """Opens a legacy file of torch (before 1.6, or `_use_new_zipfile_serialization=False`), tensors read lazily.

    Raises:
        UserError: the file is a bare pickle or big-endian, holds no weights, or asks for code.
        PickleError: the pickle is damaged.
    """
    storages: dict[str, Storage] = {}
    beside: set[str] = set()

    def refer(pid: Any) -> Storage:
        dtype, key, count, view = _reference(pid, 6)
        whole = Storage(key, dtype, 0, count * dtype.itemsize)
        if storages.setdefault(key, whole).num_bytes != whole.num_bytes:
            raise PickleError(f"the storage {brief(key)} has two sizes")
        if view is None:
            return whole
        if type(view) is not tuple or len(view) != 3 or not _counts(view[1:]) or view[1] + view[2] > count:
            raise PickleError(f"a view of the storage {brief(key)} does not lie in it")
        return Storage(key, dtype, view[1] * dtype.itemsize, view[2] * dtype.itemsize)

    size = path.stat().st_size
    with open(path, "rb") as file:
        source = Bounded(file)
        if _plain(source) != MAGIC or _plain(source) != PROTOCOL:
            raise UserError(
                "it is a bare pickle, and not torch's, which can run code: save it again as safetensors in a place you "
                "trust it"
            )
        system = _plain(source)
        if type(system) is dict and system.get("little_endian") is False:
            raise UserError("it was written on a big-endian machine: save it again as safetensors")
        data = read_pickle(source, _names(refer, beside))
        places = _places(file, _plain(source), storages, size)

    def read(key: str) -> bytes:
        begin, count = places[key]
        with open(path, "rb") as file:
            file.seek(begin)
            return file.read(count)

    return _entries(data, beside, read)


def _plain(source: Bounded) -> Any:
    """Reads a pickle that must not use global names or persistent ids."""

    def refuse(*_: Any) -> Any:
        raise PickleError("it is a bare pickle that asks for a name, which can run code: save it as safetensors")

    return read_pickle(source, Names(refuse, refuse))


def _places(
    file: io.BufferedIOBase, keys: Any, storages: Mapping[str, Storage], size: int
) -> dict[str, tuple[int, int]]:
    """{key of a storage: (offset, number of bytes)} in a legacy file of `size` bytes."""
    if type(keys) is not list or not all(type(key) is str for key in keys) or {*keys} != storages.keys():
        raise PickleError("the storages it lists are not those of its tensors")
    if len(keys) != len(storages):
        raise PickleError("it lists a storage twice")
    places, at = {}, file.tell()
    for key in keys:
        file.seek(at)
        count = int.from_bytes(file.read(8), "little") * storages[key].dtype.itemsize
        if count != storages[key].num_bytes or at + 8 + count > size:
            raise PickleError(f"the storage {brief(key)} is cut off or damaged: download the file again")
        places[key] = (at + 8, count)
        at += 8 + count
    return places


def _reference(pid: Any, length: int) -> tuple[np.dtype, str, int, Any]:
    """(dtype, key, number of elements, view or None) of a persistent id, which has at most `length` fields."""
    if type(pid) is not tuple or len(pid) not in (5, length) or pid[0] != "storage":
        raise PickleError(f"it refers to {brief(pid)}, which is not a storage")
    kind, key, count = pid[1], pid[2], pid[4]
    if type(kind) is not Kind or type(key) is not str or len(key) > MAX_NAME or not _counts((count,)):
        raise PickleError("it refers to a storage without a proper type, key or size")
    return kind.value, key, count, pid[5] if len(pid) == 6 else None


def _counts(values: Any) -> bool:
    return all(type(n) is int and 0 <= n < MAX_SIZE for n in values)


# Global names


def _names(refer: Callable[[Any], Any], beside: set[str]) -> Names:
    """The resolver of global names in a pickle; a name that no weights file needs raises UserError.

    Args:
        refer: resolves persistent ids.
        beside: gets the names that are replaced by empty objects (`BESIDE`).
    """

    def find(module: str, name: str) -> Any:
        if (known := FUNCTIONS.get((module, name))) is not None:
            return known
        if module == "__torch__" or module.startswith("__torch__."):
            return _TORCHSCRIPT
        if name in BESIDE.get(module, "").split():
            beside.add(f"{module}.{name}")
            return _BESIDE
        raise UserError(
            f"asks for {printable(module, 200)}.{printable(name, 200)}, which is not part of a tensor: a pickle can "
            "run code, and this one is not read; save the weights alone, as safetensors"
        )

    return Names(find, refer)


def _ordered_dict(pairs: Any = ()) -> dict:
    """`OrderedDict()`, or `OrderedDict(pairs)` as Python 2 pickles it."""
    if type(pairs) not in (list, tuple) or not all(
        type(pair) in (list, tuple) and len(pair) == 2 and type(pair[0]) is str for pair in pairs
    ):
        raise PickleError("an OrderedDict is made of something else than names and values")
    return dict(pairs)


def _sequence(values: Any = ()) -> Any:
    if type(values) not in (list, tuple):
        raise PickleError(f"a list is made of {brief(values)}")
    return values


def _rebuild_tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
    if type(storage) is not Storage:
        raise PickleError(f"a tensor is made of {brief(storage)}")
    return _tensor(storage, storage.dtype, offset, size, stride)


def _rebuild_typed(storage: Any, offset: Any, size: Any, stride: Any, _: Any, __: Any, dtype: Any, *___: Any) -> Tensor:
    """Torch's `_rebuild_tensor_v3`: the storage is untyped, and the dtype is an argument."""
    if type(storage) is not Storage or type(dtype) is not Kind:
        raise PickleError(f"a tensor is made of {brief(storage)} and {brief(dtype)}")
    return _tensor(storage, dtype.value, offset, size, stride)


def _tensor(storage: Storage, dtype: np.dtype, offset: Any, size: Any, stride: Any) -> Tensor:
    sides = [value for value in (size, stride) if type(value) in (list, tuple) and len(value) <= MAX_DIMS]
    if len(sides) != 2 or len(size) != len(stride) or not _counts((offset, *size, *stride)):
        raise PickleError("a tensor has no proper shape")
    tensor = Tensor(storage, dtype, offset, tuple(size), tuple(stride))
    _check_inside(tensor, storage.num_bytes)
    return tensor


def _check_inside(tensor: Tensor, num_bytes: int) -> None:
    """Raises PickleError for a tensor that reads beyond its storage, or has more elements than its storage."""
    elements = math.prod(tensor.shape)
    last = tensor.offset + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.steps, strict=True))
    fits = elements * tensor.dtype.itemsize <= num_bytes and (last + 1) * tensor.dtype.itemsize <= num_bytes
    if elements and not fits:
        raise PickleError(f"a tensor of shape {list(tensor.shape)} does not fit its storage of {num_bytes} bytes")


def _rebuild_with_attributes(function: Any, _: Any, arguments: Any, *__: Any) -> Any:
    """Torch's `_rebuild_from_type_v2`: a tensor of a subclass or with attributes; both are dropped."""
    if type(function) is not Function or type(arguments) is not tuple:
        raise PickleError(f"a tensor is made of {brief(function)}")
    if function.call is _rebuild_with_attributes:
        raise PickleError("a tensor is made in a circle")
    return function.call(*arguments)


def _first(value: Any, *_: Any) -> Any:
    return value


_TORCHSCRIPT = Function(lambda *_: Object(keeps=True))
_BESIDE = Function(lambda *_, **__: Object(keeps=False))
FUNCTIONS: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): Function(_ordered_dict),
    ("collections", "defaultdict"): Function(lambda *_: {}),
    ("torch", "Size"): Function(_sequence),
    ("torch.nn.parameter", "Parameter"): Function(_first),
    ("torch.nn.parameter", "Buffer"): Function(_first),
    ("torch", "Tensor"): Function(_first),
    ("torch._utils", "_rebuild_tensor"): Function(_rebuild_tensor),
    ("torch._utils", "_rebuild_tensor_v2"): Function(_rebuild_tensor),
    ("torch._utils", "_rebuild_tensor_v3"): Function(_rebuild_typed),
    ("torch._utils", "_rebuild_parameter"): Function(_first),
    ("torch._utils", "_rebuild_parameter_with_state"): Function(_first),
    ("torch._utils", "_rebuild_sparse_tensor"): _BESIDE,
    ("torch._tensor", "_rebuild_from_type_v2"): Function(_rebuild_with_attributes),
    ("torch.jit._pickle", "restore_type_tag"): Function(_first),
    **{("torch.jit._pickle", f"build_{kind}list"): Function(_sequence) for kind in ("int", "bool", "double", "tensor")},
    **{
        (module, name): Kind(np.dtype(kind)) for module in ("torch", "torch.storage") for name, kind in STORAGES.items()
    },
    **{("torch", name): Kind(np.dtype(kind)) for name, kind in DTYPES.items()},
}


# From the value of a pickle to arrays


def _entries(data: Any, beside: set[str], read: Read) -> dict[str, Entry]:
    found = dict(_tensors(_model(data)))
    if not found:
        others = f" beside {', '.join(sorted(beside))}" if beside else ""
        raise UserError(f"it holds no weights: there is no tensor in its {type(data).__name__}{others}")
    return {name: Entry(tensor.shape, _reader(tensor, read)) for name, tensor in found.items()}


def _reader(tensor: Tensor, read: Read) -> Callable[[], np.ndarray]:
    def load() -> np.ndarray:
        if 0 in tensor.shape:
            return np.zeros(tensor.shape, tensor.dtype)
        storage = tensor.storage
        content = memoryview(read(storage.key))[storage.begin : storage.begin + storage.num_bytes]
        _check_inside(tensor, len(content))  # again: the bytes that were read may be fewer than the pickle claims
        offset, *strides = (step * tensor.dtype.itemsize for step in (tensor.offset, *tensor.steps))
        return np.ndarray(tensor.shape, tensor.dtype, content, offset, strides)  # numpy checks the bounds, too

    return load


def _model(data: Any) -> Any:
    """The model in the value of a pickle: training checkpoints also hold the optimizer, the loss and settings."""
    found = _choose(data, set()) if type(data) is dict else None
    return data if found is None else found


def _choose(data: Any, seen: set[int], depth: int = 0) -> Any:
    """The dict or module of weights in `data`; None where there is none.

    A value under one of the keys `MODELS` comes first; otherwise there must be only one. `seen` holds the ids of
    visited dicts and modules, as they may contain each other or themselves.

    Raises:
        UserError: there are several.
    """
    if id(data) in seen or depth > MAX_DEPTH:
        return None
    seen.add(id(data))
    if type(data) is Object:
        return data if next(_tensors(data), None) else None
    inner = {
        name: value
        for name, value in data.items()
        if type(name) is str and (type(value) is Object or (type(value) is dict and "param_groups" not in value))
    }
    for name in MODELS:
        if name in inner and (found := _choose(inner[name], seen, depth + 1)) is not None:
            return found
    own = sum(type(value) is Tensor for value in data.values())  # direct tensors: weights or a loss
    chosen = {name: _choose(value, seen, depth + 1) for name, value in inner.items()}
    chosen = {
        name: found for name, found in chosen.items() if found is not None and sum(1 for _ in _tensors(found)) > own
    }
    if len(chosen) > 1 and not own:
        raise UserError(
            f"it holds {len(chosen)} models ({', '.join(map(brief, [*chosen][:4]))}): save one of them alone"
        )
    if len(chosen) == 1:
        return next(iter(chosen.values()))
    return data if own else None


def _count(data: Any) -> int:
    return sum(1 for _ in _tensors(data))


def _tensors(data: Any) -> Iterator[tuple[str, Tensor]]:
    """(path, tensor) of the tensors in a dict, or in a module and its submodules."""
    left = MAX_ARRAYS  # attributes to visit: shared submodules can make the number of paths exponential

    def walk(attributes: Mapping[Any, Any], prefix: str, depth: int) -> Iterator[tuple[str, Tensor]]:
        nonlocal left
        left -= len(attributes)
        if left < 0 or depth > MAX_DEPTH:
            raise PickleError("it holds more arrays, or deeper ones, than any model: it is not a weights file")
        for name, value in attributes.items():
            if type(name) is not str:
                continue
            if type(value) is Tensor:
                yield prefix + name, value
            elif type(value) is Object:  # only modules nest: a dict inside a state dict is not weights
                if len(prefix) + len(name) > MAX_NAME:
                    raise PickleError(f"it holds a name of {len(prefix) + len(name)} characters")
                yield from walk(value.attributes, f"{prefix}{name}.", depth + 1)

    if type(data) in (dict, Object):
        yield from walk(data.attributes if type(data) is Object else data, "", 0)
