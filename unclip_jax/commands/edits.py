"""What sample.py does to pictures: a row of ``EDITS`` per option that names one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from image_text.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from unclip_jax.pipeline import Generation, LoadedUnCLIP

STEPS = 50  # of DDIM's way up to the noise of a picture and down again, unless --steps says otherwise
STRENGTH = {"edit": 0.5, "redraw": 0.6}
PROMPTED = ("inpaint", "redraw")  # edits that draw a prompt, for which they need the prior


class Edit(NamedTuple):
    """One edit, ready to be drawn.

    Attributes:
      title: what is written above the pictures.
      originals: uint8 [H, W, 3] each, shown before them.
      settings: what the pictures depend on beside the seed, written into their files.
      draw: indices int [n] of pictures and their keys [n] -> the ``Generation`` of n pictures.
    """

    title: str
    originals: list[np.ndarray]
    settings: dict[str, Any]
    draw: Callable[[np.ndarray, Any], Generation]


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
    prompted = name in PROMPTED
    prompts = len(options.prompt) + (options.prompts is not None)
    if name and prompted and (len(options.prompt) != 1 or options.prompts):
        raise UserError(f"--{name}: it needs one prompt, say what to draw")
    if name and not prompted and prompts:
        raise UserError(f"--{name}: it takes no prompt")
    if name and not prompted and options.prior != "prior":
        raise UserError(f"--prior: --{name} starts from pictures and uses no prior; leave it out")
    if name and name != "redraw" and options.sampler:
        raise UserError(f"--sampler: --{name} has a sampler of its own")
    return name


def prepare(name: str, options: Any, loaded: LoadedUnCLIP) -> Edit:
    """Reads the pictures of an edit and encodes them."""
    return EDITS[name](options, loaded)


def drawn_size(loaded: LoadedUnCLIP) -> int:
    """Side of the pictures that the system draws."""
    unclip = loaded.unclip
    return (unclip.upsamplers[-1] if unclip.upsamplers else unclip.decoder).model.image_size


def picture(path: Path, loaded: LoadedUnCLIP) -> np.ndarray:
    """A picture of the size that the system draws, uint8 [H, W, 3]: the largest square in its middle, resized."""
    import numpy as np
    from PIL import Image, ImageOps

    from clip_jax.images import open_image

    size = drawn_size(loaded)
    return np.asarray(ImageOps.fit(open_image(path).convert("RGB"), (size, size), Image.Resampling.BICUBIC))


def mask_of(path: Path, of: Path, loaded: LoadedUnCLIP) -> np.ndarray:
    """What of the picture `of` is drawn anew, bool [H, W] of the size that the system draws.

    White (128 to 255) is drawn, black and what is transparent is kept: a brush on an empty layer is a mask. It is cut
    and resized as the picture is, so it has its size or its shape.

    Raises:
        UserError: the mask has another aspect than the picture, or nothing in it is white.
    """
    import numpy as np
    from PIL import Image, ImageOps

    from clip_jax.images import open_image

    levels, (width, height) = grey_levels(path), open_image(of).size
    if abs(levels.width * height - levels.height * width) > max(width, height):  # less than a pixel of difference
        raise UserError(
            f"--mask: {path} is {levels.width}×{levels.height} pixels and {of} is {width}×{height}: "
            "give a mask of the size of the picture, or of its shape"
        )
    size = drawn_size(loaded)
    levels = levels.resize((width, height), Image.Resampling.NEAREST)
    mask = np.asarray(ImageOps.fit(levels, (size, size), Image.Resampling.NEAREST)) >= 128
    if not mask.any():
        where = f" in the square in the middle of {of}, which is what is drawn" if width != height else ""
        raise UserError(f"--mask: {path} has no white pixel{where}: there is nothing to draw")
    return mask


def grey_levels(path: Path) -> Any:
    """A picture as a Pillow image of mode "L", upright; what is transparent is black."""
    from PIL import Image, ImageOps

    from clip_jax.images import open_image

    levels = open_image(path).convert("L")  # refuses what is no picture
    with Image.open(path) as raw:
        if raw.has_transparency_data:
            layer = ImageOps.exif_transpose(raw).convert("RGBA")
            levels = Image.alpha_composite(Image.new("RGBA", layer.size, "black"), layer).convert("L")
    return levels


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
        lambda params, latent, keys: edit.variations(unclip, params, latent, keys, eta=eta, guidance_scale=scale)
    )
    return Edit(
        f"variations of {options.vary.name}",
        [image],
        {"steps": unclip.decoder.sampling.num_steps, "guidance_scale": scale, "eta": eta},
        lambda indices, keys: run(loaded.params, latent, keys),
    )


def interpolate(options: Any, loaded: LoadedUnCLIP) -> Edit:
    import jax
    import numpy as np

    from unclip_jax import edit

    (unclip, first, a), (_, second, b) = (encoded(path, options, loaded) for path in options.interpolate)
    scale = 1.0 if options.guidance_scale is None else options.guidance_scale
    run = jax.jit(
        lambda params, a, b, weights, keys: edit.interpolate(unclip, params, a, b, weights, keys, guidance_scale=scale)
    )
    weights = np.linspace(0.0, 1.0, options.num, dtype=np.float32)
    return Edit(
        " to ".join(path.name for path in options.interpolate),
        [first, second],
        {"steps": unclip.decoder.sampling.num_steps, "guidance_scale": scale, "num": options.num},
        lambda indices, keys: run(loaded.params, a, b, weights[indices], keys),
    )


def text_diff(options: Any, loaded: LoadedUnCLIP) -> Edit:
    import jax
    import jax.numpy as jnp
    import numpy as np

    from unclip_jax import edit

    unclip, image, latent = encoded(options.edit, options, loaded)
    before, after = (jnp.asarray(loaded.tokenize([text])) for text in (options.from_, options.to))
    scale = 1.0 if options.guidance_scale is None else options.guidance_scale
    run = jax.jit(
        lambda params, latent, strength, keys: edit.text_diff(
            unclip, params, latent, before, after, strength, keys, guidance_scale=scale
        )
    )
    most = options.strength or STRENGTH["edit"]
    strengths = np.linspace(0.0, most, options.num + 1, dtype=np.float32)[1:]
    return Edit(
        f"{options.from_} to {options.to}",
        [image],
        {
            "source": options.edit.name,
            "steps": unclip.decoder.sampling.num_steps,
            "guidance_scale": scale,
            "strength": most,
            "num": options.num,
        },
        lambda indices, keys: run(loaded.params, latent, strengths[indices], keys),
    )


def inpaint(options: Any, loaded: LoadedUnCLIP) -> Edit:
    import jax
    import jax.numpy as jnp
    import numpy as np

    from unclip_jax import edit

    image, mask = picture(options.inpaint, loaded), mask_of(options.mask, options.inpaint, loaded)
    tokens = jnp.asarray(loaded.tokenize(list(options.prompt)))
    run = jax.jit(
        lambda params, image, mask, keys: edit.inpaint(
            loaded.unclip, params, image, mask, tokens, keys, guidance_scale=options.guidance_scale
        )
    )
    # What will be drawn anew is shown pale: three quarters of the way to white.
    masked = np.where(mask[..., None], image // 4 + 191, image).astype(np.uint8)
    return Edit(
        options.prompt[0],
        [image, masked],
        {"source": options.inpaint.name, "mask": options.mask.name} | prompted_settings(options, loaded),
        lambda indices, keys: run(loaded.params, image[None], mask, keys),
    )


def redraw(options: Any, loaded: LoadedUnCLIP) -> Edit:
    import jax
    import jax.numpy as jnp

    from unclip_jax import edit

    image = picture(options.redraw, loaded)
    tokens = jnp.asarray(loaded.tokenize(list(options.prompt)))
    strength = options.strength or STRENGTH["redraw"]
    run = jax.jit(
        lambda params, image, keys: edit.image_to_image(
            loaded.unclip,
            params,
            image,
            tokens,
            keys,
            strength=strength,
            guidance_scale=options.guidance_scale,
        )
    )
    settings = {
        "source": options.redraw.name,
        "strength": strength,
        "sampler": loaded.unclip.decoder.sampling.sampler.name,
    }
    return Edit(
        options.prompt[0],
        [image],
        settings | prompted_settings(options, loaded),
        lambda indices, keys: run(loaded.params, image[None], keys),
    )


def prompted_settings(options: Any, loaded: LoadedUnCLIP) -> dict[str, Any]:
    """The settings of an edit that draws a prompt by the decoder's own sampling."""
    sampling = loaded.unclip.decoder.sampling
    scale = sampling.guidance_scale if options.guidance_scale is None else options.guidance_scale
    return {"prior": options.prior, "steps": sampling.num_steps, "guidance_scale": scale}


EDITS = {"vary": vary, "interpolate": interpolate, "edit": text_diff, "inpaint": inpaint, "redraw": redraw}


def draw(edit: Edit, options: Any) -> Iterator[tuple[int, int, np.ndarray]]:
    """Yields (0, picture index, uint8 [H, W, 3]), computed in chunks of one size: the last is filled up."""
    import numpy as np

    from unclip_jax.devices import Devices
    from unclip_jax.diffusion.keys import sample_keys, seed_key
    from unclip_jax.pipeline import check_drawn
    from unclip_jax.tasks import to_uint8

    key, devices = seed_key(options.seed), Devices(options.chunk)
    for start in range(0, options.num, options.chunk):
        indices = np.minimum(np.arange(start, start + options.chunk), options.num - 1)
        drawn = edit.draw(indices, devices.split(sample_keys(key, indices)))
        check_drawn(drawn, [f"picture {i} of {edit.title}" for i in indices])
        images = np.asarray(to_uint8(drawn.images))
        yield from ((0, int(i), image) for i, image in list(zip(indices, images, strict=True))[: options.num - start])
