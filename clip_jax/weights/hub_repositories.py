"""The Hugging Face repositories of the presets' published weights: one row per preset.

Presets without a row: those whose weights are not on the hub in a supported layout (RN50 of Chinese-CLIP), and those
that name only an architecture ("shapes").

The rows of `OPEN_CLIP` equal `open_clip.pretrained.get_pretrained_cfg(...)["hf_hub"]` of open_clip 3.3.0. No test
compares them: open_clip imports torchvision, which fails beside the torch of requirements-parity.txt.
"""

from typing import NamedTuple

from clip_jax.presets import SPELLINGS


class Published(NamedTuple):
    """Weights on the hub.

    Attributes:
        repository: "owner/name".
        source: the document that names this repository as the origin of the weights.
        file: the weights file, where the repository holds several; "": all weights of the repository.
        has_config: whether the repository holds a config; otherwise the preset's config is used.
    """

    repository: str
    source: str
    file: str = ""
    has_config: bool = True


OPENAI = "huggingface.co/openai, the model cards of OpenAI's release"
OPEN_CLIP = "open_clip/pretrained.py (hf_hub)"
SIGLIP = "huggingface.co/google, the model cards of SigLIP and SigLIP 2"
CHINESE = "github.com/OFA-Sys/Chinese-CLIP, README"
EVA = "github.com/baaivision/EVA, EVA-CLIP/README; open_clip/pretrained.py"

