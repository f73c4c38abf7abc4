"""Converts the configs of diffusers' networks and schedulers to configs of this package.

A setting that the networks here do not support raises UserError; the message names the file and the setting.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clip_jax.errors import UserError
from clip_jax.fields import brief
from clip_jax.weights.files import read_json
from unclip_jax.diffusion.samplers import DDPM
from unclip_jax.diffusion.schedule import Leading, Uniform
from unclip_jax.models.movq import MoVQConfig
from unclip_jax.models.prior import EXTRA_TOKENS, PriorConfig
from unclip_jax.models.unet import ImageCond, Level, LowRes, TextCond, UNetConfig
from unclip_jax.stage import Sampling

CONFIG, SCHEDULER = "config.json", "scheduler_config.json"

MOST, MOST_LEVELS = 1 << 20, 16  # largest value of any size, and most levels of a U-Net
# Settings that may be null although they have a default; they belong to options that are refused or not used.
OPTIONAL = {"downsample_padding", "addition_embed_type_num_heads", "transformer_layers_per_block", "attention_head_dim"}

# Settings of both classes of U-Nets: those that are used, with their defaults, and those with one supported value.
UNET_SETTINGS: dict[str, Any] = {
    "sample_size": None,
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": (),
    "up_block_types": (),
    "block_out_channels": (),
    "layers_per_block": 2,
    "attention_head_dim": 8,
    "norm_num_groups": 32,
    "resnet_time_scale_shift": "default",
    "time_embedding_dim": None,
    "dropout": 0.0,
    # These belong to kinds of blocks and embeddings that are refused, and are not used:
    "downsample_padding": 1,
    "downsample_type": None,
    "upsample_type": None,
    "addition_embed_type_num_heads": 64,
    "transformer_layers_per_block": 1,
    "num_train_timesteps": None,
}
UNET_FIXED: dict[str, Any] = {
    "act_fn": "silu",
    "attention_type": "default",
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-5,
    "resnet_out_scale_factor": 1.0,
    "time_embedding_type": "positional",
}


def settings(file: Path, kind: str, used: Mapping[str, Any], fixed: Mapping[str, Any]) -> dict[str, Any]:
    """Reads the settings of a config.

    Args:
        file: the config.
        kind: class of diffusers that it must be of.
        used: settings to return, with their defaults; a value must have the type of its default.
        fixed: settings that must have a given value, if they are present.

    Returns:
        Value of each setting in `used`.

    Raises:
        UserError: the config is of another class, a value has another type or is not supported, or a setting is unknown
            (and neither null nor false).
    """
    data = read_json(file)
    if data.get("_class_name") != kind:
        raise UserError(f"{file} is the config of a {data.get('_class_name')}, {kind} is needed: were folders swapped?")
    for name, value in data.items():
        if name.startswith("_") or name in used:
            continue
        allowed = (fixed[name],) if name in fixed else (None, False)  # an unknown option that is off has no effect
        if value not in allowed:
            raise UserError(f"{file}: {name} is {value!r}, supported is {allowed[0]!r} only")
    return {name: _typed(file, name, data.get(name, default), default) for name, default in used.items()}


def _typed(file: Path, name: str, value: Any, default: Any) -> Any:
    """Checks that a value has the type of its default and, if it is a size, a possible one; returns it."""
    if value is None and (default is None or name in OPTIONAL):
        return value
    if isinstance(default, tuple):
        names = name.endswith("types")
        fits = isinstance(value, list | tuple) and len(value) <= MOST_LEVELS
        fits = fits and all(isinstance(x, str) if names else _is_size(x) for x in value)
        what = f"a list of at most {MOST_LEVELS} {'names' if names else 'integers'}"
    elif isinstance(default, bool):
        fits, what = isinstance(value, bool), "true or false"
    elif isinstance(default, int):
        fits, what = _is_size(value), f"an integer from 0 to {MOST}"
    elif isinstance(default, float):
        fits = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf
        what = "a number"
    elif isinstance(default, str):
        fits, what = isinstance(value, str), "a name"
    else:
        fits, what = isinstance(value, str) or _is_size(value), f"a name or an integer from 0 to {MOST}"
    if not fits:
        raise UserError(f"{file}: {name} is {brief(value)}, it must be {what}")
    return value


def _is_size(value: Any) -> bool:
    """Whether a value is an integer from 0 to `MOST`."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST


