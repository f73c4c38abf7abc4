"""Presets: the configs of published models by name, one row of `PRESETS` each.

Where a row differs from its neighbours in activation, norm, pooling, padding or normalisation, its weights were trained
so. A wrong value costs points of accuracy without any error, so `clip_jax.load` refuses it.
"""

import dataclasses
import difflib
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

from clip_jax.config import (
    BertConfig,
    CLIPConfig,
    EVA02Config,
    PlainResNetConfig,
    PreprocessConfig,
    ResNetConfig,
    TextConfig,
    ViTConfig,
)
from clip_jax.errors import UserError

OPENAI_MEAN_STD = PreprocessConfig()
SQUASHED = PreprocessConfig(resize="squash")
HALF = PreprocessConfig(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
HALF_SQUASHED = PreprocessConfig(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), resize="squash")
HALF_SQUASHED_BILINEAR = PreprocessConfig(
    mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), resize="squash", interpolation="bilinear"
)
IMAGENET = PreprocessConfig(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
GREY = PreprocessConfig(mean=(0.5,), std=(0.5,))


class Size(NamedTuple):
    """Size of a transformer."""

    width: int
    layers: int
    heads: int
    mlp_width: int


BASE, LARGE, HUGE = Size(768, 12, 12, 3072), Size(1024, 24, 16, 4096), Size(1280, 32, 16, 5120)
SO400M, GIANT, GIANT_OPT = Size(1152, 27, 16, 4304), Size(1408, 40, 16, 6144), Size(1536, 40, 16, 6144)
GIGANTIC = Size(1664, 48, 16, 8192)


class Preset(NamedTuple):
    """A config with its source.

    Attributes:
        config: the architecture and preprocessing.
        num_params: number of parameters, as published or as the source adds up; None: not published.
        source: paper, repository or document.
        nearest: the unit that `num_params` is rounded to.
    """

    config: CLIPConfig
    num_params: int | None
    source: str
    nearest: int = 1


def clip_text(width: int, layers: int = 12, activation: Any = "quick_gelu", **fields: Any) -> TextConfig:
    """CLIP's text tower with heads of 64 channels: 49,408 tokens, context 77."""
    return TextConfig(
        vocab_size=49408,
        context_length=77,
        width=width,
        layers=layers,
        heads=width // 64,
        activation=activation,
        **fields,
    )


def resnet(image: int, layers: tuple[int, int, int, int], width: int) -> ResNetConfig:
    """CLIP's ResNet with heads of 64 channels in its attention pool."""
    return ResNetConfig(image_size=image, layers=layers, width=width, heads=width // 2)


def openai_resnet(embed: int, image: int, layers: tuple[int, int, int, int], width: int, text_width: int) -> CLIPConfig:
    """Radford et al. 2021, table 19: attention pool with heads of 64 channels, 12 text layers."""
    return CLIPConfig(embed_dim=embed, vision=resnet(image, layers, width), text=clip_text(text_width))


def openai_vit(embed: int, image: int, patch: int, width: int, layers: int, text_width: int) -> CLIPConfig:
    """Radford et al. 2021, table 20: heads of 64 channels in both towers, 12 text layers."""
    return CLIPConfig(
        embed_dim=embed,
        vision=ViTConfig(image_size=image, patch_size=patch, width=width, layers=layers, heads=width // 64),
        text=clip_text(text_width),
    )


def open_clip(
    embed: int,
    image: int,
    patch: int,
    size: Size,
    text_width: int,
    text_layers: int = 12,
    preprocess: PreprocessConfig = OPENAI_MEAN_STD,
) -> CLIPConfig:
    """OpenCLIP's own training: OpenAI's architecture with the exact GELU (Cherti et al. 2023, arXiv:2212.07143)."""
    return CLIPConfig(
        embed_dim=embed,
        vision=ViTConfig(image_size=image, patch_size=patch, **size._asdict(), activation="gelu"),
        text=clip_text(text_width, text_layers, "gelu"),
        preprocess=preprocess,
    )


def siglip(image: int, patch: int, size: Size, context: int = 64) -> CLIPConfig:
    """Zhai et al. 2023: both towers of one size, tanh GELU, norms with 1e-6.

    The image tower pools by attention; the text tower takes the last of its `context` positions, padding or not.
    """
    return CLIPConfig(
        embed_dim=size.width,
        vision=ViTConfig(
            image_size=image,
            patch_size=patch,
            **size._asdict(),
            activation="gelu_tanh",
            ln_eps=1e-6,
            pool="map",
            ln_pre=False,
            patch_bias=True,
        ),
        text=TextConfig(
            vocab_size=32_000,
            context_length=context,
            **size._asdict(),
            activation="gelu_tanh",
            ln_eps=1e-6,
            attention="full",
            pool="last",
            projection_bias=True,
            pad_id=1,
            eos_id=1,
            tokenizer="siglip",
        ),
        preprocess=HALF_SQUASHED,
        logit_scale_init=math.log(10),
        logit_bias_init=-10.0,
    )


def siglip2(image: int, patch: int, size: Size, text: Size | None = None) -> CLIPConfig:
    """Tschannen et al. 2025: SigLIP with Gemma's vocabulary; the largest model has a smaller `text` tower."""
    config = siglip(image, patch, size)
    fields = (text or size)._asdict() | {"vocab_size": 256_000, "pad_id": 0, "tokenizer": "siglip2"}
    return dataclasses.replace(
        config, text=dataclasses.replace(config.text, **fields), preprocess=HALF_SQUASHED_BILINEAR
    )


def eva02(embed: int, image: int, patch: int, width: int, layers: int, text_width: int) -> CLIPConfig:
    """Sun et al. 2023, arXiv:2303.15389: heads of 64 channels, the text tower with the exact GELU."""
    return CLIPConfig(
        embed_dim=embed,
        vision=EVA02Config(image_size=image, patch_size=patch, width=width, layers=layers, heads=width // 64),
        text=clip_text(text_width, activation="gelu"),
    )


def chinese(embed: int, vision: ViTConfig | ResNetConfig, text_layers: int = 12, text_width: int = 768) -> CLIPConfig:
    """Yang et al. 2022, arXiv:2211.01335: an OpenAI image tower (QuickGELU in all sizes) and a RoBERTa-wwm, [CLS]."""
    text = BertConfig(vocab_size=21128, context_length=52, width=text_width, layers=text_layers, heads=text_width // 64)
    return CLIPConfig(embed_dim=embed, vision=vision, text=text, preprocess=SQUASHED)


def quick_vit(image: int, patch: int, size: Size) -> ViTConfig:
    """A vision transformer with QuickGELU."""
    return ViTConfig(image_size=image, patch_size=patch, **size._asdict())


def text_encoder(text: TextConfig, embed: int | None = None) -> CLIPConfig:
    """A text tower alone; without `embed` its pooled state is not projected."""
    return CLIPConfig(embed_dim=embed, vision=None, text=text)


def small(
    embed: int,
    image: int,
    patch: int,
    width: int,
    layers: int,
    text_width: int,
    text_layers: int,
    head: int,
    stem: tuple[int, ...] = (),
) -> CLIPConfig:
    """OpenAI's architecture in small, for training on your own pictures and captions."""
    return CLIPConfig(
        embed_dim=embed,
        vision=ViTConfig(
            image_size=image, patch_size=patch, stem=stem, width=width, layers=layers, heads=width // head
        ),
        text=TextConfig(
            vocab_size=640, context_length=24, width=text_width, layers=text_layers, heads=text_width // head
        ),
        preprocess=HALF,
    )


RESNET50_BERT = CLIPConfig(
    embed_dim=512,
    vision=PlainResNetConfig(),
    text=BertConfig(
        vocab_size=30522,
        context_length=512,
        width=768,
        layers=12,
        heads=12,
        pool="pooler",
        projection_bias=True,
    ),
    preprocess=IMAGENET,
    logit_scale_init=math.log(1 / 0.07),
    logit_scale_learned=False,
)

TINY_RESNET_BERT = dataclasses.replace(
    RESNET50_BERT,
    embed_dim=16,
    vision=PlainResNetConfig(image_size=32, layers=(1, 1, 1, 1), width=4),
    text=dataclasses.replace(
        RESNET50_BERT.text, vocab_size=640, context_length=32, max_positions=32, width=16, layers=2, heads=2
    ),
)

MINI_FASHION = CLIPConfig(
    embed_dim=32,
    vision=ViTConfig(
        image_size=28,
        patch_size=14,
        channels=1,
        width=9,
        layers=3,
        heads=3,
        activation="gelu",
        ln_pre=False,
        patch_bias=True,
        positions="sinusoidal",
    ),
    text=TextConfig(
        vocab_size=256,
        context_length=32,
        width=32,
        layers=4,
        heads=8,
        activation="gelu",
        attention="text",
        positions="sinusoidal",
        eos_id=3,
        tokenizer="ascii",
    ),
    preprocess=GREY,
)

OPENAI, OURS = "arXiv:2103.00020, github.com/openai/CLIP", "this project"
LAION = "github.com/mlfoundations/open_clip, docs/model_profile.csv"
DATACOMP = "arXiv:2304.14108; open_clip docs/model_profile.csv"
SIGLIP = "arXiv:2303.15343; open_clip docs/model_profile.csv"
SIGLIP2 = "arXiv:2502.14786, model cards google/siglip2-*"
EVA = "arXiv:2303.15389; open_clip docs/model_profile.csv"
CN = "arXiv:2211.01335, github.com/OFA-Sys/Chinese-CLIP README"
CLIP_L, SD_2 = "openai/clip-vit-large-patch14", "stabilityai/stable-diffusion-2"
SD_XL = "arXiv:2307.01952, stabilityai/stable-diffusion-xl-base-1.0"

EOT = 49407  # the end token, with which the tokenizers of OpenAI's weights on Hugging Face also pad
RN50 = resnet(224, (3, 4, 6, 3), 64)
# fmt: off
PRESETS: dict[str, Preset] = {
    #                                        embed image layers           width text
    "RN50":           Preset(openai_resnet(  1024,  224, (3, 4, 6, 3),      64,  512), 102_007_137, OPENAI),
    "RN101":          Preset(openai_resnet(   512,  224, (3, 4, 23, 3),     64,  512), 119_688_033, OPENAI),
    "RN50x4":         Preset(openai_resnet(   640,  288, (4, 6, 10, 6),     80,  640), 178_300_601, OPENAI),
    "RN50x16":        Preset(openai_resnet(   768,  384, (6, 8, 18, 8),     96,  768), 290_979_217, OPENAI),
    "RN50x64":        Preset(openai_resnet(  1024,  448, (3, 15, 36, 10),  128, 1024), 623_258_305, OPENAI),
    #                                    embed image patch width layers text
    "ViT-B/32":       Preset(openai_vit(   512,  224,   32,  768,   12,  512), 151_277_313, OPENAI),
    "ViT-B/16":       Preset(openai_vit(   512,  224,   16,  768,   12,  512), 149_620_737, OPENAI),
    "ViT-L/14":       Preset(openai_vit(   768,  224,   14, 1024,   24,  768), 427_616_513, OPENAI),
    "ViT-L/14@336px": Preset(openai_vit(   768,  336,   14, 1024,   24,  768), 427_944_193, OPENAI),

    # OpenCLIP, its name of the architecture and its tag: embed, image, patch, tower, text width and layers
    "ViT-B-32:laion2b_s34b_b79k":     Preset(open_clip(512, 224, 32, BASE, 512), 151_280_000, LAION, 10**4),
    "ViT-B-16:laion2b_s34b_b88k":     Preset(open_clip(512, 224, 16, BASE, 512), 149_620_000, LAION, 10**4),
    "ViT-L-14:laion2b_s32b_b82k":     Preset(open_clip(768, 224, 14, LARGE, 768, 12, HALF), 427_620_000, LAION, 10**4),
    "ViT-H-14:laion2b_s32b_b79k":     Preset(open_clip(1024, 224, 14, HUGE, 1024, 24), 986_110_000, LAION, 10**4),
    "ViT-g-14:laion2b_s34b_b88k":     Preset(open_clip(1024, 224, 14, GIANT, 1024, 24), 1_366_680_000, LAION, 10**4),
    "ViT-bigG-14:laion2b_s39b_b160k": Preset(open_clip(1280, 224, 14, GIGANTIC, 1280, 32), 2_539_570_000, LAION, 10**4),
    "ViT-B-32:datacomp_xl_s13b_b90k": Preset(open_clip(512, 224, 32, BASE, 512), 151_280_000, DATACOMP, 10**4),
    "ViT-B-32-256:datacomp_s34b_b86k": Preset(open_clip(512, 256, 32, BASE, 512), 151_290_000, DATACOMP, 10**4),
    "ViT-B-16:datacomp_xl_s13b_b90k": Preset(open_clip(512, 224, 16, BASE, 512), 149_620_000, DATACOMP, 10**4),
    "ViT-L-14:datacomp_xl_s13b_b90k": Preset(open_clip(768, 224, 14, LARGE, 768), 427_620_000, DATACOMP, 10**4),

    # image, patch, both towers
    "siglip-base-patch16-224":        Preset(siglip(224, 16, BASE), 203_160_000, SIGLIP, 10**4),
    "siglip-base-patch16-256":        Preset(siglip(256, 16, BASE), 203_200_000, SIGLIP, 10**4),
    "siglip-base-patch16-384":        Preset(siglip(384, 16, BASE), 203_450_000, SIGLIP, 10**4),
    "siglip-base-patch16-512":        Preset(siglip(512, 16, BASE), 203_790_000, SIGLIP, 10**4),
    "siglip-large-patch16-256":       Preset(siglip(256, 16, LARGE), 652_150_000, SIGLIP, 10**4),
    "siglip-large-patch16-384":       Preset(siglip(384, 16, LARGE), 652_480_000, SIGLIP, 10**4),
    "siglip-so400m-patch14-224":      Preset(siglip(224, 14, SO400M, context=16), 877_360_000, SIGLIP, 10**4),
    "siglip-so400m-patch14-384":      Preset(siglip(384, 14, SO400M), 877_960_000, SIGLIP, 10**4),
    "siglip2-base-patch16-224":       Preset(siglip2(224, 16, BASE), 375_187_970, SIGLIP2),
    "siglip2-base-patch16-256":       Preset(siglip2(256, 16, BASE), 400_000_000, SIGLIP2, 10**8),
    "siglip2-base-patch16-384":       Preset(siglip2(384, 16, BASE), 400_000_000, SIGLIP2, 10**8),
    "siglip2-base-patch16-512":       Preset(siglip2(512, 16, BASE), 400_000_000, SIGLIP2, 10**8),
    "siglip2-large-patch16-256":      Preset(siglip2(256, 16, LARGE), 900_000_000, SIGLIP2, 10**8),
    "siglip2-large-patch16-384":      Preset(siglip2(384, 16, LARGE), 900_000_000, SIGLIP2, 10**8),
    "siglip2-large-patch16-512":      Preset(siglip2(512, 16, LARGE), 900_000_000, SIGLIP2, 10**8),
    "siglip2-so400m-patch14-224":     Preset(siglip2(224, 14, SO400M), 1_140_000_000, SIGLIP2, 10**7),
    "siglip2-so400m-patch14-384":     Preset(siglip2(384, 14, SO400M), 1_136_008_498, SIGLIP2),
    "siglip2-so400m-patch16-256":     Preset(siglip2(256, 16, SO400M), 1_140_000_000, SIGLIP2, 10**7),
    "siglip2-so400m-patch16-384":     Preset(siglip2(384, 16, SO400M), 1_140_000_000, SIGLIP2, 10**7),
    "siglip2-so400m-patch16-512":     Preset(siglip2(512, 16, SO400M), 1_140_000_000, SIGLIP2, 10**7),
    "siglip2-giant-opt-patch16-256":  Preset(siglip2(256, 16, GIANT_OPT, SO400M), 2_000_000_000, SIGLIP2, 10**9),
    "siglip2-giant-opt-patch16-384":  Preset(siglip2(384, 16, GIANT_OPT, SO400M), 2_000_000_000, SIGLIP2, 10**9),

    #                                  embed image patch width layers text
    "EVA02-B-16":     Preset(eva02(      512,  224,   16,  768,   12,  512), 149_690_000, EVA, 10**4),
    "EVA02-L-14":     Preset(eva02(      768,  224,   14, 1024,   24,  768), 427_760_000, EVA, 10**4),
    "EVA02-L-14-336": Preset(eva02(      768,  336,   14, 1024,   24,  768), 428_080_000, EVA, 10**4),

    # embed, image tower, text layers and width
    "chinese-clip-rn50": Preset(chinese(1024, RN50, 3), 77_000_000, CN, 10**6),
    "chinese-clip-vit-base-patch16": Preset(chinese(512, quick_vit(224, 16, BASE)), 188_000_000, CN, 10**6),
    "chinese-clip-vit-large-patch14": Preset(chinese(768, quick_vit(224, 14, LARGE)), 406_000_000, CN, 10**6),
    "chinese-clip-vit-large-patch14-336px": Preset(chinese(768, quick_vit(336, 14, LARGE)), 407_000_000, CN, 10**6),
    "chinese-clip-vit-huge-patch14": Preset(chinese(1024, quick_vit(224, 14, HUGE), 24, 1024), 958_000_000, CN, 10**6),

    # Text encoders of diffusion models. Their pipelines use: sd1 and sd2 `encodings`; sdxl `hidden_states[-2]` of both
    # and `embed` of the second; flux `embed`. sd2 is a 24-layer tower without its last layer, as on Hugging Face.
    "sd1":                  Preset(text_encoder(clip_text(768, pad_id=EOT)), 123_060_480, CLIP_L),
    "sd2":                  Preset(text_encoder(clip_text(1024, 23, "gelu")), 340_387_840, SD_2),
    "sdxl/text_encoder":    Preset(text_encoder(clip_text(768, pad_id=EOT)), 123_060_480, SD_XL),
    "sdxl/text_encoder_2":  Preset(text_encoder(clip_text(1280, 32, "gelu"), 1280), 694_659_840, SD_XL),
    "flux":                 Preset(text_encoder(clip_text(768, pad_id=EOT)), 123_060_480, CLIP_L),

    # torchvision's ResNet-50 without its classifier (23,508,032) and BERT-base with its pooler (109,482,240), as
    # published, and two projections to 512 with bias (1,049,088 + 393,728); the temperature is fixed.
    "resnet50_bert_base": Preset(RESNET50_BERT, 134_433_088, "torchvision resnet50, google-bert/bert-base-uncased"),
    # 65,370 of the tutorial's own layers and 82 of the two final norms, which the tutorial does not have
    "mini_fashion":       Preset(MINI_FASHION, 65_452, "a tutorial's CLIP from scratch on Fashion-MNIST"),

    #                               embed image patch width layers text layers head  stem
    "shapes":         Preset(small(    64,   64,   16,   96,     3,  96,     2,  32, (24, 48, 96)), None, OURS),
    "shapes-narrow":  Preset(small(    16,   64,   16,   96,     3,  96,     2,  32, (24, 48, 96)), None, OURS),
    "tiny":           Preset(small(    16,   32,    8,   32,     2,  32,     2,  16), None, OURS),
    "tiny_resnet_bert": Preset(TINY_RESNET_BERT, None, OURS),
}
# fmt: on


# OpenAI's models as OpenCLIP spells them.
SPELLINGS = {
    "ViT-B-32":         "ViT-B/32",
    "ViT-B-16":         "ViT-B/16",
    "ViT-L-14":         "ViT-L/14",
    "ViT-L-14-336":     "ViT-L/14@336px",
    "ViT-L-14-336px":   "ViT-L/14@336px",
    "ViT-L/14-336":     "ViT-L/14@336px",
    "ViT-L/14@336":     "ViT-L/14@336px",
}  # fmt: skip


def available_models() -> list[str]:
    """Names of the presets."""
    return list(PRESETS)


def is_preset(name: str) -> bool:
    """Whether there is a preset of this name, in either spelling."""
    return name in PRESETS or name in SPELLINGS


def preset(name: str) -> CLIPConfig:
    """The config of a named model.

    Args:
        name: key of a row of `PRESETS`, also in OpenCLIP's spelling ("ViT-B-32" for "ViT-B/32").

    Raises:
        UserError: If there is no preset of this name; the message suggests one of similar spelling.
    """
    if not is_preset(name):
        raise UserError(f"there is no model {name!r}{did_you_mean(name, PRESETS)}: choose one of {', '.join(PRESETS)}")
    return PRESETS[SPELLINGS.get(name, name)].config


def did_you_mean(name: str, names: Iterable[str] = (*PRESETS, *SPELLINGS)) -> str:
    """Suggestion for an error line, " (did you mean ViT-B/32?)", if one of `names` is spelled similarly; else empty."""
    by_case = {known.lower(): known for known in names}
    near = difflib.get_close_matches(name.lower(), by_case, n=1, cutoff=0.75)
    return f" (did you mean {by_case[near[0]]}?)" if near else ""
