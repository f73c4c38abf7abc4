"""Checkpoints of Hugging Face's transformers: CLIP, SigLIP and Chinese-CLIP, whole or one tower alone.

transformers 5 leaves the prefix `text_model.` or `vision_model.` out of a tower without projection; `formats` puts it
back before this table is applied.
"""

import math
from collections.abc import Mapping
from typing import Any

from clip_jax.config import BertConfig, CLIPConfig, PreprocessConfig
from clip_jax.errors import UserError
from clip_jax.weights.chinese_clip import BERT, bert_sizes
from clip_jax.weights.huggingface_config import config_from_json, config_to_json
from clip_jax.weights.huggingface_images import preprocess_of
from clip_jax.weights.rules import (
    Checkpoint,
    Format,
    Op,
    Rule,
    conv,
    count,
    join,
    join_linear,
    linear,
    norm,
    renamed,
    same,
    scalar,
    transpose,
)

__all__ = ["FORMAT", "config_from_json", "config_to_json", "preprocess_from_json"]

OURS, THEIRS = "transformer/resblocks_{i}", "encoder.layers.{i}"
QKV = tuple(f"{THEIRS}.self_attn.{n}_proj" for n in "qkv")
BLOCKS = (
    *norm(f"{OURS}/ln_1", f"{THEIRS}.layer_norm1"),
    Rule(f"{OURS}/attn/in_proj/kernel", tuple(f"{name}.weight" for name in QKV), join_linear),
    Rule(f"{OURS}/attn/in_proj/bias", tuple(f"{name}.bias" for name in QKV), join),
    *linear(f"{OURS}/attn/out_proj", f"{THEIRS}.self_attn.out_proj"),
    *norm(f"{OURS}/ln_2", f"{THEIRS}.layer_norm2"),
    *linear(f"{OURS}/mlp/c_fc", f"{THEIRS}.mlp.fc1"),
    *linear(f"{OURS}/mlp/c_proj", f"{THEIRS}.mlp.fc2"),
)
VISION = (
    Rule("conv1/kernel", "embeddings.patch_embedding.weight", conv),
    Rule("conv1/bias", "embeddings.patch_embedding.bias", same),
    Rule("class_embedding", "embeddings.class_embedding", same),
    Rule("positional_embedding", "embeddings.position_embedding.weight", same),
    *norm("ln_pre", "pre_layrnorm"),  # misspelt in transformers, too
    *BLOCKS,
    *norm("ln_post", "post_layernorm"),
    Rule("head/probe", "head.probe", same),
    Rule("head/attention/in_proj/kernel", "head.attention.in_proj_weight", transpose),
    Rule("head/attention/in_proj/bias", "head.attention.in_proj_bias", same),
    *linear("head/attention/out_proj", "head.attention.out_proj"),
    *norm("head/layernorm", "head.layernorm"),
    *linear("head/mlp/c_fc", "head.mlp.fc1"),
    *linear("head/mlp/c_proj", "head.mlp.fc2"),
)
TEXT = (
    Rule("token_embedding/embedding", "embeddings.token_embedding.weight", same),
    Rule("positional_embedding", "embeddings.position_embedding.weight", same),
    *BLOCKS,
    *norm("ln_final", "final_layer_norm"),
)
CLIP_PROJECTION = (Rule("text/text_projection", "text_projection.weight", transpose),)
SIGLIP_PROJECTION = (
    Rule("text/text_projection", "text_model.head.weight", transpose),
    Rule("text/text_projection_bias", "text_model.head.bias", same),
)
BERT_PROJECTION = (Rule("text/text_projection/kernel", "text_projection.weight", transpose),)


def rules(config: CLIPConfig) -> tuple[Rule, ...]:
    """The rules of a `VisionTransformer` and a text tower of CLIP, SigLIP or BERT."""
    siglip = config.logit_bias_init is not None
    if isinstance(config.text, BertConfig):
        text = (*renamed(BERT, ours="text/", theirs="text_model."), *BERT_PROJECTION)
    else:
        projection = SIGLIP_PROJECTION if config.text and config.text.projection_bias else CLIP_PROJECTION
        text = (*renamed(TEXT, ours="text/", theirs="text_model."), *projection)
    scale: Op = scalar if siglip else same
    return (
        *renamed(VISION, ours="visual/", theirs="vision_model."),
        Rule("visual/proj", "visual_projection.weight", transpose),
        *text,
        Rule("logit_scale", "logit_scale", scale),
        Rule("logit_bias", "logit_bias", scale),
    )


def sizes(checkpoint: Checkpoint) -> dict[str, Any]:
    """The config fields that the shapes determine, {"vision.width": 768, …}.

    Raises:
        UserError: the checkpoint is a SigLIP 2 for pictures of any shape (NaFlex).
    """
    found: dict[str, Any] = {}
    if patches := checkpoint.get("vision_model.embeddings.patch_embedding.weight"):
        if len(patches.shape) != 4:
            raise UserError(
                "this SigLIP 2 takes pictures of any shape (NaFlex), which is not supported: take a fixed size"
            )
        width, channels, patch, _ = patches.shape
        found |= {"vision.width": width, "vision.channels": channels, "vision.patch_size": patch}
        found["vision.layers"] = count(checkpoint, r"vision_model\.encoder\.layers\.(\d+)\.")
    else:
        found["vision"] = None
    if hidden := checkpoint.get("vision_model.encoder.layers.0.mlp.fc1.bias"):
        found["vision.mlp_width"] = hidden.shape[0]
    if positions := checkpoint.get("vision_model.embeddings.position_embedding.weight"):
        classed = "vision_model.embeddings.class_embedding" in checkpoint
        found["vision.grid"] = math.isqrt(positions.shape[0] - classed)
    if "text_model.embeddings.word_embeddings.weight" in checkpoint:
        found |= bert_sizes(checkpoint, "text_model.")
    elif tokens := checkpoint.get("text_model.embeddings.token_embedding.weight"):
        found["text.vocab_size"], found["text.width"] = tokens.shape
        found["text.layers"] = count(checkpoint, r"text_model\.encoder\.layers\.(\d+)\.")
        if positions := checkpoint.get("text_model.embeddings.position_embedding.weight"):
            found["text.context_length"] = positions.shape[0]
        if hidden := checkpoint.get("text_model.encoder.layers.0.mlp.fc1.bias"):
            found["text.mlp_width"] = hidden.shape[0]
    else:
        found["text"] = None
    for name in ("text_projection.weight", "visual_projection.weight", "text_model.head.weight"):
        if name in checkpoint:
            found["embed_dim"] = checkpoint[name].shape[0]
    return found


def infer(checkpoint: Checkpoint) -> CLIPConfig:
    """Always raises: shapes do not determine the heads and the activation, which `config.json` holds.

    Raises:
        UserError: always.
    """
    raise UserError(
        "the heads and the activation are not in the weights: put the checkpoint's config.json beside them, or give "
        "config= (a preset or a CLIPConfig)"
    )


FORMAT = Format("huggingface", rules, sizes, infer, r".*position_ids")


def preprocess_from_json(data: Mapping[str, Any], config: CLIPConfig, where: str) -> PreprocessConfig:
    """The preprocessing in a `preprocessor_config.json`; for a config without an image tower, `config.preprocess`.

    Args:
        data: the content of the file.
        config: the config of the model.
        where: how an error names the file.

    Raises:
        UserError: the size is not that of the image tower, or a setting is not supported; the error names the field.
    """
    return config.preprocess if config.vision is None else preprocess_of(data, config.vision, where)
