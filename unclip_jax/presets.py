"""The stages this package knows by name: one row each, with where its numbers come from."""

from __future__ import annotations

from typing import Any, NamedTuple

from clip_jax.errors import UserError
from unclip_jax.diffusion.losses import CappedV
from unclip_jax.diffusion.samplers import DDIM, DDPM, DPMpp2M
from unclip_jax.diffusion.schedule import Fast27
from unclip_jax.models.ar_prior import ARPriorConfig
from unclip_jax.models.prior import PriorConfig
from unclip_jax.models.unet import ImageCond, Level, LowRes, TextCond, UNetConfig
from unclip_jax.priors import ARSampling, ARStage, OneStepStage, Prior
from unclip_jax.stage import Sampling, Stage


class Preset(NamedTuple):
    """A stage and where its numbers come from."""

    stage: Prior
    source: str


CONTEXT = 24  # tokens of a caption in the CLIPs of the small presets


def shapes_prior(width: int, layers: int, heads: int, *, embed_dim: int = 64, text_width: int = 96) -> Stage:
    """A prior over the embeddings of the CLIP of the same name; it predicts x0, as in the paper (§2.2).

    Pictures of one caption differ by a hundredth of the variance of all. At unit deviation noise hides that at all but
    the last of the times, and the prior draws the mean; at a deviation of 5 half of the times are about it.
    """
    return Stage(
        model=PriorConfig(embed_dim, text_width, CONTEXT, width, layers, heads, scale=5.0, skip=True),
        prediction="x0",
        weight=CappedV(100.0),
        sampling=Sampling(DPMpp2M(), num_steps=10, guidance_scale=1.0, clip=None),
    )


def shapes_ar_prior(
    width: int,
    layers: int,
    heads: int,
    *,
    components: int,
    buckets: int,
    embed_dim: int = 64,
    text_width: int = 96,
) -> ARStage:
    """The embedding as a row of tokens; the buckets are coarser than the paper's, each has to be seen in training.

    Guidance is what keeps a row together: one unlucky token turns all that follow.
    """
    model = ARPriorConfig(embed_dim, text_width, CONTEXT, width, layers, heads, components, buckets)
    return ARStage(model, ARSampling(guidance_scale=2.0))


def shapes_one_step_prior(
    width: int, layers: int, heads: int, *, embed_dim: int = 64, text_width: int = 96
) -> OneStepStage:
    """The transformer of `shapes_prior` without the time."""
    return OneStepStage(PriorConfig(embed_dim, text_width, CONTEXT, width, layers, heads, time_token=False))


def shapes_decoder(
    size: int,
    patch: int,
    levels: tuple[Level, ...],
    head: int,
    *,
    embed_dim: int = 64,
    text_width: int = 96,
    steps: int = 32,
    guidance_scale: float = 1.0,
) -> Stage:
    """A decoder over patches.

    It predicts x0: the noise of a patch would have to squeeze through the stem, the picture need not. Guidance is off
    unless given: it makes the pictures of one caption more alike, as fewer steps do, and hardly more right.
    """
    return Stage(
        model=UNetConfig(
            image_size=size,
            levels=levels,
            patch_size=patch,
            head_width=head,
            groups=16,
            time_width=128,
            image=ImageCond(embed_dim),
            text=TextCond(text_width),
            context_width=64,
            coordinates=True,
        ),
        prediction="x0",
        weight=CappedV(),
        sampling=Sampling(DPMpp2M(), num_steps=steps, guidance_scale=guidance_scale),
    )


def shapes_upsampler(size: int, patch: int, levels: tuple[Level, ...]) -> Stage:
    """No text, no attention, no guidance, few steps (§2.1)."""
    return Stage(
        model=UNetConfig(image_size=size, levels=levels, patch_size=patch, groups=16, time_width=64, low_res=LowRes()),
        prediction="x0",
        weight=CappedV(),
        sampling=Sampling(DDIM(), num_steps=4),
    )


def levels(width: int, multiples: tuple[int, ...], blocks: int, attention: tuple[bool, ...]) -> tuple[Level, ...]:
    """As the paper's tables write them: channels, channel multiples, residual blocks and attention of each level."""
    return tuple(Level(width * m, blocks, a) for m, a in zip(multiples, attention, strict=True))


def published_prior(width: int, layers: int, heads: int, embed_dim: int, text_width: int) -> Stage:
    """The diffusion prior of Table 3: x0 with equal weights, 64 steps with the analytic variance.

    It reads the 77 token encodings of a CLIP, where the paper's prior has 256 tokens and learns to encode them itself.
    Guidance is not in the table; it is off until asked for.
    """
    return Stage(
        model=PriorConfig(embed_dim, text_width, 77, width, layers, heads),
        prediction="x0",
        sampling=Sampling(DDPM("analytic"), num_steps=64, guidance_scale=1.0, clip=None),
        x0_error=True,
    )


def published_ar_prior(width: int, layers: int, heads: int, embed_dim: int, text_width: int) -> ARStage:
    """The autoregressive prior of Table 3, of 319 components in 1,024 buckets (§2.2).

    As for the diffusion prior, the caption is 77 encodings of a CLIP, and guidance is off until asked for.
    """
    return ARStage(ARPriorConfig(embed_dim, text_width, 77, width, layers, heads), ARSampling(guidance_scale=1.0))


