"""Conversion between OpenCLIP's `open_clip_config.json` and `CLIPConfig`; also BAAI's and OpenAI's JSON configs.

The weights themselves have OpenAI's names; the config adds activation, heads, norms and preprocessing. A setting that
is not known is refused, as it may change what the network computes.
"""

from collections.abc import Mapping
from typing import Any

from clip_jax.config import CLIPConfig, EVA02Config, PreprocessConfig, ResNetConfig, TextConfig, ViTConfig
from clip_jax.errors import UserError, names_its_file
from clip_jax.weights.settings import Settings, located

EVA_FIXED = {"rope": True, "naiveswiglu": True, "subln": True, "intp_freq": True, "qkv_bias": True, "postnorm": False}
# Fields that are supported with this value only.
VISION_FIXED = {
    "global_average_pool": False, "attentional_pool": False, "no_ln_pre": False, "ls_init_value": None,
    "input_patchnorm": False, "pos_embed_type": "learnable", "pool_type": "tok", "final_ln_after_pool": False,
    "output_tokens": False, "timm_model_name": None, "act_kwargs": None, "norm_kwargs": None, "block_type": None,
    "qk_norm": False, "scaled_cosine_attn": False, "postnorm": False, "qkv_bias": True,
}  # fmt: skip
TEXT_FIXED = {
    "hf_model_name": None, "embed_cls": False, "no_causal_mask": False, "pool_type": "argmax",
    "final_ln_after_pool": False, "proj_bias": False, "proj_type": "linear", "output_tokens": False,
    "act_kwargs": None, "norm_kwargs": None, "ls_init_value": None, "mlp_ratio": 4.0, "block_type": None,
    "qk_norm": False, "scaled_cosine_attn": False, "eos_id": None, "correct_cls_mask": False, "text_mask": "first",
}  # fmt: skip
# OpenCLIP's own tokenizer, in lower case, is supported: another tokenizer gives other ids for the same text.
TOKENIZER_FIXED = {"hf_tokenizer_name": "", "tokenizer_mode": None}
TOKENIZER_KWARGS_FIXED = {
    "clean": "lower", "strip_sep_token": False, "reduction_mask": "", "additional_special_tokens": [], "language": None,
}  # fmt: skip
TRAINING = {
    "patch_dropout", "drop_path_rate", "xattn", "fusedLN", "dropout", "timm_model_pretrained", "hf_model_pretrained",
}  # fmt: skip


def matches(data: Mapping[str, Any]) -> bool:
    """Whether a JSON object is a config of OpenCLIP, of BAAI's EVA-CLIP, or the arguments of OpenAI's `CLIP`."""
    return "model_cfg" in data or {"vision_cfg", "text_cfg"} <= data.keys() or "transformer_width" in data


@names_its_file
def config_from_json(data: Mapping[str, Any], where: str) -> CLIPConfig:
    """Converts `open_clip_config.json`, or a config of BAAI or OpenAI (see `matches`), to a `CLIPConfig`.

    Args:
        data: the content of the file.
        where: how an error names the file.

    Raises:
        UserError: a setting is not supported, is missing or has the wrong type; the error names the file and the field.
    """
    try:
        if "transformer_width" in data:
            return _openai(Settings(data, where))
        outer = Settings(data, where)
        model = outer.inner("model_cfg") if "model_cfg" in outer else outer
        vision, text = model.inner("vision_cfg"), model.inner("text_cfg")
        activation = "quick_gelu" if model.flag("quick_gelu", False) else "gelu"
        tower = _eva(vision) if "eva_model_name" in vision else _vision(vision, activation)
        bias = None if model.get("init_logit_bias") is None else float(model.number("init_logit_bias"))
        config = CLIPConfig(
            embed_dim=model.integer("embed_dim"),
            vision=tower,
            text=_text(text, activation),
            preprocess=_preprocess(outer.inner("preprocess_cfg", {}), tower.image_size, where),
            logit_bias_init=bias,
        )
        model.flag("custom_text", False)
        model.get("init_logit_scale")  # the initial value in training: not used
        model.done()
        outer.done({"model_cfg"})
        return config
    except UserError as error:
        raise located(where, error) from error


