"""CLIP text encoders of Stable Diffusion, SDXL, SD 3 and FLUX: in single-file checkpoints, or alone (`clip_l`, …).

In a single-file checkpoint, the prefix of the names tells which encoder it is, and so its activation, which the weights
do not tell: SD 1 and the first encoder of SDXL are OpenAI's ViT-L/14 (QuickGELU); SD 2 and the second encoder of SDXL
are OpenCLIP's (GELU). SD 1 and SD 3 use transformers' names, the others OpenCLIP's.
"""

import re
import warnings
from pathlib import Path
from typing import NamedTuple

from clip_jax.config import CLIPConfig, TextConfig
from clip_jax.errors import UserError
from clip_jax.weights import huggingface, openai
from clip_jax.weights.rules import Checkpoint, Format


class Place(NamedTuple):
    """A place of a text encoder in a single-file checkpoint, and the encoder's properties."""

    prefix: str  # regular expression for the prefix of its array names
    part: str  # the name of its directory in the layout of diffusers
    activation: str


FIRST, SECOND = "text_encoder", "text_encoder_2"
PLACES = (
    Place(r"cond_stage_model\.transformer\.", FIRST, "quick_gelu"),
    Place(r"cond_stage_model\.model\.", FIRST, "gelu"),
    Place(r"conditioner\.embedders\.0\.transformer\.", FIRST, "quick_gelu"),
    Place(r"conditioner\.embedders\.0\.model\.", SECOND, "gelu"),  # SDXL's refiner has only this
    Place(r"conditioner\.embedders\.1\.model\.", SECOND, "gelu"),
    Place(r"text_encoders\.clip_l\.(transformer\.)?", FIRST, "quick_gelu"),  # SD 3, FLUX
    Place(r"text_encoders\.clip_g\.(transformer\.)?", SECOND, "gelu"),
)
IGNORE = r"logit_scale|logit_bias"
WIDE = (512, 640)  # widths of smaller CLIPs: no diffusion model uses them, and the activation is not determined
DEEP = 23  # layers, as in ComfyUI: OpenCLIP's H and bigG have 24 and 32 (at least 23), OpenAI's L has 12


def place_of(prefix: str) -> Place | None:
    """The text encoder that a prefix belongs to, whatever wrappers come before it; None for other prefixes."""
    return next((place for place in PLACES if re.search(rf"(^|\.){place.prefix}$", prefix)), None)


def encoder(table: Format, activation: str, part: str) -> Format:
    """The format of a text encoder in a single-file checkpoint: its config is inferred with heads of 64 channels.

    Args:
        table: the format of its names.
        activation: "quick_gelu" or "gelu", from its `Place`.
        part: "text_encoder" or "text_encoder_2", from its `Place`.
    """

    def infer(checkpoint: Checkpoint) -> CLIPConfig:
        return _config(table, checkpoint, activation, zero_pad=table is openai.FORMAT or part == SECOND)

    return table._replace(name="stable_diffusion", infer=infer, ignore=f"{table.ignore}|{IGNORE}")


def is_encoder(checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint in transformers' names is a text tower of CLIP without an image tower."""
    return "text_model.embeddings.token_embedding.weight" in checkpoint and not any(
        name.startswith(("vision_model.", "text_model.head.")) for name in checkpoint
    )


def infer_alone(checkpoint: Checkpoint, where: str) -> CLIPConfig:
    """Infers the config of a text encoder without a config file, such as `clip_l.safetensors`, `clip_g.safetensors`.

    The file name tells the activation, or else the depth, as in ComfyUI: OpenAI's L has QuickGELU, OpenCLIP's H and
    bigG have GELU. A warning tells the choice.

    Args:
        checkpoint: the weights in transformers' names.
        where: the path of the file.

    Raises:
        UserError: no text encoder of a diffusion model has this width, so the activation is not known.
    """
    found = openai.tower(huggingface.FORMAT.sizes(checkpoint), "text")
    named = re.search(r"clip[_-]?([lgh])(?![a-z])", Path(where).name.lower())
    if not named and found["width"] in WIDE:
        raise UserError(
            f"the heads and the activation of a text tower of width {found['width']} are not in the weights, and no "
            "diffusion model has it: put the checkpoint's config.json beside them, or give config="
        )
    gelu = named[1] != "l" if named else found["layers"] >= DEEP
    config = _config(huggingface.FORMAT, checkpoint, "gelu" if gelu else "quick_gelu", zero_pad=gelu)
    which = "OpenCLIP's H or bigG (GELU)" if gelu else "OpenAI's ViT-L/14 (QuickGELU)"
    warnings.warn(
        f"{where} came without a config: it is taken for the text encoder of {which}; give config= if it is another",
        stacklevel=2,
    )
    return config


def _config(table: Format, checkpoint: Checkpoint, activation: str, *, zero_pad: bool) -> CLIPConfig:
    found = table.sizes(checkpoint)
    text = openai.tower(found, "text")
    if not text or text["width"] % 64:
        raise UserError(
            f"the text encoder has width {text.get('width')}, which is none of Stable Diffusion's: give config="
        )
    pad_id = 0 if zero_pad else text["vocab_size"] - 1  # OpenAI's encoder is padded with the end of the text
    tower = TextConfig(heads=text["width"] // 64, activation=activation, pad_id=pad_id, **text)  # type: ignore[arg-type]
    return CLIPConfig(embed_dim=found.get("embed_dim"), vision=None, text=tower)
