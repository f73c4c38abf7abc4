"""A CLIP from wherever its weights are, and into the layouts that others read.

`save` and `load` of a directory of our own: `config.json`, `weights.safetensors`, `tokenizer.json`, nothing else is
needed. `load` also takes every published format (`clip_jax.weights.formats`), which `export` writes. What a checkpoint
says of itself is believed over habit, and what contradicts it is refused: a wrong activation or mean costs points of
accuracy without any other sign.
"""

import dataclasses
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn, get_args

import jax
import numpy as np
from safetensors.numpy import save_file

from clip_jax.config import BertConfig, CLIPConfig, ResNetConfig
from clip_jax.errors import UserError, reading
from clip_jax.images import Preprocess
from clip_jax.layers import unstack_layers
from clip_jax.model import CLIP
from clip_jax.presets import PRESETS, preset
from clip_jax.tokenizer import Tokenizer, load_tokenizer
from clip_jax.tokenizer.load import find_tokenizer
from clip_jax.weights import huggingface, native, open_clip
from clip_jax.weights.agree import (
    check_known,
    check_same,
    check_sizes,
    check_tokenizer,
    check_vocabulary,
    equal,
    fields,
)
from clip_jax.weights.files import inner_folder, one_line, read_checkpoint, read_json
from clip_jax.weights.formats import FORMATS, recognise
from clip_jax.weights.rules import convert, expected, flat_variables, nested_variables
from clip_jax.weights.rules import export as to_format

CONFIG, WEIGHTS, TOKENIZER = "config.json", "weights.safetensors", "tokenizer.json"
OPEN_CLIP_CONFIG, PREPROCESSOR, PROCESSOR = "open_clip_config.json", "preprocessor_config.json", "processor_config.json"

# What a directory is searched for, in this order; else the one weights file that is in it.
PUBLISHED_WEIGHTS = (
    "model.safetensors.index.json",
    "model.safetensors",
    "open_clip_model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
    "open_clip_pytorch_model.bin",
)
SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".npz", ".ckpt")
OTHER_SUFFIXES = (".msgpack", ".h5", ".onnx", ".gguf", ".tflite", ".ot")  # not read: the error says what they are


Layout = Literal["openai", "open_clip", "huggingface"]


class LoadedCLIP(NamedTuple):
    model: CLIP
    variables: dict[str, Any]
    tokenize: Any  # Tokenizer; without a vocabulary, or a text tower, a Missing that says so when called
    preprocess: Any  # Preprocess; without an image tower a Missing


class Missing:
    """Stands for a part that a checkpoint came without. Raises UserError when it is called."""

    def __init__(self, message: str):
        self.message = message

    def __call__(self, *_: Any, **__: Any) -> NoReturn:
        raise UserError(self.message)

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):  # asked for by copy and pickle, which have to get their AttributeError
            raise AttributeError(name)
        raise UserError(self.message)


def save(
    directory: str | os.PathLike,
    model: CLIP | CLIPConfig,
    variables: dict[str, Any],
    tokenizer: Tokenizer,
    *,
    dtype: Any = None,
) -> None:
    """Writes a CLIP that `load(directory)` gives back; `dtype` (float16) is that of the stored weights only.

    Each file appears whole or not at all. Raises UserError when the tokenizer has more ids than the model, or a weight
    is not finite.
    """
    config = model.config if isinstance(model, CLIP) else model
    if config.text is not None:
        check_tokenizer(config, tokenizer, "the tokenizer")
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    native.save_params(directory / WEIGHTS, _collections(variables), dtype=dtype)
    if config.text is not None:
        with native.atomic_path(directory / TOKENIZER) as path:
            tokenizer.save(path)
    _write_json(directory / CONFIG, config.to_dict())