def published_decoder(
    width: int,
    blocks: int,
    embed_dim: int,
    text_width: int,
    context: int,
    dropout: float,
    *,
    size: int = 64,
    head: int = 64,
) -> Stage:
    """The decoder of Table 3: eps and a learned variance, attention at all sizes but the first, 250 steps.

    The caption comes as CLIP's encodings, where the paper trains GLIDE's text encoder of 1.2 billion parameters along
    with it. Guidance is not in the table: 1.25 is the scale of the paper's best FID.
    """
    return Stage(
        model=UNetConfig(
            image_size=size,
            head_width=head,
            levels=levels(width, (1, 2, 3, 4), blocks, (False, True, True, True)),
            dropout=dropout,
            time_width=4 * width,
            image=ImageCond(embed_dim),
            text=TextCond(text_width),
            context_width=context,
            learned_variance=True,
        ),
        sampling=Sampling(DDPM("learned"), num_steps=250, guidance_scale=1.25),
    )


def published_upsampler(
    size: int,
    width: int,
    multiples: tuple[int, ...],
    blocks: int,
    sampling: Sampling,
    schedule: str,
    dropout: float = 0.0,
) -> Stage:
    """An upsampler of Table 3: eps, no attention anywhere, no text, no guidance, DDIM."""
    model = UNetConfig(
        image_size=size,
        levels=levels(width, multiples, blocks, (False,) * len(multiples)),
        dropout=dropout,
        time_width=4 * width,
        low_res=LowRes(),
    )
    return Stage(model=model, sampling=sampling, schedule=schedule)


FAST27, DDIM15 = Sampling(DDIM(grid=Fast27()), num_steps=27), Sampling(DDIM(), num_steps=15)
TINY = {"embed_dim": 16, "text_width": 32}
PAPER = "Ramesh et al. 2022, Table 3"
OURS = "this project: small enough to train on two CPU cores"
OURS_SMALLER = "this project: the paper's, small enough to train on one accelerator"

# fmt: off
PRESETS: dict[str, Preset] = {
    #                                       width layers heads
    "shapes-prior":     Preset(shapes_prior( 96,     3,    3), OURS),
    "shapes-ar-prior":       Preset(shapes_ar_prior(96, 3, 3, components=32, buckets=128), OURS),
    "shapes-one-step-prior": Preset(shapes_one_step_prior(96, 3, 3), OURS),
    #                                         size patch width blocks attention   head width
    "shapes-decoder":   Preset(shapes_decoder(  32, 2, (Level(48, 1), Level(96, 1, True)), 48), OURS),
    "shapes-decoder-guided": Preset(
        shapes_decoder(32, 2, (Level(48, 1), Level(96, 1, True)), 48, steps=16, guidance_scale=2.0), OURS),
    "shapes-upsampler": Preset(shapes_upsampler(64, 2, (Level(32, 1),)), OURS),
    "shapes-upsampler_1": Preset(shapes_upsampler(128, 4, (Level(32, 1),)), OURS),

    "tiny-prior":       Preset(shapes_prior(32, 1, 2, **TINY), OURS),
    "tiny-ar-prior":         Preset(shapes_ar_prior(32, 1, 2, components=5, buckets=16, **TINY), OURS),
    "tiny-one-step-prior":   Preset(shapes_one_step_prior(32, 1, 2, **TINY), OURS),
    "tiny-decoder":     Preset(shapes_decoder(16, 2, (Level(16, 1), Level(32, 1, True)), 16, steps=4, **TINY), OURS),
    "tiny-upsampler":   Preset(shapes_upsampler(32, 4, (Level(16, 1),)), OURS),
    "tiny-upsampler_1": Preset(shapes_upsampler(64, 8, (Level(16, 1),)), OURS),

    #                                            width layers heads embedding text: of CLIP ViT-H
    "dalle2-prior":          Preset(published_prior(2048, 24, 32, 1024, 1024), PAPER),
    "dalle2-ar-prior":       Preset(published_ar_prior(1664, 24, 26, 1024, 1024), PAPER),
    #                                              width blocks embedding text context dropout
    "dalle2-decoder":        Preset(published_decoder(512, 3, 1024, 1024, 2048, 0.1), PAPER),
    #                                                size width multiples blocks sampling schedule dropout
    "dalle2-upsampler-256":  Preset(published_upsampler( 256, 320, (1, 2, 3, 4), 3, FAST27, "cosine", 0.1), PAPER),
    "dalle2-upsampler-1024": Preset(published_upsampler(1024, 192, (1, 1, 2, 2, 4, 4), 2, DDIM15, "linear"), PAPER),

    # The same for one accelerator, over the embeddings of CLIP ViT-L/14.
    "small-prior":           Preset(published_prior(512, 16, 8, 768, 768), OURS_SMALLER),
    "small-decoder":         Preset(published_decoder(128, 3, 768, 768, 512, 0.1), OURS_SMALLER),
    "small-upsampler-256":   Preset(published_upsampler(256, 96, (1, 2, 3, 4), 2, FAST27, "cosine", 0.1), OURS_SMALLER),

    # The same again in no time, to see that it runs.
    "tiny-captions-prior":     Preset(published_prior(32, 2, 2, 16, 32), OURS),
    "tiny-captions-decoder":   Preset(published_decoder(32, 1, 16, 32, 64, 0.1, size=16, head=32), OURS),
    "tiny-captions-upsampler": Preset(published_upsampler(32, 32, (1, 2), 1, FAST27, "cosine", 0.1), OURS),
}
# fmt: on


def preset(name: str) -> Any:
    """The stage, or prior of another kind, of a name. Raises UserError for a name there is none of."""
    if name not in PRESETS:
        raise UserError(f"there is no stage {name!r}; choose one of {', '.join(PRESETS)}")
    return PRESETS[name].stage
