"""Loads published systems in the layout of diffusers: a folder for each part, named in `model_index.json`.

Supported are Karlo (text to image, and image variations), Kandinsky 2.2 (prior and decoder, which are two directories),
and single priors such as ECLIPSE's. A config with a setting that the networks here do not support is refused
(`diffusers_configs`), and so are weights that are missing, left over or of another shape.
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
from clip_jax.weights.find import weights_file
from clip_jax.weights.rules import Rule, convert
from unclip_jax import priors
from unclip_jax.conditioning import EMPTY_CAPTION
from unclip_jax.models.movq import MoVQConfig, MoVQDecoder
from unclip_jax.models.unet import UNetConfig
from unclip_jax.priors import OneStepStage, Prior
from unclip_jax.stage import Stage
from unclip_jax.variables import Variables, flat, nested
from unclip_jax.weights import kandinsky, karlo
from unclip_jax.weights.diffusers_configs import (
    CONFIG,
    decoder_config,
    karlo_decoder_config,
    movq_config,
    prior_config,
    schedule,
    upsampler_config,
)

INDEX, PREPROCESSOR = "model_index.json", "preprocessor_config.json"
WEIGHTS = tuple(
    f"{stem}{suffix}"
    for suffix in (".safetensors", ".bin")
    for stem in ("diffusion_pytorch_model", "model", "pytorch_model")
)

Params = dict[str, Any]

# For each class of pipeline: name of a part here -> its folder.
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

# Default sampling of the pipelines, which is in the code of diffusers and not in the files.
PRIOR_SAMPLING = {"num_steps": 25, "guidance_scale": 4.0}
KARLO_SAMPLING = {"num_steps": 25, "guidance_scale": 8.0}
KANDINSKY_SAMPLING = {"num_steps": 100, "guidance_scale": 4.0}
UPSAMPLER_SAMPLING = {"num_steps": 7, "guidance_scale": None}


class Published(NamedTuple):
    """A published system.

    Attributes:
        clip: config of its CLIP.
        prior: the prior; None in a system for image variations only.
        decoder: the decoder.
        upsamplers: the upsamplers, in order.
        movq: decodes the latents of the decoder; None where the decoder draws pictures.
        params: variables of each network by name.
        tokenize: prompts -> int32 [B, L].
    """

    clip: CLIPConfig
    prior: Prior | None
    decoder: Stage
    upsamplers: tuple[Stage, ...]
    movq: MoVQConfig | None
    params: Params
    tokenize: Any


def is_published(directory: Path) -> bool:
    """Whether a directory is in the layout of diffusers: a pipeline, or a single prior."""
    return (directory / INDEX).is_file() or _is_prior(directory)


def load(directories: Sequence[Path], dtype: str) -> Published:
    """Loads a system from one or several directories.

    Args:
        directories: pipelines or single priors in the layout of diffusers; a part in a later directory replaces the
            same part in an earlier one.
        dtype: dtype of the matrix products. The matrices are stored in it too, which halves the memory of "bfloat16".

    Raises:
        UserError: a part is absent or unsupported, or its weights do not fit its config or the other parts.
    """
    parts: dict[str, Path] = {}
    for directory in directories:
        parts |= parts_of(directory)
    where = " and ".join(map(str, directories))

    def folder(name: str) -> Path:
        if name not in parts or not parts[name].is_dir():
            raise UserError(f"{where} has no {name}: give the directory of the pipeline it belongs to as well")
        return parts[name]

    for name in ("text_encoder", "decoder", "decoder_scheduler"):
        folder(name)  # fails before the larger parts are read
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


# Finding the parts.


def _is_prior(directory: Path) -> bool:
    """Whether a directory is that of a single prior."""
    file = directory / CONFIG
    return file.is_file() and read_json(file).get("_class_name") == "PriorTransformer"


def parts_of(directory: Path) -> dict[str, Path]:
    """Finds the parts of a pipeline or a single prior.

    Args:
        directory: in the layout of diffusers.

    Returns:
        Name of a part here -> its folder.

    Raises:
        UserError: the directory has another layout or an unsupported pipeline, or lacks a folder.
    """
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
    named = [
        theirs for theirs in PIPELINES[kind].values() if any(index.get(theirs) or ())
    ]  # an absent part is [null, null]
    absent = [theirs for theirs in named if not (directory / theirs).is_dir()]
    if absent:
        raise UserError(f"{directory} lacks the folders {', '.join(absent)}, which {INDEX} names: fetch it whole")
    return {ours: directory / theirs for ours, theirs in PIPELINES[kind].items() if (directory / theirs).is_dir()}


def _weights_file(folder: Path) -> Path:
    """The file with the weights of a part."""
    found = weights_file(folder, WEIGHTS)
    if found is None:
        raise UserError(f"{folder} holds no weights: there is none of {', '.join(WEIGHTS[:2])} and the like in it")
    return found


# Loading the parts.


def _clip(folder: Path, parts: Mapping[str, Path]) -> tuple[CLIPConfig, Params, Any]:
    """Loads the text tower and, if there is one, the image tower as one CLIP: (config, weights, tokenizer)."""
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
        # The temperature of this CLIP is not in the files, and is not needed here.
        config = dataclasses.replace(vision, text=config.text, logit_scale_learned=False)
        params["visual"] = image.variables["params"]["visual"]
    return config, params, text.tokenize


def _empty_caption(config: CLIPConfig, params: Params, tokenize: Any) -> dict[str, np.ndarray]:
    """CLIP's features of the empty caption, as `with_empty_captions` takes them."""
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
    """CLIP's image embedding of zeros [D], the null image embedding of Kandinsky."""
    if config.vision is None:
        raise UserError("there is no image_encoder: give the directory of Kandinsky's prior as well")
    zeros = jnp.zeros((1, config.vision.image_size, config.vision.image_size, config.vision.channels))
    return np.asarray(_encode(config, "encode_image", params, zeros)[0])


