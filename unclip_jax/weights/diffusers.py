"""Published systems in the layout of diffusers: a folder for each part, and `model_index.json` that names them.

Read are Karlo (text to image, and image variations), Kandinsky 2.2 (its prior and its decoder, which are two
directories) and priors alone, such as ECLIPSE's. Whatever a config says that these networks have not is refused, and so
is every weight that is missing, left over or of another shape.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import clip_jax
from clip_jax.config import CLIPConfig
from clip_jax.errors import UserError
from clip_jax.model import CLIP
from clip_jax.weights import huggingface
from clip_jax.weights.files import read_checkpoint, read_json
from clip_jax.weights.native import flatten, unflatten
from clip_jax.weights.rules import Rule, convert
from unclip_jax import priors
from unclip_jax import stage as stages
from unclip_jax.conditioning import EMPTY_CAPTION
from unclip_jax.models.movq import MoVQConfig, MoVQDecoder
from unclip_jax.models.prior import EXTRA_TOKENS, PriorConfig
from unclip_jax.models.unet import Level, UNetConfig
from unclip_jax.priors import OneStepStage, Prior
from unclip_jax.stage import Sampling, Stage
from unclip_jax.weights import kandinsky, karlo

INDEX, CONFIG, SCHEDULER, PREPROCESSOR = (
    "model_index.json",
    "config.json",
    "scheduler_config.json",
    "preprocessor_config.json",
)
WEIGHTS = tuple(
    f"{stem}{suffix}"
    for suffix in (".safetensors.index.json", ".safetensors", ".bin.index.json", ".bin")
    for stem in ("diffusion_pytorch_model", "model", "pytorch_model")
)
SUFFIXES = (".safetensors", ".bin")

Params = dict[str, Any]

# For each kind of pipeline: our name of a part -> theirs.
_SAME = ("text_encoder", "tokenizer", "image_encoder", "text_proj", "decoder", "decoder_scheduler")
_KARLO = {name: name for name in (*_SAME, "super_res_first", "super_res_last", "super_res_scheduler")}
PIPELINES: dict[str, dict[str, str]] = {
    "UnCLIPPipeline": {**_KARLO, "prior": "prior", "prior_scheduler": "prior_scheduler"},
    "UnCLIPImageVariationPipeline": {**_KARLO, "preprocessor": "feature_extractor"},
    "KandinskyV22PriorPipeline": {
        "text_encoder": "text_encoder",
        "tokenizer": "tokenizer",
        "image_encoder": "image_encoder",
        "preprocessor": "image_processor",
        "prior": "prior",
        "prior_scheduler": "scheduler",
    },
    "KandinskyV22Pipeline": {"decoder": "unet", "decoder_scheduler": "scheduler", "movq": "movq"},
}

# What the pipelines do unless told otherwise: it is in their code, not in the files.
PRIOR_SAMPLING = {"num_steps": 25, "guidance_scale": 4.0}
KARLO_SAMPLING = {"num_steps": 25, "guidance_scale": 8.0}
KANDINSKY_SAMPLING = {"num_steps": 100, "guidance_scale": 4.0}
UPSAMPLER_SAMPLING = {"num_steps": 7, "guidance_scale": None}


class Published(NamedTuple):
    """A system as it was found; ``prior`` is None where pictures are only varied, ``movq`` without latents."""

    clip: CLIPConfig
    prior: Prior | None
    decoder: Stage
    upsamplers: tuple[Stage, ...]
    movq: MoVQConfig | None
    params: Params
    tokenize: Any


def is_published(directory: Path) -> bool:
    """Whether a directory is of diffusers' layout: a pipeline, or a prior alone."""
    return (directory / INDEX).is_file() or _is_prior(directory)


