"""What must agree before weights are used: config, shapes, tokenizer and the family they come from.

Each check raises a UserError of one line that names the fields, both values and what to do.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from clip_jax.config import CLIPConfig
from clip_jax.errors import UserError
from clip_jax.tokenizer import Tokenizer


def check_tokenizer(config: CLIPConfig, tokenizer: Tokenizer, where: str) -> None:
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
    """{"vision.width": 768, …}, with what None stands for filled in."""
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


def check_same(said: CLIPConfig, wanted: CLIPConfig, where: str, asker: str) -> None:
    """Raises UserError naming each field in which a checkpoint's own config and the one asked for differ."""
    a, b = fields(said), fields(wanted)
    differ = [f"{n} is {a.get(n)!r}, {asker} says {b.get(n)!r}" for n in {**a, **b} if not equal(a.get(n), b.get(n))]
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
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=1e-6)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def check_known(known: Mapping[str, Any], wanted: CLIPConfig, where: str, asker: str) -> None:
    """Raises UserError naming each field in which the config asked for is not what the checkpoint's family has."""
    asked = fields(wanted)
    differ = [
        f"{name} is {value!r}, {asker} says {asked[name]!r}"
        for name, value in known.items()
        if name in asked and not equal(value, asked[name])
    ]
    if differ:
        raise UserError(f"{where}: {'; '.join(differ)}: take the config of this model")


def check_sizes(config: CLIPConfig, sizes: Mapping[str, Any], where: str, asker: str) -> None:
    """Raises UserError naming each size in which the weights differ from the config."""
    asked = fields(config)
    for tower in ("vision", "text"):
        if (getattr(config, tower) is None) != (tower in sizes):
            there = "no" if tower in sizes else "a"
            raise UserError(
                f"{where} has {there} {tower} tower, {asker} says otherwise: take the config of these weights"
            )
    if config.vision is not None and "vision.patch_size" in asked:
        asked["vision.grid"] = config.vision.grid
    differ = [
        f"{name} is {list(value) if isinstance(value, tuple) else value} in the weights, {asker} says {asked[name]}"
        for name, value in sizes.items()
        if name in asked and asked[name] != (list(value) if isinstance(value, tuple) else value)
    ]
    if differ:
        more = f"; and {len(differ) - 4} more" if len(differ) > 4 else ""
        raise UserError(f"{where}: {'; '.join(differ[:4])}{more}: take the config of these weights")
