"""The models this package knows by name: one row each."""

from typing import NamedTuple

from clip_jax.config import CLIPConfig, PreprocessConfig, TextConfig, ViTConfig
from clip_jax.errors import UserError

HALF = PreprocessConfig(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


class Preset(NamedTuple):
    config: CLIPConfig
    num_params: int | None  # as published
    source: str


def openai_vit(embed: int, image: int, patch: int, width: int, layers: int, text_width: int) -> CLIPConfig:
    """Radford et al. 2021, table 20: heads of 64 channels in both towers, 12 text layers."""
    return CLIPConfig(
        embed_dim=embed,
        vision=ViTConfig(image_size=image, patch_size=patch, width=width, layers=layers, heads=width // 64),
        text=TextConfig(vocab_size=49408, context_length=77, width=text_width, layers=12, heads=text_width // 64),
    )


def small(
    embed: int, image: int, patch: int, width: int, layers: int, text_width: int, text_layers: int, head: int
) -> CLIPConfig:
    """The same architecture, small, for pictures and captions of one's own."""
    return CLIPConfig(
        embed_dim=embed,
        vision=ViTConfig(image_size=image, patch_size=patch, width=width, layers=layers, heads=width // head),
        text=TextConfig(
            vocab_size=640, context_length=24, width=text_width, layers=text_layers, heads=text_width // head
        ),
        preprocess=HALF,
    )


OPENAI, OURS = "arXiv:2103.00020, github.com/openai/CLIP", "this project"

# fmt: off
PRESETS: dict[str, Preset] = {
    #                                    embed image patch width layers text
    "ViT-B/32":       Preset(openai_vit(   512,  224,   32,  768,   12,  512), 151_277_313, OPENAI),
    "ViT-B/16":       Preset(openai_vit(   512,  224,   16,  768,   12,  512), 149_620_737, OPENAI),
    "ViT-L/14":       Preset(openai_vit(   768,  224,   14, 1024,   24,  768), 427_616_513, OPENAI),
    "ViT-L/14@336px": Preset(openai_vit(   768,  336,   14, 1024,   24,  768), 427_944_193, OPENAI),
    #                               embed image patch width layers text layers head
    "shapes":         Preset(small(    64,   64,   16,   96,     3,  96,     2,  32), None, OURS),
    "tiny":           Preset(small(    16,   32,    8,   32,     2,  32,     2,  16), None, OURS),
}
# fmt: on


def available_models() -> list[str]:
    """Names of the presets."""
    return list(PRESETS)


def preset(name: str) -> CLIPConfig:
    """The configuration of a named model. Raises UserError for a name there is none of."""
    if name not in PRESETS:
        raise UserError(f"there is no model {name!r}: choose one of {', '.join(PRESETS)}")
    return PRESETS[name].config