def load(directories: Sequence[Path], dtype: str) -> Published:
    """The system in one or several directories; a part in a later one takes the place of the same in an earlier.

    Args:
      dtype: of the matrix products. With "bfloat16" the matrices are kept in it too.

    Raises:
      UserError: a part is absent, of another kind, or its weights do not fit its config or the other parts.
    """
    parts: dict[str, Path] = {}
    for directory in directories:
        parts |= _parts(directory)
    where = " and ".join(map(str, directories))

    def folder(name: str) -> Path:
        if name not in parts or not parts[name].is_dir():
            raise UserError(f"{where} has no {name}: give the directory of the pipeline it belongs to as well")
        return parts[name]

    for name in ("text_encoder", "decoder", "decoder_scheduler"):
        folder(name)  # refused before the larger parts are read
    clip_config, clip_params, tokenize = _clip(folder("text_encoder"), parts)
    empty = _empty_caption(clip_config, clip_params, tokenize)
    params: Params = {"clip": clip_params}
    prior = None
    if "prior" in parts:
        scheduler = parts.get("prior_scheduler")
        prior, params["prior"] = _prior(folder("prior"), scheduler, empty, dtype)
    if "text_proj" in parts:
        decoder, params["decoder"] = _karlo_decoder(
            folder("decoder"), folder("text_proj"), folder("decoder_scheduler"), empty, dtype
        )
    else:
        black = _black_picture(clip_config, clip_params)
        decoder, params["decoder"] = _kandinsky_decoder(folder("decoder"), folder("decoder_scheduler"), black, dtype)
    upsamplers: tuple[Stage, ...] = ()
    if "super_res_first" in parts:
        stage, params["upsampler_0"] = _upsampler(
            folder("super_res_first"), folder("super_res_last"), folder("super_res_scheduler"), dtype
        )
        upsamplers = (stage,)
    movq = None
    if "movq" in parts:
        movq, params["movq"] = load_movq(folder("movq"), dtype)
    return Published(clip_config, prior, decoder, upsamplers, movq, params, tokenize)


# finding things


def _is_prior(directory: Path) -> bool:
    file = directory / CONFIG
    return file.is_file() and read_json(file).get("_class_name") == "PriorTransformer"


def _parts(directory: Path) -> dict[str, Path]:
    """Our names of the parts in a directory -> their folders."""
    if not directory.is_dir():
        raise UserError(f"{directory} is not a directory")
    if _is_prior(directory):
        return {"prior": directory}
    if not (directory / INDEX).is_file():
        raise UserError(f"{directory} is no directory of diffusers: there is no {INDEX} in it")
    index = read_json(directory / INDEX)
    kind = index.get("_class_name")
    if kind not in PIPELINES:
        raise UserError(f"{directory / INDEX}: it is a {kind}; supported are {', '.join(PIPELINES)}")
    named = [theirs for theirs in PIPELINES[kind].values() if any(index.get(theirs) or ())]  # else [null, null]
    absent = [theirs for theirs in named if not (directory / theirs).is_dir()]
    if absent:
        raise UserError(f"{directory} lacks the folders {', '.join(absent)}, which {INDEX} names: fetch it whole")
    return {ours: directory / theirs for ours, theirs in PIPELINES[kind].items() if (directory / theirs).is_dir()}


def _weights_file(folder: Path) -> Path:
    found = [folder / name for name in WEIGHTS if (folder / name).is_file()]
    found = found or sorted(file for file in folder.iterdir() if file.suffix in SUFFIXES)
    if not found:
        raise UserError(f"{folder} holds no weights: there is none of {', '.join(WEIGHTS[:2])} and the like in it")
    return found[0]


def settings(file: Path, kind: str, used: Mapping[str, Any], fixed: Mapping[str, Any]) -> dict[str, Any]:
    """What a config says of the names in ``used``, which has the defaults.

    Raises:
      UserError: it is the config of another class, one of ``fixed`` has another value, or it says something unknown.
    """
    data = read_json(file)
    if data.get("_class_name") != kind:
        raise UserError(f"{file} is the config of a {data.get('_class_name')}, {kind} is needed: were folders swapped?")
    for name, value in data.items():
        if name.startswith("_") or name in used:
            continue
        allowed = (fixed[name],) if name in fixed else (None, False)  # an option that is off asks for nothing
        if value not in allowed:
            raise UserError(f"{file}: {name} is {value!r}, supported is {allowed[0]!r} only")
    return {name: data.get(name, default) for name, default in used.items()}


# parts


