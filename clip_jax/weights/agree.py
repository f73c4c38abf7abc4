"""Consistency checks of a checkpoint: its config, array shapes and tokenizer, and the config that the caller requests.

Each check raises a UserError of one line that names the fields, both values and what to do.
"""

import dataclasses
import math
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

from clip_jax.config import CLIPConfig
from clip_jax.errors import UserError
from clip_jax.tokenizer import Tokenizer
from clip_jax.weights.find import Found
from clip_jax.weights.resolution import at_resolution
from clip_jax.weights.settings import located

CONFIG_ARGUMENT = "config="  # how an error names a config that the caller gave as an object or a file, not as a preset


class Request(NamedTuple):
    """The model that the caller of `clip_jax.load` requests.

    Attributes:
        config: the config that the model must have, except for its image size; None: the checkpoint's config.
        config_name: how an error names `config`: `CONFIG_ARGUMENT`, or the name of the preset.
        image_size: the image size of the model in pixels; None: that of `config`, or of the checkpoint without one.
    """

    config: CLIPConfig | None = None
    config_name: str = CONFIG_ARGUMENT
    image_size: int | None = None


class Agreed(NamedTuple):
    """The config on which checkpoint and caller agree.

    Attributes:
        stored: the config of the weights in the file.
        config: the config of the requested model: `stored`, or `stored` with another image size.
    """

    stored: CLIPConfig
    config: CLIPConfig


def agree(found: Found, request: Request) -> Agreed:
    """Determines the config of a checkpoint: from the files beside it, else from the request, else from its shapes.

    Args:
        found: the checkpoint.
        request: the config and image size that the caller asks for.

    Raises:
        UserError: the config beside the weights, the request, the shapes and the fixed settings of the checkpoint's
            family contradict each other; or there is no config, and the shapes do not determine it.
    """
    sizes, requested = found.sizes, request.config
    stored = _config_of_shapes(found, sizes, requested) if found.config is None else found.config
    image_size = None if stored.vision is None else _image_size(stored.vision.image_size, request, found.where)
    if requested is not None and found.config is not None:
        check_same(stored, _at_size_of(requested, stored), found.where, request.config_name)
    if found.format is not None:
        if requested is not None and found.config is None:
            check_known(found.format.known(found.checkpoint), stored, found.where, request.config_name)
        check_sizes(stored, sizes, found.where, request.config_name if found.config is None else found.stated_by)
    if image_size is None:
        return Agreed(stored, stored if request.image_size is None else at_resolution(stored, request.image_size))
    return Agreed(stored, at_resolution(stored, image_size))


def _config_of_shapes(found: Found, sizes: Mapping[str, Any], requested: CLIPConfig | None) -> CLIPConfig:
    """The config of weights without a config file: the requested one, else inferred from the shapes."""
    assert found.format is not None  # a directory of `clip_jax.save` always has a config
    try:
        if requested is None:
            return found.format.infer(found.checkpoint)
        return _at_stored_size(only_towers(requested, sizes), sizes)
    except UserError as error:
        raise located(found.where, error) from error


def _image_size(stored: int, request: Request, where: str) -> int:
    """The image size in pixels of the loaded model. Warns if only `config=` asks for another than `stored`."""
    vision = None if request.config is None else request.config.vision
    requested = stored if vision is None else vision.image_size
    if requested == stored or request.image_size == requested:
        return stored if request.image_size is None else request.image_size
    if request.image_size is not None and request.config_name == CONFIG_ARGUMENT:
        raise UserError(f"image_size is {request.image_size}, config= says {requested}: they must agree")
    if request.config_name != CONFIG_ARGUMENT:
        raise UserError(
            f"{where}: vision.image_size is {stored} in the weights, {request.config_name} says {requested}: take the "
            f"preset of these weights, or config= with this one and image_size={requested} to interpolate the positions"
        )
    warnings.warn(
        f"{where} is for pictures of {stored} pixels, config= says {requested}: the positions are interpolated; "
        f"image_size={requested} says that it is meant",
        stacklevel=4,
    )
    return requested


def _at_size_of(requested: CLIPConfig, stored: CLIPConfig) -> CLIPConfig:
    """`requested` with the image size of `stored`: the only field in which the two configs may differ."""
    if requested.vision is None or stored.vision is None or type(requested.vision) is not type(stored.vision):
        return requested
    return at_resolution(requested, stored.vision.image_size)


def _at_stored_size(requested: CLIPConfig, sizes: Mapping[str, Any]) -> CLIPConfig:
    """`requested` with the image size that the position embeddings in the weights are for."""
    if requested.vision is None:
        return requested
    size = sizes.get("vision.image_size")
    patch, grid = getattr(requested.vision, "patch_size", None), sizes.get("vision.grid")
    if size is None and grid and patch:
        size = requested.vision.image_size if grid == requested.vision.grid else grid * patch
    if not size or sizes.get("vision.patch_size", patch) != patch:  # `check_sizes` reports it
        return requested
    return at_resolution(requested, size)


def check_tokenizer(config: CLIPConfig, tokenizer: Tokenizer, where: str) -> None:
    """Checks that a tokenizer fits a model: vocabulary, context length and padding.

    Args:
        config: the config of the model.
        tokenizer: the tokenizer to check.
        where: how an error names the tokenizer.

    Raises:
        UserError: the vocabulary does not fit (`check_vocabulary`), the context length is above the model's, or the
            padding id differs.
    """
    text = config.text
    check_vocabulary(config, tokenizer, where, exact=False)
    if tokenizer.context_length > text.context_length:
        raise UserError(
            f"{where} has context_length {tokenizer.context_length}, the model {text.context_length}: "
            "it is not the tokenizer of this model"
        )
    if tokenizer.pad_id != text.pad_id:
        raise UserError(
            f"{where} pads with {tokenizer.pad_id}, the model expects pad_id {text.pad_id}: "
            "it is not the tokenizer of this model"
        )


