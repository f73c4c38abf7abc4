"""Export of a CLIP to the layouts of other projects: transformers, OpenCLIP and OpenAI."""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from safetensors.numpy import save_file

from clip_jax.config import BertConfig, CLIPConfig, ResNetConfig
from clip_jax.errors import UserError
from clip_jax.model import CLIP
from clip_jax.tokenizer import Tokenizer
from clip_jax.towers.layers import unstack_layers
from clip_jax.weights import huggingface_config, native, open_clip, openai
from clip_jax.weights.agree import check_tokenizer, equal, fields
from clip_jax.weights.configs import CONFIG, OPEN_CLIP_CONFIG, PREPROCESSOR
from clip_jax.weights.dtypes import stored_dtype
from clip_jax.weights.find import TOKENIZER
from clip_jax.weights.formats import FORMATS
from clip_jax.weights.rules import export as to_format
from clip_jax.weights.rules import flat_variables

Layout = Literal["openai", "open_clip", "huggingface"]


def export(
    directory: str | os.PathLike,
    model: CLIP | CLIPConfig,
    variables: Mapping[str, Any],
    tokenizer: Tokenizer | None = None,
    *,
    layout: Layout | str = "huggingface",
    dtype: Any = None,
) -> None:
    """Writes a CLIP in the layout of another project; `load(directory)` returns the same weights bit by bit.

    Each file is written atomically.

    Args:
        directory: the directory to write to, created if it is absent.
        model: the module or its config.
        variables: {"params": …}, and "batch_stats" for a model with batch norm.
        tokenizer: written as `tokenizer.json` beside the weights; None leaves it out.
        layout: "huggingface" (transformers' `config.json`, `model.safetensors`, `preprocessor_config.json`),
            "open_clip" (`open_clip_config.json`, `open_clip_model.safetensors`), or "openai" (`model.safetensors` in
            OpenAI's names, for models that OpenAI's code builds from shapes alone).
        dtype: of the stored weights: "float32", "float16" or "bfloat16"; None keeps that of each array.

    Raises:
        UserError: the layout does not exist or cannot express this model, the tokenizer is not the model's, or a weight
            is not finite in the stored dtype (float16 ends at 65,504).
    """
    config = model.config if isinstance(model, CLIP) else model
    if layout not in get_args(Layout):
        raise UserError(f"there is no layout {layout!r}: choose one of {', '.join(get_args(Layout))}")
    if tokenizer is not None and config.text is not None:
        check_tokenizer(config, tokenizer, "the tokenizer")
    stored = stored_dtype(dtype)
    config, variables = _unrolled(config, variables)
    files: dict[str, Any] = {}
    if layout == "huggingface":
        torch_dtype = {} if stored is None else {"torch_dtype": stored.name}
        files[CONFIG] = {**huggingface_config.config_to_json(config), **torch_dtype}
        if config.vision is not None:
            files[PREPROCESSOR] = huggingface_config.pictures_to_json(config)
        if tokenizer is not None and config.text is not None:
            files["tokenizer_config.json"] = _tokenizer_config(config, tokenizer)
    elif layout == "open_clip":
        files[OPEN_CLIP_CONFIG] = open_clip.config_to_json(config)
    else:
        _check_openai(config)
    table = FORMATS["huggingface" if layout == "huggingface" else "openai"]
    state = to_format(flat_variables(variables), table.rules(config))
    if stored is not None:
        with np.errstate(over="ignore"):  # reported below, by name
            state = {name: array.astype(stored) for name, array in state.items()}
    not_finite = [name for name, array in state.items() if not np.isfinite(array.astype(np.float32)).all()]
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
        write_json(directory / name, data)


def _check_openai(config: CLIPConfig) -> None:
    """Raises UserError unless the config is what OpenAI's code builds from the shapes: the rest is fixed there."""
    open_clip.config_to_json(config)  # raises where OpenAI's architecture cannot express the config
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
    """The config and variables with one subtree per layer (`scan_layers=False`), as all published formats have it."""
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


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Writes a JSON object atomically."""
    with native.atomic_path(path) as temporary:
        temporary.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
