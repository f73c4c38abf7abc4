"""A CLIP in a directory: `config.json`, `weights.safetensors`, `tokenizer.json`. Nothing else is needed to use it."""

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import jax

from clip_jax.config import CLIPConfig
from clip_jax.errors import UserError
from clip_jax.images import Preprocess
from clip_jax.model import CLIP, init
from clip_jax.tokenizer import Tokenizer
from clip_jax.weights import native

CONFIG, WEIGHTS, TOKENIZER = "config.json", "weights.safetensors", "tokenizer.json"


class LoadedCLIP(NamedTuple):
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
    """Writes a CLIP that `load(directory)` gives back; `dtype` (float16) is that of the stored weights only.

    Each file appears whole or not at all. Raises UserError when the tokenizer has more ids than the model, or a weight
    is not finite.
    """
    config = model.config if isinstance(model, CLIP) else model
    _check_tokenizer(config, tokenizer, "the tokenizer")
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    native.save_params(directory / WEIGHTS, variables["params"], dtype=dtype)
    with native.atomic_path(directory / TOKENIZER) as path:
        tokenizer.save(path)
    with native.atomic_path(directory / CONFIG) as path:
        path.write_text(json.dumps(config.to_dict(), indent=2) + "\n", encoding="utf-8")


def load(source: str | os.PathLike) -> LoadedCLIP:
    """A CLIP from a directory that `save` wrote.

    Raises: UserError when it is not one, or when config, weights and tokenizer do not fit each other.
    """
    directory = Path(source)
    if not (directory / CONFIG).is_file():
        raise UserError(f"{source} holds no CLIP: there is no {CONFIG} in it")
    try:
        data = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{directory / CONFIG} is not JSON: {error}") from error
    if not isinstance(data, dict):
        raise UserError(f"{directory / CONFIG} is not a CLIP config")
    config = CLIPConfig.from_dict(data)
    expect = jax.eval_shape(lambda key: init(config, key), jax.random.key(0))["params"]
    params = native.load_params(directory / WEIGHTS, expect)
    tokenizer = Tokenizer.load(directory / TOKENIZER)
    _check_tokenizer(config, tokenizer, str(directory / TOKENIZER))
    return LoadedCLIP(
        model=CLIP(config),
        variables={"params": jax.tree.map(jax.numpy.asarray, params)},
        tokenize=tokenizer,
        preprocess=Preprocess(config.preprocess, config.vision.image_size),
    )


def _check_tokenizer(config: CLIPConfig, tokenizer: Tokenizer, where: str) -> None:
    text = config.text
    for name, limit, value in (
        ("vocab_size", text.vocab_size, tokenizer.vocab_size),
        ("context_length", text.context_length, tokenizer.context_length),
    ):
        if value > limit:
            raise UserError(f"{where} has {name} {value}, the model {limit}: it is not the tokenizer of this model")
    if tokenizer.pad_id != text.pad_id:
        raise UserError(f"{where} pads with {tokenizer.pad_id}, the model expects pad_id {text.pad_id}")
    if text.eos_id is not None and text.eos_id != tokenizer.eot_id:
        raise UserError(f"{where} ends texts with {tokenizer.eot_id}, the model expects eos_id {text.eos_id}")