def load(
    source: str | os.PathLike,
    *,
    weights: str | os.PathLike | None = None,
    config: CLIPConfig | str | os.PathLike | Mapping[str, Any] | None = None,
    vocab: str | os.PathLike | None = None,
    part: str | None = None,
) -> LoadedCLIP:
    """A CLIP from a directory, a weights file, the name of a preset with its weights, or the hub.

    Args:
        source: a directory that `save` wrote, or of Hugging Face's or OpenCLIP's layout; a file of a published format
            (safetensors, a torch file, a TorchScript archive, npz); a preset's name, with `weights`; or the name of a
            repository on the hub, "owner/name", if `huggingface_hub` is installed. A `Path` is never such a name.
        weights: the file or directory for a preset.
        config: what the model is, where the weights do not say it: a CLIPConfig, a preset's name, or a JSON (or its
            content) of ours, of Hugging Face or of OpenCLIP. What the checkpoint says must agree with it.
        vocab: the tokenizer's file or directory, where it does not lie beside the weights.
        part: which text encoder of a Stable Diffusion checkpoint, "text_encoder" or "text_encoder_2".

    Returns: (model, variables, tokenize, preprocess). A checkpoint of one tower gives a model of this tower alone.

    Raises: UserError, in one line, when something is absent, damaged, or does not fit the rest.
    """
    wanted = None if config is None else _config(config)
    if str(source) in PRESETS and not Path(source).exists():
        if weights is None:
            raise UserError(f"{source} is an architecture, not weights: give load({str(source)!r}, weights=path)")
        if wanted is not None:
            raise UserError(f"{source} is a preset, which is a config already: leave out config=")
        return _load_path(Path(weights), preset(str(source)), vocab, part, f"the preset {source}")
    if weights is not None:
        raise UserError(f"weights= is for the name of a preset (as ViT-B/32), {source} is none: leave it out")
    path = Path(source)
    if not path.exists():
        if isinstance(source, os.PathLike):  # a path, not a name: nothing to ask the hub for
            raise UserError(f"{path} holds no CLIP: there is no such file or directory")
        path = _from_hub(str(source))
    return _load_path(path, wanted, vocab, part, "config=")


def _load_path(path: Path, wanted: CLIPConfig | None, vocab: Any, part: str | None, asker: str) -> LoadedCLIP:
    path = inner_folder(path)
    if path.is_dir() and (path / "model_index.json").is_file():
        path = _part(path, part)
        part = None
    if path.is_dir() and (path / CONFIG).is_file():
        data = read_json(path / CONFIG)
        if "model_type" not in data and not open_clip.matches(data):
            return _load_own(path, data, wanted, vocab, asker)
    file = _weights_file(path)
    where = str(file)
    table, checkpoint = recognise(read_checkpoint(file), part, where)
    said = None if table.name == "stable_diffusion" else _config_beside(file.parent, table.name)
    if said is not None and wanted is not None:
        check_same(said, wanted, where, asker)
    try:
        found = said or wanted or table.infer(checkpoint)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    if said is None and wanted is not None:
        check_known(table.known(checkpoint), wanted, where, asker)
    check_sizes(found, table.sizes(checkpoint), where, f"{file.parent}'s config" if said else asker)
    one_tower = "" if found.two_towers else "|logit_scale|logit_bias"
    flat = convert(checkpoint, table.rules(found), expected(found), ignore=table.ignore + one_tower, where=where)
    folder = file.parent if said is not None or path.is_dir() else None
    tokenize = _tokenizer(vocab, _tokenizer_beside(folder), found, table.name)
    return _loaded(found, flat, tokenize)


def _load_own(path: Path, data: Mapping[str, Any], wanted: CLIPConfig | None, vocab: Any, asker: str) -> LoadedCLIP:
    with reading(path / CONFIG, "the config"):
        config = CLIPConfig.from_dict(dict(data))
    if wanted is not None:
        check_same(config, wanted, str(path), asker)
    with reading(path / CONFIG, "the config"):  # sizes that no network can be built of
        expect = native.unflatten(expected(config))
    params = native.load_params(path / WEIGHTS, expect)
    tokenizer: Any = Missing("this model has no text tower, and no tokenizer")
    if config.text is not None:
        source = Path(vocab) if vocab else path / TOKENIZER
        tokenizer = load_tokenizer(source)
        check_tokenizer(config, tokenizer, str(source))
    return _loaded(config, native.flatten(params), tokenizer)