def _vision(data: Settings, activation: str) -> ViTConfig | ResNetConfig:
    data.fixed(VISION_FIXED)
    layers = data.get("layers", 12)
    width = data.integer("width", 64 if isinstance(layers, list) else 768)
    head = _at_least_one(data, "head_width", 64)
    size = data.side("image_size", 224)
    if isinstance(layers, list):
        data.get("patch_size")  # a ResNet does not use it: counts as read
        data.done(TRAINING | {"mlp_ratio"})
        return ResNetConfig(image_size=size, layers=tuple(layers), width=width, heads=width * 32 // head)  # type: ignore[arg-type]
    tower = ViTConfig(
        image_size=size,
        patch_size=data.side("patch_size", 16),
        width=width,
        layers=data.integer("layers", 12),
        heads=width // head,
        mlp_width=int(width * data.number("mlp_ratio", 4.0)),
        activation=activation,  # type: ignore[arg-type]
    )
    data.done(TRAINING)
    return tower


def _eva(data: Settings) -> EVA02Config:
    for name in ("rope", "naiveswiglu", "subln", "intp_freq"):
        if not data.get(name):
            raise UserError(f"{data.where}.{name} is {data.get(name)!r}, supported is True: only EVA-02 B and L are")
    if data.get("postnorm"):
        raise UserError(f"{data.where}.postnorm is True, supported is False: only EVA-02 B and L are")
    data.fixed({**VISION_FIXED, **EVA_FIXED})
    data.get("eva_model_name")
    width = data.integer("width")
    tower = EVA02Config(
        image_size=data.side("image_size", 224),
        patch_size=data.side("patch_size", 16),
        width=width,
        layers=data.integer("layers"),
        heads=width // _at_least_one(data, "head_width", 64),
        mlp_width=int(width * data.number("mlp_ratio", 4.0)),
        rope_grid=data.integer("pt_hw_seq_len", 16),
    )
    data.done(TRAINING)
    return tower


def _text(data: Settings, activation: str) -> TextConfig:
    data.fixed(TEXT_FIXED)
    width = data.integer("width", 512)
    tower = TextConfig(
        context_length=data.integer("context_length", 77),
        vocab_size=data.integer("vocab_size", 49408),
        width=width,
        heads=data.integer("heads", 8),
        layers=data.integer("layers", 12),
        pad_id=data.integer("pad_id", 0),
        activation=activation,  # type: ignore[arg-type]
    )
    _check_tokenizer(data, tower.context_length)
    data.done(TRAINING)
    return tower


def _check_tokenizer(data: Settings, context_length: int) -> None:
    """Raises UserError unless texts are tokenised by OpenCLIP's own tokenizer with its default settings."""
    for name, value in TOKENIZER_FIXED.items():
        if data.get(name) not in (None, value):
            raise data.error(name, "texts of this model are tokenised by another tokenizer than CLIP's, which we lack")
    options = data.inner("tokenizer_kwargs", {}) if data.get("tokenizer_kwargs") is not None else Settings({}, "")
    options.fixed(TOKENIZER_KWARGS_FIXED)
    if options.get("context_length", context_length) not in (None, context_length):
        raise options.error("context_length", f"text_cfg.context_length is {context_length}: they must agree")
    options.done()


def _openai(data: Settings) -> CLIPConfig:
    width, layers = data.integer("vision_width"), data.get("vision_layers")
    size, patch = data.integer("image_resolution"), data.get("vision_patch_size")
    vision: ViTConfig | ResNetConfig
    if isinstance(layers, list | tuple):
        vision = ResNetConfig(image_size=size, layers=tuple(layers), width=width, heads=max(1, width * 32 // 64))  # type: ignore[arg-type]
    else:
        layers = data.integer("vision_layers")
        patch = data.integer("vision_patch_size")
        vision = ViTConfig(image_size=size, patch_size=patch, width=width, layers=layers, heads=max(1, width // 64))
    text = TextConfig(
        context_length=data.integer("context_length"),
        vocab_size=data.integer("vocab_size"),
        width=data.integer("transformer_width"),
        heads=data.integer("transformer_heads"),
        layers=data.integer("transformer_layers"),
    )
    config = CLIPConfig(embed_dim=data.integer("embed_dim"), vision=vision, text=text)
    data.done()
    return config


def _preprocess(data: Settings, image_size: int, where: str) -> PreprocessConfig:
    default = PreprocessConfig()
    size = data.side("size", image_size)
    if size != image_size:
        raise UserError(f"{where}: preprocess_cfg.size is {size}, vision_cfg.image_size {image_size}: they must agree")
    interpolation, resize = data.get("interpolation", "bicubic"), data.get("resize_mode", "shortest")
    for name, value, known in (
        ("interpolation", interpolation, ("bicubic", "bilinear")),
        ("resize_mode", resize, ("shortest", "squash")),
    ):
        if value not in known:
            raise UserError(
                f"{where}: preprocess_cfg.{name} is {value!r}, known are {', '.join(known)}: set one of them"
            )
    mean, std = data.get("mean", default.mean), data.get("std", default.std)
    for name, value in (("mean", mean), ("std", std)):
        if not isinstance(value, list | tuple):
            raise data.error(name, "it must be a list of numbers")
    data.fixed({"mode": "RGB"})
    data.done({"fill_color"})  # the colour of a border, which both resize modes never leave
    return PreprocessConfig(mean=tuple(mean), std=tuple(std), interpolation=interpolation, resize=resize)


def _at_least_one(data: Settings, name: str, default: int) -> int:
    value = data.integer(name, default)
    if value < 1:
        raise data.error(name, "it must be an integer of at least 1")
    return value


def config_to_json(config: CLIPConfig) -> dict[str, Any]:
    """Converts a `CLIPConfig` to the content of `open_clip_config.json`.

    Raises:
        UserError: OpenCLIP has no such model.
    """
    vision, text = config.vision, config.text
    if not isinstance(vision, ViTConfig | ResNetConfig) or not isinstance(text, TextConfig):
        raise UserError(
            "OpenCLIP's layout holds a ViT or CLIP's ResNet beside CLIP's text tower: export to another layout"
        )
    fixed: list[tuple[Any, str, Any]] = [
        (text, "attention", "causal"),
        (text, "pool", "eos"),
        (text, "positions", "learned"),
        (text, "projection_bias", False),
        (text, "ln_eps", 1e-5),
        (config, "logit_bias_init", None),
        (config, "logit_scale_learned", True),
        (vision, "channels", 3),
        (config.preprocess, "resize_to", None),
    ]
    if isinstance(vision, ViTConfig):
        fixed += [(vision, "pool", "cls"), (vision, "ln_pre", True), (vision, "patch_bias", False)]
        fixed += [(vision, "positions", "learned"), (vision, "ln_eps", 1e-5), (vision, "activation", text.activation)]
    faults = [
        f"{type(place).__name__}.{name} {getattr(place, name)!r} (there it is {value!r})"
        for place, name, value in fixed
        if getattr(place, name) != value
    ]
    if config.preprocess.resize == "none" or config.preprocess.interpolation not in ("bicubic", "bilinear"):
        faults.append(f"preprocess.resize {config.preprocess.resize} with {config.preprocess.interpolation}")
    if text.activation == "gelu_tanh":
        faults.append("TextConfig.activation 'gelu_tanh'")
    if text.eos_id not in (None, text.vocab_size - 1):
        faults.append(f"TextConfig.eos_id {text.eos_id} (there it is the highest id)")
    if text.mlp_width not in (None, 4 * text.width):
        faults.append(f"TextConfig.mlp_width {text.mlp_width} (there it is {4 * text.width})")
    if faults:
        raise UserError(f"OpenCLIP's layout cannot say {', '.join(faults)}: export to another layout")
    towers: dict[str, Any] = {"image_size": vision.image_size, "width": vision.width}
    if isinstance(vision, ResNetConfig):
        towers |= {"layers": list(vision.layers), "head_width": vision.width * 32 // vision.heads, "patch_size": None}
    else:
        towers |= {"layers": vision.layers, "head_width": vision.width // vision.heads, "patch_size": vision.patch_size}
        mlp_width = vision.mlp_width or 4 * vision.width
        exact = mlp_width % vision.width == 0  # else slightly more: OpenCLIP truncates width · ratio to an integer
        towers |= {"mlp_ratio": (mlp_width if exact else mlp_width + 0.25) / vision.width}
    return {
        "model_cfg": {
            "embed_dim": config.embed_dim,
            "quick_gelu": text.activation == "quick_gelu",
            "vision_cfg": towers,
            "text_cfg": {
                "context_length": text.context_length,
                "vocab_size": text.vocab_size,
                "width": text.width,
                "heads": text.heads,
                "layers": text.layers,
                **({"pad_id": text.pad_id} if text.pad_id else {}),
            },
        },
        "preprocess_cfg": {
            "mean": list(config.preprocess.mean),
            "std": list(config.preprocess.std),
            "interpolation": config.preprocess.interpolation,
            "resize_mode": config.preprocess.resize,
        },
    }
