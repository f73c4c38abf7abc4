"""Text to pictures in one program: tokens -> CLIP text -> prior -> decoder -> upsamplers -> pictures.

`generate` is pure and compiles into a single program with one scan per stage; prompts, keys and the guidance scales
given are its data, so new ones never compile again. A trained system is a directory with a folder per network, each
holding its config and its weights.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

import clip_jax
from clip_jax.config import CLIPConfig
from clip_jax.encode import encode_texts, joined
from clip_jax.errors import UserError
from clip_jax.tokenizer import Tokenizer
from clip_jax.towers.text import TextFeatures
from unclip_jax import inputs, priors
from unclip_jax import stage as stages
from unclip_jax.conditioning import Cond
from unclip_jax.diffusion.guidance import Decorator, GuidanceScale
from unclip_jax.diffusion.keys import fold_in_each, sample_keys
from unclip_jax.diffusion.samplers import named_sampler
from unclip_jax.model import differences, joint_width
from unclip_jax.models.movq import MoVQConfig, MoVQDecoder
from unclip_jax.priors import Prior
from unclip_jax.seams import check_cascade
from unclip_jax.settings import standard_settings
from unclip_jax.stage import Stage
from unclip_jax.stage_files import WEIGHTS as WEIGHTS
from unclip_jax.stage_files import check_clip
from unclip_jax.stage_files import load_stage as load_stage
from unclip_jax.stage_files import save_stage as save_stage
from unclip_jax.tasks import similarity
from unclip_jax.weights import diffusers
from unclip_jax.weights.hub import fetch_pipeline, is_name

SHIPPED = Path(__file__).parent / "shipped"


@dataclass(frozen=True)
class UnCLIP:
    """The architecture of a whole system; hashable, so it can be a static argument of `jit`.

    Attributes:
        prior: of any kind, see `priors`; None in a system that only varies pictures, and is given their embeddings.
        candidates: image embeddings the prior draws per picture; the one closest to the caption is kept (the paper: 2).
        movq: what turns the decoder's latents into pictures (Kandinsky); None where the decoder draws pictures.
    """

    clip: CLIPConfig
    prior: Prior | None
    decoder: Stage
    upsamplers: tuple[Stage, ...] = ()
    candidates: int = 2
    movq: MoVQConfig | None = None


class Generation(NamedTuple):
    """What `generate` computed.

    Attributes:
        text: features of the prompts; None for what was made without any.
        image_embed: [B, D] the image embeddings that the pictures were decoded from.
        images: [B, H, W, 3] float32 in [−1, 1].
    """

    text: TextFeatures | None
    image_embed: Float[Array, "B D"]
    images: Float[Array, "B H W 3"]


class Guidance(NamedTuple):
    """Guidance scales, each a scalar or [B]; 1.0 is off, None takes the stage's own."""

    prior: GuidanceScale | None = None
    decoder: GuidanceScale | None = None


class LoadedUnCLIP(NamedTuple):
    """A system ready to use: `generate(unclip, params, tokenize(prompts), keys)`."""

    unclip: UnCLIP
    params: dict[str, Any]
    tokenize: Tokenizer


@standard_settings
def encode_text(unclip: UnCLIP, params: dict[str, Any], tokens: Int[Array, "B L"]) -> TextFeatures:
    """Features of prompts int32 [B, L]."""
    return encode_texts(unclip.clip, params["clip"], tokens)


