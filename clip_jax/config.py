"""What a CLIP is made of: frozen dataclasses, written as `config.json` beside every checkpoint.

A config is checked when it is made, so a model that exists has sizes that fit. Nothing about training lives here.
"""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, Literal

from clip_jax.errors import UserError

Activation = Literal["quick_gelu", "gelu", "gelu_tanh"]
ACTIVATION_NAMES = ("quick_gelu", "gelu", "gelu_tanh")


def _check_positive(config: Any, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if value < 1:
            raise UserError(f"{type(config).__name__}.{name} is {value}: it must be at least 1")


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """A stack of pre-norm residual attention blocks; the fields both towers share."""

    width: int
    layers: int
    heads: int
    mlp_width: int | None = None  # None: 4 × width, as in all OpenAI models
    activation: Activation = "quick_gelu"
    ln_eps: float = 1e-5
    scan_layers: bool = False  # one traced block: compiles faster, but costs 28 % of a training step on CPU
    remat: bool = False  # recompute each block in the backward pass

    def __post_init__(self) -> None:
        _check_positive(self, "width", "layers", "heads")
        if self.width % self.heads:
            raise UserError(f"{type(self).__name__}: heads {self.heads} does not divide width {self.width}")
        if self.activation not in ACTIVATION_NAMES:
            raise UserError(
                f"{type(self).__name__}.activation is {self.activation!r}: choose one of {', '.join(ACTIVATION_NAMES)}"
            )


@dataclass(frozen=True, kw_only=True)
class ViTConfig(TransformerConfig):
    """Vision transformer with a class token and a norm before the blocks (Radford et al. 2021)."""

    image_size: int
    patch_size: int

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_positive(self, "image_size", "patch_size")
        if self.image_size % self.patch_size:
            raise UserError(
                f"{type(self).__name__}: image_size {self.image_size} is not divisible by patch_size {self.patch_size}"
            )

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.image_size // self.patch_size


@dataclass(frozen=True, kw_only=True)
class TextConfig(TransformerConfig):
    """Causal text transformer, pooled at the end-of-text token."""

    vocab_size: int
    context_length: int
    eos_id: int | None = None  # None: the highest id of each row is its end, which is OpenAI's rule
    pad_id: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_positive(self, "vocab_size", "context_length")
        for name in ("eos_id", "pad_id"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < self.vocab_size:
                raise UserError(f"{type(self).__name__}: {name} {value} is not below vocab_size {self.vocab_size}")


@dataclass(frozen=True, kw_only=True)
class PreprocessConfig:
    """From a picture to the network's input. It belongs to the weights, not to the architecture."""

    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    resize: Literal["shortest", "squash"] = "shortest"  # and a centre crop | both sides, whatever the aspect
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"

    def __post_init__(self) -> None:
        for name, allowed in (("resize", ("shortest", "squash")), ("interpolation", ("bicubic", "bilinear"))):
            if (value := getattr(self, name)) not in allowed:
                raise UserError(f"PreprocessConfig.{name} is {value!r}: choose one of {', '.join(allowed)}")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise UserError(f"PreprocessConfig: mean {self.mean}, std {self.std}: three numbers each, std above 0")


@dataclass(frozen=True, kw_only=True)
class CLIPConfig:
    """Two towers and the joint space. `logit_scale_init` is the log of the inverse temperature."""

    embed_dim: int
    vision: ViTConfig
    text: TextConfig
    preprocess: PreprocessConfig = field(default_factory=PreprocessConfig)
    logit_scale_init: float = math.log(1 / 0.07)

    def __post_init__(self) -> None:
        _check_positive(self, "embed_dim")

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dict; each tower carries its `type` so that `from_dict` needs no guessing."""
        data = dataclasses.asdict(self)
        for name in ("vision", "text"):
            data[name] = {"type": type(getattr(self, name)).__name__, **data[name]}
        data["preprocess"] = {k: list(v) if isinstance(v, tuple) else v for k, v in data["preprocess"].items()}
        return data

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "CLIPConfig":
        """The inverse of `to_dict`.

        Raises: UserError for a field that is unknown or missing, or for sizes that do not fit.
        """
        fields = dict(data)
        fields["vision"] = _tower(fields, "vision", VISION_TYPES)
        fields["text"] = _tower(fields, "text", TEXT_TYPES)
        if "preprocess" in fields:
            preprocess = {k: tuple(v) if isinstance(v, list) else v for k, v in fields["preprocess"].items()}
            fields["preprocess"] = _build(PreprocessConfig, preprocess, "preprocess")
        return _build(cls, fields, "the CLIP config")


VISION_TYPES: dict[str, type] = {"ViTConfig": ViTConfig}
TEXT_TYPES: dict[str, type] = {"TextConfig": TextConfig}


def _tower(fields: dict[str, Any], name: str, types: dict[str, type]) -> Any:
    tower = dict(fields.get(name) or {})
    kind = tower.pop("type", None)
    if kind not in types:
        raise UserError(f"config field {name}.type is {kind!r}: this version knows {', '.join(types)}")
    return _build(types[kind], tower, name)


def _build(cls: type, data: dict[str, Any], where: str) -> Any:
    known = {f.name: f for f in dataclasses.fields(cls)}
    required = {
        n for n, f in known.items() if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    }
    unknown, missing = sorted(data.keys() - known), sorted(required - data.keys())
    if unknown or missing:
        raise UserError(f"{where}: unknown fields {unknown}, missing fields {missing}")
    return cls(**data)
