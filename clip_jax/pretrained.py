"""Loads and saves a CLIP: `load`, `save`, and `export` to published formats.

`save` writes this project's layout, a directory with `config.json`, `weights.safetensors` and `tokenizer.json`; `load`
reads it back. `load` also reads every published format (`clip_jax.weights.formats`); `export` writes those of
transformers, OpenCLIP and OpenAI.

Loading has three steps: `find` the checkpoint, `agree` on its config, `convert` its weights. What a checkpoint states
takes precedence over defaults, and what contradicts it is a UserError: a wrong activation or mean costs points of
accuracy without any other sign.
"""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from clip_jax.config import CLIPConfig, TextConfig
from clip_jax.encode import joined
from clip_jax.errors import UserError, reading
from clip_jax.fields import brief
from clip_jax.images import MissingPreprocess, Preprocess
from clip_jax.model import CLIP
from clip_jax.presets import did_you_mean, is_preset, preset
from clip_jax.tokenizer import MissingTokenizer, Tokenizer, load_tokenizer
from clip_jax.weights import huggingface, native, openai
from clip_jax.weights.agree import Agreed, Request, agree, check_tokenizer, check_vocabulary
from clip_jax.weights.configs import CONFIG, read_config
from clip_jax.weights.digest import DIGESTS, check_digest, digests
from clip_jax.weights.dtypes import stored_dtype
from clip_jax.weights.find import TOKENIZER, WEIGHTS, Found, find
from clip_jax.weights.hub import fetch, fetch_published
from clip_jax.weights.hub_repositories import published_weights
from clip_jax.weights.layouts import Layout, export, write_json
from clip_jax.weights.resolution import interpolated
from clip_jax.weights.rules import convert, expected, nested_variables

__all__ = ["Layout", "LoadedCLIP", "export", "load", "save"]


class LoadedCLIP(NamedTuple):
    """What `load` returns.

    Attributes:
        model: the Flax module; `model.config` is its config.
        variables: {"params": …}, and "batch_stats" where there are batch norms.
        tokenize: texts -> int32 [B, L]. A checkpoint without vocabulary or text tower has a `MissingTokenizer`, which
            raises a UserError when it is called.
        preprocess: pictures -> float32 [B, H, W, c]. A checkpoint without image tower has a `MissingPreprocess`, which
            raises a UserError when it is called.
    """

    model: CLIP
    variables: dict[str, Any]
    tokenize: Tokenizer
    preprocess: Preprocess


def save(
    directory: str | os.PathLike,
    model: CLIP | CLIPConfig,
    variables: dict[str, Any],
    tokenizer: Tokenizer,
    *,
    dtype: Any = None,
) -> None:
    """Writes a CLIP to a directory that `load` reads. Each file is written atomically.

    Args:
        directory: created if it does not exist. Its `config.json` holds the digests of the other files.
        model: the module or its config.
        variables: {"params": …}, and "batch_stats" where there are batch norms.
        tokenizer: of the text tower; ignored without one.
        dtype: of the stored weights: "float32", "float16" or "bfloat16"; None keeps their dtype.

    Raises:
        UserError: If the tokenizer has more ids than the model, or a weight is not finite in the stored dtype.
    """
    config = model.config if isinstance(model, CLIP) else model
    if config.text is not None:
        check_tokenizer(config, tokenizer, "the tokenizer")
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    native.save_params(directory / WEIGHTS, joined(variables), dtype=stored_dtype(dtype))
    if config.text is not None:
        with native.atomic_path(directory / TOKENIZER) as path:
            tokenizer.save(path)
    files = (WEIGHTS, TOKENIZER) if config.text is not None else (WEIGHTS,)
    write_json(directory / CONFIG, config.to_dict() | {DIGESTS: digests(directory, files)})