@standard_settings
def sample_prior(
    unclip: UnCLIP,
    params: dict[str, Any],
    text: TextFeatures,
    keys: Key[Array, " B"],
    *,
    guidance_scale: GuidanceScale | None = None,
) -> Float[Array, "B D"]:
    """Image embeddings [B, D] for prompts: of `unclip.candidates` draws each, the one closest to the text (rerank).

    Args:
        unclip: the architecture.
        params: variables of its networks, as `load` gives them.
        text: features of B prompts.
        keys: [B], one per sample.
        guidance_scale: of the prior, a scalar or [B]; None takes its own, 1.0 is off.

    Raises:
        UserError: the system has no prior.
    """
    if unclip.prior is None:
        raise UserError("this system has no prior, it only varies pictures: give image_embed, or load one with a prior")
    n, batch = unclip.candidates, text.embed.shape[0]
    cond = Cond.of(text).repeat(n)
    candidate_keys = jax.vmap(lambda key: sample_keys(key, jnp.arange(n)))(keys).reshape(-1)
    if guidance_scale is not None:
        guidance_scale = jnp.repeat(jnp.broadcast_to(guidance_scale, (batch,)), n)
    draws = priors.sample(unclip.prior, params["prior"], cond, candidate_keys, guidance_scale=guidance_scale)
    draws = draws.reshape(batch, n, -1)
    best = jnp.argmax(similarity(draws, text.embed[:, None, :]), axis=1)
    return jnp.take_along_axis(draws, best[:, None, None], axis=1)[:, 0]


@standard_settings
def decode(
    unclip: UnCLIP,
    params: dict[str, Any],
    cond: Cond,
    keys: Key[Array, " B"],
    *,
    guidance_scale: GuidanceScale | None = None,
) -> Float[Array, "B H W 3"]:
    """Pictures [B, H, W, 3] in [−1, 1] from an image embedding and text: the decoder, then every upsampler.

    Args:
        unclip: the architecture.
        params: variables of its networks, as `load` gives them.
        cond: image_embed and the text_embed, text_encodings and text_mask of B samples; with `keep_text` False the
            image embedding decides.
        keys: [B], one per sample.
        guidance_scale: of the decoder, a scalar or [B]; None takes its own, 1.0 is off.
    """
    images = stages.run(unclip.decoder, params["decoder"], cond, fold_in_each(keys, 0), guidance_scale=guidance_scale)
    if unclip.movq is not None:
        images = jnp.clip(MoVQDecoder(unclip.movq).apply(params["movq"], images), -1.0, 1.0)
    return upsample(unclip, params, images, keys)


@standard_settings
def upsample(
    unclip: UnCLIP,
    params: dict[str, Any],
    images: Float[Array, "B h w 3"],
    keys: Key[Array, " B"],
    *,
    decorate: Callable[[Stage], Decorator | None] = lambda stage: None,
) -> Float[Array, "B H W 3"]:
    """Pictures of the decoder [B, h, w, 3] through every upsampler: [B, H, W, 3].

    Args:
        unclip: the architecture.
        params: variables of its networks, as `load` gives them.
        images: of the decoder, in [−1, 1].
        keys: [B], one per sample.
        decorate: what to do to a stage's denoiser, as in `stage.run`.
    """
    for i, stage in enumerate(unclip.upsamplers):
        cond, own = Cond(low_res=images), fold_in_each(keys, 1 + i)
        images = stages.run(stage, params[f"upsampler_{i}"], cond, own, decorate=decorate(stage))
    return images


@standard_settings
def generate(
    unclip: UnCLIP,
    params: dict[str, Any],
    tokens: Any,
    keys: Any,
    *,
    image_embed: Any = None,
    guidance: Guidance | Any = Guidance(),
) -> Generation:
    """From prompts to pictures.

    Args:
        unclip: the architecture.
        params: {"clip": weights as one tree, "prior": variables, "decoder": variables, "upsampler_0": variables, …}.
        tokens: int32 [B, L], one prompt per picture, or [1, L], one for all of them.
        keys: [B] keys, one per picture: a picture depends on its own prompt and key, not on its neighbours.
        image_embed: float [B, D] or [1, D], to decode from instead of the prior's.
        guidance: scales for prior and decoder.

    Raises:
        UserError: an argument has another shape or type, or they do not go together; the line names it.
    """
    keys, tokens, image_embed = _checked(unclip, tokens, keys, image_embed, guidance)
    text = encode_text(unclip, params, tokens)
    if image_embed is None:
        image_embed = sample_prior(unclip, params, text, fold_in_each(keys, 0), guidance_scale=guidance.prior)
    cond = Cond.of(text, image_embed)
    images = decode(unclip, params, cond, fold_in_each(keys, 1), guidance_scale=guidance.decoder)
    return Generation(text, image_embed, images)


