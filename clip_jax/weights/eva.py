"""EVA-02-CLIP checkpoints of BAAI: their own names for the image tower, OpenAI's for the text tower."""

import math
from typing import Any

from clip_jax.config import CLIPConfig, EVA02Config, TextConfig
from clip_jax.errors import UserError
from clip_jax.weights import openai
from clip_jax.weights.rules import Checkpoint, Format, Rule, conv, count, linear, norm, renamed, same, transpose

VISUAL = (
    Rule("cls_token", "cls_token", same),
    Rule("pos_embed", "pos_embed", same),
    Rule("patch_embed/proj/kernel", "patch_embed.proj.weight", conv),
    Rule("patch_embed/proj/bias", "patch_embed.proj.bias", same),
    *norm("blocks_{i}/norm1", "blocks.{i}.norm1"),
    *(Rule(f"blocks_{{i}}/attn/{n}_proj/kernel", f"blocks.{{i}}.attn.{n}_proj.weight", transpose) for n in "qkv"),
    *(Rule(f"blocks_{{i}}/attn/{n}_bias", f"blocks.{{i}}.attn.{n}_bias", same) for n in "qv"),
    *norm("blocks_{i}/attn/inner_attn_ln", "blocks.{i}.attn.inner_attn_ln"),
    *linear("blocks_{i}/attn/proj", "blocks.{i}.attn.proj"),
    *norm("blocks_{i}/norm2", "blocks.{i}.norm2"),
    *(rule for n in (1, 2, 3) for rule in linear(f"blocks_{{i}}/mlp/w{n}", f"blocks.{{i}}.mlp.w{n}")),
    *norm("blocks_{i}/mlp/ffn_ln", "blocks.{i}.mlp.ffn_ln"),
    *norm("norm", "norm"),
    *linear("head", "head"),
)

TEXT_HEADS = {512: 8, 768: 12, 1024: 16, 1280: 20}  # width of the text tower: number of heads


def rules(config: CLIPConfig) -> tuple[Rule, ...]:
    """The rules of an `EVAVisionTransformer` and OpenAI's text tower, whose prefix `text.` `place_format` removes."""
    text = renamed(openai.TEXT, ours="text/")
    return (*renamed(VISUAL, ours="visual/", theirs="visual."), *text, *openai.SCALE)


def sizes(checkpoint: Checkpoint) -> dict[str, Any]:
    """The config fields that the shapes determine; the RoPE buffer gives the width of a head."""
    found = openai.text_sizes(checkpoint)
    if "visual.patch_embed.proj.weight" in checkpoint:
        width, channels, patch, _ = checkpoint["visual.patch_embed.proj.weight"].shape
        found |= {"vision.width": width, "vision.channels": channels, "vision.patch_size": patch}
    found["vision.layers"] = count(checkpoint, r"visual\.blocks\.(\d+)\.")
    if "visual.pos_embed" in checkpoint and "vision.patch_size" in found:
        found["vision.image_size"] = found["vision.patch_size"] * math.isqrt(
            checkpoint["visual.pos_embed"].shape[1] - 1
        )
    if "visual.blocks.0.mlp.w1.bias" in checkpoint:
        found["vision.mlp_width"] = checkpoint["visual.blocks.0.mlp.w1.bias"].shape[0]
    if "visual.head.bias" in checkpoint:
        found["embed_dim"] = checkpoint["visual.head.bias"].shape[0]
    if "visual.rope.freqs_cos" in checkpoint and "vision.width" in found:
        found["vision.heads"] = found["vision.width"] // checkpoint["visual.rope.freqs_cos"].shape[-1]
    return found


def infer(checkpoint: Checkpoint) -> CLIPConfig:
    """The config of an EVA02-CLIP of the published sizes.

    Raises:
        UserError: the number of heads is not known: there is no RoPE buffer, or the text tower has another width.
    """
    found = sizes(checkpoint)
    vision, text = openai.tower(found, "vision"), openai.tower(found, "text")
    if "heads" not in vision or (text and text["width"] not in TEXT_HEADS):
        width = text.get("width")
        raise UserError(
            f"the heads of an EVA-CLIP with a text tower of width {width} are not in the weights: give config= (a "
            "preset, or the JSON with vision_cfg and text_cfg that belongs to the checkpoint)"
        )
    return CLIPConfig(
        embed_dim=found["embed_dim"],
        vision=EVA02Config(**vision),
        text=TextConfig(activation="gelu", heads=TEXT_HEADS[text["width"]], **text) if text else None,
    )


KNOWN = {"vision.ln_eps": 1e-6, "text.activation": "gelu", "text.ln_eps": 1e-5}
FORMAT = Format("eva", rules, sizes, infer, rf"{openai.BUFFERS}|.*rope\.freqs_(cos|sin)", lambda checkpoint: KNOWN)
