"""The text encoders of Stable Diffusion, SD 3 and FLUX: in their single files, and alone (`clip_l.safetensors`).

The place in a single file says which encoder it is, and so what the weights do not: SD 1 and the first of SDXL are
OpenAI's ViT-L/14 (QuickGELU), SD 2 and the second of SDXL are OpenCLIP's (GELU). SD 1 and SD 3 have Hugging Face's
names, the others OpenCLIP's own.
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
    """Where a text encoder lies in a single file, and what it then is."""

    prefix: str  # what comes before the names of the weights, as a regular expression
    part: str  # the name of the directory in the layout of diffusers
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
WIDE = (512, 640)  # the text encoders of CLIP's smaller models, which no diffusion model has, of either activation
DEEP = 23  # layers: OpenCLIP's H and bigG have 24 and 32, OpenAI's L has 12


def place_of(prefix: str) -> Place | None:
    """The place in a single file that names with this prefix lie in, whatever wrappers come before."""
    return next((place for place in PLACES if re.search(rf"(^|\.){place.prefix}$", prefix)), None)


def encoder(table: Format, activation: str, part: str) -> Format:
    """A format whose config follows from the place in the file: the heads have 64 channels in all of these encoders."""

    def infer(checkpoint: Checkpoint) -> CLIPConfig:
        return _config(table, checkpoint, activation, zero_pad=table is openai.FORMAT or part == SECOND)

    return table._replace(name="stable_diffusion", infer=infer, ignore=f"{table.ignore}|{IGNORE}")


def is_encoder(checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint in Hugging Face's names is a text tower of CLIP alone."""
    return "text_model.embeddings.token_embedding.weight" in checkpoint and not any(
        name.startswith(("vision_model.", "text_model.head.")) for name in checkpoint
    )


def infer_alone(checkpoint: Checkpoint, where: str) -> CLIPConfig:
    """The config of a text encoder that came without one: `clip_l.safetensors`, `clip_g.safetensors` and the like.

    The name of the file says which it is, else the depth, as in ComfyUI: OpenAI's L has QuickGELU, OpenCLIP's H and
    bigG have GELU. A warning says what was taken.

    Raises:
        UserError: for a size that only other models have, whose activation is not in the weights.
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
