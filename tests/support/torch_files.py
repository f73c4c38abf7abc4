"""Writes torch's file formats without torch: a zip around a pickle that is assembled opcode by opcode."""

import pickle
import struct
import zipfile
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

STORAGES = {
    np.dtype(np.float32): "FloatStorage",
    np.dtype(np.float16): "HalfStorage",
    np.dtype(ml_dtypes.bfloat16): "BFloat16Storage",
    np.dtype(np.int64): "LongStorage",
}


class Global(NamedTuple):
    """A global (class or function) that a pickle refers to."""

    module: str
    name: str


class Call(NamedTuple):
    """A function call in a pickle (opcode REDUCE)."""

    function: Global
    args: tuple


class Module(NamedTuple):
    """An object of a TorchScript archive."""

    kind: str
    attributes: dict[str, Any]


class View(NamedTuple):
    """A tensor: a view of a storage. Offset, size and stride may be wrong, to test the reader."""

    array: np.ndarray
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


def write_torch(path, data, *, extra=(), storages=None, root="archive", compression=zipfile.ZIP_STORED):
    """Writes `data` (dicts, numpy arrays, numbers, text, and the classes above) as torch.save does.

    Args:
        path: the file.
        data: what it contains.
        extra: more members of the archive, (name, bytes).
        storages: bytes to write in place of those of the arrays.
        root: top-level folder in the archive.
        compression: of the zip.
    """
    records: list[np.ndarray] = []
    program = b"\x80\x02" + _ops(data, records) + b"."
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr(f"{root}/data.pkl", program)
        archive.writestr(f"{root}/byteorder", "little")
        for i, record in enumerate([r.tobytes() for r in records] if storages is None else storages):
            archive.writestr(f"{root}/data/{i}", record)
        for name, content in extra:
            archive.writestr(name, content)


def write_legacy(path, data, *, views=None):
    """Writes `data` in the legacy format of torch before 1.6: several pickles, then the bytes of the storages.

    Args:
        path: the file.
        data: what it contains.
        views: key of a storage -> (offset, size), for storages that are views of others.
    """
    records: list[np.ndarray] = []
    program = b"\x80\x02" + _ops(data, records, views or {}) + b"."
    keys = [str(i) for i in range(len(records))]
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    with open(path, "wb") as file:
        for value in (0x1950A86A20F9469CFC6C, 1001, system):
            file.write(pickle.dumps(value, protocol=2))
        file.write(program)
        file.write(pickle.dumps(keys, protocol=2))
        for record in records:
            file.write(struct.pack("<q", record.size) + record.tobytes())


def write_torchscript(path, module):
    """Writes a tree of `Module`s as torch.jit.save does, with code beside it that raises if the reader runs it."""
    code = "raise SystemExit('this code was run')\n"
    write_torch(
        path, module, extra=[("archive/code/__torch__/clip.py", code), ("archive/constants.pkl", b"\x80\x02).")]
    )


def _text(text: str) -> bytes:
    data = text.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def _ops(value: Any, records: list[np.ndarray], views: dict[str, tuple[int, int]] | None = None) -> bytes:
    """The pickle opcodes of a value; its storages are appended to `records`.

    `views` is None for the zip format, whose storage references have no field for it.
    """
    match value:
        case Global(module, name):
            return b"c" + f"{module}\n{name}\n".encode()
        case Call(function, args):
            return _ops(function, records, views) + _ops(tuple(args), records, views) + b"R"
        case Module(kind, attributes):
            return _ops(Global("__torch__", kind), records, views) + b")\x81" + _ops(attributes, records, views) + b"b"
        case View(array, offset, size, stride):
            storage = Global("torch", STORAGES[array.dtype])
            key = str(len(records))
            records.append(array)
            view = () if views is None else ((f"view {key}", *views[key]) if key in views else None,)
            reference = _ops(("storage", storage, key, "cpu", array.size, *view), records, views) + b"Q"
            hooks = Call(Global("collections", "OrderedDict"), ())
            rest = b"".join(_ops(v, records, views) for v in (offset, size, stride, False, hooks))
            return _ops(Global("torch._utils", "_rebuild_tensor_v2"), records, views) + b"(" + reference + rest + b"tR"
        case np.ndarray():
            steps = tuple(step // value.itemsize for step in np.empty_like(value, order="C").strides)
            return _ops(View(np.ascontiguousarray(value).ravel(), 0, value.shape, steps), records, views)
        case dict():
            return b"}(" + b"".join(_text(k) + _ops(v, records, views) for k, v in value.items()) + b"u"
        case tuple():
            return b"(" + b"".join(_ops(v, records, views) for v in value) + b"t"
        case str():
            return _text(value)
    return pickle.dumps(value, protocol=2)[2:-1]  # a number
