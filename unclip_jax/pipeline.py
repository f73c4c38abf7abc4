"""Text to image in one program: tokens -> CLIP text tower -> prior -> decoder -> upsamplers -> pictures.

`generate` is pure and compiles to a single program with one scan per stage. Prompts, keys and guidance scales are
traced, so that other values do not compile again. A trained system is a directory with a folder per network, which
holds the config and the weights of the network.
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
        clip: config of the CLIP that the stages were trained with.
        prior: a prior of any kind, see `priors`; None in a system for image variations only, where the caller gives the
            image embeddings.
        decoder: draws pictures, or latents for `movq`, from image embeddings.
        upsamplers: enlarge the pictures, in this order.
        candidates: image embeddings that the prior samples per picture, of which reranking keeps the one closest to the
            caption (2 in the paper).
        movq: decodes the latents of the decoder to pictures (Kandinsky); None where the decoder draws pictures.
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
        text: features of the prompts; None for pictures that were drawn without prompts.
        image_embed: [B, D], the image embeddings that the pictures were decoded from.
        images: [B, H, W, 3] float32 in [−1, 1].
    """

    text: TextFeatures | None
    image_embed: Float[Array, "B D"]
    images: Float[Array, "B H W 3"]


class Guidance(NamedTuple):
    """Guidance scales, each a scalar or [B]; 1.0 is off, None takes the scale of the stage.

    Attributes:
        prior: scale of the prior.
        decoder: scale of the decoder.
    """

    prior: GuidanceScale | None = None
    decoder: GuidanceScale | None = None


class LoadedUnCLIP(NamedTuple):
    """A system ready to use: `generate(unclip, params, tokenize(prompts), keys)`.

    Attributes:
        unclip: the architecture.
        params: variables of each network by the name of its folder; "clip" holds all weights of the CLIP as one tree.
        tokenize: prompts -> int32 [B, L].
    """

    unclip: UnCLIP
    params: dict[str, Any]
    tokenize: Tokenizer


