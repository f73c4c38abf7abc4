"""Where the weights, the configs and the tokenizer of a checkpoint lie in its directory."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from clip_jax.config import CLIPConfig
from clip_jax.errors import UserError
from clip_jax.fields import brief
from clip_jax.tokenizer.load import find_tokenizer
from clip_jax.weights import huggingface_config, open_clip
from clip_jax.weights.files import read_json
from clip_jax.weights.rules import Checkpoint, some

CONFIG, OPEN_CLIP_CONFIG = "config.json", "open_clip_config.json"
PREPROCESSOR, PROCESSOR = "preprocessor_config.json", "processor_config.json"

# What a directory is searched for, in this order, each as the index of its shards or whole; else the one file in it.
NAMES = (
    "model.safetensors",
    "open_clip_model.safetensors",
    "pytorch_model.bin",
    "open_clip_pytorch_model.bin",
    "flax_model.msgpack",
)
SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".npz", ".ckpt", ".msgpack")
SHARD = re.compile(r".*-\d+-of-\d+(\.[\w-]+)?\.\w+")

# What else a directory may be: a file or folder in it -> what it then is, and what to do.
OTHERS = {
    "adapter_config.json": "a LoRA adapter (PEFT), which changes a model and is none: merge it into its model first",
    "modules.json": "a folder of sentence-transformers: give the folder in it that holds the CLIP (0_CLIPModel)",
    "config_sentence_transformers.json":
        "a folder of sentence-transformers: give the folder in it that holds the CLIP (0_CLIPModel)",
    "model_index.json": "a pipeline of diffusers: give the folder of its text encoder",
    "saved_model.pb": "a SavedModel of TensorFlow: take the checkpoint of torch or Flax it was made of",
    "dataset_info.json": "a dataset: give the folder of a model",
    "snapshots": "a folder of the hub's cache: give a folder in its snapshots/",
}  # fmt: skip
OTHER_SUFFIXES = {
    ".gguf": "GGUF (llama.cpp)", ".onnx": "ONNX", ".h5": "HDF5 (Keras, TensorFlow)", ".tflite": "TensorFlow Lite",
    ".ot": "rust-bert", ".mlmodel": "Core ML", ".mlpackage": "Core ML", ".xml": "OpenVINO", ".engine": "TensorRT",
    ".index": "TensorFlow",
}  # fmt: skip


def weights_file(folder: Path, names: Iterable[str] = NAMES) -> Path | None:
    """The weights of these names in a directory, as one file or as the index of shards; None without any.

    A variant (`model.fp16.safetensors`, `model.safetensors.index.fp16.json`) is taken where there is no plain one, and
    only one.

    Raises: UserError when there are several variants, or shards without their index.
    """
    ranks = {name: rank for rank, name in enumerate(names)}
    files = sorted(file.name for file in folder.iterdir() if file.is_file())
    found: dict[str, list[tuple[int, bool, str]]] = {}
    for file in files:
        if (parts := _parts(file)) and parts[0] in ranks:
            name, variant, whole = parts
            found.setdefault(variant, []).append((ranks[name], whole, file))
    if not found:
        return None
    if "" not in found and len(found) > 1:
        raise UserError(
            f"{folder} holds the weights in {len(found)} variants ({', '.join(found)}) and not plain: give the file to "
            f"load, as {min(found[min(found)])[2]}"
        )
    return folder / min(found.get("", next(iter(found.values()))))[2]


def _parts(file: str) -> tuple[str, str, bool] | None:
    """model.safetensors.index.fp16.json -> ("model.safetensors", "fp16", False: an index); None for a shard."""
    if SHARD.fullmatch(file):
        return None
    for pattern in (
        r"(?P<stem>\w+)(\.(?P<variant>[\w-]+))?\.(?P<kind>[a-z]+)",
        r"(?P<stem>\w+)\.(?P<kind>[a-z]+)\.index(\.(?P<variant>[\w-]+))?\.json",
        r"(?P<stem>\w+)\.(?P<kind>[a-z]+)\.(?P<variant>[\w-]+)\.index\.json",
    ):
        if match := re.fullmatch(pattern, file):
            return f"{match['stem']}.{match['kind']}", match["variant"] or "", "index" not in pattern
    return None


def clip_weights(path: Path) -> Path:
    """The weights file of a directory; a file as it is.

    Raises: UserError when there is none, or several; it says what the directory is instead, where that is known.
    """
    if not path.is_dir():
        return path
    if (path / "adapter_config.json").is_file():
        raise UserError(f"{path} is {OTHERS['adapter_config.json']}")
    if found := weights_file(path):
        return found
    files = sorted(file.name for file in path.iterdir() if file.suffix in SUFFIXES)
    shards = [file for file in files if SHARD.fullmatch(file)]
    if shards:
        raise UserError(f"{path} holds shards ({some(shards, 2)}) without their index (….index.json): fetch it as well")
    if not files:
        raise UserError(f"{path} holds no CLIP: {_instead(path)}")
    if len(files) != 1:
        raise UserError(f"{path} holds {len(files)} weights files ({some(files, 4)}): give the one to load")
    return path / files[0]


def _instead(path: Path) -> str:
    """What a directory without weights is, or holds."""
    for name, what in OTHERS.items():
        if (path / name).exists():
            return f"it is {what}"
    for file in sorted(path.iterdir()):
        if file.suffix in OTHER_SUFFIXES:
            return (
                f"{file.name} is of {OTHER_SUFFIXES[file.suffix]}, which is not read: take the weights as safetensors"
            )
    inside = [file.parent.name for file in sorted(path.glob(f"*/{CONFIG}"))]
    if inside:
        return f"there are no weights in it; its folder {some(inside, 4)} may be one"
    there = "no weights" if (path / CONFIG).is_file() else f"no {CONFIG} and no weights"
    return f"there is {there} in it"


def part_of_pipeline(path: Path, part: str | None) -> Path:
    """The folder of a text encoder in a pipeline of diffusers. Raises UserError when `part` does not choose one."""
    parts = [name for name in ("text_encoder", "text_encoder_2") if (path / name / CONFIG).is_file()]
    if part is None and len(parts) == 1:
        return path / parts[0]
    if part not in parts:
        raise UserError(
            f"{path} is a pipeline, part is {part!r}: choose part= of {', '.join(parts) or 'nothing it has'}"
        )
    return path / str(part)


def config_beside(folder: Path, table: str, checkpoint: Checkpoint) -> CLIPConfig | None:
    """What the directory says of weights in this format; None when it says nothing.

    Raises: UserError when a config cannot be followed, or two files contradict each other.
    """
    if table == "huggingface" and (folder / CONFIG).is_file():
        projected = any(name in checkpoint for name in ("text_projection.weight", "visual_projection.weight"))
        data, where = read_json(folder / CONFIG), str(folder / CONFIG)
        found = [
            huggingface_config.config_from_json(data, where, projected=projected, pictures=(said, str(folder / name)))
            for name, said in _image_processors(folder)
        ]
        if not found:
            return huggingface_config.config_from_json(data, where, projected=projected)
        if any(config != found[0] for config in found):
            raise UserError(f"{folder}: {PREPROCESSOR} and {PROCESSOR} say different things: remove the wrong one")
        return found[0]
    for name in (OPEN_CLIP_CONFIG, CONFIG):
        if table in ("openai", "eva") and (folder / name).is_file():
            data = read_json(folder / name)
            if open_clip.matches(data):
                return open_clip.config_from_json(data, str(folder / name))
    return None


def _image_processors(folder: Path) -> list[tuple[str, Mapping[str, Any]]]:
    found: list[tuple[str, Mapping[str, Any]]] = []
    for name in (PREPROCESSOR, PROCESSOR):
        if (folder / name).is_file():
            data = read_json(folder / name)
            if "image_processor" in data and not isinstance(data["image_processor"], Mapping):
                raise UserError(f"{folder / name}.image_processor is {brief(data['image_processor'])}: not an object")
            if name == PREPROCESSOR or "image_processor" in data:
                found.append((name, data))
    return found


def tokenizer_beside(folder: Path | None) -> Path | None:
    """The directory that holds the tokenizer of the weights in `folder`: itself, or as diffusers has it."""
    if folder is None:
        return None
    places = (folder, folder.parent / folder.name.replace("text_encoder", "tokenizer"))
    return next((place for place in places if find_tokenizer(place)), None)
