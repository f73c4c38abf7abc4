"""What must agree before weights are used: config, shapes, tokenizer and the family they come from.

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

CONFIG_ARGUMENT = "config="  # what an error calls a config that the caller gave, and not as a preset's name


class Request(NamedTuple):
    """What the caller of `clip_jax.load` asks the model to be.

    Attributes:
        config: the config it must have, but for the size of the pictures; None: whatever the checkpoint states.
        config_name: what an error calls `config`: `CONFIG_ARGUMENT`, or the preset.
        image_size: the size of its pictures in pixels; None: as in `config`, else as trained.
    """

    config: CLIPConfig | None = None
    config_name: str = CONFIG_ARGUMENT
    image_size: int | None = None


class Agreed(NamedTuple):
    """The config on which checkpoint and caller agree.

    Attributes:
        stored: of the weights as they are stored.
        config: of the model asked for: `stored`, or the same for pictures of another size.
    """

    stored: CLIPConfig
    config: CLIPConfig


def agree(found: Found, request: Request) -> Agreed:
    """The config of a checkpoint: the one stated beside it, else the one requested, else what its shapes say.

    Raises:
        UserError: the shapes, what is stated, what the family is known to have, and what is requested differ; or the
            config is not determined by the shapes and none is given.
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
    """The config of weights that came without one: as requested, else as the shapes and the family determine it."""
    assert found.format is not None  # what `clip_jax.save` wrote has a config
    try:
        if requested is None:
            return found.format.infer(found.checkpoint)
        return _at_stored_size(only_towers(requested, sizes), sizes)
    except UserError as error:
        raise located(found.where, error) from error


def _image_size(stored: int, request: Request, where: str) -> int:
    """The size of the pictures in the end, of a checkpoint for `stored` pixels."""
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
    """`requested` for pictures of the size of the checkpoint: in this alone they may differ."""
    if requested.vision is None or stored.vision is None or type(requested.vision) is not type(stored.vision):
        return requested
    return at_resolution(requested, stored.vision.image_size)


def _at_stored_size(requested: CLIPConfig, sizes: Mapping[str, Any]) -> CLIPConfig:
    """`requested` for pictures of the size that the positions in the weights are for."""
    if requested.vision is None:
        return requested
    size = sizes.get("vision.image_size")
    patch, grid = getattr(requested.vision, "patch_size", None), sizes.get("vision.grid")
    if size is None and grid and patch:
        size = requested.vision.image_size if grid == requested.vision.grid else grid * patch
    if not size or sizes.get("vision.patch_size", patch) != patch:  # told of by the checks that follow
        return requested
    return at_resolution(requested, size)


def check_tokenizer(config: CLIPConfig, tokenizer: Tokenizer, where: str) -> None:
    """Raises UserError unless the model was trained with such a tokenizer: ids, length of the rows, padding."""
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
    """Raises UserError unless the vocabulary has as many ids as the model (`exact`) or fewer, and the same end."""
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


# Fields that say how to compute or to start, not what the weights are.
FREE = {"scan_layers", "remat", "logit_scale_init", "logit_bias_init", "pad_id", "tokenizer", "crop"}


def fields(config: CLIPConfig) -> dict[str, Any]:
    """The fields of a config as {"vision.width": 768, …}, with what None stands for filled in."""
    found: dict[str, Any] = {}
    for name, value in config.to_dict().items():
        inner = value if isinstance(value, dict) else {"": value}
        found |= {f"{name}.{field}" if field else name: v for field, v in inner.items() if (field or name) not in FREE}
    for tower in ("vision", "text"):
        if f"{tower}.mlp_width" in found and found[f"{tower}.mlp_width"] is None:
            ratio = 2.6667 if found[f"{tower}.type"] == "EVA02Config" else 4
            found[f"{tower}.mlp_width"] = int(ratio * found[f"{tower}.width"])
    if found.get("text.eos_id", 0) is None:
        found["text.eos_id"] = found["text.vocab_size"] - 1  # the highest id is the end
    if found.get("vision.type") == "EVA02Config":
        found.pop("vision.activation")  # it has its own
    return found


def check_same(stored: CLIPConfig, requested: CLIPConfig, where: str, config_name: str) -> None:
    """Raises UserError naming each field in which a checkpoint's own config and the one requested differ."""
    a, b = fields(stored), fields(requested)
    differ = [
        f"{n} is {a.get(n)!r}, {config_name} says {b.get(n)!r}" for n in {**a, **b} if not equal(a.get(n), b.get(n))
    ]
    if differ:
        raise UserError(
            f"{where}: {'; '.join(differ[:6])}: load it by its own config, or take the weights of that model"
        )


def only_towers(config: CLIPConfig, sizes: Mapping[str, Any]) -> CLIPConfig:
    """A config of two towers as that of the one tower that the weights have; any other as it is."""
    absent = [name for name in ("vision", "text") if name in sizes and sizes[name] is None]
    if not config.two_towers or len(absent) != 1:
        return config
    projected = "embed_dim" in sizes or (absent == ["text"] and getattr(config.vision, "pool", None) == "map")
    changed: dict[str, Any] = {absent[0]: None, "embed_dim": config.embed_dim if projected else None}
    return dataclasses.replace(config, logit_bias_init=None, **changed)


def equal(a: Any, b: Any) -> bool:
    """Whether two values of a field are the same; floats up to the rounding of float32."""
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=1e-6)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def check_known(known: Mapping[str, Any], requested: CLIPConfig, where: str, config_name: str) -> None:
    """Raises UserError naming each field in which the config requested is not what the checkpoint's family has."""
    values = fields(requested)
    differ = [
        f"{name} is {value!r}, {config_name} says {values[name]!r}"
        for name, value in known.items()
        if name in values and not equal(value, values[name])
    ]
    if differ:
        raise UserError(f"{where}: {'; '.join(differ)}: take the config of this model")


def check_sizes(config: CLIPConfig, sizes: Mapping[str, Any], where: str, config_name: str) -> None:
    """Raises UserError naming each size in which the weights differ from the config."""
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
