"""Checkpoints in OpenAI's names, which OpenCLIP uses too. Our names are the same; torch transposes the kernels.

`formats` removes the prefix `text.` of the text tower (OpenCLIP's `custom_text`, EVA) before this table is applied.
"""

import math
from typing import Any

from clip_jax.config import CLIPConfig, PreprocessConfig, ResNetConfig, TextConfig, ViTConfig
from clip_jax.errors import UserError
from clip_jax.weights.rules import (
    Checkpoint,
    Format,
    Rule,
    batch_norm,
    conv,
    count,
    linear,
    norm,
    renamed,
    same,
    transpose,
)

SCALE = (Rule("logit_scale", "logit_scale", same), Rule("logit_bias", "logit_bias", same))

BLOCKS = (
    *norm("transformer/resblocks_{i}/ln_1", "transformer.resblocks.{i}.ln_1"),
    Rule("transformer/resblocks_{i}/attn/in_proj/kernel", "transformer.resblocks.{i}.attn.in_proj_weight", transpose),
    Rule("transformer/resblocks_{i}/attn/in_proj/bias", "transformer.resblocks.{i}.attn.in_proj_bias", same),
    *linear("transformer/resblocks_{i}/attn/out_proj", "transformer.resblocks.{i}.attn.out_proj"),
    *norm("transformer/resblocks_{i}/ln_2", "transformer.resblocks.{i}.ln_2"),
    *linear("transformer/resblocks_{i}/mlp/c_fc", "transformer.resblocks.{i}.mlp.c_fc"),
    *linear("transformer/resblocks_{i}/mlp/c_proj", "transformer.resblocks.{i}.mlp.c_proj"),
)

VIT = (
    Rule("conv1/kernel", "conv1.weight", conv),
    Rule("class_embedding", "class_embedding", same),
    Rule("positional_embedding", "positional_embedding", same),
    *norm("ln_pre", "ln_pre"),
    *BLOCKS,
    *norm("ln_post", "ln_post"),
    Rule("proj", "proj", same),
)

RESNET = (
    Rule("conv{i}/kernel", "conv{i}.weight", conv),
    *batch_norm("bn{i}", "bn{i}"),
    Rule("layer{i}/{j}/conv{k}/kernel", "layer{i}.{j}.conv{k}.weight", conv),
    *batch_norm("layer{i}/{j}/bn{k}", "layer{i}.{j}.bn{k}"),
    Rule("layer{i}/{j}/downsample_0/kernel", "layer{i}.{j}.downsample.0.weight", conv),
    *batch_norm("layer{i}/{j}/downsample_1", "layer{i}.{j}.downsample.1"),
    Rule("attnpool/positional_embedding", "attnpool.positional_embedding", same),
    *(rule for name in ("q", "k", "v", "c") for rule in linear(f"attnpool/{name}_proj", f"attnpool.{name}_proj")),
)

TEXT = (
    Rule("token_embedding/embedding", "token_embedding.weight", same),
    Rule("positional_embedding", "positional_embedding", same),
    *BLOCKS,
    *norm("ln_final", "ln_final"),
    Rule("text_projection", "text_projection", same),
)

# Widths of OpenCLIP's ViT-H, g, bigG and e: they have 16 heads at any width, and the activation is not determined.
NOT_OPENAIS = (1280, 1408, 1664, 1792)

# Names of buffers in the checkpoints, which are not weights: sizes, the causal mask, counters.
BUFFERS = r"(visual\.)?(input_resolution|context_length|vocab_size)|attn_mask|.*\.num_batches_tracked"


def rules(config: CLIPConfig) -> tuple[Rule, ...]:
    """The rules of a ViT or a ModifiedResNet and a `TextTransformer`."""
    visual = RESNET if isinstance(config.vision, ResNetConfig) else VIT
    return (*renamed(visual, ours="visual/", theirs="visual."), *renamed(TEXT, ours="text/"), *SCALE)


def text_sizes(checkpoint: Checkpoint) -> dict[str, Any]:
    """The sizes of the text tower from its shapes, {"text.width": 512, …}; {"text": None} without one."""
    if "token_embedding.weight" not in checkpoint:
        return {"text": None}
    vocab_size, width = checkpoint["token_embedding.weight"].shape
    sizes = {
        "text.vocab_size": vocab_size,
        "text.width": width,
        "text.layers": count(checkpoint, r"transformer\.resblocks\.(\d+)\."),
    }
    if "positional_embedding" in checkpoint:
        sizes["text.context_length"] = checkpoint["positional_embedding"].shape[0]
    if "transformer.resblocks.0.mlp.c_fc.bias" in checkpoint:
        sizes["text.mlp_width"] = checkpoint["transformer.resblocks.0.mlp.c_fc.bias"].shape[0]
    if "text_projection" in checkpoint:
        sizes["embed_dim"] = checkpoint["text_projection"].shape[-1]
    return sizes