def load(
    source: str | os.PathLike | Any,  # Any: another type is a UserError, here and below
    *,
    weights: str | os.PathLike | None = None,
    config: CLIPConfig | str | os.PathLike | Mapping[str, Any] | Any = None,
    vocab: str | os.PathLike | None = None,
    part: str | None = None,
    image_size: int | Any = None,
    dtype: Any = None,
) -> LoadedCLIP:
    """Loads a CLIP from a directory, a weights file, the name of a published model, or the Hugging Face hub.

    Args:
        source: one of:
            a directory in the layout of `save`, Hugging Face or OpenCLIP;
            a file of a published format (safetensors, a torch file, a TorchScript archive, npz, Flax's msgpack);
            the name of a preset ("ViT-B/32", also "ViT-B-32"), whose published weights are fetched from the hub, or
            taken from `weights`;
            the name of a repository on the hub, "owner/name".
            The hub needs the package `huggingface_hub`. A `Path` is never taken for a name.
        weights: the file or directory with the weights of a preset.
        config: the architecture, where the weights do not state it: a CLIPConfig, a preset's name, or a JSON file (or
            its content) of this project, Hugging Face or OpenCLIP. What the checkpoint states must agree with it; only
            the image size may differ, with a warning (see `image_size`). Of a config with two towers, only the tower
            that the weights contain is used.
        vocab: the tokenizer's file or directory, if it does not lie beside the weights.
        part: which model to take from a file or pipeline with several: "text_encoder" or "text_encoder_2" of a Stable
            Diffusion checkpoint, else the prefix of the names of its weights, such as "ema".
        image_size: side in pixels of the pictures, if it is not that of the training. The position embeddings of the
            patches are interpolated as the original project does it (`clip_jax.weights.resolution`); accuracy drops
            the more the sizes differ.
        dtype: float32 (None), "bfloat16" or "float16": the dtype of matrices (kernels, tables of embeddings and
            positions) and of matrix products, as OpenCLIP's `precision="bf16"`. Norms, their scales, biases, softmax,
            logits and unit-norm features stay float32.

    Returns:
        (model, variables, tokenize, preprocess). A checkpoint of one tower gives a model with this tower alone.

    Raises:
        UserError: If something is missing or damaged, or the weights, config and tokenizer do not fit together.
    """
    for name, value in (("source", source), ("weights", "" if weights is None else weights)):
        if not isinstance(value, str | os.PathLike):
            raise UserError(f"{name} is {brief(value)}: give a path or a name")
    _check_device()
    if image_size is not None and (isinstance(image_size, bool) or not isinstance(image_size, int) or image_size < 1):
        raise UserError(f"image_size is {image_size!r}: it is the number of pixels of a side, pictures are square")
    kept = stored_dtype(dtype) or np.dtype(np.float32)
    path, request = _locate(source, weights, None if config is None else read_config(config), image_size)
    found = find(path, part)
    agreed = agree(found, request)
    flat = _converted(found, agreed)
    tokenizer = _tokenizer(found, agreed.config, vocab)
    config = _with_ids_of(tokenizer, agreed.config)
    preprocess: Preprocess = MissingPreprocess("this model has no image tower, and no preprocessing")
    if config.vision is not None:
        preprocess = Preprocess(config.preprocess, config.vision.image_size)
    return LoadedCLIP(CLIP(config, jnp.dtype(kept)), _variables(flat, kept, found.where), tokenizer, preprocess)


def _locate(
    source: str | os.PathLike, weights: str | os.PathLike | None, config: CLIPConfig | None, image_size: int | None
) -> tuple[Path, Request]:
    """The checkpoint's path, downloaded from the hub if necessary, and the caller's config and image size for it."""
    name, path, request = str(source), Path(source), Request(config, image_size=image_size)
    is_name = isinstance(source, str) and not _exists(path)
    if is_name and is_preset(name):
        of_preset = Request(preset(name), f"the preset {name}", image_size)
        if weights is not None:
            if config is not None:
                raise UserError(f"{name} is a preset, which is a config already: leave out config=")
            return Path(weights), of_preset
        published = published_weights(name)
        if published is None:
            raise UserError(f"{name} is an architecture, not weights: give load({name!r}, weights=path)")
        return fetch_published(name, published), request if published.has_config or config else of_preset
    if weights is not None:
        raise UserError(
            f"weights= is for the name of a preset (as ViT-B/32), {name} is none{did_you_mean(name)}: leave it out"
        )
    if is_name:
        return fetch(name), request
    if not _exists(path):  # a path, not a name: nothing to ask the hub for
        raise UserError(f"{path} holds no CLIP: there is no such file or directory")
    return path, request


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name longer than the file system allows
        return False


