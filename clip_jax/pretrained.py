"""A CLIP from wherever its weights are, and into the layouts that others read.

`save` and `load` of a directory of our own: `config.json`, `weights.safetensors`, `tokenizer.json`, nothing else is
needed. `load` also takes every published format (`clip_jax.weights.formats`), which `export` writes. What a checkpoint
says of itself is believed over habit, and what contradicts it is refused: a wrong activation or mean costs points of
accuracy without any other sign.
"""

import dataclasses
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import jax
import numpy as np

from clip_jax.config import CLIPConfig, TextConfig
from clip_jax.encode import joined
from clip_jax.errors import UserError, reading
from clip_jax.fields import brief
from clip_jax.images import Preprocess
from clip_jax.model import CLIP
from clip_jax.presets import PRESETS, preset
from clip_jax.tokenizer import Tokenizer, load_tokenizer
from clip_jax.weights import huggingface_config, native, open_clip
from clip_jax.weights.agree import (
    check_known,
    check_same,
    check_sizes,
    check_tokenizer,
    check_vocabulary,
    only_towers,
)
from clip_jax.weights.digest import DIGESTS, check_digest, digests, read_digests
from clip_jax.weights.files import inner_folder, read_checkpoint, read_json
from clip_jax.weights.find import CONFIG, clip_weights, config_beside, part_of_pipeline, tokenizer_beside
from clip_jax.weights.formats import recognise
from clip_jax.weights.hub import fetch
from clip_jax.weights.layouts import TOKENIZER, Layout, export, write_json
from clip_jax.weights.resolution import at_resolution, interpolated
from clip_jax.weights.rules import convert, expected, nested_variables
from clip_jax.weights.settings import located

__all__ = ["Layout", "LoadedCLIP", "Missing", "export", "load", "save"]

WEIGHTS = "weights.safetensors"


class LoadedCLIP(NamedTuple):
    model: CLIP
    variables: dict[str, Any]
    tokenize: Any  # Tokenizer; without a vocabulary, or a text tower, a Missing that says so when called
    preprocess: Any  # Preprocess; without an image tower a Missing


class Missing:
    """Stands for a part that a checkpoint came without. Raises UserError when it is called."""

    def __init__(self, message: str):
        self.message = message

    def __call__(self, *_: Any, **__: Any) -> NoReturn:
        raise UserError(self.message)

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):  # asked for by copy and pickle, which have to get their AttributeError
            raise AttributeError(name)
        raise UserError(self.message)


def save(
    directory: str | os.PathLike,
    model: CLIP | CLIPConfig,
    variables: dict[str, Any],
    tokenizer: Tokenizer,
    *,
    dtype: Any = None,
) -> None:
    """Writes a CLIP that `load(directory)` gives back; `dtype` (float16) is that of the stored weights only.

    `config.json` holds the digests of the other files, which `load` checks. Each file appears whole or not at all.
    Raises UserError when the tokenizer has more ids than the model, or a weight is not finite.
    """
    config = model.config if isinstance(model, CLIP) else model
    if config.text is not None:
        check_tokenizer(config, tokenizer, "the tokenizer")
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    native.save_params(directory / WEIGHTS, joined(variables), dtype=dtype)
    if config.text is not None:
        with native.atomic_path(directory / TOKENIZER) as path:
            tokenizer.save(path)
    files = (WEIGHTS, TOKENIZER) if config.text is not None else (WEIGHTS,)
    write_json(directory / CONFIG, config.to_dict() | {DIGESTS: digests(directory, files)})