def vision_sizes(checkpoint: Checkpoint) -> dict[str, Any]:
    """The sizes of the image tower from its shapes, {"vision.width": 768, …}; {"vision": None} without one."""
    if "visual.layer1.0.conv1.weight" in checkpoint:
        return _resnet_sizes(checkpoint)
    if "visual.conv1.weight" not in checkpoint or len(checkpoint["visual.conv1.weight"].shape) != 4:
        return {"vision": None}
    width, channels, patch, _ = checkpoint["visual.conv1.weight"].shape
    sizes = {
        "vision.width": width,
        "vision.channels": channels,
        "vision.patch_size": patch,
        "vision.layers": count(checkpoint, r"visual\.transformer\.resblocks\.(\d+)\."),
    }
    if "visual.positional_embedding" in checkpoint:
        sizes["vision.image_size"] = patch * math.isqrt(checkpoint["visual.positional_embedding"].shape[0] - 1)
    if "visual.transformer.resblocks.0.mlp.c_fc.bias" in checkpoint:
        sizes["vision.mlp_width"] = checkpoint["visual.transformer.resblocks.0.mlp.c_fc.bias"].shape[0]
    if "visual.proj" in checkpoint:
        sizes["embed_dim"] = checkpoint["visual.proj"].shape[-1]
    return sizes


def _resnet_sizes(checkpoint: Checkpoint) -> dict[str, Any]:
    sizes = {
        "vision.width": checkpoint["visual.layer1.0.conv1.weight"].shape[0],
        "vision.layers": tuple(count(checkpoint, rf"visual\.layer{i}\.(\d+)\.") for i in (1, 2, 3, 4)),
    }
    if "visual.conv1.weight" in checkpoint:
        sizes["vision.channels"] = checkpoint["visual.conv1.weight"].shape[1]
    if "visual.attnpool.positional_embedding" in checkpoint:
        sizes["vision.image_size"] = 32 * math.isqrt(checkpoint["visual.attnpool.positional_embedding"].shape[0] - 1)
    if "visual.attnpool.c_proj.bias" in checkpoint:
        sizes["embed_dim"] = checkpoint["visual.attnpool.c_proj.bias"].shape[0]
    return sizes


def sizes(checkpoint: Checkpoint) -> dict[str, Any]:
    """The config fields that the shapes determine, {"vision.width": 768, …}."""
    return {**text_sizes(checkpoint), **vision_sizes(checkpoint)}


def tower(found: dict[str, Any], name: str) -> dict[str, Any]:
    """{"text.width": 512} -> {"width": 512}, for one tower."""
    return {key.removeprefix(f"{name}."): value for key, value in found.items() if key.startswith(f"{name}.")}


def infer(checkpoint: Checkpoint) -> CLIPConfig:
    """The config of an OpenAI model: sizes from the shapes, and heads of 64 channels.

    Raises:
        UserError: a tower has a width that no OpenAI model has, so its heads and activation are not known.
    """
    found = sizes(checkpoint)
    vision, text = tower(found, "vision"), tower(found, "text")
    for name, parts in (("vision", vision), ("text", text)):
        others = isinstance(parts.get("layers"), int) and (parts["width"] % 64 or parts["width"] in NOT_OPENAIS)
        if others:
            raise UserError(
                f"the heads and the activation of a {name} tower of width {parts['width']} are not in the weights, and "
                "it is none of OpenAI's: give config= (a preset, or the checkpoint's open_clip_config.json)"
            )
    return CLIPConfig(
        embed_dim=found.get("embed_dim"),
        vision=None if not vision else vision_config(vision),
        text=None if not text else TextConfig(heads=text["width"] // 64, **text),
    )


def vision_config(found: dict[str, Any]) -> ViTConfig | ResNetConfig:
    """The config of an image tower with these fields; `heads` defaults to OpenAI's heads of 64 channels."""
    if isinstance(found["layers"], tuple):
        return ResNetConfig(**{"heads": max(1, found["width"] * 32 // 64), **found})
    return ViTConfig(**{"heads": found["width"] // 64, **found})


def known(checkpoint: Checkpoint) -> dict[str, Any]:
    """The fixed settings of OpenAI's own archives; {} for checkpoints of other projects in the same names.

    Only OpenAI's archives have the buffer `input_resolution`.
    """
    if "input_resolution" not in checkpoint:
        return {}
    preprocess = PreprocessConfig()  # OpenAI's
    return {
        "vision.activation": "quick_gelu",
        "text.activation": "quick_gelu",
        "vision.ln_eps": 1e-5,
        "text.ln_eps": 1e-5,
        "preprocess.mean": list(preprocess.mean),
        "preprocess.std": list(preprocess.std),
    }


FORMAT = Format("openai", rules, sizes, infer, BUFFERS, known)