def _check_device() -> None:
    """Raises UserError if no device of `JAX_PLATFORMS` exists: JAX's own error comes at its first use, unexplained."""
    try:
        jax.devices()
    except Exception as error:
        platforms = os.environ.get("JAX_PLATFORMS", "")
        raise UserError(
            f"JAX_PLATFORMS: no device of {platforms!r} can be used on this machine; unset it, or set it to cpu"
        ) from error


def _converted(found: Found, agreed: Agreed) -> dict[str, np.ndarray]:
    """The weights as flat float32 parameters, with position embeddings interpolated to the agreed image size."""
    stored, config = agreed
    if found.format is None:
        with reading(Path(found.stated_by), "the config"):
            expect = native.unflatten(expected(stored))  # fails for sizes that no network can have
        flat = native.flatten(native.load_params(found.file, expect, digest=found.digests.get(WEIGHTS)))
    else:
        one_tower = "" if stored.two_towers else "|logit_scale|logit_bias"
        table, ignore = found.format.rules(stored), found.format.ignore + one_tower
        flat = convert(found.checkpoint, table, expected(stored), ignore=ignore, where=found.where)
    if config == stored:
        return flat
    return interpolated(flat, stored, config, antialias=found.format is openai.FORMAT)


def _tokenizer(found: Found, config: CLIPConfig, vocab: str | os.PathLike | None) -> Tokenizer:
    """The tokenizer in `vocab`, else the one beside the weights; a `MissingTokenizer` where there is none."""
    text, source = config.text, found.tokenizer if vocab is None else Path(vocab)
    if text is None:
        return MissingTokenizer("this model has no text tower, and no tokenizer")
    if source is None:
        return MissingTokenizer(
            "these weights came without a vocabulary: give its file to clip_jax.load(…, vocab=path)"
        )
    if found.format is None:
        if vocab is None and source.is_file():
            check_digest(source, found.digests.get(TOKENIZER))
        tokenizer = load_tokenizer(source)
        check_tokenizer(config, tokenizer, str(source))
        return tokenizer
    kind: Any = None if text.tokenizer == "roberta" else text.tokenizer  # no reader for "roberta" exists
    # Only Hugging Face states the padding in the tokenizer's files; in other formats the model's config does.
    pad_id = None if found.format.name == huggingface.FORMAT.name and vocab is None else text.pad_id
    tokenizer = load_tokenizer(source, context_length=text.context_length, pad_id=pad_id, kind=kind)
    check_vocabulary(config, tokenizer, str(source), exact=vocab is not None)
    return tokenizer


def _with_ids_of(tokenizer: Tokenizer, config: CLIPConfig) -> CLIPConfig:
    """The config with this tokenizer's `pad_id`, and its `eos_id` where the end token is not the highest id."""
    if isinstance(tokenizer, MissingTokenizer):
        return config
    text = config.text
    if text.pad_id != tokenizer.pad_id:
        text = dataclasses.replace(text, pad_id=tokenizer.pad_id)
    highest_ends = isinstance(text, TextConfig) and text.pool == "eos" and text.eos_id is None
    if highest_ends and tokenizer.vocab_size > tokenizer.eot_id + 1:  # added tokens have higher ids
        text = dataclasses.replace(text, eos_id=tokenizer.eot_id)
    return dataclasses.replace(config, text=text)


def _variables(flat: Mapping[str, np.ndarray], dtype: np.dtype, where: str) -> dict[str, Any]:
    """The weights on the device as nested variables, matrices in `dtype`. Raises UserError if one overflows there."""

    def kept(name: str, array: np.ndarray) -> jax.Array:
        if array.ndim < 2 or dtype == np.float32:
            return jnp.asarray(array)
        with np.errstate(over="ignore"):
            small = array.astype(dtype)
        if not np.isfinite(small.astype(np.float32)).all():
            raise UserError(f"{where}: {name} is not finite in {dtype.name}: load it in bfloat16 or float32")
        return jnp.asarray(small)

    return nested_variables({name: kept(name, array) for name, array in flat.items()})