def load(
    source: str | os.PathLike | Any,  # what is no such thing is refused in a line, as everywhere below
    *,
    weights: str | os.PathLike | None = None,
    config: CLIPConfig | str | os.PathLike | Mapping[str, Any] | Any = None,
    vocab: str | os.PathLike | None = None,
    part: str | None = None,
    image_size: int | Any = None,
) -> LoadedCLIP:
    """A CLIP from a directory, a weights file, the name of a preset with its weights, or the hub.

    Args:
        source: a directory that `save` wrote, or of Hugging Face's or OpenCLIP's layout; a file of a published format
            (safetensors, a torch file, a TorchScript archive, npz, Flax's msgpack); a preset's name, with `weights`; or
            the name of a repository on the hub, "owner/name", if `huggingface_hub` is installed. A `Path` is never such
            a name.
        weights: the file or directory for a preset.
        config: what the model is, where the weights do not say it: a CLIPConfig, a preset's name, or a JSON (or its
            content) of ours, of Hugging Face or of OpenCLIP. What the checkpoint says must agree with it, but for the
            size of the pictures (see `image_size`; a warning says so). Of a config of two towers the one that is in the
            weights counts.
        vocab: the tokenizer's file or directory, where it does not lie beside the weights.
        part: which model of a file or pipeline that holds several: "text_encoder" or "text_encoder_2" of a Stable
            Diffusion checkpoint, else what stands before the names of its weights, as "ema".
        image_size: for pictures of another size than the model was trained on. The positions of the patches are
            interpolated as the project of the weights does it (`clip_jax.weights.resolution`); it works better the
            closer the sizes are.

    Returns: (model, variables, tokenize, preprocess). A checkpoint of one tower gives a model of this tower alone.

    Raises: UserError, in one line, when something is absent, damaged, or does not fit the rest.
    """
    for name, value in (("source", source), ("weights", "" if weights is None else weights)):
        if not isinstance(value, str | os.PathLike):
            raise UserError(f"{name} is {brief(value)}: give a path or a name")
    _check_device()
    wanted = None if config is None else _config(config)
    if image_size is not None and (isinstance(image_size, bool) or not isinstance(image_size, int) or image_size < 1):
        raise UserError(f"image_size is {image_size!r}: it is the number of pixels of a side, pictures are square")
    if str(source) in PRESETS and not _exists(Path(source)):
        if weights is None:
            raise UserError(f"{source} is an architecture, not weights: give load({str(source)!r}, weights=path)")
        if wanted is not None:
            raise UserError(f"{source} is a preset, which is a config already: leave out config=")
        asked = _Asked(preset(str(source)), f"the preset {source}", vocab, image_size)
        return _load_path(Path(weights), asked, part)
    if weights is not None:
        raise UserError(f"weights= is for the name of a preset (as ViT-B/32), {source} is none: leave it out")
    path = Path(source)
    if not _exists(path):
        if isinstance(source, os.PathLike):  # a path, not a name: nothing to ask the hub for
            raise UserError(f"{path} holds no CLIP: there is no such file or directory")
        path = fetch(str(source))
    return _load_path(path, _Asked(wanted, "config=", vocab, image_size), part)


class _Asked(NamedTuple):
    """What the caller wants of a checkpoint."""

    config: CLIPConfig | None
    asker: str  # who says so, for errors
    vocab: str | os.PathLike | None
    image_size: int | None

    def target(self, base: int, where: str) -> int:
        """The size of the pictures in the end, of a checkpoint for `base` pixels."""
        wanted = base if self.config is None or self.config.vision is None else self.config.vision.image_size
        if wanted == base or self.image_size == wanted:
            return base if self.image_size is None else self.image_size
        if self.image_size is not None and self.asker == "config=":
            raise UserError(f"image_size is {self.image_size}, config= says {wanted}: they must agree")
        if self.asker != "config=":
            raise UserError(
                f"{where}: vision.image_size is {base} in the weights, {self.asker} says {wanted}: take the preset of "
                f"these weights, or config= with this one and image_size={wanted} to interpolate the positions"
            )
        warnings.warn(
            f"{where} is for pictures of {base} pixels, config= says {wanted}: the positions are interpolated; "
            f"image_size={wanted} says that it is meant",
            stacklevel=5,
        )
        return wanted


