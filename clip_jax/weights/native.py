"""Our own weights format: a safetensors file with parameters named by path, "visual/transformer/resblocks_0/attn/…".

`unclip_jax` uses it too. A file that does not fit is refused as a whole, with one error that names all faults.
"""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from clip_jax.errors import UserError, reading
from clip_jax.weights.digest import check_digest
from clip_jax.weights.kinds import SAFETENSORS, kind_of
from clip_jax.weights.safetensors_files import SafetensorsFile

FLOATS = (  # floating-point dtypes that numpy does not know as such; float8 is read, never written
    *(ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2, ml_dtypes.float8_e4m3fnuz),
    *(ml_dtypes.float8_e5m2fnuz, ml_dtypes.float8_e8m0fnu),
)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": leaf}} -> {"a/b": leaf}, in sorted order."""
    flat: dict[str, Any] = {}
    for name in sorted(tree):
        value, path = tree[name], f"{prefix}{name}"
        flat.update(flatten(value, f"{path}/") if isinstance(value, Mapping) else {path: value})
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """{"a/b": leaf} -> {"a": {"b": leaf}}.

    Raises:
        UserError: a path is a leaf and the parent of another one.
    """
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise UserError(f"{path} lies inside another array: the file is damaged")
        if name in node:
            raise UserError(f"{path} is an array and holds others at once: the file is damaged")
        node[name] = value
    return tree


def save_params(
    path: str | os.PathLike,
    params: Mapping[str, Any],
    *,
    dtype: Any = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes a nested dict of arrays to a safetensors file, atomically.

    Args:
        path: the file.
        params: nested dict of arrays.
        dtype: of stored floating-point arrays (float16 or bfloat16 halve the file); None keeps that of each array.
        metadata: texts for the header of the file.

    Raises:
        UserError: an array is not finite in the stored dtype (float16 ends at 65,504).
    """
    flat = {}
    for name, value in flatten(params).items():
        array = np.asarray(value)
        if dtype is not None and is_float(array.dtype):
            with np.errstate(over="ignore"):  # reported below, by name
                array = array.astype(dtype)
        flat[name] = np.asarray(array, order="C")  # safetensors writes other memory orders wrongly, without an error
    if faults := _not_finite(flat):
        raise UserError(f"not saving {path}: {faults}")
    with atomic_path(path) as temporary:
        save_file(flat, temporary, metadata=dict(metadata) if metadata else None)


def load_params(
    path: str | os.PathLike,
    expect: Mapping[str, Any] | None = None,
    *,
    dtype: Any = np.float32,
    digest: str | None = None,
) -> dict[str, Any]:
    """Reads what `save_params` wrote, as a nested dict of numpy arrays.

    Args:
        path: the file.
        expect: nested dict of anything with a `shape` and perhaps a `dtype`, such as `jax.eval_shape` returns; None
            accepts any arrays.
        dtype: of the returned floating-point arrays, whatever their dtype in the file.
        digest: the `file_digest` that the file must have; None accepts any.

    Raises:
        UserError: the file is absent, damaged, a Git LFS pointer, or has another digest; or its arrays do not fit: one
            error names all that are missing, not expected, of another shape or type, or not finite.
    """
    flat = read_safetensors(path)
    check_digest(path, digest)
    faults = []
    if expect is not None:
        shapes = {name: tuple(leaf.shape) for name, leaf in flatten(expect).items()}
        missing, unused = sorted(shapes.keys() - flat.keys()), sorted(flat.keys() - shapes.keys())
        wrong = [
            f"{n} is {list(flat[n].shape)}, not {list(shapes[n])}"
            for n in sorted(shapes.keys() & flat.keys())
            if flat[n].shape != shapes[n]
        ]
        faults += [f"{what}: {_some(names)}" for what, names in (("missing", missing), ("unused", unused)) if names]
        faults += [f"wrong shape: {_some(wrong)}"] if wrong else []
        faults += _wrong_types(flat, flatten(expect))
    if not_finite := _not_finite(flat):
        faults.append(not_finite)
    if faults:
        raise UserError(f"{path} does not fit: {'; '.join(faults)}")
    with reading(Path(path)):
        return unflatten({n: a.astype(dtype) if is_float(a.dtype) else a for n, a in flat.items()})


def read_safetensors(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """All arrays of a safetensors file.

    Raises:
        UserError: the file is absent, damaged, of another kind, or holds a name twice.
    """
    file = _open(path)
    return {name: file.read(name) for name in file.tensors}


def read_metadata(path: str | os.PathLike) -> dict[str, str]:
    """The texts that `save_params(metadata=…)` put into the header.

    Raises:
        UserError: the file is absent, damaged, or of another kind.
    """
    return _open(path).metadata


def _open(path: str | os.PathLike) -> SafetensorsFile:
    with reading(Path(path)):
        if (kind := kind_of(Path(path))) != SAFETENSORS:
            raise UserError(
                f"it is a {kind} file, and not a safetensors file, which own weights are: give another path"
            )
        return SafetensorsFile(path)


class atomic_path:
    """A context manager for atomic writes: `with atomic_path(path) as temporary:` write to `temporary`.

    On success `temporary` replaces `path`; after an exception `temporary` is removed and `path` is unchanged.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)

    def __enter__(self) -> Path:
        handle, name = tempfile.mkstemp(prefix=f".{self.path.name}.", dir=self.path.parent)
        os.close(handle)
        self.temporary = Path(name)
        return self.temporary

    def __exit__(self, kind: type | None, *_: object) -> None:
        if kind is None:
            self.temporary.chmod(0o666 & ~_umask())  # mkstemp creates files that only the owner can read
            _sync(self.temporary)  # before the rename: a power cut must not leave the new name with no content
            os.replace(self.temporary, self.path)
            _sync(self.path.parent)
        else:
            self.temporary.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:  # Windows opens no directories
        return
    try:
        os.fsync(handle)
    except OSError:  # nor do all file systems sync them
        pass
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def is_float(dtype: Any) -> bool:
    """Whether a dtype is floating point, bfloat16 and float8 included (`np.issubdtype` leaves them out)."""
    return np.issubdtype(dtype, np.floating) or np.dtype(dtype) in FLOATS


def _not_finite(flat: Mapping[str, np.ndarray]) -> str:
    names = [n for n, a in flat.items() if is_float(a.dtype) and not np.isfinite(a.astype(np.float32)).all()]
    return f"NaN or infinite: {_some(names)}" if names else ""


def _wrong_types(flat: Mapping[str, np.ndarray], expect: Mapping[str, Any]) -> list[str]:
    """Arrays that are integers where floating-point numbers are expected, or the other way round."""
    wrong = [
        f"{name} is {array.dtype}, {'' if is_float(expect[name].dtype) else 'no '}floating-point numbers are expected"
        for name, array in flat.items()
        if hasattr(expect.get(name), "dtype") and is_float(array.dtype) != is_float(expect[name].dtype)
    ]
    return [f"wrong type: {_some(wrong)}"] if wrong else []


def _some(names: list[str], limit: int = 8) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
