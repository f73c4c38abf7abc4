"""Converts parameters between this project's layout and that of transformers' Flax models; works under `jit`."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from clip_jax.config import CLIPConfig, TextConfig, ViTConfig
from clip_jax.towers.layers import stack_layers, unstack_layers

Tree = Mapping[str, Any]


def is_theirs(params: Tree) -> bool:
    """Whether parameters are in transformers' layout."""
    return "text_model" in params or "vision_model" in params


def has_layout(config: CLIPConfig) -> bool:
    """Whether transformers' FlaxCLIP has this architecture: OpenAI's transformers, none of SigLIP's changes."""
    text, vision = config.text, config.vision
    plain_text = text is None or (
        isinstance(text, TextConfig) and (text.positions, text.pool, text.projection_bias) == ("learned", "eos", False)
    )
    plain_vision = vision is None or (
        isinstance(vision, ViTConfig)
        and (vision.positions, vision.pool, vision.patch_bias, vision.ln_pre, bool(vision.stem))
        == ("learned", "cls", False, True, False)
    )
    return plain_text and plain_vision


def to_transformers(params: Tree, config: CLIPConfig) -> dict[str, Any]:
    """Converts parameters from this project's layout to transformers'.

    Args:
        params: of one tower or both; `logit_scale` is kept.
        config: of the model, for `scan_layers`.
    """
    converted: dict[str, Any] = {}
    if "text" in params:
        text = params["text"]
        converted["text_model"] = {
            "embeddings": {
                "token_embedding": text["token_embedding"],
                "position_embedding": {"embedding": text["positional_embedding"]},
            },
            "encoder": _encoder(text["transformer"], config.text.scan_layers),
            "final_layer_norm": text["ln_final"],
        }
        if "text_projection" in text:
            converted["text_projection"] = {"kernel": text["text_projection"]}
    if "visual" in params:
        visual = params["visual"]
        converted["vision_model"] = {
            "embeddings": {
                "class_embedding": visual["class_embedding"],
                "patch_embedding": visual["conv1"],
                "position_embedding": {"embedding": visual["positional_embedding"]},
            },
            "pre_layrnorm": visual["ln_pre"],  # transformers' spelling
            "encoder": _encoder(visual["transformer"], config.vision.scan_layers),
            "post_layernorm": visual["ln_post"],
        }
        if "proj" in visual:
            converted["visual_projection"] = {"kernel": visual["proj"]}
    return converted | ({"logit_scale": params["logit_scale"]} if "logit_scale" in params else {})


def from_transformers(params: Tree, config: CLIPConfig) -> dict[str, Any]:
    """Converts parameters from transformers' layout to this project's, the inverse of `to_transformers`.

    Args:
        params: of one tower or both; `logit_scale` is kept.
        config: of the model, for `scan_layers`.
    """
    converted: dict[str, Any] = {}
    if "text_model" in params:
        text = params["text_model"]
        converted["text"] = {
            "token_embedding": text["embeddings"]["token_embedding"],
            "positional_embedding": text["embeddings"]["position_embedding"]["embedding"],
            "transformer": _transformer(text["encoder"], config.text.scan_layers),
            "ln_final": text["final_layer_norm"],
        }
        if "text_projection" in params:
            converted["text"]["text_projection"] = params["text_projection"]["kernel"]
    if "vision_model" in params:
        vision = params["vision_model"]
        converted["visual"] = {
            "class_embedding": vision["embeddings"]["class_embedding"],
            "conv1": vision["embeddings"]["patch_embedding"],
            "positional_embedding": vision["embeddings"]["position_embedding"]["embedding"],
            "ln_pre": vision["pre_layrnorm"],
            "transformer": _transformer(vision["encoder"], config.vision.scan_layers),
            "ln_post": vision["post_layernorm"],
        }
        if "visual_projection" in params:
            converted["visual"]["proj"] = params["visual_projection"]["kernel"]
    return converted | ({"logit_scale": params["logit_scale"]} if "logit_scale" in params else {})


def _encoder(transformer: Tree, scanned: bool) -> dict[str, Any]:
    blocks = unstack_layers(dict(transformer)) if scanned else transformer
    return {"layers": {str(i): _layer(blocks[f"resblocks_{i}"]) for i in range(len(blocks))}}


def _transformer(encoder: Tree, scanned: bool) -> dict[str, Any]:
    layers = encoder["layers"]
    blocks = {f"resblocks_{i}": _block(layers[str(i)]) for i in range(len(layers))}
    return stack_layers(blocks) if scanned else blocks


def _layer(block: Tree) -> dict[str, Any]:
    fused = block["attn"]["in_proj"]
    kernels, biases = jnp.split(fused["kernel"], 3, axis=1), jnp.split(fused["bias"], 3)
    projections = {
        f"{name}_proj": {"kernel": kernel, "bias": bias}
        for name, kernel, bias in zip("qkv", kernels, biases, strict=True)
    }
    return {
        "layer_norm1": block["ln_1"],
        "self_attn": {**projections, "out_proj": block["attn"]["out_proj"]},
        "layer_norm2": block["ln_2"],
        "mlp": {"fc1": block["mlp"]["c_fc"], "fc2": block["mlp"]["c_proj"]},
    }


def _block(layer: Tree) -> dict[str, Any]:
    projections = [layer["self_attn"][f"{name}_proj"] for name in "qkv"]
    fused = {
        "kernel": jnp.concatenate([p["kernel"] for p in projections], axis=1),
        "bias": jnp.concatenate([p["bias"] for p in projections]),
    }
    return {
        "ln_1": layer["layer_norm1"],
        "attn": {"in_proj": fused, "out_proj": layer["self_attn"]["out_proj"]},
        "ln_2": layer["layer_norm2"],
        "mlp": {"c_fc": layer["mlp"]["fc1"], "c_proj": layer["mlp"]["fc2"]},
    }