def schedule(folder: Path, sampling: Mapping[str, Any]) -> dict[str, Any]:
    """Reads the config of a DDPMScheduler or a UnCLIPScheduler.

    Args:
        folder: folder of the scheduler.
        sampling: further fields of `Sampling` (the default steps and guidance scale of the pipeline).

    Returns:
        Fields of `Stage`: prediction, schedule, num_timesteps and sampling.

    Raises:
        UserError: the config is absent, damaged or not supported.
    """
    file = folder / SCHEDULER
    ddpm = read_json(file).get("_class_name") == "DDPMScheduler"
    used = {
        "num_train_timesteps": 1000,
        "variance_type": "fixed_small" if ddpm else "fixed_small_log",
        "clip_sample": True,
        "clip_sample_range": 1.0,
        "prediction_type": "epsilon",
        "beta_schedule": "linear" if ddpm else "squaredcos_cap_v2",
    }
    fixed: dict[str, Any] = {}
    if ddpm:
        used |= {"beta_start": 0.0001, "beta_end": 0.02, "timestep_spacing": "leading"}
        # Used only with thresholding, which is refused, and by other schedulers that read the same files.
        used |= {"dynamic_thresholding_ratio": 0.995, "sample_max_value": 1.0, "set_alpha_to_one": True}
        fixed = {"steps_offset": 0}
    entries = settings(file, "DDPMScheduler" if ddpm else "UnCLIPScheduler", used, fixed)
    noise = entries["beta_schedule"]
    if noise == "linear":
        noise = (entries["beta_start"], entries["beta_end"])
    tables: dict[str, tuple[Any, dict[Any, Any]]] = {
        "prediction_type": (entries["prediction_type"], {"epsilon": "eps", "sample": "x0"}),
        "variance_type": (
            entries["variance_type"],
            {"fixed_small": "small", "fixed_small_log": "small", "learned_range": "learned"},
        ),
        "beta_schedule": (
            noise,
            {
                "squaredcos_cap_v2": "cosine_float32",
                (0.0001, 0.02): "linear_float32",
                (0.00085, 0.012): "latent_linear_float32",
            },
        ),
        "timestep_spacing": (
            entries.get("timestep_spacing", "linspace"),
            {"linspace": Uniform(), "leading": Leading()},
        ),
    }
    for name, (value, table) in tables.items():
        if not any(value == known for known in table):
            raise UserError(f"{file}: {name} is {value}, supported are {', '.join(map(str, table))}")
    prediction, variance, noise, grid = (table[value] for value, table in tables.values())
    return {
        "prediction": prediction,
        "schedule": noise,
        "num_timesteps": entries["num_train_timesteps"],
        "sampling": Sampling(
            DDPM(variance, grid),
            clip=float(entries["clip_sample_range"]) if entries["clip_sample"] else None,
            **sampling,
        ),
    }


def prior_config(folder: Path) -> PriorConfig:
    """Reads the config of a PriorTransformer.

    With three additional tokens instead of four it has no timestep, and is a one-step prior (ECLIPSE).

    Args:
        folder: folder of the prior.

    Raises:
        UserError: the config is absent, damaged or not supported.
    """
    file = folder / CONFIG
    entries = settings(
        file,
        "PriorTransformer",
        {
            "num_attention_heads": 32,
            "attention_head_dim": 64,
            "num_layers": 20,
            "embedding_dim": 768,
            "num_embeddings": 77,
            "additional_embeddings": EXTRA_TOKENS,
            "time_embed_dim": None,
            "embedding_proj_dim": None,
            "clip_embed_dim": None,
            "dropout": 0.0,
        },
        {"time_embed_act_fn": "silu", "encoder_hid_proj_type": "linear", "added_emb_type": "prd"},
    )
    width, dim = entries["num_attention_heads"] * entries["attention_head_dim"], entries["embedding_dim"]
    for name, only in (("time_embed_dim", width), ("embedding_proj_dim", dim), ("clip_embed_dim", dim)):
        if entries[name] not in (None, only):
            raise UserError(f"{file}: {name} is {entries[name]}, supported is {only} only")
    if entries["additional_embeddings"] not in (EXTRA_TOKENS, EXTRA_TOKENS - 1):
        raise UserError(f"{file}: additional_embeddings is {entries['additional_embeddings']}, supported are 3 and 4")
    return PriorConfig(
        embed_dim=dim,
        text_width=dim,
        context_length=entries["num_embeddings"],
        width=width,
        layers=entries["num_layers"],
        heads=entries["num_attention_heads"],
        time_token=entries["additional_embeddings"] == EXTRA_TOKENS,
        empty_caption=True,
    )