def _checked(unclip: UnCLIP, tokens: Any, keys: Any, image_embed: Any, guidance: Any) -> tuple[Any, Any, Any]:
    """(keys, tokens, image_embed) of one batch, see `generate`."""
    keys = inputs.picture_keys(keys)
    tokens = inputs.prompt_tokens(tokens, len(keys), unclip.clip.text)
    if image_embed is not None:
        image_embed = inputs.floats(image_embed, (len(keys), joint_width(unclip.clip)), "image_embed")
    if type(guidance) is not Guidance:
        raise UserError(f"guidance is {type(guidance).__name__}; give unclip_jax.Guidance(decoder=2.0)")
    for name, scale in guidance._asdict().items():
        inputs.guidance(scale, len(keys), f"guidance.{name}")
    return keys, tokens, image_embed


_generate_jit = jax.jit(generate, static_argnums=0)


def generate_jit(
    unclip: UnCLIP,
    params: dict[str, Any],
    tokens: Any,
    keys: Any,
    *,
    image_embed: Any = None,
    guidance: Guidance | Any = Guidance(),
) -> Generation:
    """`generate` compiled once per architecture, batch size and which of the guidance scales are given."""
    keys, tokens, image_embed = _checked(unclip, tokens, keys, image_embed, guidance)
    return _generate_jit(unclip, params, tokens, keys, image_embed=image_embed, guidance=guidance)


def check_drawn(generation: Generation, names: Sequence[str]) -> None:
    """Raises UserError for pictures of NaN or infinite numbers, which would be written as black ones.

    Args:
        generation: computed, not being traced.
        names: what to call each of its B pictures in the line, which also says the first part that went wrong.
    """
    parts = {"the prior (or the CLIP)": generation.image_embed, "the decoder or an upsampler": generation.images}
    if generation.text is not None:
        parts = {"the CLIP's text tower": generation.text.embed} | parts
    for part, values in parts.items():
        finite = np.isfinite(np.asarray(values)).reshape(len(values), -1).all(axis=1)
        if bad := [name for name, fine in zip(names, finite[: len(names)], strict=True) if not fine]:
            raise UserError(
                f"{bad[0]}: {part} made numbers that are NaN or infinite ({len(bad)} of {len(names)} pictures); "
                "try a smaller guidance scale, or other weights"
            )


def with_sampling(loaded: LoadedUnCLIP, **changes: Any) -> LoadedUnCLIP:
    """The same system with other fields of the decoder's `Sampling`; those that are not named stay.

    Args:
        loaded: the system.
        changes: fields of `Sampling`; `sampler` by its name in `SAMPLERS`, on the grid that the decoder has unless the
            row has one of its own.

    Raises:
        UserError: a value that `Sampling` refuses, or guidance for a decoder that is drawn without.
    """
    if changes.get("guidance_scale") is not None and loaded.unclip.decoder.sampling.guidance_scale is None:
        raise UserError("guidance scale: this decoder is drawn without guidance, as distilled ones are; leave it out")
    decoder = loaded.unclip.decoder
    if "sampler" in changes:
        changes |= {"sampler": named_sampler(changes["sampler"], decoder.sampling.sampler.grid)}
    decoder = dataclasses.replace(decoder, sampling=dataclasses.replace(decoder.sampling, **changes))
    return loaded._replace(unclip=dataclasses.replace(loaded.unclip, decoder=decoder))


