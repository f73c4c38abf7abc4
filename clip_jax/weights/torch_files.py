"""Files of torch: a pickle that names tensors, and the bytes they are made of.

`torch.save` writes a zip (from torch 1.6) or its legacy container of pickles and bytes. A TorchScript archive (OpenAI's
`.pt`) is such a zip whose classes are made up: they become plain holders of their attributes, and the code beside them
is not looked at. The pickle is read by `clip_jax.weights.pickles`, which runs nothing; here stands what the names in it
mean. Every other name is refused.
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
    "UntypedStorage": np.uint8,  # bytes: the tensor over it says what they are
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

# What training scripts keep beside the weights: settings, counters, paths. It is passed over: nothing of it is made.
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
MAX_DEPTH = 32  # of modules in modules, and of dicts in dicts before the weights
MAX_DIMS = 64  # what numpy has
MAX_SIZE = 1 << 62  # of anything that is counted in bytes
SUFFIX = "/data.pkl"

# The legacy container: four pickles, the first of which is this number, then the keys of the storages, then their bytes
# with the number of elements before each.
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


@dataclass(frozen=True, slots=True, eq=False)
class Storage:
    """A run of bytes under a key: `num_bytes` of them from `begin` on. `dtype`: of its elements."""

    key: str
    dtype: np.dtype
    begin: int
    num_bytes: int


@dataclass(frozen=True, slots=True, eq=False)
class Tensor:
    """A view of a storage, in elements of `dtype`; found to lie inside it."""

    storage: Storage
    dtype: np.dtype
    offset: int
    shape: tuple[int, ...]
    steps: tuple[int, ...]


Read = Callable[[str], bytes]  # all bytes of the storage of a key


def read_torch_zip(archive: Archive) -> dict[str, Entry]:
    """The tensors of what `torch.save` or `torch.jit.save` wrote.

    Raises:
        UserError, PickleError: it is another kind of zip, damaged, or holds anything but data.
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
    """The tensors of what torch wrote before 1.6, and writes today when it is told to.

    Raises:
        UserError, PickleError: it is another pickle, damaged, or holds anything but data.
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
    """A pickle without a name in it."""

    def refuse(*_: Any) -> Any:
        raise PickleError("it is a bare pickle that asks for a name, which can run code: save it as safetensors")

    return read_pickle(source, Names(refuse, refuse))


def _places(
    file: io.BufferedIOBase, keys: Any, storages: Mapping[str, Storage], size: int
) -> dict[str, tuple[int, int]]:
    """Where the bytes of each storage lie in a legacy file: (begin, number of bytes)."""
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
    """(dtype, key, number of elements, what follows) of a persistent id."""
    if type(pid) is not tuple or len(pid) not in (5, length) or pid[0] != "storage":
        raise PickleError(f"it refers to {brief(pid)}, which is not a storage")
    kind, key, count = pid[1], pid[2], pid[4]
    if type(kind) is not Kind or type(key) is not str or len(key) > MAX_NAME or not _counts((count,)):
        raise PickleError("it refers to a storage without a proper type, key or size")
    return kind.value, key, count, pid[5] if len(pid) == 6 else None


def _counts(values: Any) -> bool:
    return all(type(n) is int and 0 <= n < MAX_SIZE for n in values)


# names


def _names(refer: Callable[[Any], Any], beside: set[str]) -> Names:
    """What names in a pickle stand for. To `beside` go those that are passed over.

    Asking for a name that data do not need raises UserError.
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
    """`OrderedDict()`, or as Python 2 wrote it: of a list of pairs."""
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
    """`_rebuild_tensor_v3`: the storage is untyped, the type stands beside it."""
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
    """Raises PickleError when a tensor would read beyond the bytes there are, or repeats some of them."""
    elements = math.prod(tensor.shape)
    last = tensor.offset + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.steps, strict=True))
    fits = elements * tensor.dtype.itemsize <= num_bytes and (last + 1) * tensor.dtype.itemsize <= num_bytes
    if elements and not fits:
        raise PickleError(f"a tensor of shape {list(tensor.shape)} does not fit its storage of {num_bytes} bytes")


def _rebuild_with_attributes(function: Any, _: Any, arguments: Any, *__: Any) -> Any:
    """`_rebuild_from_type_v2`: a parameter that somebody gave attributes, which are no weights."""
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


# from what a pickle holds to arrays


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
        _check_inside(tensor, len(content))  # what is really there, whatever was claimed
        offset, *strides = (step * tensor.dtype.itemsize for step in (tensor.offset, *tensor.steps))
        return np.ndarray(tensor.shape, tensor.dtype, content, offset, strides)  # which looks at the buffer's end, too

    return load


def _model(data: Any) -> Any:
    """What of a file is the model: training checkpoints keep it beside the optimizer, the loss and their settings."""
    found = _choose(data, set()) if type(data) is dict else None
    return data if found is None else found


def _choose(data: Any, seen: set[int], depth: int = 0) -> Any:
    """The dict or module of weights in `data`; None where there is none.

    It is under a name that scripts give the model, or else the only one there is. Each is looked into once: they may
    hold each other, or themselves.
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
    own = sum(type(value) is Tensor for value in data.values())  # weights, or a loss beside them
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
    """The tensors of a dict, or of a module and the modules in it, by their path."""
    left = MAX_ARRAYS  # of attributes that are looked at: modules may share others, so that their paths have no end

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