def check_vocabulary(config: CLIPConfig, tokenizer: Tokenizer, where: str, *, exact: bool) -> None:
    """Checks the vocabulary size and the end-of-text id of a tokenizer.

    Args:
        config: the config of the model.
        tokenizer: the tokenizer to check.
        where: how an error names the tokenizer.
        exact: whether the vocabulary must be as large as the model's; otherwise it may be smaller.

    Raises:
        UserError: the size does not fit, or the end-of-text ids differ.
    """
    text, size = config.text, tokenizer.vocab_size
    if size > text.vocab_size or (exact and size != text.vocab_size):
        raise UserError(
            f"{where} has vocab_size {size}, the model {text.vocab_size}: it is not the tokenizer of this model"
        )
    eos_id = getattr(text, "eos_id", None)
    if eos_id is not None and eos_id != tokenizer.eot_id:
        raise UserError(
            f"{where} ends texts with {tokenizer.eot_id}, the model expects eos_id {eos_id}: "
            "it is not the tokenizer of this model"
        )


# Fields that do not describe the weights: execution (scan, remat), initialisation, tokenization and cropping.
FREE = {"scan_layers", "remat", "logit_scale_init", "logit_bias_init", "pad_id", "tokenizer", "crop"}


def fields(config: CLIPConfig) -> dict[str, Any]:
    """The fields of a config that describe weights, {"vision.width": 768, …}, with None replaced by its default."""
    values: dict[str, Any] = {}
    for name, value in config.to_dict().items():
        inner = value if isinstance(value, dict) else {"": value}
        values |= {f"{name}.{field}" if field else name: v for field, v in inner.items() if (field or name) not in FREE}
    for tower in ("vision", "text"):
        if f"{tower}.mlp_width" in values and values[f"{tower}.mlp_width"] is None:
            ratio = 2.6667 if values[f"{tower}.type"] == "EVA02Config" else 4
            values[f"{tower}.mlp_width"] = int(ratio * values[f"{tower}.width"])
    if values.get("text.eos_id", 0) is None:
        values["text.eos_id"] = values["text.vocab_size"] - 1  # the highest id is the end of text
    if values.get("vision.type") == "EVA02Config":
        values.pop("vision.activation")  # EVA-02 always uses SwiGLU
    return values


def check_same(stored: CLIPConfig, requested: CLIPConfig, where: str, config_name: str) -> None:
    """Checks that the config stored with a checkpoint and the requested config are equal.

    Raises:
        UserError: they differ; it names the first six fields and both values of each.
    """
    a, b = fields(stored), fields(requested)
    differ = [
        f"{n} is {a.get(n)!r}, {config_name} says {b.get(n)!r}" for n in {**a, **b} if not equal(a.get(n), b.get(n))
    ]
    if differ:
        raise UserError(
            f"{where}: {'; '.join(differ[:6])}: load it by its own config, or take the weights of that model"
        )


def only_towers(config: CLIPConfig, sizes: Mapping[str, Any]) -> CLIPConfig:
    """A config of two towers without the tower that the weights lack; every other config unchanged."""
    absent = [name for name in ("vision", "text") if name in sizes and sizes[name] is None]
    if not config.two_towers or len(absent) != 1:
        return config
    projected = "embed_dim" in sizes or (absent == ["text"] and getattr(config.vision, "pool", None) == "map")
    changed: dict[str, Any] = {absent[0]: None, "embed_dim": config.embed_dim if projected else None}
    return dataclasses.replace(config, logit_bias_init=None, **changed)


def equal(a: Any, b: Any) -> bool:
    """Whether two values of a field are equal; floats may differ by 1e-6 of their value (float32 rounding)."""
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=1e-6)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def check_known(known: Mapping[str, Any], requested: CLIPConfig, where: str, config_name: str) -> None:
    """Checks the requested config against `known`, the settings that all checkpoints of the format have.

    Raises:
        UserError: they differ; it names the fields and both values of each.
    """
    values = fields(requested)
    differ = [
        f"{name} is {value!r}, {config_name} says {values[name]!r}"
        for name, value in known.items()
        if name in values and not equal(value, values[name])
    ]
    if differ:
        raise UserError(f"{where}: {'; '.join(differ)}: take the config of this model")


def check_sizes(config: CLIPConfig, sizes: Mapping[str, Any], where: str, config_name: str) -> None:
    """Checks that a config has the towers and sizes that the shapes of the weights show.

    Raises:
        UserError: they differ; it names the first four sizes and both values of each.
    """
    values = fields(config)
    for tower in ("vision", "text"):
        if (getattr(config, tower) is None) != (tower in sizes):
            there = "no" if tower in sizes else "a"
            raise UserError(
                f"{where} has {there} {tower} tower, {config_name} says otherwise: take the config of these weights"
            )
    if config.vision is not None and "vision.patch_size" in values:
        values["vision.grid"] = config.vision.grid
    differ = [
        f"{name} is {size} in the weights, {config_name} says {values[name]}"
        for name, size in ((name, list(size) if isinstance(size, tuple) else size) for name, size in sizes.items())
        if name in values and values[name] != size
    ]
    if differ:
        more = f"; and {len(differ) - 4} more" if len(differ) > 4 else ""
        raise UserError(f"{where}: {'; '.join(differ[:4])}{more}: take the config of these weights")