def _clip(folder: Path, parts: Mapping[str, Path]) -> tuple[CLIPConfig, Params, Any]:
    """Text tower and, where there is one, image tower as one CLIP."""
    text = clip_jax.load(folder)
    config, params = text.model.config, dict(text.variables["params"])
    if config.text is None or config.embed_dim is None:
        raise UserError(f"{folder} is no text encoder with a projection")
    if "image_encoder" in parts:
        image = clip_jax.load(parts["image_encoder"])
        vision = image.model.config
        if vision.vision is None or vision.embed_dim != config.embed_dim:
            raise UserError(
                f"{parts['image_encoder']} is no image encoder into the {config.embed_dim} dimensions of text"
            )
        if "preprocessor" in parts:
            file = parts["preprocessor"] / PREPROCESSOR
            vision = dataclasses.replace(
                vision, preprocess=huggingface.preprocess_from_json(read_json(file), vision, str(file))
            )
        # The temperature of this CLIP is in no file; nothing here needs it.
        config = dataclasses.replace(vision, text=config.text, logit_scale_learned=False)
        params["visual"] = image.variables["params"]["visual"]
    return config, params, text.tokenize


def _empty_caption(config: CLIPConfig, params: Params, tokenize: Any) -> dict[str, np.ndarray]:
    """What CLIP says of no words, as the networks keep it (``with_empty_captions``)."""
    text = _encode(config, "encode_text", params, tokenize([""]))
    if int(text.mask.sum()) != EMPTY_CAPTION:
        raise UserError(
            f"the empty caption has {int(text.mask.sum())} tokens, not a start and an end: another tokenizer?"
        )
    return {
        "null_text_encodings": np.asarray(text.encodings[0, :EMPTY_CAPTION]),
        "null_text_embed": np.asarray(text.embed[0]),
    }


def _black_picture(config: CLIPConfig, params: Params) -> np.ndarray:
    """The embedding Kandinsky guides away from: that of an input of zeros."""
    if config.vision is None:
        raise UserError("there is no image_encoder: give the directory of Kandinsky's prior as well")
    zeros = jnp.zeros((1, config.vision.image_size, config.vision.image_size, config.vision.channels))
    return np.asarray(_encode(config, "encode_image", params, zeros)[0])


@functools.partial(jax.jit, static_argnums=(0, 1))
def _encode(config: CLIPConfig, method: str, params: Params, given: jax.Array) -> Any:
    return CLIP(config).apply({"params": params}, given, method=method)


