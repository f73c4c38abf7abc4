"""SigLIP checkpoints of big_vision (`.npz`), with one array per layer or all layers stacked along axis 0 (scan)."""

import functools
import math
import re
from typing import Any

import numpy as np

from clip_jax.config import CLIPConfig, ViTConfig
from clip_jax.weights import openai
from clip_jax.weights.huggingface_config import HALF, siglip_text
from clip_jax.weights.rules import Checkpoint, Entry, Format, Op, Rule, count, drop_axes, renamed, same, scalar


def rules(config: CLIPConfig) -> tuple[Rule, ...]:
    """The rules of a SigLIP. big_vision's attention arrays have an axis for the heads, so they depend on `heads`."""
    vision, text = config.vision, config.text
    image: tuple[Rule, ...] = ()
    words: tuple[Rule, ...] = ()
    if vision is not None:
        image = (
            Rule("conv1/kernel", "embedding/kernel", same),
            Rule("conv1/bias", "embedding/bias", same),
            Rule("positional_embedding", "pos_embedding", drop_axes(1)),
            *_block("transformer/resblocks_{i}", "Transformer/encoderblock_{i}", vision.heads),
            *_norm("ln_post", "Transformer/encoder_norm"),
            Rule("head/probe", "MAPHead_0/probe", same),
            *_attention("head/attention", "MAPHead_0/MultiHeadDotProductAttention_0", vision.heads),
            *_norm("head/layernorm", "MAPHead_0/LayerNorm_0"),
            *_mlp("head/mlp", "MAPHead_0/MlpBlock_0"),
        )
    if text is not None:
        words = (
            Rule("token_embedding/embedding", "Embed_0/embedding", same),
            Rule("positional_embedding", "pos_embedding", drop_axes(1)),
            *_block("transformer/resblocks_{i}", "Encoder_0/encoderblock_{i}", text.heads),
            *_norm("ln_final", "Encoder_0/encoder_norm"),
            Rule("text_projection", "head/kernel", same),
            Rule("text_projection_bias", "head/bias", same),
        )
    return (
        *renamed(image, ours="visual/", theirs="img/"),
        *renamed(words, ours="text/", theirs="txt/"),
        Rule("logit_scale", "t", scalar),
        Rule("logit_bias", "b", scalar),
    )


def _norm(ours: str, theirs: str) -> tuple[Rule, ...]:
    return Rule(f"{ours}/scale", f"{theirs}/scale", same), Rule(f"{ours}/bias", f"{theirs}/bias", same)


def _dense(ours: str, theirs: str) -> tuple[Rule, ...]:
    return Rule(f"{ours}/kernel", f"{theirs}/kernel", same), Rule(f"{ours}/bias", f"{theirs}/bias", same)


def _mlp(ours: str, theirs: str) -> tuple[Rule, ...]:
    return *_dense(f"{ours}/c_fc", f"{theirs}/Dense_0"), *_dense(f"{ours}/c_proj", f"{theirs}/Dense_1")


def _block(ours: str, theirs: str, heads: int) -> tuple[Rule, ...]:
    return (
        *_norm(f"{ours}/ln_1", f"{theirs}/LayerNorm_0"),
        *_attention(f"{ours}/attn", f"{theirs}/MultiHeadDotProductAttention_0", heads),
        *_norm(f"{ours}/ln_2", f"{theirs}/LayerNorm_1"),
        *_mlp(f"{ours}/mlp", f"{theirs}/MlpBlock_0"),
    )


