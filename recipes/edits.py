"""What sample.py does to pictures: a row of ``EDITS`` per option that names one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from train_jax.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from unclip_jax.pipeline import LoadedUnCLIP

STEPS = 50  # of DDIM's way up to the noise of a picture and down again, unless --steps says otherwise
STRENGTH = {"edit": 0.5, "redraw": 0.6}


class Edit(NamedTuple):
    """One edit, ready to be drawn.

    Attributes:
      title: what is written above the pictures.
      originals: uint8 [H, W, 3] each, shown before them.
      draw: the index of a picture and its key [1] -> [1, H, W, 3] in [−1, 1].
    """

    title: str
    originals: list[np.ndarray]
    draw: Callable[[int, Any], Any]


def chosen(options: Any) -> str | None:
    """The edit that the options name, if any; refuses options that do not go together."""
    names = [name for name in EDITS if getattr(options, name) is not None]
    if len(names) > 1:
        raise UserError(f"--{names[1]}: there is --{names[0]} already; one edit at a time")
    name = names[0] if names else None
    for needed, partner in (("mask", "inpaint"), ("from_", "edit"), ("to", "edit")):
        flag, given = needed.strip("_"), getattr(options, needed) is not None
        if given and name != partner:
            raise UserError(f"--{flag}: it belongs to --{partner}, which is not given")
        if name == partner and not given:
            raise UserError(f"--{partner}: it needs --{flag}")
    if options.strength is not None and name not in STRENGTH:
        raise UserError(f"--strength: it belongs to {' and '.join(f'--{n}' for n in STRENGTH)}")
    if options.strength is not None and not 0 < options.strength <= 1:
        raise UserError(f"--strength: {options.strength} is not more than 0 and at most 1")
    if options.eta is not None and name != "vary":
        raise UserError("--eta: it belongs to --vary")
    if options.eta is not None and not 0 <= options.eta <= 1:
        raise UserError(f"--eta: {options.eta} is not between 0 and 1")
    prompted = name in ("inpaint", "redraw")
    prompts = len(options.prompt) + (options.prompts is not None)
    if name and prompted and (len(options.prompt) != 1 or options.prompts):
        raise UserError(f"--{name}: it needs one prompt, say what to draw")
    if name and not prompted and prompts:
        raise UserError(f"--{name}: it takes no prompt")
    if name and name != "redraw" and options.sampler:
        raise UserError(f"--sampler: --{name} has a sampler of its own")
    return name


def prepare(name: str, options: Any, loaded: LoadedUnCLIP) -> Edit:
    """Reads the pictures of an edit and encodes them."""
    return EDITS[name](options, loaded)


def picture(path: Path, loaded: LoadedUnCLIP, mode: str = "RGB") -> np.ndarray:
    """A picture of the size that the system draws: the largest square in its middle, resized."""
    import numpy as np
    from PIL import Image, ImageOps

    from clip_jax.images import open_image

    unclip = loaded.unclip
    size = (unclip.upsamplers[-1] if unclip.upsamplers else unclip.decoder).model.image_size
    filtering = Image.Resampling.BICUBIC if mode == "RGB" else Image.Resampling.NEAREST
    return np.asarray(ImageOps.fit(open_image(path).convert(mode), (size, size), filtering))


def encoded(path: Path, options: Any, loaded: LoadedUnCLIP) -> tuple[Any, np.ndarray, Any]:
    """(the system with the steps of an inversion, the picture, its latent)."""
    import dataclasses

    import jax
    import jax.numpy as jnp

    from unclip_jax import edit
    from unclip_jax.tasks import to_signed

    decoder = loaded.unclip.decoder
    sampling = dataclasses.replace(decoder.sampling, num_steps=options.steps or STEPS)
    unclip = dataclasses.replace(loaded.unclip, decoder=dataclasses.replace(decoder, sampling=sampling))
    image = picture(path, loaded)
    return (
        unclip,
        image,
        jax.jit(edit.encode, static_argnums=0)(unclip, loaded.params, to_signed(jnp.asarray(image)[None])),
    )


def vary(options: Any, loaded: LoadedUnCLIP) -> Edit:
    import jax

    from unclip_jax import edit

    unclip, image, latent = encoded(options.vary, options, loaded)
    eta = 1.0 if options.eta is None else options.eta
    scale = 1.0 if options.guidance_scale is None else options.guidance_scale
    run = jax.jit(
        lambda params, latent, key: edit.variations(unclip, params, latent, key, eta=eta, guidance_scale=scale).images
    )
    return Edit(f"variations of {options.vary.name}", [image], lambda i, key: run(loaded.params, latent, key))


def interpolate(options: Any, loaded: LoadedUnCLIP) -> Edit:
    import jax
    import numpy as np

    from unclip_jax import edit

    (unclip, first, a), (_, second, b) = (encoded(path, options, loaded) for path in options.interpolate)
    run = jax.jit(lambda params, a, b, weight, key: edit.interpolate(unclip, params, a, b, weight, key).images)
    weights = np.linspace(0.0, 1.0, options.num, dtype=np.float32)
    title = " to ".join(path.name for path in options.interpolate)
    return Edit(title, [first, second], lambda i, key: run(loaded.params, a, b, weights[i : i + 1], key))


def text_diff(options: Any, loaded: LoadedUnCLIP) -> Edit:
    import jax
    import jax.numpy as jnp
    import numpy as np

    from unclip_jax import edit

    unclip, image, latent = encoded(options.edit, options, loaded)
    before, after = (jnp.asarray(loaded.tokenize([text])) for text in (options.from_, options.to))
    run = jax.jit(
        lambda params, latent, strength, key: (
            edit.text_diff(unclip, params, latent, before, after, strength, key).images
        )
    )
    strengths = np.linspace(0.0, options.strength or STRENGTH["edit"], options.num + 1, dtype=np.float32)[1:]
    title = f"{options.from_} to {options.to}"
    return Edit(title, [image], lambda i, key: run(loaded.params, latent, strengths[i : i + 1], key))


def inpaint(options: Any, loaded: LoadedUnCLIP) -> Edit:
    import jax
    import jax.numpy as jnp
    import numpy as np

    from unclip_jax import edit
    from unclip_jax.tasks import to_signed

    image, mask = picture(options.inpaint, loaded), picture(options.mask, loaded, "L") >= 128
    if not mask.any():
        raise UserError(f"--mask: {options.mask} has no white pixel: there is nothing to draw")
    tokens = jnp.asarray(loaded.tokenize(list(options.prompt)))
    run = jax.jit(
        lambda params, image, mask, key: (
            edit.inpaint(loaded.unclip, params, image, mask, tokens, key, guidance_scale=options.guidance_scale).images
        )
    )
    # What will be drawn anew is shown pale: three quarters of the way to white.
    masked = np.where(mask[..., None], image // 4 + 191, image).astype(np.uint8)
    return Edit(
        options.prompt[0],
        [image, masked],
        lambda i, key: run(loaded.params, to_signed(jnp.asarray(image)[None]), jnp.asarray(mask)[None, ..., None], key),
    )


def redraw(options: Any, loaded: LoadedUnCLIP) -> Edit:
    import jax
    import jax.numpy as jnp

    from unclip_jax import edit
    from unclip_jax.tasks import to_signed

    image = picture(options.redraw, loaded)
    tokens = jnp.asarray(loaded.tokenize(list(options.prompt)))
    run = jax.jit(
        lambda params, image, key: (
            edit.image_to_image(
                loaded.unclip,
                params,
                image,
                tokens,
                key,
                strength=options.strength or STRENGTH["redraw"],
                guidance_scale=options.guidance_scale,
            ).images
        )
    )
    return Edit(options.prompt[0], [image], lambda i, key: run(loaded.params, to_signed(jnp.asarray(image)[None]), key))


EDITS = {"vary": vary, "interpolate": interpolate, "edit": text_diff, "inpaint": inpaint, "redraw": redraw}


def draw(edit: Edit, options: Any) -> Iterator[tuple[int, int, np.ndarray]]:
    """Yields (0, picture index, uint8 [H, W, 3])."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from unclip_jax.diffusion.samplers import sample_keys
    from unclip_jax.tasks import to_uint8

    for i in range(options.num):
        key = sample_keys(jax.random.key(options.seed), jnp.array([i]))
        yield 0, i, np.asarray(to_uint8(edit.draw(i, key)))[0]