def decoder_config(folder: Path) -> UNetConfig:
    """Reads the config of a UNet2DConditionModel: the decoder of Kandinsky 2.2 or Karlo.

    Karlo's is returned without image and text, which its text projection configures (`karlo_decoder_config`).

    Args:
        folder: folder of the decoder.

    Raises:
        UserError: the config is absent, damaged or not supported.
    """
    file = folder / CONFIG
    entries = settings(
        file,
        "UNet2DConditionModel",
        {
            **UNET_SETTINGS,
            "cross_attention_dim": 1280,
            "class_embed_type": None,
            "addition_embed_type": None,
            "encoder_hid_dim": None,
            "encoder_hid_dim_type": None,
        },
        {**UNET_FIXED, "mid_block_type": "UNetMidBlock2DSimpleCrossAttn"},
    )
    config = _unet(file, entries, ("SimpleCrossAttnDownBlock2D", "SimpleCrossAttnUpBlock2D"), low_res=False)
    if not config.levels[-1].attention:
        raise UserError(f"{file}: the coarsest level has no attention, the middle has: supported are both or neither")
    config = dataclasses.replace(config, context_width=entries["cross_attention_dim"])
    kind = (entries["class_embed_type"], entries["addition_embed_type"], entries["encoder_hid_dim_type"])
    if kind == (None, "image", "image_proj"):
        return dataclasses.replace(
            config, image=ImageCond(entries["encoder_hid_dim"], tokens=32, norm=True, black_null=True)
        )
    if kind == ("identity", None, None):
        return config
    raise UserError(
        f"{file}: class_embed_type, addition_embed_type and encoder_hid_dim_type are {kind}: neither Karlo's nor "
        "Kandinsky 2.2's"
    )


def _unet(file: Path, entries: Mapping[str, Any], attending: tuple[str, str] | None, *, low_res: bool) -> UNetConfig:
    """The config of a U-Net from the settings that both classes of diffusers share."""
    downs, ups, widths = entries["down_block_types"], entries["up_block_types"], entries["block_out_channels"]
    if not len(widths) == len(downs) == len(ups):
        raise UserError(f"{file}: block_out_channels, down_block_types and up_block_types differ in length")
    attention = []
    for down, up in zip(downs, reversed(ups), strict=True):
        if (down, up) == ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D"):
            attention.append(False)
        elif (down, up) == attending:
            attention.append(True)
        else:
            raise UserError(f"{file}: {down} facing {up} is not supported")
    channels = entries["in_channels"] // (2 if low_res else 1)
    if entries["in_channels"] != channels * (2 if low_res else 1) or entries["out_channels"] not in (
        channels,
        2 * channels,
    ):
        raise UserError(
            f"{file}: {entries['in_channels']} channels in and {entries['out_channels']} out are not supported"
        )
    if entries["resnet_time_scale_shift"] not in ("default", "scale_shift"):
        raise UserError(
            f"{file}: resnet_time_scale_shift is {entries['resnet_time_scale_shift']!r}, which is not supported"
        )
    for name in ("sample_size", "layers_per_block", "norm_num_groups", *(["attention_head_dim"] if attending else [])):
        if not isinstance(entries[name], int):
            raise UserError(f"{file}: {name} is {entries[name]!r}, supported is one number")
    levels = zip(widths, attention, strict=True)
    try:
        return UNetConfig(
            image_size=entries["sample_size"],
            levels=tuple(Level(width, entries["layers_per_block"], attends) for width, attends in levels),
            channels=channels,
            head_width=entries["attention_head_dim"] if attending else 1,
            groups=entries["norm_num_groups"],
            time_width=entries["time_embedding_dim"] or 4 * widths[0],
            scale_shift=entries["resnet_time_scale_shift"] == "scale_shift",
            low_res=LowRes() if low_res else None,
            learned_variance=entries["out_channels"] == 2 * channels,
        )
    except UserError as error:
        raise UserError(f"{file}: {error}") from error


