"""Conversion between transformers' `config.json` (CLIP, SigLIP, Chinese-CLIP) and `CLIPConfig`.

Every field is either read, or known not to change what the network computes, or refused by name. A field that is absent
has transformers' default.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from clip_jax.config import BertConfig, CLIPConfig, PreprocessConfig, TextConfig, ViTConfig
from clip_jax.errors import UserError, names_its_file
from clip_jax.weights.chinese_clip import CONTEXT_LENGTH
from clip_jax.weights.chinese_clip import PREPROCESS as CHINESE_PREPROCESS
from clip_jax.weights.huggingface_images import preprocess_of, preprocess_to_json
from clip_jax.weights.settings import Settings, located

ACTIVATIONS = {
    "quick_gelu": "quick_gelu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
}
HALF = PreprocessConfig(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), resize="squash")

# Our config field: the field of config.json.
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
COMMON: dict[str, Any] = {
    "num_hidden_layers": 12,
    "intermediate_size": 3072,
    "hidden_size": 768,
    "num_attention_heads": 12,
}
CLIP_VISION_DEFAULTS = {
    **COMMON, "image_size": 224, "patch_size": 32, "num_channels": 3, "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}  # fmt: skip
CLIP_TEXT_DEFAULTS: dict[str, Any] = {
    **COMMON, "hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8, "vocab_size": 49408,
    "max_position_embeddings": 77, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
    "eos_token_id": 49407, "pad_token_id": 1,
}  # fmt: skip
SIGLIP_VISION_DEFAULTS = {
    **COMMON, "image_size": 224, "patch_size": 16, "num_channels": 3, "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
}  # fmt: skip
SIGLIP_TEXT_DEFAULTS: dict[str, Any] = {
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

# Fields that do not change what an encoder computes: provenance, format of the outputs, initialisation and
# regularisation in training, and text generation, whose fields transformers 4.1x to 4.4x put into every config, nested
# ones included.
HARMLESS = {
    # origin
    "_name_or_path", "name_or_path", "_commit_hash", "architectures", "transformers_version", "model_type",
    "torch_dtype", "dtype", "is_composition", "processor_class", "feature_extractor_type", "tokenizer_class",
    "task_specific_params", "finetuning_task", "problem_type", "id2label", "label2id", "num_labels",
    "_class_name", "_diffusers_version", "unsloth_version", "license",
    # how it is run, and its outputs
    "_attn_implementation", "_attn_implementation_internal", "_attn_implementation_autoset", "attn_implementation",
    "_flash_attn_2_enabled", "return_dict", "use_return_dict", "output_hidden_states", "output_attentions",
    "output_scores", "output_past",
    "return_dict_in_generate", "torchscript", "use_bfloat16", "use_cache", "chunk_size_feed_forward",
    "gradient_checkpointing", "tf_legacy_loss", "transformers.js_config",
    # training
    "initializer_factor", "initializer_range", "attention_dropout", "dropout", "hidden_dropout_prob",
    "attention_probs_dropout_prob", "classifier_dropout", "logit_scale_init_value",
    # text generation, and ids that only generation needs
    "max_length", "min_length", "do_sample", "early_stopping", "num_beams", "num_beam_groups", "diversity_penalty",
    "temperature", "top_k", "top_p", "typical_p", "repetition_penalty", "length_penalty", "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size", "bad_words_ids", "num_return_sequences", "forced_bos_token_id",
    "forced_eos_token_id", "remove_invalid_values", "exponential_decay_length_penalty", "suppress_tokens",
    "begin_suppress_tokens", "prefix", "bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id",
    "decoder_start_token_id", "tie_word_embeddings",
    # BERT's pooler, which no CLIP uses
    "directionality", "pooler_fc_size", "pooler_num_attention_heads", "pooler_num_fc_layers", "pooler_size_per_head",
    "pooler_type",
}  # fmt: skip
# Fields that are supported with this value only.
FIXED = {
    "pruned_heads": {}, "is_decoder": False, "is_encoder_decoder": False, "tie_encoder_decoder": False,
    "add_cross_attention": False, "cross_attention_hidden_size": None, "quantization_config": None, "auto_map": None,
    "position_embedding_type": "absolute",
}  # fmt: skip


@names_its_file
def config_from_json(
    data: Mapping[str, Any],
    where: str,
    *,
    projected: bool | None = None,
    pictures: tuple[Mapping[str, Any], str] | None = None,
) -> CLIPConfig:
    """Converts transformers' `config.json` to a `CLIPConfig`.

    Args:
        data: the content of the file.
        where: how an error names the file.
        projected: whether the weights of a tower alone have a projection, used where the field `architectures` is
            absent.
        pictures: content and name of the `preprocessor_config.json` beside it; None: the family's preprocessing.

    Raises:
        UserError: the model is of another kind, or a setting is not supported; the error names the field.
    """
    settings = Settings(data, where)
    kind = settings.get("model_type")
    if kind in ("siglip2", "siglip2_text_model", "siglip2_vision_model"):
        raise UserError(
            f"{where}: model_type {kind} takes pictures of any shape (NaFlex): take the fixed-size checkpoint"
        )
    if not isinstance(kind, str) or kind not in MODEL_TYPES:
        raise UserError(f"{where}: model_type is {kind!r}, which is no CLIP: known are {', '.join(MODEL_TYPES)}")
    family, towers = MODEL_TYPES[kind]
    both = towers == "both"
    vision: Settings | None = None
    text: Settings | None = None
    if towers != "text":
        vision = _tower(settings, "vision", family) if both else settings
    if towers != "vision":
        text = _tower(settings, "text", family) if both else settings
    try:
        image = None if vision is None else _image_tower(vision, family)
        words = None if text is None else TEXT_TOWERS[family](text)
        config = CLIPConfig(
            embed_dim=_embed_dim(settings, family, image, text, projected),
            vision=image,
            text=words,
            preprocess=_preprocess(image, family, pictures, where),
        )
        if family == "siglip":
            config = dataclasses.replace(config, logit_bias_init=-10.0 if both else None, logit_scale_init=math.log(10))
    except UserError as error:
        raise located(where, error) from error
    for part in {id(part): part for part in (settings, vision, text) if part is not None}.values():
        part.fixed(FIXED)
        part.done(HARMLESS | {"projection_dim"})  # read above where the family uses it
    return config


def _tower(settings: Settings, name: str, family: str) -> Settings:
    """The config of one tower.

    Older files also have `text_config_dict` (`vision_config_dict`). As in transformers, its fields, completed by
    defaults, override those of `text_config`.
    """
    where = f"{settings.where}: {name}_config"
    inner = settings.get(f"{name}_config")
    first = Settings({} if inner is None else inner, where).data
    whole = settings.get(f"{name}_config_dict")
    over = Settings({} if whole is None else whole, f"{where}_dict").data
    if whole is not None:
        first = {**first, **DEFAULTS[family][name], **over}
    tower = Settings(first, where)
    kind = tower.get("model_type")
    if kind is not None and kind != f"{family}_{name}_model":
        raise tower.error("model_type", f"in a {family} it is {family}_{name}_model")
    return tower


def _image_tower(settings: Settings, family: str) -> ViTConfig:
    if family != "siglip":
        return ViTConfig(**_fields(settings, VISION_NAMES, CLIP_VISION_DEFAULTS))
    if not settings.flag("vision_use_head", True):
        raise settings.error("vision_use_head", "SigLIP without its head has no embedding: take one with it")
    fields = _fields(settings, VISION_NAMES, SIGLIP_VISION_DEFAULTS)
    return ViTConfig(pool="map", ln_pre=False, patch_bias=True, **fields)


def _clip_text(settings: Settings) -> TextConfig:
    fields = _fields(settings, TEXT_NAMES, CLIP_TEXT_DEFAULTS)
    eos = settings.integer("eos_token_id", CLIP_TEXT_DEFAULTS["eos_token_id"])
    last, pad = fields["vocab_size"] - 1, settings.get("pad_token_id", CLIP_TEXT_DEFAULTS["pad_token_id"])
    # Configs of 2021 have eos_token_id 2, with which no text ends: like transformers, take the highest id instead.
    # Their pad_token_id 1 is wrong, too: the tokenizers of that time pad with the end of text.
    pad = last if pad in (None, 1) else settings.integer("pad_token_id")
    return TextConfig(eos_id=None if eos in (2, last) else eos, pad_id=pad, **fields)


def _siglip_text(settings: Settings) -> TextConfig:
    return siglip_text(_fields(settings, TEXT_NAMES, SIGLIP_TEXT_DEFAULTS))


def siglip_text(fields: dict[str, Any]) -> TextConfig:
    """The text tower of a SigLIP with these config fields; a vocabulary of 256,000 ids (Gemma) means SigLIP 2."""
    second = fields["vocab_size"] >= 256_000
    return TextConfig(
        attention="full",
        pool="last",
        projection_bias=True,
        tokenizer="siglip2" if second else "siglip",
        pad_id=0 if second else 1,
        **fields,
    )


def _bert(settings: Settings) -> BertConfig:
    fields = _fields(settings, BERT_NAMES, BERT_DEFAULTS)
    return BertConfig(context_length=min(CONTEXT_LENGTH, fields["max_positions"]), **fields)


TEXT_TOWERS = {"clip": _clip_text, "siglip": _siglip_text, "chinese_clip": _bert}
DEFAULTS = {
    "clip": {"vision": CLIP_VISION_DEFAULTS, "text": CLIP_TEXT_DEFAULTS},
    "siglip": {"vision": SIGLIP_VISION_DEFAULTS, "text": SIGLIP_TEXT_DEFAULTS},
    "chinese_clip": {"vision": CLIP_VISION_DEFAULTS, "text": BERT_DEFAULTS},
}


def _fields(settings: Settings, names: dict[str, str], defaults: dict[str, Any]) -> dict[str, Any]:
    """Our config fields of a tower, read from `settings`; each must have the type of its default."""
    found: dict[str, Any] = {}
    for ours, theirs in names.items():
        if ours == "activation":
            act = settings.get(theirs, defaults[theirs])
            if not isinstance(act, str) or act not in ACTIVATIONS:
                raise settings.error(theirs, f"known are {', '.join(ACTIVATIONS)}: it is none of ours")
            found[ours] = ACTIVATIONS[act]
        elif ours in ("image_size", "patch_size"):
            found[ours] = settings.side(theirs, defaults[theirs])
        else:
            read = settings.number if isinstance(defaults[theirs], float) else settings.integer
            found[ours] = read(theirs, defaults[theirs])
    return found


def _embed_dim(
    settings: Settings, family: str, image: ViTConfig | None, text: Settings | None, projected: bool | None
) -> int | None:
    if family == "siglip":
        if text is None:
            assert image is not None
            return image.width
        width = text.integer("hidden_size", SIGLIP_TEXT_DEFAULTS["hidden_size"])
        return width if text.get("projection_size") is None else text.integer("projection_size")
    if image is None or text is None:  # a tower alone
        names = settings.get("architectures")
        if names:
            projected = any("WithProjection" in str(name) for name in names)
        if not projected:
            return None
    return settings.integer("projection_dim", 512)


def _preprocess(
    image: ViTConfig | None, family: str, pictures: tuple[Mapping[str, Any], str] | None, where: str
) -> PreprocessConfig:
    usual = {"siglip": HALF, "chinese_clip": CHINESE_PREPROCESS}.get(family, PreprocessConfig())
    if image is None:
        return usual
    if pictures is not None:
        return preprocess_of(pictures[0], image, pictures[1])
    if image.channels != len(usual.mean):
        raise UserError(
            f"{where}: num_channels is {image.channels}, and there is no preprocessor_config.json that says what to "
            "normalise them by: put it beside the config"
        )
    return usual


def config_to_json(config: CLIPConfig) -> dict[str, Any]:
    """Converts a `CLIPConfig` to the content of transformers' `config.json`.

    Raises:
        UserError: transformers has no such model.
    """
    family = family_of(config)
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


def pictures_to_json(config: CLIPConfig) -> dict[str, Any]:
    """The content of transformers' `preprocessor_config.json` for the preprocessing of a config.

    Raises:
        UserError: transformers has no such model.
    """
    family = family_of(config)
    kind = {"clip": "CLIPImageProcessor", "siglip": "SiglipImageProcessor"}.get(family, "ChineseCLIPImageProcessor")
    return preprocess_to_json(config.preprocess, config.vision.image_size, kind)


def family_of(config: CLIPConfig) -> str:
    """The transformers family of a config: "clip", "siglip" or "chinese_clip".

    Raises:
        UserError: transformers has no such model.
    """
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