def _loaded(config: CLIPConfig, flat: Mapping[str, np.ndarray], tokenizer: Any) -> LoadedCLIP:
    text = config.text
    if text is not None and isinstance(tokenizer, Tokenizer) and text.pad_id != tokenizer.pad_id:
        config = dataclasses.replace(config, text=dataclasses.replace(text, pad_id=tokenizer.pad_id))
    preprocess: Any = Missing("this model has no image tower, and no preprocessing")
    if config.vision is not None:
        preprocess = Preprocess(config.preprocess, config.vision.image_size)
    variables = nested_variables({name: jax.numpy.asarray(array) for name, array in flat.items()})
    return LoadedCLIP(CLIP(config), variables, tokenizer, preprocess)


# finding things


def _config(config: CLIPConfig | str | os.PathLike | Mapping[str, Any]) -> CLIPConfig:
    if isinstance(config, CLIPConfig):
        return config
    if isinstance(config, str) and config in PRESETS:
        return preset(config)
    if isinstance(config, Mapping):
        return _from_json(config, "config=")
    return _from_json(read_json(Path(config)), str(config))


def _from_json(data: Mapping[str, Any], where: str) -> CLIPConfig:
    if "model_type" in data:
        return huggingface.config_from_json(data, where)
    if open_clip.matches(data):
        return open_clip.config_from_json(data, where)
    return CLIPConfig.from_dict(dict(data))


def _config_beside(folder: Path, table: str) -> CLIPConfig | None:
    """What the directory says of weights in this format."""
    if table == "huggingface" and (folder / CONFIG).is_file():
        config = huggingface.config_from_json(read_json(folder / CONFIG), str(folder / CONFIG))
        for name in (PREPROCESSOR, PROCESSOR):
            if (folder / name).is_file() and config.vision is not None:
                data = read_json(folder / name)
                if name == PREPROCESSOR or "image_processor" in data:
                    preprocess = huggingface.preprocess_from_json(data, config, str(folder / name))
                    return dataclasses.replace(config, preprocess=preprocess)
        return config
    for name in (OPEN_CLIP_CONFIG, CONFIG):
        if table in ("openai", "eva") and (folder / name).is_file():
            data = read_json(folder / name)
            if open_clip.matches(data):
                return open_clip.config_from_json(data, str(folder / name))
    return None


def _weights_file(path: Path) -> Path:
    if not path.is_dir():
        return path
    for name in PUBLISHED_WEIGHTS:
        if (path / name).is_file():
            return path / name
    files = sorted(file.name for file in path.iterdir() if file.suffix in SUFFIXES)
    files = files or sorted(file.name for file in path.iterdir() if file.suffix in OTHER_SUFFIXES)
    if not files and not (path / CONFIG).is_file():
        raise UserError(f"{path} holds no CLIP: there is no {CONFIG} and no weights in it")
    if len(files) != 1:
        raise UserError(
            f"{path} holds {len(files)} weights files ({', '.join(files[:4]) or 'none'}): give the one to load"
        )
    return path / files[0]


def _part(path: Path, part: str | None) -> Path:
    parts = [name for name in ("text_encoder", "text_encoder_2") if (path / name / CONFIG).is_file()]
    if part is None and len(parts) == 1:
        return path / parts[0]
    if part not in parts:
        raise UserError(
            f"{path} is a pipeline, part is {part!r}: choose part= of {', '.join(parts) or 'nothing it has'}"
        )
    return path / str(part)