@standard_settings
def load(
    directory: str | os.PathLike | None = None,
    *more: str | os.PathLike,
    prior: str = "prior",
    dtype: str | None = None,
) -> LoadedUnCLIP:
    """A trained system.

    Args:
        directory: a run directory of `train.py`, with the folders clip, prior, decoder and upsampler_0, …; or a
            published system in the layout of diffusers (Karlo, Kandinsky 2.2), or its name on the hub, "owner/name".
            None takes the weights that come with the package.
        more: further directories of a published system: Kandinsky's prior beside its decoder, or a prior (ECLIPSE) that
            takes the place of the one there is.
        prior: the folder of the prior to use, where several lie beside the decoder of a run directory: "prior",
            "ar_prior" or "one_step_prior".
        dtype: of a published system's matrix products, "float32" or "bfloat16"; None is bfloat16 on a GPU or TPU.

    Raises:
        UserError: a folder is missing, damaged, or the stages do not fit each other; or an option is not for this kind
            of system.
    """
    root = SHIPPED if directory is None else local(directory)
    if not root.is_dir():
        raise UserError(f"{root} is not a directory; give the run directory of a finished `train.py`")
    if diffusers.is_published(root):
        if prior != "prior":
            raise UserError(
                f"prior: {root} is a published system, which has one prior; give another's directory after it"
            )
        return _published([root, *map(local, more)], dtype)
    if more or dtype is not None:
        raise UserError(
            f"{root} is a run directory, which is whole: other directories and dtype are for published ones"
        )
    clip = clip_jax.load(root / "clip")
    prior_stage, prior_variables = load_stage(root / prior)
    decoder, decoder_variables = load_stage(root / "decoder")
    for name in (prior, "decoder"):
        check_clip(root / name, root / "clip")
    params = {"clip": joined(clip.variables), "prior": prior_variables, "decoder": decoder_variables}
    upsamplers: list[Stage] = []
    while (folder := root / f"upsampler_{len(upsamplers)}").is_dir():
        stage, params[folder.name] = load_stage(folder)
        upsamplers.append(stage)
    unclip = UnCLIP(clip.model.config, prior_stage, decoder, tuple(upsamplers))
    _check_fit(unclip)
    return LoadedUnCLIP(unclip, params, clip.tokenize)


def local(source: str | os.PathLike) -> Path:
    """The directory itself, or where the files of a name on the hub were put."""
    path = Path(source)
    if isinstance(source, os.PathLike) or path.exists() or not is_name(source):
        return path
    return fetch_pipeline(source)


def _published(directories: list[Path], dtype: str | None) -> LoadedUnCLIP:
    if dtype not in (None, "float32", "bfloat16"):
        raise UserError(f"dtype is {dtype!r}; choose float32 or bfloat16")
    found = diffusers.load(directories, dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16"))
    unclip = UnCLIP(found.clip, found.prior, found.decoder, found.upsamplers, candidates=1, movq=found.movq)
    _check_fit(unclip)
    return LoadedUnCLIP(unclip, found.params, found.tokenize)


def _check_fit(unclip: UnCLIP) -> None:
    """The widths at the seams must agree, or a network would fail deep inside with a message about a matrix."""
    clip, decoder = unclip.clip, unclip.decoder.model
    models: dict[str, Any] = {} if unclip.prior is None else {"prior": unclip.prior.model}
    models |= {"decoder": decoder, **{f"upsampler_{i}": stage.model for i, stage in enumerate(unclip.upsamplers)}}
    for name, model in models.items():
        if model.role != name.partition("_")[0]:
            raise UserError(f"{name} holds another kind of network: were its files swapped with another stage's?")
    unet: Any = decoder  # by its role
    if unet.image is None:
        raise UserError("decoder: image is None: this decoder reads no image embedding")
    if unclip.movq is None and unet.text is None:  # Kandinsky's decoder reads no text
        raise UserError("decoder: text is None: this decoder reads no caption")
    for name, model in models.items():
        for field, got, fits in differences(model, model.fitted(clip)):
            raise UserError(
                f"{name}: {field} is {got}, the CLIP beside it has {fits}: these weights were not trained together"
            )
    check_cascade(decoder, unclip.movq, unclip.upsamplers)
    if unclip.movq is not None and unclip.movq.latent_channels != unet.channels:
        raise UserError(f"decoder: it draws {unet.channels} channels, movq takes {unclip.movq.latent_channels}")
