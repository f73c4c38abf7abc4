"""OpenCLIP's `open_clip_config.json`, and the JSON of BAAI's EVA-CLIP and of OpenAI's constructor, as our config.

The weights have OpenAI's names. What they do not say stands here: activation, heads, norms, preprocessing. A setting
that is not known is refused, as it may change what the network computes.
"""

from collections.abc import Mapping
from typing import Any

from clip_jax.config import CLIPConfig, EVA02Config, PreprocessConfig, ResNetConfig, TextConfig, ViTConfig
from clip_jax.errors import UserError, names_its_file

MODEL = {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "custom_text", "init_logit_scale", "init_logit_bias"}
EVA_NAMES = {"rope", "pt_hw_seq_len", "intp_freq", "naiveswiglu", "subln"}
EVA_ONLY = {"eva_model_name", *EVA_NAMES, "qkv_bias", "postnorm"}
# What these are set to when they change nothing; settings of training do not matter at all.
VISION_DEFAULTS = {
    "global_average_pool": False, "attentional_pool": False, "no_ln_pre": False, "ls_init_value": None,
    "input_patchnorm": False, "pos_embed_type": "learnable", "pool_type": "tok", "final_ln_after_pool": False,
    "output_tokens": False, "timm_model_name": None, "act_kwargs": None, "norm_kwargs": None, "block_type": None,
    "qk_norm": False, "scaled_cosine_attn": False, "postnorm": False, "qkv_bias": True,
}  # fmt: skip
TEXT_DEFAULTS = {
    "hf_model_name": None, "embed_cls": False, "no_causal_mask": False, "pool_type": "argmax",
    "final_ln_after_pool": False, "proj_bias": False, "proj_type": "linear", "output_tokens": False,
    "act_kwargs": None, "norm_kwargs": None, "ls_init_value": None, "mlp_ratio": 4.0, "block_type": None,
    "qk_norm": False, "scaled_cosine_attn": False, "eos_id": None, "correct_cls_mask": False,
}  # fmt: skip
TRAINING = {
    "patch_dropout", "drop_path_rate", "xattn", "fusedLN", "dropout", "timm_model_pretrained", "hf_model_pretrained",
    "hf_tokenizer_name", "tokenizer_kwargs", "tokenizer_mode", "text_mask",
}  # fmt: skip
PREPROCESS = {"mean", "std", "interpolation", "resize_mode", "size", "mode", "fill_color"}


def matches(data: Mapping[str, Any]) -> bool:
    """Whether a JSON is one of these."""
    return "model_cfg" in data or {"vision_cfg", "text_cfg"} <= data.keys() or "transformer_width" in data


