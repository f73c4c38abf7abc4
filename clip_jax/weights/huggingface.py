"""CLIP, SigLIP and Chinese-CLIP in the names and configs of Hugging Face's transformers, towers alone included.

transformers 5 writes towers without projection without `text_model.` or `vision_model.` before their names; the reader
puts it back before the table is read.
"""

import math
from collections.abc import Mapping
from typing import Any

from clip_jax.config import BertConfig, CLIPConfig, PreprocessConfig, TextConfig, ViTConfig
from clip_jax.errors import UserError, names_its_file
from clip_jax.weights.chinese_clip import BERT, CONTEXT_LENGTH, bert_sizes
from clip_jax.weights.chinese_clip import PREPROCESS as CHINESE_PREPROCESS
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
    *norm("ln_pre", "pre_layrnorm"),  # so misspelt there
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

ACTIVATIONS = {
    "quick_gelu": "quick_gelu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
}
HALF = PreprocessConfig(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), resize="squash")
RESAMPLE = {2: "bilinear", 3: "bicubic"}

# The fields of a tower's config.json are ours by another name; what is not said there has transformers' default.
NAMES = {
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "mlp_width": "intermediate_size",
    "activation": "hidden_act",
    "ln_eps": "layer_norm_eps",
}
VISION_NAMES = {**NAMES, "image_size": "image_size", "patch_size": "patch_size", "channels": "num_channels"}
TEXT_NAMES = {**NAMES, "vocab_size": "vocab_size", "context_length": "max_position_embeddings"}
BERT_NAMES = {
    **NAMES,
    "vocab_size": "vocab_size",
    "max_positions": "max_position_embeddings",
    "type_vocab_size": "type_vocab_size",
    "pad_id": "pad_token_id",
}
COMMON = {"num_hidden_layers": 12, "intermediate_size": 3072, "hidden_size": 768, "num_attention_heads": 12}
CLIP_VISION_DEFAULTS = {
    **COMMON, "image_size": 224, "patch_size": 32, "num_channels": 3, "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}  # fmt: skip
CLIP_TEXT_DEFAULTS = {
    **COMMON, "hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8, "vocab_size": 49408,
    "max_position_embeddings": 77, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
}  # fmt: skip
SIGLIP_VISION_DEFAULTS = {
    **COMMON, "image_size": 224, "patch_size": 16, "num_channels": 3, "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
}  # fmt: skip
SIGLIP_TEXT_DEFAULTS = {
    **COMMON, "vocab_size": 32000, "max_position_embeddings": 64, "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
}  # fmt: skip
BERT_DEFAULTS = {
    **COMMON, "vocab_size": 30522, "max_position_embeddings": 512, "type_vocab_size": 2, "hidden_act": "gelu",
    "layer_norm_eps": 1e-12, "pad_token_id": 0,
}  # fmt: skip

# model_type: (the family, which towers)
MODEL_TYPES = {
    "clip": ("clip", "both"),
    "clip_text_model": ("clip", "text"),
    "clip_vision_model": ("clip", "vision"),
    "siglip": ("siglip", "both"),
    "siglip_text_model": ("siglip", "text"),
    "siglip_vision_model": ("siglip", "vision"),
    "chinese_clip": ("chinese_clip", "both"),
    "chinese_clip_vision_model": ("chinese_clip", "vision"),
}


def rules(config: CLIPConfig) -> tuple[Rule, ...]:
    """The table of a `VisionTransformer` beside a text tower of CLIP, SigLIP or BERT."""
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
    """What the shapes say."""
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
    """Raises UserError: the heads and the activation are in `config.json` only."""
    raise UserError(
        "the heads and the activation are not in the weights: put the checkpoint's config.json beside them, or give "
        "config= (a preset or a CLIPConfig)"
    )


FORMAT = Format("huggingface", rules, sizes, infer, r".*position_ids")


@names_its_file
def config_from_json(data: Mapping[str, Any], where: str) -> CLIPConfig:
    """transformers' `config.json` -> our config.

    Raises: UserError for a model of another kind, or one whose settings we have not.
    """
    kind = data.get("model_type")
    if kind in ("siglip2", "siglip2_text_model", "siglip2_vision_model"):
        raise UserError(
            f"{where}: model_type {kind} takes pictures of any shape (NaFlex): take the fixed-size checkpoint"
        )
    if kind not in MODEL_TYPES:
        raise UserError(f"{where}: model_type is {kind!r}, which is no CLIP: known are {', '.join(MODEL_TYPES)}")
    family, towers = MODEL_TYPES[str(kind)]
    vision = text = None
    if towers != "text":
        vision = _tower(data, "vision_config") if towers == "both" else data
    if towers != "vision":
        text = _tower(data, "text_config") if towers == "both" else data
    alone = (vision or text or {}) if towers != "both" else {}
    if family == "siglip":
        return _siglip(vision, text, towers == "both", where)
    projected = towers == "both" or any("WithProjection" in str(name) for name in data.get("architectures") or ())
    embed_dim = data.get("projection_dim", alone.get("projection_dim", 512)) if projected else None
    return CLIPConfig(
        embed_dim=embed_dim,
        vision=None if vision is None else ViTConfig(**_fields(vision, VISION_NAMES, CLIP_VISION_DEFAULTS, where)),
        text=None if text is None else (_bert(text, where) if family == "chinese_clip" else _clip_text(text, where)),
        preprocess=CHINESE_PREPROCESS if family == "chinese_clip" else PreprocessConfig(),
    )


def _tower(data: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {**(data.get(name) or {}), **(data.get(f"{name}_dict") or {})}  # older files say it twice; this one counts


def _fields(data: Mapping[str, Any], names: dict[str, str], defaults: dict[str, Any], where: str) -> dict[str, Any]:
    fields = {ours: data.get(theirs, defaults[theirs]) for ours, theirs in names.items()}
    if fields["activation"] not in ACTIVATIONS:
        raise UserError(
            f"{where}: hidden_act is {fields['activation']!r}, known are {', '.join(ACTIVATIONS)}: it is none of ours"
        )
    fields["activation"] = ACTIVATIONS[fields["activation"]]
    return fields


def _clip_text(data: Mapping[str, Any], where: str) -> TextConfig:
    fields = _fields(data, TEXT_NAMES, CLIP_TEXT_DEFAULTS, where)
    eos = data.get("eos_token_id", 49407)
    last, pad = fields["vocab_size"] - 1, data.get("pad_token_id", 1)
    # Configs of 2021 say eos 2, which no text ends with; transformers then takes the highest id, and so do we. The pad
    # they say, 1, is not true either: the tokenizers of that time pad with the end of the text.
    return TextConfig(eos_id=None if eos in (2, last) else eos, pad_id=last if pad in (None, 1) else pad, **fields)


def _bert(data: Mapping[str, Any], where: str) -> BertConfig:
    fields = _fields(data, BERT_NAMES, BERT_DEFAULTS, where)
    return BertConfig(context_length=min(CONTEXT_LENGTH, fields["max_positions"]), **fields)


def _siglip(vision: Any, text: Any, both: bool, where: str) -> CLIPConfig:
    tower, bert = None, None
    if vision is not None:
        if vision.get("vision_use_head") is False:
            raise UserError(
                f"{where}: vision_use_head is False, SigLIP without its head has no embedding: take one with it"
            )
        fields = _fields(vision, VISION_NAMES, SIGLIP_VISION_DEFAULTS, where)
        tower = ViTConfig(pool="map", ln_pre=False, patch_bias=True, **fields)
    if text is not None:
        fields = _fields(text, TEXT_NAMES, SIGLIP_TEXT_DEFAULTS, where)
        bert = siglip_text(fields)
    size = text.get("projection_size", fields["width"]) if text is not None else fields["width"]
    return CLIPConfig(
        embed_dim=size, vision=tower, text=bert, preprocess=HALF, logit_bias_init=-10.0 if both else None,
        logit_scale_init=math.log(10),
    )  # fmt: skip


def siglip_text(fields: dict[str, Any]) -> TextConfig:
    """SigLIP's text tower; 256,000 ids are the Gemma vocabulary of SigLIP 2, which pads with 0."""
    second = fields["vocab_size"] >= 256_000
    return TextConfig(
        attention="full",
        pool="last",
        projection_bias=True,
        tokenizer="siglip2" if second else "siglip",
        pad_id=0 if second else 1,
        **fields,
    )


@names_its_file
def preprocess_from_json(data: Mapping[str, Any], config: CLIPConfig, where: str) -> PreprocessConfig:
    """transformers' `preprocessor_config.json` -> ours, checked against the size of the image tower.

    Raises: UserError for another size, or a recipe we have not.
    """
    data = data.get("image_processor", data)
    if config.vision is None:
        return config.preprocess
    resample = data.get("resample", 3)
    if resample not in RESAMPLE:
        raise UserError(
            f"{where}: resample is {resample!r}, supported are 2 (bilinear) and 3 (bicubic): set one of them"
        )
    size = data.get("size", config.vision.image_size)
    crop = data.get("crop_size") if data.get("do_center_crop", "crop_size" in data) else None
    squash = isinstance(size, Mapping) and "height" in size and not crop
    target = crop or size
    side = target if isinstance(target, int) else target.get("height", target.get("shortest_edge"))
    if side != config.vision.image_size:
        raise UserError(
            f"{where}: the pictures become {side} pixels wide, image_size of the model is {config.vision.image_size}: "
            "take the file of this checkpoint"
        )
    normalised = data.get("do_normalize", True)
    default = config.preprocess
    try:
        return PreprocessConfig(
            mean=tuple(data.get("image_mean", default.mean)) if normalised else (0.0,) * config.vision.channels,
            std=tuple(data.get("image_std", default.std)) if normalised else (1.0,) * config.vision.channels,
            resize="squash" if squash else "shortest",
            interpolation=RESAMPLE[resample],  # type: ignore[arg-type]
        )
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: {error}") from error


def config_to_json(config: CLIPConfig) -> dict[str, Any]:
    """Our config as transformers' `config.json`. Raises UserError when transformers has no such model."""
    family = _family(config)
    towers: dict[str, dict[str, Any]] = {}
    if config.vision is not None:
        towers["vision"] = {theirs: getattr(config.vision, ours) for ours, theirs in VISION_NAMES.items()}
    if config.text is not None:
        names = BERT_NAMES if family == "chinese_clip" else TEXT_NAMES
        towers["text"] = {theirs: getattr(config.text, ours) for ours, theirs in names.items()}
        if family == "clip":
            eos = config.text.eos_id
            last = config.text.vocab_size - 1
            towers["text"] |= {"eos_token_id": last if eos is None else eos, "bos_token_id": last - 1}
        if family == "siglip":
            towers["text"] |= {"projection_size": config.embed_dim, "pad_token_id": config.text.pad_id}
            towers["text"] |= {"bos_token_id": None, "eos_token_id": 1}
        if family == "clip":
            towers["text"]["pad_token_id"] = config.text.pad_id
    back = {"quick_gelu": "quick_gelu", "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh"}
    for name, tower in towers.items():
        tower["hidden_act"] = back[tower["hidden_act"]]
        tower["intermediate_size"] = tower["intermediate_size"] or 4 * tower["hidden_size"]
        tower["model_type"] = f"{family}_{name}_model"
        if family != "siglip":
            tower["projection_dim"] = config.embed_dim or 512
    if config.two_towers:
        data: dict[str, Any] = {
            "model_type": family,
            "architectures": [{"clip": "CLIPModel", "siglip": "SiglipModel"}.get(family, "ChineseCLIPModel")],
        }
        if family != "siglip":
            data |= {"projection_dim": config.embed_dim, "logit_scale_init_value": config.logit_scale_init}
        return {**data, **{f"{name}_config": tower for name, tower in towers.items()}}
    ((name, tower),) = towers.items()
    prefix = {"clip": "CLIP", "siglip": "Siglip", "chinese_clip": "ChineseCLIP"}[family]
    suffix = "WithProjection" if family == "clip" and config.embed_dim is not None else ""
    return {"architectures": [f"{prefix}{name.capitalize()}Model{suffix}"], **tower}


def preprocess_to_json(config: CLIPConfig) -> dict[str, Any]:
    """Our preprocessing as transformers' `preprocessor_config.json`."""
    preprocess, size = config.preprocess, config.vision.image_size
    squash = preprocess.resize == "squash"
    family = _family(config)
    kind = {"clip": "CLIPImageProcessor", "siglip": "SiglipImageProcessor"}.get(family, "ChineseCLIPImageProcessor")
    return {
        "image_processor_type": kind,
        "do_resize": True,
        "size": {"height": size, "width": size} if squash else {"shortest_edge": size},
        "do_center_crop": not squash,
        **({} if squash else {"crop_size": {"height": size, "width": size}}),
        "resample": {name: number for number, name in RESAMPLE.items()}[preprocess.interpolation],
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocess.mean),
        "image_std": list(preprocess.std),
        "do_convert_rgb": True,
    }


def _family(config: CLIPConfig) -> str:
    vision, text = config.vision, config.text
    clip_vision = isinstance(vision, ViTConfig) and (vision.pool, vision.ln_pre, vision.patch_bias) == (
        "cls",
        True,
        False,
    )
    siglip_vision = isinstance(vision, ViTConfig) and (vision.pool, vision.ln_pre, vision.patch_bias) == (
        "map",
        False,
        True,
    )
    learned = all(getattr(tower, "positions", "learned") != "sinusoidal" for tower in (vision, text))
    kind = None
    if isinstance(text, BertConfig):
        if (
            text.pool == "cls"
            and text.positions == "bert"
            and not text.projection_bias
            and (vision is None or clip_vision)
        ):
            kind = "chinese_clip" if vision is not None else None
    elif isinstance(text, TextConfig):
        clip_text = (text.attention, text.pool, text.projection_bias) == ("causal", "eos", False)
        siglip_text = (text.attention, text.pool, text.projection_bias) == ("full", "last", True)
        if clip_text and (vision is None or clip_vision):
            kind = "clip"
        elif siglip_text and (vision is None or siglip_vision):
            kind = "siglip"
    elif vision is not None and text is None:
        kind = "clip" if clip_vision else "siglip" if siglip_vision else None
    if kind is None or not learned or not config.logit_scale_learned:
        towers = " and ".join(type(tower).__name__ for tower in (vision, text) if tower is not None)
        raise UserError(f"transformers has no model of these towers ({towers} as configured): export to another layout")
    return kind