@functools.partial(jax.jit, static_argnums=(0, 1))
def _encode(config: CLIPConfig, method: str, params: Params, given: jax.Array) -> Any:
    """Calls a method of a CLIP as a compiled program."""
    return CLIP(config).apply({"params": params}, given, method=method)


def _prior(
    folder: Path, scheduler: Path | None, empty: Mapping[str, np.ndarray], dtype: str
) -> tuple[Prior, Variables]:
    """Loads a diffusion prior, or a one-step prior (ECLIPSE)."""
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
        # ECLIPSE predicts CLIP's embeddings without standardising them; the statistics in its files are zeros.
        given |= {
            "embed_mean": np.zeros(model.embed_dim, np.float32),
            "embed_std": np.ones(model.embed_dim, np.float32),
        }
        ignore += "|clip_mean|clip_std"
    return stage, _read(stage, [(folder, karlo.PRIOR, "", ignore)], given)


def _karlo_decoder(
    folder: Path, projection: Path, scheduler: Path, empty: Mapping[str, np.ndarray], dtype: str
) -> tuple[Stage, Variables]:
    """Loads Karlo's decoder with its text projection."""
    model = dataclasses.replace(karlo_decoder_config(folder, projection), dtype=dtype)
    stage = _stage(folder, model, schedule(scheduler, KARLO_SAMPLING))
    given = {f"context/{name}": value for name, value in empty.items()}
    sources = [
        (projection, karlo.text_projection(model), "context/", ""),
        (folder, karlo.unet(len(model.levels)), "", ""),
    ]
    return stage, _read(stage, sources, given)


def _kandinsky_decoder(folder: Path, scheduler: Path, black: np.ndarray, dtype: str) -> tuple[Stage, Variables]:
    """Loads Kandinsky's decoder."""
    model = dataclasses.replace(decoder_config(folder), dtype=dtype)
    if model.image is None:
        raise UserError(f"{folder} is Karlo's decoder without its text_proj: give the directory of its pipeline")
    stage = _stage(folder, model, schedule(scheduler, KANDINSKY_SAMPLING))
    table = (*karlo.unet(len(model.levels)), *kandinsky.IMAGE_CONTEXT)
    return stage, _read(stage, [(folder, table, "", "")], {"context/null_image_embed": black})