def _from_hub(source: str) -> Path:
    name = source.removeprefix("hf-hub:")
    if not is_hub_name(name):
        raise UserError(
            f"there is no {source}: give a file, a directory, a name on the hub (owner/name), or a preset with weights="
        )
    folder = snapshot(name, ("*.json", "*.txt", "*.model", "*.safetensors", "*.npz"), ("*/*",))
    if not any(file.suffix in (".safetensors", ".npz") for file in folder.iterdir()):
        folder = snapshot(name, ("*.json", "*.txt", "*.model", "*.bin"), ("*/*",))
    return folder


def is_hub_name(name: str) -> bool:
    """Whether a name could be one on the hub: "owner/name"."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None


def snapshot(name: str, patterns: tuple[str, ...], ignore: tuple[str, ...]) -> Path:
    """Where the hub's files of a name that match were put.

    Raises: UserError when it cannot be reached, knows no such name, or `huggingface_hub` is not installed.
    """
    try:
        import huggingface_hub
    except ImportError as error:
        raise UserError(
            f"there is no file {name}, and huggingface_hub, which would fetch it, is not installed: "
            "pip install huggingface_hub, or download it and give the directory"
        ) from error
    try:
        return Path(
            huggingface_hub.snapshot_download(name, allow_patterns=list(patterns), ignore_patterns=list(ignore))
        )
    except Exception as error:  # whatever goes wrong between here and there
        raise UserError(f"cannot fetch {name} from the hub: {one_line(error)[:200]}; give a local directory") from error


def _tokenizer_beside(folder: Path | None) -> Path | None:
    if folder is None:
        return None
    places = (folder, folder.parent / folder.name.replace("text_encoder", "tokenizer"))  # as diffusers has it
    return next((place for place in places if find_tokenizer(place)), None)


def _tokenizer(vocab: str | os.PathLike | None, beside: Path | None, config: CLIPConfig, table: str) -> Any:
    text = config.text
    if text is None:
        return Missing("this model has no text tower, and no tokenizer")
    source = vocab or beside
    if source is None:
        return Missing("these weights came without a vocabulary: give its file to clip_jax.load(…, vocab=path)")
    kind: Any = None if text.tokenizer == "roberta" else text.tokenizer  # which has no reader here
    # Only Hugging Face says beside the vocabulary what to pad with; elsewhere it is the model that says so.
    pad_id = None if table == "huggingface" and vocab is None else text.pad_id
    tokenizer = load_tokenizer(source, context_length=text.context_length, pad_id=pad_id, kind=kind)
    check_vocabulary(config, tokenizer, str(source), exact=vocab is not None)
    return tokenizer


# writing


def export(
    directory: str | os.PathLike,
    model: CLIP | CLIPConfig,
    variables: Mapping[str, Any],
    tokenizer: Tokenizer | None = None,
    *,
    layout: Layout | str = "huggingface",
) -> None:
    """Writes a CLIP for others to read; `load(directory)` gives back the same bits.

    Args:
        tokenizer: written as `tokenizer.json` beside the weights; None leaves it out.
        layout: "huggingface" (transformers' `config.json`, `model.safetensors`, `preprocessor_config.json`),
            "open_clip" (`open_clip_config.json`, `open_clip_model.safetensors`), or "openai" (`model.safetensors` in
            OpenAI's names, for models that OpenAI's code builds from shapes alone).

    Each file appears whole or not at all. Raises UserError when the layout cannot say what the model is.
    """
    config = model.config if isinstance(model, CLIP) else model
    if layout not in get_args(Layout):
        raise UserError(f"there is no layout {layout!r}: choose one of {', '.join(get_args(Layout))}")
    if tokenizer is not None and config.text is not None:
        check_tokenizer(config, tokenizer, "the tokenizer")
    config, variables = _unrolled(config, variables)
    files: dict[str, Any] = {}
    if layout == "huggingface":
        files[CONFIG] = huggingface.config_to_json(config)
        if config.vision is not None:
            files[PREPROCESSOR] = huggingface.preprocess_to_json(config)
        if tokenizer is not None and config.text is not None:
            files["tokenizer_config.json"] = _tokenizer_config(config, tokenizer)
    elif layout == "open_clip":
        files[OPEN_CLIP_CONFIG] = open_clip.config_to_json(config)
    else:
        _check_openai(config)
    table = FORMATS["huggingface" if layout == "huggingface" else "openai"]
    state = to_format(flat_variables(variables), table.rules(config))
    not_finite = [name for name, array in state.items() if not np.isfinite(array).all()]
    if not_finite:
        raise UserError(f"not writing {directory}: NaN or infinite: {', '.join(not_finite[:8])}")

    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    with native.atomic_path(
        directory / ("open_clip_model.safetensors" if layout == "open_clip" else "model.safetensors")
    ) as path:
        save_file(state, path, metadata={"format": "pt"})
    if tokenizer is not None and config.text is not None:
        with native.atomic_path(directory / TOKENIZER) as path:
            tokenizer.save(path)
    for name, data in files.items():
        _write_json(directory / name, data)


def _check_openai(config: CLIPConfig) -> None:
    """OpenAI's code reads shapes only, so all else must be what it takes for granted."""
    from clip_jax.weights import openai

    open_clip.config_to_json(config)  # the same architecture
    taken = dataclasses.replace(config, preprocess=type(config.preprocess)())
    vision = dataclasses.replace(
        config.vision, heads=config.vision.width * (32 if isinstance(config.vision, ResNetConfig) else 1) // 64 or 1
    )
    text = dataclasses.replace(config.text, heads=config.text.width // 64 or 1, activation="quick_gelu", pad_id=0)
    if not isinstance(vision, ResNetConfig):
        vision = dataclasses.replace(vision, activation="quick_gelu")
        if vision.width in openai.NOT_OPENAIS:
            raise UserError(f"OpenAI's layout has no ViT of width {vision.width}: export to open_clip")
    taken = dataclasses.replace(taken, vision=vision, text=text)
    a, b = fields(config), fields(taken)
    differ = [f"{name} {a[name]!r} (there it is {b[name]!r})" for name in a if not equal(a[name], b[name])]
    if differ:
        raise UserError(f"OpenAI's layout cannot say {', '.join(differ)}: export to open_clip or huggingface")


def _unrolled(config: CLIPConfig, variables: Mapping[str, Any]) -> tuple[CLIPConfig, dict[str, Any]]:
    """The same model with a name for each layer, as all published formats have it."""
    params = dict(variables["params"])
    changed: dict[str, Any] = {}
    for name, tower in (("visual", config.vision), ("text", config.text)):
        if getattr(tower, "scan_layers", False):
            if isinstance(tower, BertConfig) or "transformer" not in params[name]:
                raise UserError(
                    f"{type(tower).__name__}.scan_layers is True: give the parameters of the unrolled model"
                )
            params[name] = {**params[name], "transformer": unstack_layers(params[name]["transformer"])}
            changed["vision" if name == "visual" else "text"] = dataclasses.replace(tower, scan_layers=False)
    return dataclasses.replace(config, **changed), {**variables, "params": params}


def _tokenizer_config(config: CLIPConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    kinds = {
        "clip": "CLIPTokenizer",
        "bert": "BertTokenizer",
        "siglip": "SiglipTokenizer",
        "siglip2": "GemmaTokenizer",
    }
    data: dict[str, Any] = {
        "model_max_length": config.text.context_length,
        "tokenizer_class": kinds.get(tokenizer.kind),
    }
    if tokenizer.kind == "clip":
        data |= {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    return data


def _collections(variables: Mapping[str, Any]) -> dict[str, Any]:
    return {**variables["params"], **{name: tree for name, tree in variables.items() if name != "params"}}


def _write_json(path: Path, data: Mapping[str, Any]) -> None:
    with native.atomic_path(path) as temporary:
        temporary.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