@names_its_file
def config_from_json(data: Mapping[str, Any], where: str) -> CLIPConfig:
    """Raises UserError for settings we have not, or that are missing."""
    try:
        if "transformer_width" in data:
            return _openai(data)
        model = data.get("model_cfg", data)
        _known(model, MODEL, {}, f"{where}: model_cfg")
        vision, text = dict(model["vision_cfg"]), dict(model["text_cfg"])
        activation = "quick_gelu" if model.get("quick_gelu") else "gelu"
        eva = "eva_model_name" in vision
        tower = _eva(vision, where) if eva else _vision(vision, activation, where)
        bias = model.get("init_logit_bias")
        return CLIPConfig(
            embed_dim=model["embed_dim"],
            vision=tower,
            text=_text(text, activation, where),
            preprocess=_preprocess(data.get("preprocess_cfg") or {}, tower.image_size, where),
            logit_bias_init=None if bias is None else float(bias),
        )
    except (KeyError, TypeError, AttributeError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else error
        raise UserError(f"{where} is not the config of an OpenCLIP model: {what}") from error


def _known(data: Mapping[str, Any], names: set[str], defaults: Mapping[str, Any], where: str) -> None:
    for name, value in data.items():
        if name in defaults and value not in (defaults[name], None) and value != {}:
            raise UserError(
                f"{where}.{name} is {value!r}, supported is {defaults[name]!r}: this model needs what we lack"
            )
        if name not in names and name not in defaults and name not in TRAINING:
            raise UserError(f"{where}.{name} is {value!r}: this setting is not known, and may change the network")


def _vision(data: dict[str, Any], activation: str, where: str) -> ViTConfig | ResNetConfig:
    names = {"layers", "width", "head_width", "patch_size", "mlp_ratio", "image_size"}
    _known(data, names, VISION_DEFAULTS, f"{where}: vision_cfg")
    width = data.get("width", 768 if isinstance(data.get("layers", 12), int) else 64)
    size = _side(data.get("image_size", 224))
    if isinstance(data.get("layers", 12), list):
        heads = width * 32 // data.get("head_width", 64)
        return ResNetConfig(image_size=size, layers=tuple(data["layers"]), width=width, heads=heads)
    return ViTConfig(
        image_size=size,
        patch_size=_side(data.get("patch_size", 16)),
        width=width,
        layers=data.get("layers", 12),
        heads=width // data.get("head_width", 64),
        mlp_width=int(width * data.get("mlp_ratio", 4.0)),
        activation=activation,  # type: ignore[arg-type]
    )


def _eva(data: dict[str, Any], where: str) -> EVA02Config:
    names = {"layers", "width", "head_width", "patch_size", "mlp_ratio", "image_size", *EVA_ONLY}
    _known(data, names, {k: v for k, v in VISION_DEFAULTS.items() if k not in EVA_ONLY}, f"{where}: vision_cfg")
    for name in ("rope", "naiveswiglu", "subln", "intp_freq"):
        if not data.get(name):
            raise UserError(
                f"{where}: vision_cfg.{name} is {data.get(name)!r}, supported is True: only EVA-02 B and L are"
            )
    if data.get("postnorm"):
        raise UserError(f"{where}: vision_cfg.postnorm is True, supported is False: only EVA-02 B and L are")
    width = data["width"]
    return EVA02Config(
        image_size=_side(data.get("image_size", 224)),
        patch_size=_side(data.get("patch_size", 16)),
        width=width,
        layers=data["layers"],
        heads=width // data.get("head_width", 64),
        mlp_width=int(width * data.get("mlp_ratio", 4.0)),
        rope_grid=data.get("pt_hw_seq_len", 16),
    )


def _text(data: dict[str, Any], activation: str, where: str) -> TextConfig:
    names = {"context_length", "vocab_size", "width", "heads", "layers", "pad_id"}
    _known(data, names, TEXT_DEFAULTS, f"{where}: text_cfg")
    width = data.get("width", 512)
    return TextConfig(
        context_length=data.get("context_length", 77),
        vocab_size=data.get("vocab_size", 49408),
        width=width,
        heads=data.get("heads", 8),
        layers=data.get("layers", 12),
        pad_id=data.get("pad_id", 0),
        activation=activation,  # type: ignore[arg-type]
    )


def _openai(data: Mapping[str, Any]) -> CLIPConfig:
    width = data["vision_width"]
    layers, size = data["vision_layers"], data["image_resolution"]
    vision: ViTConfig | ResNetConfig
    if isinstance(layers, list | tuple):
        vision = ResNetConfig(image_size=size, layers=tuple(layers), width=width, heads=max(1, width * 32 // 64))
    else:
        patch = data["vision_patch_size"]
        vision = ViTConfig(image_size=size, patch_size=patch, width=width, layers=layers, heads=width // 64)
    text = TextConfig(
        context_length=data["context_length"],
        vocab_size=data["vocab_size"],
        width=data["transformer_width"],
        heads=data["transformer_heads"],
        layers=data["transformer_layers"],
    )
    return CLIPConfig(embed_dim=data["embed_dim"], vision=vision, text=text)


def _preprocess(data: Mapping[str, Any], image_size: int, where: str) -> PreprocessConfig:
    _known(data, PREPROCESS, {}, f"{where}: preprocess_cfg")
    default = PreprocessConfig()
    size = _side(data.get("size", image_size))
    if size != image_size:
        raise UserError(f"{where}: preprocess_cfg.size is {size}, vision_cfg.image_size {image_size}: they must agree")
    interpolation = data.get("interpolation", "bicubic")
    resize = data.get("resize_mode", "shortest")
    for name, value, known in (
        ("interpolation", interpolation, ("bicubic", "bilinear")),
        ("resize_mode", resize, ("shortest", "squash")),
    ):
        if value not in known:
            raise UserError(
                f"{where}: preprocess_cfg.{name} is {value!r}, known are {', '.join(known)}: set one of them"
            )
    return PreprocessConfig(
        mean=tuple(data.get("mean", default.mean)),
        std=tuple(data.get("std", default.std)),
        interpolation=interpolation,
        resize=resize,
    )


def _side(size: Any) -> int:
    """12 of 12, [12, 12], or [3, 12, 12]."""
    sides = list(size)[-2:] if isinstance(size, list | tuple) else [size]
    if len(set(sides)) != 1:
        raise UserError(f"size {size} is not square: only square pictures are supported")
    return sides[0]


def config_to_json(config: CLIPConfig) -> dict[str, Any]:
    """Our config as `open_clip_config.json`. Raises UserError when OpenCLIP has no such model."""
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
    ]
    if isinstance(vision, ViTConfig):
        fixed += [(vision, "pool", "cls"), (vision, "ln_pre", True), (vision, "patch_bias", False)]
        fixed += [(vision, "positions", "learned"), (vision, "ln_eps", 1e-5), (vision, "activation", text.activation)]
    faults = [
        f"{type(place).__name__}.{name} {getattr(place, name)!r} (there it is {value!r})"
        for place, name, value in fixed
        if getattr(place, name) != value
    ]
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
        exact = mlp_width % vision.width == 0  # else a little more, as the product is cut down to an integer
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