@standard_settings
def encode_text(unclip: UnCLIP, params: dict[str, Any], tokens: Int[Array, "B L"]) -> TextFeatures:
    """CLIP's features of prompts.

    Args:
        unclip: the architecture.
        params: variables of its networks, as `load` returns them.
        tokens: int32 [B, L].
    """
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
    """Samples image embeddings for prompts, with reranking.

    The prior samples `unclip.candidates` embeddings per prompt; the one with the largest cosine to the text embedding
    is kept.

    Args:
        unclip: the architecture.
        params: variables of its networks, as `load` returns them.
        text: features of B prompts.
        keys: [B], one per sample.
        guidance_scale: scale of the prior, a scalar or [B]; None takes that of the stage, 1.0 is off.

    Returns:
        float32 [B, D], not normalised.

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
    """Draws pictures from image embeddings and text: the decoder, MoVQ if there is one, then every upsampler.

    Args:
        unclip: the architecture.
        params: variables of its networks, as `load` returns them.
        cond: image_embed, text_embed, text_encodings and text_mask of B samples; with `keep_text` False the picture
            depends on the image embedding alone.
        keys: [B], one per sample.
        guidance_scale: scale of the decoder, a scalar or [B]; None takes that of the stage, 1.0 is off.

    Returns:
        float32 [B, H, W, 3] in [−1, 1].
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
    """Enlarges pictures by every upsampler of the system.

    Args:
        unclip: the architecture.
        params: variables of its networks, as `load` returns them.
        images: pictures of the decoder, [B, h, w, 3] in [−1, 1].
        keys: [B], one per sample.
        decorate: stage -> a decorator of its denoiser for `stage.run`, or None.

    Returns:
        float32 [B, H, W, 3] in [−1, 1].
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
    """Text to image: draws pictures for prompts. Not compiled; see `generate_jit`.

    Args:
        unclip: the architecture.
        params: {"clip": weights as one tree, "prior": variables, "decoder": variables, "upsampler_0": variables, …}.
        tokens: int32 [B, L], one prompt per picture, or [1, L], one prompt for all pictures.
        keys: [B], one per picture: a picture depends on its own prompt and key, not on the others of the batch.
        image_embed: float [B, D] or [1, D], image embeddings to decode in place of sampling the prior.
        guidance: guidance scales of prior and decoder.

    Raises:
        UserError: an argument has another shape or type, or two arguments do not fit; the message names them.
    """
    keys, tokens, image_embed = _checked(unclip, tokens, keys, image_embed, guidance)
    text = encode_text(unclip, params, tokens)
    if image_embed is None:
        image_embed = sample_prior(unclip, params, text, fold_in_each(keys, 0), guidance_scale=guidance.prior)
    cond = Cond.of(text, image_embed)
    images = decode(unclip, params, cond, fold_in_each(keys, 1), guidance_scale=guidance.decoder)
    return Generation(text, image_embed, images)


def _checked(unclip: UnCLIP, tokens: Any, keys: Any, image_embed: Any, guidance: Any) -> tuple[Any, Any, Any]:
    """Checks the arguments of `generate`, and broadcasts them to one batch: (keys, tokens, image_embed)."""
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
    """Calls `generate` as a compiled program.

    It is compiled once per architecture, batch size and set of guidance scales that are given. Arguments are those of
    `generate`.

    Raises:
        UserError: an argument has another shape, type or range, or two arguments do not fit; the message names them.
    """
    keys, tokens, image_embed = _checked(unclip, tokens, keys, image_embed, guidance)
    return _generate_jit(unclip, params, tokens, keys, image_embed=image_embed, guidance=guidance)


def check_drawn(generation: Generation, names: Sequence[str]) -> None:
    """Refuses pictures with NaN or infinite values, which would be written as black pictures.

    Args:
        generation: concrete arrays, not traced ones.
        names: names of its B pictures, for the message.

    Raises:
        UserError: a value is not finite; the message names the first picture and the first network it came from.
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
    """The same system with other values for fields of the decoder's `Sampling`.

    Args:
        loaded: the system.
        changes: fields of `Sampling` by name. `sampler` is a name in `SAMPLERS`; the decoder's grid is kept, unless the
            row has another grid than `Uniform()`.

    Raises:
        UserError: a value is refused, or a guidance scale is given for a decoder without guidance.
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
    """Loads a trained system.

    Args:
        directory: a run directory of `train.py`, with the folders clip, prior, decoder and upsampler_0, …; or a
            published system in the layout of diffusers (Karlo, Kandinsky 2.2), or its "owner/name" on the Hugging Face
            hub. None takes the weights that come with the package.
        more: further directories or names of a published system: Kandinsky's prior besides its decoder, or a prior
            (ECLIPSE) that replaces that of an earlier directory.
        prior: folder of the prior in a run directory: "prior", "ar_prior" or "one_step_prior".
        dtype: dtype of the matrix products of a published system, "float32" or "bfloat16"; None takes float32 on a CPU
            and bfloat16 elsewhere.

    Raises:
        UserError: a folder is missing or damaged, the stages do not fit each other, or an argument does not apply to
            this kind of system.
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
    """The local directory of a source: the directory itself, or the download of a name on the Hugging Face hub.

    Args:
        source: a path, which is returned unchanged, or an "owner/name" that is no existing path.

    Raises:
        UserError: the name cannot be downloaded.
    """
    path = Path(source)
    if isinstance(source, os.PathLike) or path.exists() or not is_name(source):
        return path
    return fetch_pipeline(source)


def _published(directories: list[Path], dtype: str | None) -> LoadedUnCLIP:
    """Loads a published system; see `load`."""
    if dtype not in (None, "float32", "bfloat16"):
        raise UserError(f"dtype is {dtype!r}; choose float32 or bfloat16")
    found = diffusers.load(directories, dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16"))
    unclip = UnCLIP(found.clip, found.prior, found.decoder, found.upsamplers, candidates=1, movq=found.movq)
    _check_fit(unclip)
    return LoadedUnCLIP(unclip, found.params, found.tokenize)


def _check_fit(unclip: UnCLIP) -> None:
    """Checks roles, widths and sizes of the networks, which would otherwise fail with an error about array shapes."""
    clip, decoder = unclip.clip, unclip.decoder.model
    models: dict[str, Any] = {} if unclip.prior is None else {"prior": unclip.prior.model}
    models |= {"decoder": decoder, **{f"upsampler_{i}": stage.model for i, stage in enumerate(unclip.upsamplers)}}
    for name, model in models.items():
        if model.role != name.partition("_")[0]:
            raise UserError(f"{name} holds another kind of network: were its files swapped with another stage's?")
    unet: Any = decoder  # a `UNetConfig`, by its role
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