def schedule(folder: Path, sampling: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a Stage that a scheduler's config decides."""
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
        # These count only with thresholding, which is refused, and for other schedulers that read the same files.
        used |= dict.fromkeys(("dynamic_thresholding_ratio", "sample_max_value", "set_alpha_to_one"))
        fixed = {"steps_offset": 0}
    said = settings(file, "DDPMScheduler" if ddpm else "UnCLIPScheduler", used, fixed)
    noise = said["beta_schedule"]
    if noise == "linear":
        noise = (said["beta_start"], said["beta_end"])
    tables: dict[str, tuple[Any, dict[Any, str]]] = {
        "prediction_type": (said["prediction_type"], {"epsilon": "eps", "sample": "x0"}),
        "variance_type": (
            said["variance_type"],
            {"fixed_small": "ddpm", "fixed_small_log": "ddpm", "learned_range": "ddpm_learned"},
        ),
        "beta_schedule": (
            noise,
            {
                "squaredcos_cap_v2": "cosine_float32",
                (0.0001, 0.02): "linear_float32",
                (0.00085, 0.012): "latent_linear_float32",
            },
        ),
        "timestep_spacing": (said.get("timestep_spacing", "linspace"), {"linspace": "uniform", "leading": "leading"}),
    }
    for name, (value, table) in tables.items():
        if value not in table:
            raise UserError(f"{file}: {name} is {value}, supported are {', '.join(map(str, table))}")
    prediction, sampler, noise, grid = (table[value] for value, table in tables.values())
    return {
        "prediction": prediction,
        "schedule": noise,
        "num_timesteps": said["num_train_timesteps"],
        "sampling": Sampling(
            sampler,
            clip=float(said["clip_sample_range"]) if said["clip_sample"] else None,
            grid=grid,
            **sampling,
        ),
    }


def prior_config(folder: Path) -> PriorConfig:
    """A PriorTransformer's architecture; with three tokens behind the text it has no time and draws in one step."""
    file = folder / CONFIG
    said = settings(
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
    width, dim = said["num_attention_heads"] * said["attention_head_dim"], said["embedding_dim"]
    for name, only in (("time_embed_dim", width), ("embedding_proj_dim", dim), ("clip_embed_dim", dim)):
        if said[name] not in (None, only):
            raise UserError(f"{file}: {name} is {said[name]}, supported is {only} only")
    if said["additional_embeddings"] not in (EXTRA_TOKENS, EXTRA_TOKENS - 1):
        raise UserError(f"{file}: additional_embeddings is {said['additional_embeddings']}, supported are 3 and 4")
    return PriorConfig(
        embed_dim=dim,
        text_width=dim,
        context_length=said["num_embeddings"],
        width=width,
        layers=said["num_layers"],
        heads=said["num_attention_heads"],
        time_token=said["additional_embeddings"] == EXTRA_TOKENS,
        empty_caption=True,
    )


def _prior(folder: Path, scheduler: Path | None, empty: Mapping[str, np.ndarray], dtype: str) -> tuple[Prior, Params]:
    model = dataclasses.replace(prior_config(folder), dtype=dtype)
    stage: Prior
    if model.time_token:
        if scheduler is None:
            raise UserError(f"{folder} is a prior without its scheduler: give the directory of its pipeline as well")
        stage = Stage(model=model, **schedule(scheduler, PRIOR_SAMPLING))
    else:
        stage = OneStepStage(model)
    given = dict(empty)
    ignore = karlo.PRIOR_IGNORE
    if not model.time_token:
        # ECLIPSE predicts CLIP's embeddings themselves, and its files hold zeros in the place of their statistics.
        given |= {
            "embed_mean": np.zeros(model.embed_dim, np.float32),
            "embed_std": np.ones(model.embed_dim, np.float32),
        }
        ignore += "|clip_mean|clip_std"
    return stage, _read(stage, [(folder, karlo.PRIOR, "", ignore)], given)


def decoder_config(folder: Path) -> UNetConfig:
    """A UNet2DConditionModel's architecture, its context left open."""
    file = folder / CONFIG
    said = settings(
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
    config = _unet(file, said, ("SimpleCrossAttnDownBlock2D", "SimpleCrossAttnUpBlock2D"), low_res=False)
    if not config.levels[-1].attention:
        raise UserError(f"{file}: the coarsest level has no attention, the middle has: supported are both or neither")
    config = dataclasses.replace(config, context_width=said["cross_attention_dim"])
    kind = (said["class_embed_type"], said["addition_embed_type"], said["encoder_hid_dim_type"])
    if kind == (None, "image", "image_proj"):
        return dataclasses.replace(config, image_embed_dim=said["encoder_hid_dim"], image_tokens=32, image_norm=True)
    if kind == ("identity", None, None):
        return config
    raise UserError(
        f"{file}: class_embed_type, addition_embed_type and encoder_hid_dim_type are {kind}: neither Karlo's nor "
        "Kandinsky 2.2's"
    )


# What both classes of U-Nets say that we use, and what they may say only so.
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
    # Of kinds of blocks and embeddings that are refused anyway:
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


def _unet(file: Path, said: Mapping[str, Any], attending: tuple[str, str] | None, *, low_res: bool) -> UNetConfig:
    """The part of the architecture that both classes of U-Nets share."""
    downs, ups, widths = said["down_block_types"], said["up_block_types"], said["block_out_channels"]
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
    channels = said["in_channels"] // (2 if low_res else 1)
    if said["in_channels"] != channels * (2 if low_res else 1) or said["out_channels"] not in (channels, 2 * channels):
        raise UserError(f"{file}: {said['in_channels']} channels in and {said['out_channels']} out are not supported")
    if said["resnet_time_scale_shift"] not in ("default", "scale_shift"):
        raise UserError(
            f"{file}: resnet_time_scale_shift is {said['resnet_time_scale_shift']!r}, which is not supported"
        )
    for name in ("sample_size", "layers_per_block", "norm_num_groups", *(["attention_head_dim"] if attending else [])):
        if not isinstance(said[name], int):
            raise UserError(f"{file}: {name} is {said[name]!r}, supported is one number")
    levels = zip(widths, attention, strict=True)
    try:
        return UNetConfig(
            image_size=said["sample_size"],
            levels=tuple(Level(width, said["layers_per_block"], attends) for width, attends in levels),
            channels=channels,
            head_width=said["attention_head_dim"] if attending else 1,
            groups=said["norm_num_groups"],
            time_width=said["time_embedding_dim"] or 4 * widths[0],
            scale_shift=said["resnet_time_scale_shift"] == "scale_shift",
            low_res=low_res,
            learned_variance=said["out_channels"] == 2 * channels,
        )
    except UserError as error:
        raise UserError(f"{file}: {error}") from error


def _karlo_decoder(
    folder: Path, projection: Path, scheduler: Path, empty: Mapping[str, np.ndarray], dtype: str
) -> tuple[Stage, Params]:
    model = decoder_config(folder)
    file = projection / CONFIG
    said = settings(
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
        if said[name] != ours:
            raise UserError(f"{file}: {name} is {said[name]}, the decoder has {ours}: they are of different systems")
    width = said["clip_embeddings_dim"]
    model = dataclasses.replace(
        model,
        image_embed_dim=width,
        image_tokens=said["clip_extra_context_tokens"],
        text_width=width,
        text_embed_dim=width,
        empty_caption=True,
        dtype=dtype,
    )
    stage = Stage(model=model, **schedule(scheduler, KARLO_SAMPLING))
    _check_variance(folder, stage)
    given = {f"context/{name}": value for name, value in empty.items()}
    sources = [
        (projection, karlo.text_projection(model), "context/", ""),
        (folder, karlo.unet(len(model.levels)), "", ""),
    ]
    return stage, _read(stage, sources, given)


def _kandinsky_decoder(folder: Path, scheduler: Path, black: np.ndarray, dtype: str) -> tuple[Stage, Params]:
    model = dataclasses.replace(decoder_config(folder), dtype=dtype)
    if model.image_embed_dim is None:
        raise UserError(f"{folder} is Karlo's decoder without its text_proj: give the directory of its pipeline")
    stage = Stage(model=model, **schedule(scheduler, KANDINSKY_SAMPLING))
    _check_variance(folder, stage)
    table = (*karlo.unet(len(model.levels)), *kandinsky.IMAGE_CONTEXT)
    return stage, _read(stage, [(folder, table, "", "")], {"context/null_image_embed": black})


def _check_variance(folder: Path, stage: Stage) -> None:
    if stage.sampling.sampler == "ddpm_learned" and not stages.learned_variance(stage):
        raise UserError(f"{folder} learned no variance, which its scheduler asks for: they are of different systems")


def upsampler_config(folder: Path) -> UNetConfig:
    """A UNet2DModel's architecture: Karlo's super-resolution."""
    file = folder / CONFIG
    fixed = {**UNET_FIXED, "mid_block_type": "UNetMidBlock2D", "add_attention": False}
    said = settings(file, "UNet2DModel", UNET_SETTINGS, fixed)
    if read_json(file).get("add_attention", True):
        raise UserError(f"{file}: add_attention is True, supported is False only")
    return _unet(file, said, None, low_res=True)


def _upsampler(first: Path, last: Path, scheduler: Path, dtype: str) -> tuple[Stage, Params]:
    model = upsampler_config(first)
    if upsampler_config(last) != model:
        raise UserError(f"{last} is another architecture than {first}: they are of different systems")
    model = dataclasses.replace(model, dtype=dtype)
    stage = Stage(model=model, last_network=True, **schedule(scheduler, UPSAMPLER_SAMPLING))
    _check_variance(first, stage)
    table = karlo.unet(len(model.levels))
    final = tuple(rule._replace(ours=f"last/{rule.ours}") for rule in table)
    return stage, _read(stage, [(last, final, "last/", ""), (first, table, "", "")], {})


def movq_config(folder: Path) -> MoVQConfig:
    """A VQModel's architecture, as far as it decodes."""
    file = folder / CONFIG
    said = settings(
        file,
        "VQModel",
        {
            "up_block_types": ("UpDecoderBlock2D",),
            "block_out_channels": (64,),
            "layers_per_block": 1,
            "out_channels": 3,
            "latent_channels": 3,
            "vq_embed_dim": None,
            # Of the encoder, the quantisation, and scales that Kandinsky does not apply:
            **dict.fromkeys(("in_channels", "down_block_types", "sample_size", "num_vq_embeddings", "scaling_factor")),
        },
        {"act_fn": "silu", "norm_num_groups": 32, "norm_type": "spatial", "mid_block_add_attention": True},
    )
    if read_json(file).get("norm_type") != "spatial":
        raise UserError(f"{file}: norm_type is not 'spatial': this is no MoVQ")
    if said["vq_embed_dim"] not in (None, said["latent_channels"]):
        raise UserError(f"{file}: vq_embed_dim is {said['vq_embed_dim']}, supported is {said['latent_channels']} only")
    kinds = {"UpDecoderBlock2D": False, "AttnUpDecoderBlock2D": True}
    if unknown := [kind for kind in said["up_block_types"] if kind not in kinds]:
        raise UserError(f"{file}: up_block_types {', '.join(unknown)} are not supported")
    attention = [kinds[kind] for kind in reversed(said["up_block_types"])]
    if len(attention) != len(said["block_out_channels"]):
        raise UserError(f"{file}: block_out_channels and up_block_types differ in length")
    return MoVQConfig(
        levels=tuple(
            Level(width, said["layers_per_block"] + 1, attends)
            for width, attends in zip(said["block_out_channels"], attention, strict=True)
        ),
        latent_channels=said["latent_channels"],
        channels=said["out_channels"],
    )


def load_movq(folder: Path, dtype: str) -> tuple[MoVQConfig, Params]:
    """MoVQ's decoder."""
    config = dataclasses.replace(movq_config(folder), dtype=dtype)
    latents = jax.ShapeDtypeStruct((1, 2, 2, config.latent_channels), jnp.float32)
    shapes = jax.eval_shape(lambda key, x: MoVQDecoder(config).init(key, x)["params"], jax.random.key(0), latents)
    file = _weights_file(folder)
    table = kandinsky.movq(len(config.levels))
    flat = convert(read_checkpoint(file), table, flatten(shapes), ignore=kandinsky.MOVQ_IGNORE, where=str(file))
    return config, _nested(flat, dtype)


# reading


def _read(
    stage: Prior, sources: Iterable[tuple[Path, tuple[Rule, ...], str, str]], given: Mapping[str, np.ndarray]
) -> Params:
    """The parameters of a stage.

    Args:
      sources: (folder, its table, what the parameters in it begin with, names to ignore); the first that has a
        parameter's beginning holds it.
      given: parameters that are in none of them.
    """
    expect = flatten(jax.eval_shape(lambda key: priors.init(stage, key), jax.random.key(0)))
    wrong = [f"{name} {list(array.shape)}" for name, array in given.items() if array.shape != expect[name].shape]
    if wrong:
        raise UserError(
            f"CLIP and {Path(next(iter(sources))[0])} do not fit: {', '.join(wrong)} of CLIP is another width"
        )
    flat, left = dict(given), {name: leaf for name, leaf in expect.items() if name not in given}
    for folder, table, prefix, ignore in sources:
        mine = {name: left.pop(name) for name in list(left) if name.startswith(prefix)}
        file = _weights_file(folder)
        flat |= convert(read_checkpoint(file), table, mine, ignore=ignore, where=str(file))
    return _nested(flat, stage.model.dtype)


def _nested(flat: Mapping[str, np.ndarray], dtype: str) -> Params:
    """On the device; matrices in the dtype they are multiplied in anyway, which halves the memory."""

    def kept(name: str, array: np.ndarray) -> jax.Array:
        multiplied = name.endswith("/kernel") and "time_embedding/" not in name
        return jnp.asarray(array, dtype if multiplied else jnp.float32)

    return unflatten({name: kept(name, array) for name, array in flat.items()})