def _attention(ours: str, theirs: str, heads: int) -> tuple[Rule, ...]:
    def by_head(x: np.ndarray) -> np.ndarray:  # [..., C] -> [..., N, K]
        return x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads)

    def joined(x: np.ndarray) -> np.ndarray:  # [..., N, K] -> [..., C]
        return x.reshape(*x.shape[:-2], -1)

    qkv = Op(
        lambda *parts: np.concatenate([joined(part) for part in parts], axis=-1),
        lambda x: tuple(by_head(part) for part in np.split(x, 3, axis=-1)),
    )
    out = Op(lambda x: x.reshape(-1, x.shape[-1]), lambda x: (x.reshape(heads, x.shape[0] // heads, x.shape[1]),))
    names = [f"{theirs}/{name}" for name in ("query", "key", "value")]
    return (
        Rule(f"{ours}/in_proj/kernel", tuple(f"{name}/kernel" for name in names), qkv),
        Rule(f"{ours}/in_proj/bias", tuple(f"{name}/bias" for name in names), qkv),
        Rule(f"{ours}/out_proj/kernel", f"{theirs}/out/kernel", out),
        Rule(f"{ours}/out_proj/bias", f"{theirs}/out/bias", same),
    )


def unrolled(checkpoint: Checkpoint) -> dict[str, Entry]:
    """The checkpoint with one entry per layer (`encoderblock` -> `encoderblock_0`, …) and names without `params/`."""
    entries: dict[str, Entry] = {}
    for name, entry in checkpoint.items():
        name = name.removeprefix("params/")
        if not re.search(r"(^|/)encoderblock/", name):
            entries[name] = entry
            continue
        read = functools.lru_cache(maxsize=1)(entry.read)  # one read of the stacked array serves all layers
        for i in range(entry.shape[0] if entry.shape else 0):
            layer = re.sub(r"(^|/)encoderblock/", rf"\1encoderblock_{i}/", name)
            entries[layer] = Entry(entry.shape[1:], functools.partial(_layer, read, i))
    return entries


def _layer(read: Any, i: int) -> np.ndarray:
    return read()[i]


def sizes(checkpoint: Checkpoint) -> dict[str, Any]:
    """The config fields that the shapes determine, {"vision.width": 768, …}: all sizes and the number of heads."""
    found: dict[str, Any] = {}
    if patches := checkpoint.get("img/embedding/kernel"):
        patch, _, channels, width = patches.shape
        found |= {"vision.width": width, "vision.channels": channels, "vision.patch_size": patch}
        found["vision.layers"] = count(checkpoint, r"img/Transformer/encoderblock_(\d+)/")
        if positions := checkpoint.get("img/pos_embedding"):
            found["vision.grid"] = math.isqrt(positions.shape[1])
    else:
        found["vision"] = None
    if tokens := checkpoint.get("txt/Embed_0/embedding"):
        found["text.vocab_size"], found["text.width"] = tokens.shape
        found["text.layers"] = count(checkpoint, r"txt/Encoder_0/encoderblock_(\d+)/")
        if positions := checkpoint.get("txt/pos_embedding"):
            found["text.context_length"] = positions.shape[1]
    else:
        found["text"] = None
    for tower, block in (("vision", "img/Transformer/encoderblock_0"), ("text", "txt/Encoder_0/encoderblock_0")):
        if query := checkpoint.get(f"{block}/MultiHeadDotProductAttention_0/query/bias"):
            found[f"{tower}.heads"] = query.shape[0]
        if hidden := checkpoint.get(f"{block}/MlpBlock_0/Dense_0/bias"):
            found[f"{tower}.mlp_width"] = hidden.shape[0]
    if head := checkpoint.get("txt/head/bias"):
        found["embed_dim"] = head.shape[0]
    return found


HABITS: dict[str, Any] = {"activation": "gelu_tanh", "ln_eps": 1e-6}


def infer(checkpoint: Checkpoint) -> CLIPConfig:
    """The config of a SigLIP: sizes from the shapes; tanh GELU, eps 1e-6 and preprocessing as in all SigLIPs."""
    found = sizes(checkpoint)
    vision, text = openai.tower(found, "vision"), openai.tower(found, "text")
    both = bool(vision and text)
    if vision:
        vision["image_size"] = vision.pop("grid") * vision["patch_size"]
    return CLIPConfig(
        embed_dim=found.get("embed_dim", vision.get("width")),
        vision=ViTConfig(pool="map", ln_pre=False, patch_bias=True, **HABITS, **vision) if vision else None,
        text=siglip_text({**HABITS, **text}) if text else None,
        preprocess=HALF,
        logit_scale_init=math.log(10),
        logit_bias_init=-10.0 if both else None,
    )


KNOWN = {f"{tower}.{name}": value for tower in ("vision", "text") for name, value in HABITS.items()}
FORMAT = Format("big_vision", rules, sizes, infer, known=lambda checkpoint: KNOWN)