def _load_path(path: Path, asked: _Asked, part: str | None) -> LoadedCLIP:
    if path.name in (CONFIG, WEIGHTS) and (path.parent / CONFIG).is_file():
        path = path.parent  # one file of a directory that says the rest
    path = inner_folder(path)
    if path.is_dir() and (path / "model_index.json").is_file():
        path = part_of_pipeline(path, part)
        part = None
    if path.is_dir() and (path / CONFIG).is_file():
        data = read_json(path / CONFIG)
        if "model_type" not in data and not open_clip.matches(data):
            if part is not None:
                raise UserError(f"{path} is one model: part={part!r} is for files that hold several, leave it out")
            return _load_own(path, data, asked)
    return _load_published(path, clip_weights(path), asked, part)


def _load_published(path: Path, file: Path, asked: _Asked, part: str | None) -> LoadedCLIP:
    # Its names are told as torch's, which the tables know: whoever reads an error should know why.
    where = f"{file} (Flax's msgpack, in the names of torch)" if file.suffix == ".msgpack" else str(file)
    table, checkpoint = recognise(read_checkpoint(file), part, where)
    sizes = table.sizes(checkpoint)
    said = None if table.name == "stable_diffusion" else config_beside(file.parent, table.name, checkpoint)
    wanted = asked.config if asked.config is None or said is not None else only_towers(asked.config, sizes)
    try:
        found = said or (table.infer(checkpoint) if wanted is None else _with_their_size(wanted, sizes))
    except UserError as error:
        raise located(where, error) from error
    target = None if found.vision is None else asked.target(found.vision.image_size, where)
    if said is not None and wanted is not None:
        check_same(said, _same_size(wanted, said), where, asked.asker)
    if said is None and wanted is not None:
        check_known(table.known(checkpoint), found, where, asked.asker)
    check_sizes(found, sizes, where, f"{file.parent}'s config" if said else asked.asker)
    one_tower = "" if found.two_towers else "|logit_scale|logit_bias"
    flat = convert(checkpoint, table.rules(found), expected(found), ignore=table.ignore + one_tower, where=where)
    found, flat = _resized(found, flat, asked, target, antialias=table.name == "openai")
    folder = file.parent if said is not None or path.is_dir() else None
    tokenize = _tokenizer(asked.vocab, tokenizer_beside(folder), found, table.name)
    return _loaded(found, flat, tokenize)


def _load_own(path: Path, data: Mapping[str, Any], asked: _Asked) -> LoadedCLIP:
    with reading(path / CONFIG, "the config"):
        config = _own_config(data, str(path / CONFIG))
        saved = read_digests(data.get(DIGESTS), DIGESTS, (WEIGHTS, TOKENIZER))
        expect = native.unflatten(expected(config))  # which fails for sizes that no network can be built of
    target = None if config.vision is None else asked.target(config.vision.image_size, str(path))
    if asked.config is not None:
        check_same(config, _same_size(asked.config, config), str(path), asked.asker)
    params = native.load_params(path / WEIGHTS, expect, digest=saved.get(WEIGHTS))
    tokenizer: Any = Missing("this model has no text tower, and no tokenizer")
    if config.text is not None:
        source = Path(asked.vocab) if asked.vocab else path / TOKENIZER
        if not asked.vocab and source.is_file():
            check_digest(source, saved.get(TOKENIZER))
        tokenizer = load_tokenizer(source)
        check_tokenizer(config, tokenizer, str(source))
    config, flat = _resized(config, native.flatten(params), asked, target, antialias=False)
    return _loaded(config, flat, tokenizer)


def _same_size(wanted: CLIPConfig, said: CLIPConfig) -> CLIPConfig:
    """`wanted` for pictures of the size that the checkpoint says: they may differ in this, whatever else must agree."""
    if wanted.vision is None or said.vision is None or type(wanted.vision) is not type(said.vision):
        return wanted
    return at_resolution(wanted, said.vision.image_size)


