"""Finding a checkpoint: locates its weights, config and tokenizer and recognises its format, before arrays are read."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clip_jax.config import CLIPConfig
from clip_jax.errors import UserError, reading
from clip_jax.tokenizer.load import find_tokenizer
from clip_jax.weights import open_clip
from clip_jax.weights.configs import CONFIG, OPEN_CLIP_CONFIG, config_beside, own_config
from clip_jax.weights.digest import DIGESTS, read_digests
from clip_jax.weights.files import inner_folder, read_checkpoint, read_json
from clip_jax.weights.formats import recognise
from clip_jax.weights.rules import Checkpoint, Format, some

WEIGHTS, TOKENIZER = "weights.safetensors", "tokenizer.json"  # what `clip_jax.save` writes beside its `config.json`
PIPELINE = "model_index.json"  # the file by which a diffusers pipeline is recognised

# The weights files looked for in a directory, by precedence. The shard index of a file comes before the whole file.
NAMES = (
    "model.safetensors",
    "open_clip_model.safetensors",
    "pytorch_model.bin",
    "open_clip_pytorch_model.bin",
    "flax_model.msgpack",
)
OPEN_CLIP_NAMES = tuple(name for name in NAMES if name.startswith("open_clip"))
SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".npz", ".ckpt", ".msgpack")
SHARD = re.compile(r".*-\d+-of-\d+(\.[\w-]+)?\.\w+")

# Directories that hold no CLIP: a file or directory in it -> what the directory is, and what to do.
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


@dataclass(frozen=True)
class Found:
    """A checkpoint that was found and recognised. None of its arrays has been read.

    Attributes:
        file: the weights file, or the index of its shards.
        where: how an error names the weights.
        format: the published format; None: the file was written by `clip_jax.save`.
        checkpoint: the arrays of a published format, by the names of its table; empty for `clip_jax.save`.
        config: the config from the files beside the weights; None: there is none, and it is inferred from the shapes.
        stated_by: how an error names the source of `config`.
        tokenizer: the file or directory of the tokenizer; None: there is none.
        digests: SHA-256 of the files that `clip_jax.save` wrote, {file name: digest}.
    """

    file: Path
    where: str
    format: Format | None
    checkpoint: Checkpoint
    config: CLIPConfig | None
    stated_by: str
    tokenizer: Path | None
    digests: Mapping[str, str] = field(default_factory=dict)

    @property
    def sizes(self) -> dict[str, Any]:
        """The config fields that the shapes of a published format determine: {"vision.width": 768, …}."""
        return {} if self.format is None else self.format.sizes(self.checkpoint)


def find(path: Path, part: str | None = None) -> Found:
    """Finds the checkpoint in a directory or file of any supported format.

    Args:
        path: a directory of `clip_jax.save`, transformers, OpenCLIP or diffusers, or a weights file.
        part: which model to take where there are several (see `clip_jax.load`).

    Raises:
        UserError: there is no CLIP, there are several and `part` names none of them, or a file is damaged.
    """
    if path.name in (CONFIG, WEIGHTS) and (path.parent / CONFIG).is_file():
        path = path.parent  # the other files of the directory are needed too
    path = inner_folder(path)
    if path.is_dir() and (path / PIPELINE).is_file():
        path, part = part_of_pipeline(path, part), None
    if not (path.is_dir() and (path / CONFIG).is_file()):
        return _find_published(path, clip_weights(path), part)
    data = read_json(path / CONFIG)
    if "model_type" in data or open_clip.matches(data):
        return _find_published(path, clip_weights(path), part)
    if (path / OPEN_CLIP_CONFIG).is_file():  # config.json is then timm's, for the image tower alone
        return _find_published(path, weights_file(path, OPEN_CLIP_NAMES) or clip_weights(path), part)
    if part is not None:
        raise UserError(f"{path} is one model: part={part!r} is for files that hold several, leave it out")
    with reading(path / CONFIG, "the config"):
        config = own_config(data, str(path / CONFIG))
        digests = read_digests(data.get(DIGESTS), DIGESTS, (WEIGHTS, TOKENIZER))
    tokenizer = None if config.text is None else path / TOKENIZER
    return Found(path / WEIGHTS, str(path), None, {}, config, str(path / CONFIG), tokenizer, digests)


def _find_published(path: Path, file: Path, part: str | None) -> Found:
    # Errors name arrays as torch does, because `read_flax` translates the names: tell the user so.
    where = f"{file} (Flax's msgpack, in the names of torch)" if file.suffix == ".msgpack" else str(file)
    table, checkpoint = recognise(read_checkpoint(file), part, where)
    config = None if table.name == "stable_diffusion" else config_beside(file.parent, table.name, checkpoint)
    folder = file.parent if config is not None or path.is_dir() else None
    return Found(file, where, table, checkpoint, config, f"{file.parent}'s config", tokenizer_beside(folder))


def weights_file(folder: Path, names: Iterable[str] = NAMES) -> Path | None:
    """The weights file, or shard index, in a directory; None where there is none.

    A variant (`model.fp16.safetensors`, `model.safetensors.index.fp16.json`) is taken only where there is no file
    without a variant.

    Args:
        folder: the directory.
        names: the file names to look for, by precedence.

    Raises:
        UserError: there are several variants, and no file without one.
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
    """(file name, variant, whether it is a whole file) of a weights file or shard index; None for a shard.

    "model.safetensors.index.fp16.json" gives ("model.safetensors", "fp16", False).
    """
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
    """The weights file of a directory; a path that is no directory is returned unchanged.

    Raises:
        UserError: there is no weights file, or there are several. The error says what else the directory is, if known.
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
    """What a directory without weights is, or holds, for an error."""
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
    """The directory of a text encoder in a diffusers pipeline.

    Args:
        path: the directory of the pipeline.
        part: "text_encoder" or "text_encoder_2"; None takes the only one.

    Raises:
        UserError: there is no such text encoder, or `part` is None and there are two.
    """
    parts = [name for name in ("text_encoder", "text_encoder_2") if (path / name / CONFIG).is_file()]
    if part is None and len(parts) == 1:
        return path / parts[0]
    if part not in parts:
        raise UserError(
            f"{path} is a pipeline, part is {part!r}: choose part= of {', '.join(parts) or 'nothing it has'}"
        )
    return path / str(part)


def tokenizer_beside(folder: Path | None) -> Path | None:
    """The directory with the tokenizer of the weights in `folder`: `folder`, or `tokenizer` beside it (diffusers)."""
    if folder is None:
        return None
    places = (folder, folder.parent / folder.name.replace("text_encoder", "tokenizer"))
    return next((place for place in places if find_tokenizer(place)), None)
