"""Converts configs of stages to JSON and back, and upgrades the JSON of older versions.

Where a field may be of one of several classes, the JSON has the class as `"type"`: `{"type": "CappedV", "cap": 5.0}`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, get_args

import dacite

from clip_jax.errors import UserError
from unclip_jax.diffusion.losses import P2, CappedV, MinSNR, Simple, TruncatedSNR, Weight
from unclip_jax.diffusion.samplers import SamplerSpec, named_sampler
from unclip_jax.diffusion.schedule import GRIDS, Grid
from unclip_jax.model import Model
from unclip_jax.models.prior import PriorConfig
from unclip_jax.models.unet import UNetConfig
from unclip_jax.priors import KINDS, Prior

UNIONS: dict[Any, tuple[type, ...]] = {
    Model: (PriorConfig, UNetConfig),
    Weight: get_args(Weight),
    SamplerSpec: get_args(SamplerSpec),
    Grid: get_args(Grid),
}
TAGGED = {one for classes in UNIONS.values() for one in classes}


def to_json(config: Any) -> Any:
    """Converts a config to values that `json` can write.

    Args:
        config: a stage, or the value of one of its fields.

    Returns:
        A dict for a dataclass, with its class as `type` if the field may be of several classes; a list for a tuple.
    """
    if dataclasses.is_dataclass(config):
        fields = {field.name: to_json(getattr(config, field.name)) for field in dataclasses.fields(config)}
        return {"type": type(config).__name__, **fields} if type(config) in TAGGED else fields
    return [to_json(one) for one in config] if isinstance(config, tuple) else config


def from_json(kind: str, data: Mapping[str, Any]) -> Prior:
    """The inverse of `to_json` for a stage or a prior of any kind; configs of older versions are read too.

    Args:
        kind: row of `KINDS`.
        data: its fields.

    Raises:
        UserError: the config refuses a value.
        dacite.DaciteError: a field is unknown, missing or of another type; the message names it.
    """
    return dacite.from_dict(KINDS[kind], dict(_upgraded(data)) if kind == "diffusion" else dict(data), READING)


def _tagged(classes: tuple[type, ...]) -> Any:
    """A dacite type hook that reads a dict as that one of the classes which its `type` names."""
    by_name = {one.__name__: one for one in classes}

    def read(data: Any) -> Any:
        if not isinstance(data, Mapping):
            raise UserError(f"{str(data)[:40]!r} is no object with a type; choose one of {', '.join(by_name)}")
        name = data.get("type", classes[0].__name__ if len(classes) == 1 else None)
        if name not in by_name:
            raise UserError(f"type is {str(name)[:40]!r}; choose one of {', '.join(by_name)}")
        return dacite.from_dict(by_name[name], {k: v for k, v in data.items() if k != "type"}, READING)

    return read


def _float(value: Any) -> Any:
    """Converts an int to float, as JSON may write 2.0 as 2; other types are left for dacite to refuse."""
    return float(value) if type(value) is int and abs(value) < 2**1000 else value


READING = dacite.Config(
    strict=True,
    cast=[tuple],
    type_hooks={
        float: _float,
        PriorConfig: _tagged((PriorConfig,)),  # fields that take this config only
        **{union: _tagged(classes) for union, classes in UNIONS.items()},
    },
)

# Configs of older versions: flat lists of fields, and names in place of types.

_WEIGHTS = {"simple": (Simple, None), "truncated_snr": (TruncatedSNR, None)}
_CAPPED = {"min_snr": (MinSNR, "gamma"), "capped_v": (CappedV, "cap"), "p2": (P2, "gamma")}
_OLDER_UNET = {  # field of older versions -> (part of `UNetConfig`, field of the part)
    "image_embed_dim": ("image", "embed_dim"),
    "image_tokens": ("image", "tokens"),
    "image_norm": ("image", "norm"),
    "text_width": ("text", "width"),
    "text_embed_dim": ("text", "embed_dim"),
    "empty_caption": ("text", "empty_caption"),
    "low_res_size": ("low_res", "size"),
    "low_res_level": ("low_res", "level"),
}


def _upgraded(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """Upgrades the fields of a diffusion stage from an older version; those of the present version are unchanged."""
    data = dict(data)
    for name, upgrade in (("model", _upgraded_model), ("sampling", _upgraded_sampling)):
        if isinstance(data.get(name), Mapping):
            data[name] = upgrade(data[name])
    weight = data.get("weight", "simple")
    if isinstance(weight, str):
        cap = data.pop("weight_cap", 5.0)
        table = {**_WEIGHTS, **_CAPPED}
        if weight not in table:
            raise UserError(f"weight is {weight!r}; choose one of {', '.join(table)}")
        kind, field = table[weight]
        data["weight"] = {"type": kind.__name__, **({} if field is None else {field: cap})}
    return data


def _upgraded_model(model: Mapping[str, Any]) -> Mapping[str, Any]:
    """Adds the type of the model, and groups the flat fields of a U-Net into its parts."""
    if "type" in model:
        return model
    if "image_size" not in model:
        return {"type": "PriorConfig", **model}
    parts: dict[str, dict[str, Any]] = {"image": {}, "text": {}, "low_res": {}}
    for name, (part, field) in _OLDER_UNET.items():
        if name in model:
            parts[part][field] = model[name]
    rest = {name: value for name, value in model.items() if name not in {*_OLDER_UNET, "low_res"}}
    there = {
        "image": parts["image"].get("embed_dim") is not None,
        "text": parts["text"].get("width") is not None,
        "low_res": bool(model.get("low_res", False)),
    }
    return {"type": "UNetConfig", **rest, **{part: fields if there[part] else None for part, fields in parts.items()}}


def _upgraded_sampling(sampling: Mapping[str, Any]) -> Mapping[str, Any]:
    """Replaces the names of sampler and grid by their configs."""
    sampling = dict(sampling)
    name = sampling.get("sampler", "dpmpp_2m")
    if not isinstance(name, str):
        return sampling
    grid = sampling.pop("grid", "uniform")
    if grid not in GRIDS:
        raise UserError(f"sampling.grid is {grid!r}; choose one of {', '.join(GRIDS)}")
    spec = dataclasses.replace(named_sampler(name), grid=GRIDS[grid])
    return {**sampling, "sampler": to_json(spec)}
