"""Reading of weights files as a `Checkpoint`: names, shapes and lazily read arrays.

No code in a file is run, and nothing is unpacked to disk. `kinds` recognises the kind of a file by its content; each
kind has a reader (`safetensors_files`, `numpy_files`, `torch_files`, `flax_msgpack`). Whatever a reader raises, at
opening or when an array is read, becomes a UserError of one line that names the file.
"""

import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from clip_jax.errors import UserError, one_line, reading
from clip_jax.weights.flax_msgpack import read_flax
from clip_jax.weights.fp8 import scaled
from clip_jax.weights.jsons import parse_json, read_json
from clip_jax.weights.kinds import MSGPACK, PICKLE, SAFETENSORS, ZIP, kind_of
from clip_jax.weights.numpy_files import read_npz
from clip_jax.weights.rules import Checkpoint, Entry, some
from clip_jax.weights.safetensors_files import SafetensorsFile
from clip_jax.weights.torch_files import read_legacy, read_torch_zip
from clip_jax.weights.untrusted import check_names
from clip_jax.weights.zips import Archive

__all__ = ["inner_folder", "is_index", "one_line", "parse_json", "read_checkpoint", "read_json"]

INDEX = re.compile(r".*\.index(\.\w+)?\.json")  # model.safetensors.index.json, model.safetensors.index.fp16.json
ADAPTERS = re.compile(
    r".*(\.lora_(A|B|up|down|embedding_A|embedding_B|magnitude_vector)\b|_lora\.(up|down)\b|\.hada_w\d|\.lokr_w\d).*"
)


def read_checkpoint(path: str | os.PathLike) -> Checkpoint:
    """Opens a weights file; its kind is recognised by its content, and its arrays are read lazily.

    Args:
        path: safetensors, npz, a torch file (state dict or TorchScript), Flax's msgpack, or the index of a sharded
            checkpoint.

    Raises:
        UserError: the file is absent, damaged, of another kind, or holds anything but data. `Entry.read` raises it too.
    """
    path = Path(path)
    if is_index(path.name):
        return scaled(_read_shards(path), path)
    return scaled(_read_file(path), path)


def is_index(name: str) -> bool:
    """Whether a file name is that of a shard index (which shard holds which array), such as `….index.json`."""
    return INDEX.fullmatch(name) is not None


def inner_folder(folder: Path) -> Path:
    """The directory of the CLIP in a sentence-transformers directory (`0_CLIPModel`); any other directory unchanged.

    Raises:
        UserError: a sentence-transformers directory has no `0_CLIPModel`.
    """
    if not (folder / "config_sentence_transformers.json").is_file() or (folder / "config.json").is_file():
        return folder
    inner = folder / "0_CLIPModel"
    if not inner.is_dir():
        raise UserError(
            f"{folder} is a folder of sentence-transformers without a {inner.name} in it: it is not a CLIP of theirs"
        )
    return inner


def _read_file(path: Path) -> dict[str, Entry]:
    with reading(path):
        kind = kind_of(path)
        found = READERS[kind](path)
        check_names(found)
        adapters = [name for name in found if ADAPTERS.fullmatch(name)]
        if adapters:
            raise UserError(
                f"it is a LoRA (an adapter: {some(adapters, 1)}), not a model: merge it into its model, and save that"
            )
    return {name: Entry(entry.shape, _reader(path, name, entry.read)) for name, entry in found.items()}


def _reader(path: Path, name: str, read: Callable[[], np.ndarray]) -> Callable[[], np.ndarray]:
    def load() -> np.ndarray:
        with reading(path, name):
            return read()

    return load


def _read_safetensors(path: Path) -> dict[str, Entry]:
    file = SafetensorsFile(path)
    return {
        name: Entry(tensor.shape, lambda name=name: file.read(name))  # type: ignore[misc]
        for name, tensor in file.tensors.items()
    }


def _read_zip(path: Path) -> dict[str, Entry]:
    archive = Archive(path)
    if archive.names and all(name.endswith(".npy") for name in archive.names):
        return read_npz(archive)
    return read_torch_zip(archive)


READERS: dict[str, Callable[[Path], dict[str, Entry]]] = {
    SAFETENSORS: _read_safetensors,
    ZIP: _read_zip,
    PICKLE: read_legacy,
    MSGPACK: read_flax,
}


def _read_shards(path: Path) -> dict[str, Entry]:
    where = read_json(path).get("weight_map")
    if not isinstance(where, dict) or not all(isinstance(name, str) for name in where.values()):
        raise UserError(f"{path} is not the index of a sharded checkpoint: it has no weight_map of names")
    with reading(path):
        check_names(where)
    shards: dict[str, Checkpoint] = {}
    for shard in sorted(set(where.values())):
        if shard in ("", ".", "..") or "/" in shard or "\\" in shard or "\0" in shard or is_index(shard):
            raise UserError(f"{path} names the shard {shard!r}: shards must lie beside their index")
        shards[shard] = _read_file(path.parent / shard)
    absent = [name for name, shard in where.items() if name not in shards[shard]]
    if absent:
        raise UserError(f"{path}: {len(absent)} arrays are not in the shard it names, the first is {absent[0]}")
    return {name: shards[shard][name] for name, shard in where.items()}
