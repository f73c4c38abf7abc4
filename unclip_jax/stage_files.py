"""Saves and loads a stage as a directory: `config.json` and `weights.safetensors`.

The config holds the fields of the stage, the SHA-256 of the weights, and the SHA-256 of the CLIP that the stage was
trained with. Files are written atomically, and checked when they are read.
"""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from clip_jax.errors import UserError
from clip_jax.weights.digest import DIGESTS, digests, file_digest, read_digests
from clip_jax.weights.files import one_line, read_json
from clip_jax.weights.find import TOKENIZER
from clip_jax.weights.native import atomic_path, flatten, load_params, save_params, unflatten
from unclip_jax import priors
from unclip_jax.priors import KINDS, Prior
from unclip_jax.stage_configs import from_json, to_json
from unclip_jax.variables import Variables, flat, nested

CONFIG, WEIGHTS = "config.json", "weights.safetensors"
CLIP_DIGESTS = "clip_digests"  # field of config.json with the digests of the CLIP that a stage was trained with

log = logging.getLogger(__name__)


def save_stage(
    directory: str | os.PathLike,
    stage: Prior,
    variables: Variables,
    *,
    dtype: Any = None,
    clip: str | os.PathLike | None = None,
) -> None:
    """Writes config.json and weights.safetensors of a stage or a prior of any kind, each file atomically.

    Args:
        directory: created if it does not exist.
        stage: the config.
        variables: variables of its network: parameters and statistics.
        dtype: dtype of the stored weights, float16 for example; None keeps that of `variables`.
        clip: directory of the CLIP that the stage was trained with, as `clip_jax.save` wrote it. The digests of its
            files are stored, and `load` refuses another CLIP beside the stage. None for an upsampler, which uses none.

    Raises:
        UserError: a parameter is not finite, or `clip` holds no CLIP.
    """
    directory = Path(directory)
    config = {"kind": next(k for k, v in KINDS.items() if v is type(stage)), **to_json(stage)}
    if clip is not None:
        config[CLIP_DIGESTS] = {WEIGHTS: file_digest(Path(clip, WEIGHTS))} | digests(clip, [TOKENIZER])
    directory.mkdir(parents=True, exist_ok=True)
    save_params(directory / WEIGHTS, unflatten(flat(variables)), dtype=dtype)
    config[DIGESTS] = digests(directory, [WEIGHTS])
    with atomic_path(directory / CONFIG) as path:
        path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def load_stage(directory: str | os.PathLike) -> tuple[Any, Variables]:
    """Loads what `save_stage` wrote.

    Args:
        directory: of one stage.

    Returns:
        (a `Stage` or another kind of `Prior`, its variables).

    Raises:
        UserError: config or weights are absent or damaged, or do not fit each other.
    """
    directory = Path(directory)
    stage, own, _ = _read_config(directory)
    try:
        expect = jax.eval_shape(lambda key: priors.init(stage, key), jax.random.key(0))
    except Exception as error:  # each size is within its range, but they do not fit together
        raise UserError(f"{directory / CONFIG} does not describe a stage: {one_line(error)[:300]}") from error
    leaves = flatten(load_params(directory / WEIGHTS, unflatten(flat(expect)), digest=own.get(WEIGHTS)))
    return stage, jax.tree.map(jnp.asarray, nested(leaves, expect))


def read_stage(directory: str | os.PathLike) -> Any:
    """Loads the config of a stage alone: a `Stage` or another kind of `Prior`.

    Raises:
        UserError: the config is absent or damaged.
    """
    return _read_config(Path(directory))[0]


def check_clip(directory: Path, clip: Path) -> None:
    """Checks by digests that a CLIP is the one that a stage was trained with.

    Another CLIP of the same widths would load, but its embeddings mean something else. A stage of an older version,
    whose config has no digests, is accepted.

    Args:
        directory: of the stage.
        clip: directory of the CLIP.

    Raises:
        UserError: it is another CLIP.
    """
    _, _, trained_with = _read_config(directory)
    if not trained_with:
        log.debug("%s does not say which CLIP it was trained with: it is taken to be %s", directory, clip)
    now = digests(clip, trained_with)
    if differ := [name for name, digest in trained_with.items() if now.get(name) != digest]:
        raise UserError(
            f"{directory} was trained with another CLIP than the one in {clip}: "
            f"{' and '.join(differ)} differ{'s' * (len(differ) == 1)}; put back the CLIP it was trained with"
        )


def _read_config(directory: Path) -> tuple[Any, dict[str, str], dict[str, str]]:
    """Reads config.json: (the stage, the digests of its files, the digests of the CLIP that it was trained with)."""
    if not (directory / CONFIG).exists():
        raise UserError(f"{directory} holds no trained stage: there is no {CONFIG} in it")
    try:
        data = read_json(directory / CONFIG)
        # Configs of older versions have no kind.
        kind = data.pop("kind", "diffusion")
        if kind not in KINDS:
            raise UserError(f"kind is {kind!r}; there are {', '.join(KINDS)}")
        own = read_digests(data.pop(DIGESTS, None), DIGESTS, [WEIGHTS])
        clip = read_digests(data.pop(CLIP_DIGESTS, None), CLIP_DIGESTS, [WEIGHTS, TOKENIZER])
        return from_json(kind, data), own, clip
    except Exception as error:  # a damaged or hostile config can make any reader fail
        reason = one_line(error).removeprefix(f"{directory / CONFIG} ")[:300]
        raise UserError(f"{directory / CONFIG} does not describe a stage: {reason}") from error
