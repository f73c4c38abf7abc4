"""The text encoders inside Stable Diffusion's single files: their names with something before them.

The place says which encoder it is, and so what the weights do not: SD 1 and the first of SDXL are OpenAI's ViT-L/14
(QuickGELU), SD 2 and the second of SDXL are OpenCLIP's (GELU). SD 1 writes Hugging Face's names, OpenCLIP its own.
"""

import dataclasses
from typing import NamedTuple

from clip_jax.config import CLIPConfig, TextConfig
from clip_jax.errors import UserError
from clip_jax.weights import huggingface, openai
from clip_jax.weights.rules import Checkpoint, Entry, Format


class Place(NamedTuple):
    prefix: str
    part: str  # the name of the directory in the layout of diffusers
    format: Format
    activation: str


PLACES = (
    Place("cond_stage_model.transformer.", "text_encoder", huggingface.FORMAT, "quick_gelu"),
    Place("cond_stage_model.model.", "text_encoder", openai.FORMAT, "gelu"),
    Place("conditioner.embedders.0.transformer.", "text_encoder", huggingface.FORMAT, "quick_gelu"),
    Place("conditioner.embedders.0.model.", "text_encoder_2", openai.FORMAT, "gelu"),  # SDXL's refiner has only this
    Place("conditioner.embedders.1.model.", "text_encoder_2", openai.FORMAT, "gelu"),
)
IGNORE = r"logit_scale|logit_bias"


def find(checkpoint: Checkpoint, part: str | None, where: str) -> tuple[Format, dict[str, Entry]] | None:
    """The format and the weights of the text encoder in a single file; None when it is not such a file.

    Raises: UserError when there are two and `part` does not choose.
    """
    present = [place for place in PLACES if any(name.startswith(place.prefix) for name in checkpoint)]
    if not present:
        return None
    chosen = [place for place in present if part in (None, place.part)]
    if len(chosen) != 1:
        parts = " or ".join(f'part="{place.part}"' for place in present)
        raise UserError(f"{where} holds {len(present)} text encoder(s), part is {part!r}: choose {parts}")
    (place,) = chosen
    inner = {n.removeprefix(place.prefix): entry for n, entry in checkpoint.items() if n.startswith(place.prefix)}
    table = place.format

    def infer(checkpoint: Checkpoint) -> CLIPConfig:
        found = table.sizes(checkpoint)
        text = openai.tower(found, "text")
        if not text or text["width"] % 64:
            raise UserError(
                f"the text encoder has width {text.get('width')}, which is none of Stable Diffusion's: give config="
            )
        tower = TextConfig(heads=text["width"] // 64, activation=place.activation, **text)  # type: ignore[arg-type]
        pad_id = 0 if place.format is openai.FORMAT else tower.vocab_size - 1  # OpenAI's encoder is padded with the end
        return CLIPConfig(embed_dim=found.get("embed_dim"), vision=None, text=dataclasses.replace(tower, pad_id=pad_id))

    ignore = f"{table.ignore}|{IGNORE}"
    return table._replace(name="stable_diffusion", infer=infer, ignore=ignore), inner
