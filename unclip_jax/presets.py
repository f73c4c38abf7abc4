"""The stages this package knows by name: one row each, with where its numbers come from."""

from __future__ import annotations

from typing import NamedTuple

from clip_jax.errors import UserError
from unclip_jax.models.prior import PriorConfig
from unclip_jax.models.unet import Level, UNetConfig
from unclip_jax.stage import Sampling, Stage


class Preset(NamedTuple):
    stage: Stage
    source: str


def shapes_prior(
    width: int, layers: int, heads: int, *, embed_dim: int = 64, text_width: int = 96, context: int = 24
) -> Stage:
    """A prior over the embeddings of the CLIP of the same name; it predicts x0, as in the paper (§2.2).

    Pictures of one caption differ by a hundredth of the variance of all. At unit deviation noise hides that at all but
    the last of the times, and the prior draws the mean; at a deviation of 5 half of the times are about it.
    """
    return Stage(
        model=PriorConfig(embed_dim, text_width, context, width, layers, heads, scale=5.0, skip=True),
        prediction="x0",
        weight="capped_v",
        weight_cap=100.0,
        sampling=Sampling("dpmpp_2m", num_steps=10, guidance_scale=1.0, clip=None),
    )


def shapes_decoder(
    size: int,
    patch: int,
    levels: tuple[Level, ...],
    head: int,
    *,
    embed_dim: int = 64,
    text_width: int = 96,
    steps: int = 16,
) -> Stage:
    """A decoder over patches.

    It predicts x0: the noise of a patch would have to squeeze through the stem, the picture need not.
    """
    return Stage(
        model=UNetConfig(
            image_size=size,
            levels=levels,
            patch_size=patch,
            head_width=head,
            groups=16,
            time_width=128,
            image_embed_dim=embed_dim,
            text_width=text_width,
            context_width=64,
            coordinates=True,
        ),
        prediction="x0",
        weight="capped_v",
        sampling=Sampling("dpmpp_2m", num_steps=steps, guidance_scale=3.0),
    )


def shapes_upsampler(size: int, patch: int, levels: tuple[Level, ...]) -> Stage:
    """No text, no attention, no guidance, few steps (§2.1)."""
    return Stage(
        model=UNetConfig(image_size=size, levels=levels, patch_size=patch, groups=16, time_width=64, low_res=True),
        prediction="x0",
        weight="capped_v",
        sampling=Sampling("ddim", num_steps=4),
    )


TINY = {"embed_dim": 16, "text_width": 32}
OURS = "this project: small enough to train on two CPU cores"

# fmt: off
PRESETS: dict[str, Preset] = {
    #                                       width layers heads
    "shapes-prior":     Preset(shapes_prior( 96,     3,    3), OURS),
    #                                         size patch width blocks attention   head width
    "shapes-decoder":   Preset(shapes_decoder(  32, 2, (Level(48, 1), Level(96, 1, True)), 48), OURS),
    "shapes-upsampler": Preset(shapes_upsampler(64, 2, (Level(32, 1),)), OURS),

    "tiny-prior":       Preset(shapes_prior(32, 1, 2, **TINY), OURS),
    "tiny-decoder":     Preset(shapes_decoder(16, 2, (Level(16, 1), Level(32, 1, True)), 16, steps=4, **TINY), OURS),
    "tiny-upsampler":   Preset(shapes_upsampler(32, 4, (Level(16, 1),)), OURS),
}
# fmt: on


def preset(name: str) -> Stage:
    """The stage of a name. Raises UserError for a name there is none of."""
    if name not in PRESETS:
        raise UserError(f"there is no stage {name!r}; choose one of {', '.join(PRESETS)}")
    return PRESETS[name].stage