def _stage(folder: Path, model: UNetConfig, scheduled: Mapping[str, Any], **fields: Any) -> Stage:
    """The stage of a U-Net, with the fields that its scheduler decides (`schedule`)."""
    if scheduled["sampling"].sampler.variance == "learned" and not model.learned_variance:
        raise UserError(f"{folder} learned no variance, which its scheduler asks for: they are of different systems")
    return Stage(model=model, **scheduled, **fields)


def _upsampler(first: Path, last: Path, scheduler: Path, dtype: str) -> tuple[Stage, Variables]:
    """Loads Karlo's upsampler, whose last sampling step is that of a second network."""
    model = upsampler_config(first)
    if upsampler_config(last) != model:
        raise UserError(f"{last} is another architecture than {first}: they are of different systems")
    model = dataclasses.replace(model, dtype=dtype)
    stage = _stage(first, model, schedule(scheduler, UPSAMPLER_SAMPLING), last_network=True)
    table = karlo.unet(len(model.levels))
    final = tuple(rule._replace(ours=f"last/{rule.ours}") for rule in table)
    return stage, _read(stage, [(last, final, "last/", ""), (first, table, "", "")], {})


def load_movq(folder: Path, dtype: str) -> tuple[MoVQConfig, Variables]:
    """Loads MoVQ's decoder.

    Args:
        folder: folder of the part.
        dtype: dtype of the matrix products.

    Raises:
        UserError: the config is unsupported, or the weights do not fit it.
    """
    config = dataclasses.replace(movq_config(folder), dtype=dtype)
    latents = jax.ShapeDtypeStruct((1, 2, 2, config.latent_channels), jnp.float32)
    like = jax.eval_shape(MoVQDecoder(config).init, jax.random.key(0), latents)
    file = _weights_file(folder)
    table = kandinsky.movq(len(config.levels))
    found = convert(read_checkpoint(file), table, flat(like), ignore=kandinsky.MOVQ_IGNORE, where=str(file))
    return config, nested(_on_device(found, dtype), like)


# Reading weights.


def _read(
    stage: Prior, sources: Iterable[tuple[Path, tuple[Rule, ...], str, str]], given: Mapping[str, np.ndarray]
) -> Variables:
    """Reads the variables of a stage.

    Args:
        stage: the stage.
        sources: (folder, its table, prefix of the names of its variables, pattern of entries to ignore). A variable is
            read from the first source whose prefix it has.
        given: variables that are in no source.

    Raises:
        UserError: weights are missing, left over or of another shape, or CLIP's features have another width.
    """
    like = jax.eval_shape(lambda key: priors.init(stage, key), jax.random.key(0))
    expect = flat(like)
    wrong = [f"{name} {list(array.shape)}" for name, array in given.items() if array.shape != expect[name].shape]
    if wrong:
        raise UserError(
            f"CLIP and {Path(next(iter(sources))[0])} do not fit: {', '.join(wrong)} of CLIP is another width"
        )
    found, left = dict(given), {name: leaf for name, leaf in expect.items() if name not in given}
    for folder, table, prefix, ignore in sources:
        mine = {name: left.pop(name) for name in list(left) if name.startswith(prefix)}
        file = _weights_file(folder)
        found |= convert(read_checkpoint(file), table, mine, ignore=ignore, where=str(file))
    return nested(_on_device(found, stage.model.dtype), like)


def _on_device(leaves: Mapping[str, np.ndarray], dtype: str) -> dict[str, jax.Array]:
    """Puts arrays on the device: matrices in the dtype of their products, to save memory, all others in float32."""

    def kept(name: str, array: np.ndarray) -> jax.Array:
        multiplied = name.endswith("/kernel") and "time_embedding/" not in name
        return jnp.asarray(array, dtype if multiplied else jnp.float32)

    return {name: kept(name, array) for name, array in leaves.items()}