def _with_their_size(wanted: CLIPConfig, sizes: Mapping[str, Any]) -> CLIPConfig:
    """`wanted` for pictures of the size that the positions in the weights are for."""
    if wanted.vision is None:
        return wanted
    size = sizes.get("vision.image_size")
    patch, grid = getattr(wanted.vision, "patch_size", None), sizes.get("vision.grid")
    if size is None and grid and patch:
        size = wanted.vision.image_size if grid == wanted.vision.grid else grid * patch
    if not size or sizes.get("vision.patch_size", patch) != patch:  # told of by the checks that follow
        return wanted
    return at_resolution(wanted, size)


def _resized(
    config: CLIPConfig, flat: dict[str, np.ndarray], asked: _Asked, target: int | None, *, antialias: bool
) -> tuple[CLIPConfig, dict[str, np.ndarray]]:
    """The model for pictures of `target` pixels; None, without an image tower, leaves it as it is."""
    if target is None:
        if asked.image_size is not None:
            at_resolution(config, asked.image_size)  # which says that there is no image tower
        return config, flat
    after = at_resolution(config, target)
    return after, flat if after == config else interpolated(flat, config, after, antialias=antialias)


def _loaded(config: CLIPConfig, flat: Mapping[str, np.ndarray], tokenizer: Any) -> LoadedCLIP:
    text = config.text
    if text is not None and isinstance(tokenizer, Tokenizer) and text.pad_id != tokenizer.pad_id:
        config = dataclasses.replace(config, text=dataclasses.replace(text, pad_id=tokenizer.pad_id))
        text = config.text
    highest_ends = isinstance(text, TextConfig) and text.pool == "eos" and text.eos_id is None
    if highest_ends and isinstance(tokenizer, Tokenizer) and tokenizer.vocab_size > tokenizer.eot_id + 1:
        # The highest id is not the end any more once tokens were learned behind it.
        config = dataclasses.replace(config, text=dataclasses.replace(text, eos_id=tokenizer.eot_id))
    preprocess: Any = Missing("this model has no image tower, and no preprocessing")
    if config.vision is not None:
        preprocess = Preprocess(config.preprocess, config.vision.image_size)
    variables = nested_variables({name: jax.numpy.asarray(array) for name, array in flat.items()})
    return LoadedCLIP(CLIP(config), variables, tokenizer, preprocess)


# finding things


def _check_device() -> None:
    """JAX fails without a word, and wherever it is first asked, when there is no device of `JAX_PLATFORMS`."""
    try:
        jax.devices()
    except Exception as error:
        wanted = os.environ.get("JAX_PLATFORMS", "")
        raise UserError(
            f"JAX_PLATFORMS: no device of {wanted!r} can be used on this machine; unset it, or set it to cpu"
        ) from error


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that is longer than any
        return False


def _config(config: Any) -> CLIPConfig:
    if isinstance(config, CLIPConfig):
        return config
    if isinstance(config, str) and config in PRESETS:
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
    return _own_config(data, where)


def _own_config(data: Mapping[str, Any], where: str) -> CLIPConfig:
    """What a `config.json` that `save` wrote says of the model; the digests in it are of the files beside it.

    Raises: UserError naming the file and the field.
    """
    try:
        return CLIPConfig.from_dict({name: value for name, value in data.items() if name != DIGESTS})
    except UserError as error:
        raise located(where, error) from error


def _tokenizer(vocab: str | os.PathLike | None, beside: Path | None, config: CLIPConfig, table: str) -> Any:
    text = config.text
    if text is None:
        return Missing("this model has no text tower, and no tokenizer")
    source = vocab or beside
    if source is None:
        return Missing("these weights came without a vocabulary: give its file to clip_jax.load(…, vocab=path)")
    kind: Any = None if text.tokenizer == "roberta" else text.tokenizer  # which has no reader here
    # Only Hugging Face says beside the vocabulary what to pad with; elsewhere it is the model that says so.
    pad_id = None if table == "huggingface" and vocab is None else text.pad_id
    tokenizer = load_tokenizer(source, context_length=text.context_length, pad_id=pad_id, kind=kind)
    check_vocabulary(config, tokenizer, str(source), exact=vocab is not None)
    return tokenizer