def karlo_decoder_config(folder: Path, projection: Path) -> UNetConfig:
    """Reads the configs of Karlo's decoder and of its UnCLIPTextProjModel, which embeds CLIP's features.

    Args:
        folder: folder of the decoder.
        projection: folder of the text projection.

    Raises:
        UserError: a config is absent, damaged or not supported, or the two do not fit.
    """
    model = decoder_config(folder)
    file = projection / CONFIG
    entries = settings(
        file,
        "UnCLIPTextProjModel",
        {
            "clip_extra_context_tokens": 4,
            "clip_embeddings_dim": 768,
            "time_embed_dim": None,
            "cross_attention_dim": None,
        },
        {},
    )
    for name, ours in (("time_embed_dim", model.time_width), ("cross_attention_dim", model.context_width)):
        if entries[name] != ours:
            raise UserError(f"{file}: {name} is {entries[name]}, the decoder has {ours}: they are of different systems")
    width = entries["clip_embeddings_dim"]
    return dataclasses.replace(
        model,
        image=ImageCond(width, tokens=entries["clip_extra_context_tokens"]),
        text=TextCond(width, embed_dim=width, empty_caption=True),
    )


def upsampler_config(folder: Path) -> UNetConfig:
    """Reads the config of a UNet2DModel: Karlo's upsampler.

    Args:
        folder: folder of the upsampler.

    Raises:
        UserError: the config is absent, damaged or not supported.
    """
    file = folder / CONFIG
    fixed = {**UNET_FIXED, "mid_block_type": "UNetMidBlock2D", "add_attention": False}
    entries = settings(file, "UNet2DModel", UNET_SETTINGS, fixed)
    if read_json(file).get("add_attention", True):
        raise UserError(f"{file}: add_attention is True, supported is False only")
    return _unet(file, entries, None, low_res=True)


def movq_config(folder: Path) -> MoVQConfig:
    """Reads the config of a VQModel: the decoder of Kandinsky's MoVQ.

    Args:
        folder: folder of the model.

    Raises:
        UserError: the config is absent, damaged or not supported.
    """
    file = folder / CONFIG
    entries = settings(
        file,
        "VQModel",
        {
            "up_block_types": ("UpDecoderBlock2D",),
            "block_out_channels": (64,),
            "layers_per_block": 1,
            "out_channels": 3,
            "latent_channels": 3,
            "vq_embed_dim": None,
            # Not used: these belong to the encoder, the quantiser, and a scaling that Kandinsky does not apply.
            "in_channels": 3,
            "down_block_types": ("DownEncoderBlock2D",),
            "sample_size": None,
            "num_vq_embeddings": 256,
            "scaling_factor": 0.18215,
        },
        {"act_fn": "silu", "norm_num_groups": 32, "norm_type": "spatial", "mid_block_add_attention": True},
    )
    if read_json(file).get("norm_type") != "spatial":
        raise UserError(f"{file}: norm_type is not 'spatial': this is no MoVQ")
    if entries["vq_embed_dim"] not in (None, entries["latent_channels"]):
        raise UserError(
            f"{file}: vq_embed_dim is {entries['vq_embed_dim']}, supported is {entries['latent_channels']} only"
        )
    kinds = {"UpDecoderBlock2D": False, "AttnUpDecoderBlock2D": True}
    if unknown := [kind for kind in entries["up_block_types"] if kind not in kinds]:
        raise UserError(f"{file}: up_block_types {', '.join(unknown)} are not supported")
    attention = [kinds[kind] for kind in reversed(entries["up_block_types"])]
    if len(attention) != len(entries["block_out_channels"]):
        raise UserError(f"{file}: block_out_channels and up_block_types differ in length")
    return MoVQConfig(
        levels=tuple(
            Level(width, entries["layers_per_block"] + 1, attends)
            for width, attends in zip(entries["block_out_channels"], attention, strict=True)
        ),
        latent_channels=entries["latent_channels"],
        channels=entries["out_channels"],
    )
