"""Presets: configs of stages by name, with the source of their numbers."""

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
    """A named stage.

    Attributes:
        stage: the config, of a stage or of a prior of any kind.
        source: where its numbers come from.
    """

    stage: Prior
    source: str


CONTEXT = 24  # context length of the CLIPs of the small presets


def shapes_prior(width: int, layers: int, heads: int, *, embed_dim: int = 64, text_width: int = 96) -> Stage:
    """A diffusion prior for the shapes world; it predicts x0, as in the paper (§2.2).

    The embeddings of the pictures of one caption have a hundredth of the variance of all embeddings. At a standard
    deviation of 1, noise would hide that difference at all but the last timesteps, and the prior would draw the mean of
    a caption; at a standard deviation of 5 (`scale`) half of the timesteps resolve it.

    Args:
        width: width of the transformer.
        layers: its blocks.
        heads: its attention heads.
        embed_dim: D of the CLIP.
        text_width: width of its text encodings.
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
    """An autoregressive prior for the shapes world.

    There are fewer buckets than in the paper, because each of them has to occur in training. Guidance is on, because
    one unlikely token misleads all that follow.

    Args:
        width: width of the transformer.
        layers: its blocks.
        heads: its attention heads.
        components: principal components that are predicted.
        buckets: values of a token.
        embed_dim: D of the CLIP.
        text_width: width of its text encodings.
    """
    model = ARPriorConfig(embed_dim, text_width, CONTEXT, width, layers, heads, components, buckets)
    return ARStage(model, ARSampling(guidance_scale=2.0))


def shapes_one_step_prior(
    width: int, layers: int, heads: int, *, embed_dim: int = 64, text_width: int = 96
) -> OneStepStage:
    """A one-step prior: the transformer of `shapes_prior` without the timestep; the arguments are the same."""
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
    """A decoder for the shapes world, on patches of pixels.

    It predicts x0, because the stem is too narrow to carry the noise of a patch, but not its picture. Guidance is off
    by default: like fewer steps, it makes the pictures of a caption more alike, and hardly more often right.

    Args:
        size: side of the pictures in pixels.
        patch: side of a patch in pixels.
        levels: resolutions of the U-Net.
        head: channels per attention head.
        embed_dim: D of the CLIP.
        text_width: width of its text encodings.
        steps: sampling steps.
        guidance_scale: 1.0 is off.
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
    """An upsampler for the shapes world: no text, no attention, no guidance, few steps (§2.1)."""
    return Stage(
        model=UNetConfig(image_size=size, levels=levels, patch_size=patch, groups=16, time_width=64, low_res=LowRes()),
        prediction="x0",
        weight=CappedV(),
        sampling=Sampling(DDIM(), num_steps=4),
    )


def levels(width: int, multiples: tuple[int, ...], blocks: int, attention: tuple[bool, ...]) -> tuple[Level, ...]:
    """Levels of a U-Net as the paper's tables describe them.

    Args:
        width: base channels.
        multiples: channel multiple of each level, from the finest.
        blocks: residual blocks of every level.
        attention: whether each level has attention.
    """
    return tuple(Level(width * m, blocks, a) for m, a in zip(multiples, attention, strict=True))


def published_prior(width: int, layers: int, heads: int, embed_dim: int, text_width: int) -> Stage:
    """The diffusion prior of the paper's Table 3: prediction of x0, equal weights, 64 steps with the analytic variance.

    It reads the 77 text encodings of a CLIP, whereas the paper's prior encodes 256 tokens by itself. The table has no
    guidance scale; it is 1.0 (off) here.
    """
    return Stage(
        model=PriorConfig(embed_dim, text_width, 77, width, layers, heads),
        prediction="x0",
        sampling=Sampling(DDPM("analytic"), num_steps=64, guidance_scale=1.0, clip=None),
        x0_error=True,
    )


def published_ar_prior(width: int, layers: int, heads: int, embed_dim: int, text_width: int) -> ARStage:
    """The autoregressive prior of the paper's Table 3, with 319 components in 1,024 buckets (§2.2).

    As in `published_prior`, it reads 77 text encodings of a CLIP, and the guidance scale is 1.0 (off).
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
    """The decoder of the paper's Table 3: eps, learned variance, attention at all levels but the finest, 250 steps.

    It reads CLIP's text encodings, whereas the paper trains GLIDE's text encoder of 1.2 billion parameters with it. The
    table has no guidance scale; 1.25 is that of the paper's best FID.
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
    """An upsampler of the paper's Table 3: prediction of eps, no attention, no text, no guidance."""
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

    # Smaller, for one accelerator, with the embedding widths of CLIP ViT-L/14.
    "small-prior":           Preset(published_prior(512, 16, 8, 768, 768), OURS_SMALLER),
    "small-decoder":         Preset(published_decoder(128, 3, 768, 768, 512, 0.1), OURS_SMALLER),
    "small-upsampler-256":   Preset(published_upsampler(256, 96, (1, 2, 3, 4), 2, FAST27, "cosine", 0.1), OURS_SMALLER),

    # Tiny, for a quick trial of the whole training.
    "tiny-captions-prior":     Preset(published_prior(32, 2, 2, 16, 32), OURS),
    "tiny-captions-decoder":   Preset(published_decoder(32, 1, 16, 32, 64, 0.1, size=16, head=32), OURS),
    "tiny-captions-upsampler": Preset(published_upsampler(32, 32, (1, 2), 1, FAST27, "cosine", 0.1), OURS),
}
# fmt: on


def preset(name: str) -> Any:
    """The stage, or prior of any kind, of a name in `PRESETS`.

    Raises:
        UserError: there is no such name.
    """
    if name not in PRESETS:
        raise UserError(f"there is no stage {name!r}; choose one of {', '.join(PRESETS)}")
    return PRESETS[name].stage