# The file of the whole CLIP: timm's repositories also hold the image tower alone.
WHOLE = "open_clip_model.safetensors"
# fmt: off
PUBLISHED: dict[str, Published] = {
    "RN50":           Published("timm/resnet50_clip.openai",          OPEN_CLIP, WHOLE),
    "RN101":          Published("timm/resnet101_clip.openai",         OPEN_CLIP, WHOLE),
    "RN50x4":         Published("timm/resnet50x4_clip.openai",        OPEN_CLIP, WHOLE),
    "RN50x16":        Published("timm/resnet50x16_clip.openai",       OPEN_CLIP, WHOLE),
    "RN50x64":        Published("timm/resnet50x64_clip.openai",       OPEN_CLIP, WHOLE),
    "ViT-B/32":       Published("openai/clip-vit-base-patch32",       OPENAI),
    "ViT-B/16":       Published("openai/clip-vit-base-patch16",       OPENAI),
    "ViT-L/14":       Published("openai/clip-vit-large-patch14",      OPENAI),
    "ViT-L/14@336px": Published("openai/clip-vit-large-patch14-336",  OPENAI),

    "ViT-B-32:laion2b_s34b_b79k":       Published("laion/CLIP-ViT-B-32-laion2B-s34B-b79K",            OPEN_CLIP),
    "ViT-B-16:laion2b_s34b_b88k":       Published("laion/CLIP-ViT-B-16-laion2B-s34B-b88K",            OPEN_CLIP),
    "ViT-L-14:laion2b_s32b_b82k":       Published("laion/CLIP-ViT-L-14-laion2B-s32B-b82K",            OPEN_CLIP),
    "ViT-H-14:laion2b_s32b_b79k":       Published("laion/CLIP-ViT-H-14-laion2B-s32B-b79K",            OPEN_CLIP),
    "ViT-g-14:laion2b_s34b_b88k":       Published("laion/CLIP-ViT-g-14-laion2B-s34B-b88K",            OPEN_CLIP),
    "ViT-bigG-14:laion2b_s39b_b160k":   Published("laion/CLIP-ViT-bigG-14-laion2B-39B-b160k",         OPEN_CLIP),
    "ViT-B-32:datacomp_xl_s13b_b90k":   Published("laion/CLIP-ViT-B-32-DataComp.XL-s13B-b90K",        OPEN_CLIP),
    "ViT-B-32-256:datacomp_s34b_b86k":  Published("laion/CLIP-ViT-B-32-256x256-DataComp-s34B-b86K",   OPEN_CLIP),
    "ViT-B-16:datacomp_xl_s13b_b90k":   Published("laion/CLIP-ViT-B-16-DataComp.XL-s13B-b90K",        OPEN_CLIP),
    "ViT-L-14:datacomp_xl_s13b_b90k":   Published("laion/CLIP-ViT-L-14-DataComp.XL-s13B-b90K",        OPEN_CLIP),

    "siglip-base-patch16-224":          Published("google/siglip-base-patch16-224",         SIGLIP),
    "siglip-base-patch16-256":          Published("google/siglip-base-patch16-256",         SIGLIP),
    "siglip-base-patch16-384":          Published("google/siglip-base-patch16-384",         SIGLIP),
    "siglip-base-patch16-512":          Published("google/siglip-base-patch16-512",         SIGLIP),
    "siglip-large-patch16-256":         Published("google/siglip-large-patch16-256",        SIGLIP),
    "siglip-large-patch16-384":         Published("google/siglip-large-patch16-384",        SIGLIP),
    "siglip-so400m-patch14-224":        Published("google/siglip-so400m-patch14-224",       SIGLIP),
    "siglip-so400m-patch14-384":        Published("google/siglip-so400m-patch14-384",       SIGLIP),
    "siglip2-base-patch16-224":         Published("google/siglip2-base-patch16-224",        SIGLIP),
    "siglip2-base-patch16-256":         Published("google/siglip2-base-patch16-256",        SIGLIP),
    "siglip2-base-patch16-384":         Published("google/siglip2-base-patch16-384",        SIGLIP),
    "siglip2-base-patch16-512":         Published("google/siglip2-base-patch16-512",        SIGLIP),
    "siglip2-large-patch16-256":        Published("google/siglip2-large-patch16-256",       SIGLIP),
    "siglip2-large-patch16-384":        Published("google/siglip2-large-patch16-384",       SIGLIP),
    "siglip2-large-patch16-512":        Published("google/siglip2-large-patch16-512",       SIGLIP),
    "siglip2-so400m-patch14-224":       Published("google/siglip2-so400m-patch14-224",      SIGLIP),
    "siglip2-so400m-patch14-384":       Published("google/siglip2-so400m-patch14-384",      SIGLIP),
    "siglip2-so400m-patch16-256":       Published("google/siglip2-so400m-patch16-256",      SIGLIP),
    "siglip2-so400m-patch16-384":       Published("google/siglip2-so400m-patch16-384",      SIGLIP),
    "siglip2-so400m-patch16-512":       Published("google/siglip2-so400m-patch16-512",      SIGLIP),
    "siglip2-giant-opt-patch16-256":    Published("google/siglip2-giant-opt-patch16-256",   SIGLIP),
    "siglip2-giant-opt-patch16-384":    Published("google/siglip2-giant-opt-patch16-384",   SIGLIP),

    "EVA02-B-16":     Published("QuanSun/EVA-CLIP", EVA, "EVA02_CLIP_B_psz16_s8B.pt",     has_config=False),
    "EVA02-L-14":     Published("QuanSun/EVA-CLIP", EVA, "EVA02_CLIP_L_psz14_s4B.pt",     has_config=False),
    "EVA02-L-14-336": Published("QuanSun/EVA-CLIP", EVA, "EVA02_CLIP_L_336_psz14_s6B.pt", has_config=False),

    "chinese-clip-vit-base-patch16":        Published("OFA-Sys/chinese-clip-vit-base-patch16",          CHINESE),
    "chinese-clip-vit-large-patch14":       Published("OFA-Sys/chinese-clip-vit-large-patch14",         CHINESE),
    "chinese-clip-vit-large-patch14-336px": Published("OFA-Sys/chinese-clip-vit-large-patch14-336px",   CHINESE),
    "chinese-clip-vit-huge-patch14":        Published("OFA-Sys/chinese-clip-vit-huge-patch14",          CHINESE),
}
# fmt: on


def published_weights(name: str) -> Published | None:
    """The repository of a preset's weights, by either spelling of its name; None where there is none."""
    return PUBLISHED.get(SPELLINGS.get(name, name))
