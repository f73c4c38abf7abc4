"""Reading of a `CLIPConfig`: from the argument `config=`, files beside published weights, or our `config.json`."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clip_jax.config import CLIPConfig
from clip_jax.errors import UserError
from clip_jax.fields import brief
from clip_jax.presets import is_preset, preset
from clip_jax.weights import huggingface_config, open_clip
from clip_jax.weights.digest import DIGESTS
from clip_jax.weights.files import read_json
from clip_jax.weights.rules import Checkpoint
from clip_jax.weights.settings import located

CONFIG, OPEN_CLIP_CONFIG = "config.json", "open_clip_config.json"
PREPROCESSOR, PROCESSOR = "preprocessor_config.json", "processor_config.json"


def read_config(config: CLIPConfig | Mapping[str, Any] | str | os.PathLike | Any) -> CLIPConfig:
    """The config that a caller gives as `config=`.

    Args:
        config: a CLIPConfig, a preset's name, the path of a JSON config (ours, transformers' or OpenCLIP's), or the
            mapping in such a file.

    Raises:
        UserError: the argument is none of these, or the config has a setting that is not supported.
    """
    if isinstance(config, CLIPConfig):
        return config
    if isinstance(config, str) and is_preset(config):
        return preset(config)
    if isinstance(config, Mapping):
        return _from_json(config, "config=")
    if not isinstance(config, str | os.PathLike):
        raise UserError(
            f"config= is {brief(config)}: give a CLIPConfig, a preset's name, or a JSON file or its content"
        )
    return _from_json(read_json(Path(config)), str(config))


def _from_json(data: Mapping[str, Any], where: str) -> CLIPConfig:
    if "model_type" in data:
        return huggingface_config.config_from_json(data, where)
    if open_clip.matches(data):
        return open_clip.config_from_json(data, where)
    return own_config(data, where)


def own_config(data: Mapping[str, Any], where: str) -> CLIPConfig:
    """The config in a `config.json` that `clip_jax.save` wrote. Its field `digests` is skipped.

    Args:
        data: the content of the file.
        where: how an error names the file.

    Raises:
        UserError: a field is unknown, missing or wrong; the error names the file and the field.
    """
    try:
        return CLIPConfig.from_dict({name: value for name, value in data.items() if name != DIGESTS})
    except UserError as error:
        raise located(where, error) from error


def config_beside(folder: Path, format_name: str, checkpoint: Checkpoint) -> CLIPConfig | None:
    """The config that lies beside weights in a published format; None where there is none.

    Args:
        folder: the directory of the weights.
        format_name: the name of their `Format`.
        checkpoint: the weights; only their names are used.

    Raises:
        UserError: a setting is not supported, or two files contradict each other.
    """
    if format_name == "huggingface" and (folder / CONFIG).is_file():
        projected = any(name in checkpoint for name in ("text_projection.weight", "visual_projection.weight"))
        data, where = read_json(folder / CONFIG), str(folder / CONFIG)
        configs = [
            huggingface_config.config_from_json(
                data, where, projected=projected, pictures=(processor, str(folder / name))
            )
            for name, processor in _image_processors(folder)
        ]
        if not configs:
            return huggingface_config.config_from_json(data, where, projected=projected)
        if any(config != configs[0] for config in configs):
            raise UserError(f"{folder}: {PREPROCESSOR} and {PROCESSOR} say different things: remove the wrong one")
        return configs[0]
    for name in (OPEN_CLIP_CONFIG, CONFIG):
        if format_name in ("openai", "eva") and (folder / name).is_file():
            data = read_json(folder / name)
            if open_clip.matches(data):
                return open_clip.config_from_json(data, str(folder / name))
    return None


def _image_processors(folder: Path) -> list[tuple[str, Mapping[str, Any]]]:
    processors: list[tuple[str, Mapping[str, Any]]] = []
    for name in (PREPROCESSOR, PROCESSOR):
        if (folder / name).is_file():
            data = read_json(folder / name)
            if "image_processor" in data and not isinstance(data["image_processor"], Mapping):
                raise UserError(f"{folder / name}.image_processor is {brief(data['image_processor'])}: not an object")
            if name == PREPROCESSOR or "image_processor" in data:
                processors.append((name, data))
    return processors
