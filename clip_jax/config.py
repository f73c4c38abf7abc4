"""The architecture of a CLIP as frozen dataclasses, stored as `config.json` beside the weights.

Every config checks its fields when it is made, and raises a UserError for wrong types and for sizes that do not fit
together. Training options are not part of it.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from clip_jax.errors import UserError
from clip_jax.fields import brief, check_types

Activation = Literal["quick_gelu", "gelu", "gelu_tanh"]
Positions = Literal["learned", "sinusoidal"]
Interpolation = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]  # Pillow's
MOST_BLOCKS = 64  # of one stage of a ResNet; RN50x64 has 36
TokenizerKind = Literal["clip", "bert", "roberta", "siglip", "siglip2", "ascii"]

LARGEST_STATISTIC = 1000.0  # of mean and std, in units of a pixel / 255; real data are far below
MAX_PATCHES = 1 << 16  # of a picture: more than any published CLIP has, and attention over them fits in memory


def _check_eps(config: Any, name: str) -> None:
    value = getattr(config, name)
    if not 0 < value <= 1:
        raise UserError(f"{type(config).__name__}.{name} is {value!r}: it must be a number above 0 and up to 1")


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """A stack of residual attention blocks; the fields that all transformers share.

    Attributes:
        width: channels C of the hidden states.
        layers: number of blocks.
        heads: attention heads N, a divisor of `width`.
        mlp_width: hidden channels of the MLP; None: 4 × width, as in all OpenAI models.
        activation: of the MLP; OpenAI's weights need "quick_gelu", x · sigmoid(1.702 x).
        ln_eps: epsilon of the layer norms.
        scan_layers: whether one traced block is applied by `nn.scan`: compiles faster, runs slower on a CPU.
        remat: gradient checkpointing: each block is computed again in the backward pass.
    """

    width: int
    layers: int
    heads: int
    mlp_width: int | None = None
    activation: Activation = "quick_gelu"
    ln_eps: float = 1e-5
    scan_layers: bool = False
    remat: bool = False

    def __post_init__(self) -> None:
        check_types(self)
        if self.width % self.heads:
            raise UserError(f"{type(self).__name__}: heads {self.heads} does not divide width {self.width}")
        _check_eps(self, "ln_eps")


@dataclass(frozen=True, kw_only=True)
class _PatchConfig(TransformerConfig):
    """A transformer over the square patches of a square image."""

    image_size: int
    patch_size: int
    channels: int = 3

    def __post_init__(self) -> None:
        _check_square(self)
        super().__post_init__()
        # SigLIP's SO400M/14 reads 27 × 14 = 378 of its 384 pixels; no other published checkpoint leaves pixels out.
        crops = getattr(self, "pool", "cls") == "map" and self.image_size > self.patch_size
        if self.image_size % self.patch_size and not crops:
            raise UserError(
                f"{type(self).__name__}: image_size {self.image_size} is not divisible by patch_size {self.patch_size}"
            )

        if self.grid**2 > MAX_PATCHES:
            raise UserError(
                f"{type(self).__name__}: image_size {self.image_size} by patch_size {self.patch_size} are "
                f"{self.grid**2} patches, at most {MAX_PATCHES} are supported"
            )

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.image_size // self.patch_size


@dataclass(frozen=True, kw_only=True)
class ViTConfig(_PatchConfig):
    """Vision transformer: CLIP's by default (Radford et al. 2021), SigLIP's with `pool="map"` (Zhai et al. 2023).

    Attributes:
        patch_size: side of a patch in pixels of the image, also where there is a stem.
        stem: widths of 3×3 convolutions of stride 2 before the patch embedding (Xiao et al. 2021); empty: none.
        pool: where the embedding comes from. "cls": a class token and a projection. "map": attention pooling by a
            learned query, without class token and projection; pixels that fill no whole patch are cut off.
        ln_pre: whether there is a layer norm before the blocks.
        patch_bias: whether the patch embedding has a bias.
        positions: learned position embeddings, or fixed sinusoids.
    """

    stem: tuple[int, ...] = ()
    pool: Literal["cls", "map"] = "cls"
    ln_pre: bool = True
    patch_bias: bool = False
    positions: Positions = "learned"

    def __post_init__(self) -> None:
        super().__post_init__()
        stride = 2 ** min(len(self.stem), 16)  # the exponent is bounded: no patch is that large
        if self.patch_size % stride:
            raise UserError(
                f"{type(self).__name__}: patch_size {self.patch_size} is not divisible by {stride}, "
                f"the stride of a stem of {len(self.stem)} convolutions"
            )


@dataclass(frozen=True, kw_only=True)
class EVA02Config(_PatchConfig):
    """EVA-02: RoPE, SwiGLU, a norm inside attention and MLP, no bias on the keys (Fang et al. 2023).

    Attributes:
        mlp_width: hidden channels of the SwiGLU; None: ⌊2.6667 × width⌋.
        rope_grid: side of the patch grid in pre-training; the rotary positions of any other grid are scaled to it.
    """

    mlp_width: int | None = None
    ln_eps: float = 1e-6
    rope_grid: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width // self.heads % 4:
            raise UserError(
                f"{type(self).__name__}: heads {self.heads} of width {self.width} have {self.width // self.heads} "
                "channels each, rotary positions need a multiple of 4"
            )


@dataclass(frozen=True, kw_only=True)
class ResNetConfig:
    """CLIP's ResNet: three-convolution stem, anti-aliased strides, attention pooling (Radford et al. 2021 §2.4).

    Attributes:
        image_size: side of the image in pixels, a multiple of 32.
        layers: bottleneck blocks of each of the four stages.
        width: channels of the stem; the features have 32 × width.
        heads: of the attention pool.
        channels: of the image.
        bn_eps: epsilon of the batch norms.
    """

    image_size: int
    layers: tuple[int, int, int, int]
    width: int
    heads: int
    channels: int = 3
    bn_eps: float = 1e-5

    def __post_init__(self) -> None:
        _check_resnet(self)
        if self.image_size % 32:
            raise UserError(f"{type(self).__name__}.image_size is {self.image_size}: it must be a multiple of 32")
        if self.width % 2 or 32 * self.width % self.heads:
            raise UserError(
                f"{type(self).__name__}: width {self.width} must be even, and heads {self.heads} divide 32 times it"
            )


@dataclass(frozen=True, kw_only=True)
class PlainResNetConfig:
    """torchvision's bottleneck ResNet (He et al. 2015, stride in the 3×3 convolution), mean-pooled and projected."""

    image_size: int = 224
    layers: tuple[int, int, int, int] = (3, 4, 6, 3)
    width: int = 64
    channels: int = 3
    bn_eps: float = 1e-5

    def __post_init__(self) -> None:
        _check_resnet(self)


def _check_resnet(config: "ResNetConfig | PlainResNetConfig") -> None:
    _check_square(config)
    check_types(config)
    _check_eps(config, "bn_eps")
    if max(config.layers) > MOST_BLOCKS:
        raise UserError(f"{type(config).__name__}.layers is {config.layers}: a stage has at most {MOST_BLOCKS} blocks")


def _check_square(config: "_PatchConfig | ResNetConfig | PlainResNetConfig") -> None:
    if isinstance(config.image_size, list | tuple):
        raise UserError(
            f"{type(config).__name__}.image_size is {config.image_size}: only square pictures are supported, give the "
            "one number of pixels of a side"
        )


@dataclass(frozen=True, kw_only=True)
class _TextConfig(TransformerConfig):
    """A transformer over tokens; the fields that all text towers share.

    Attributes:
        vocab_size: number of token ids.
        context_length: longest row of tokens, L.
        pad_id: id of the padding.
        tokenizer: kind of the tokenizer; its vocabulary is a file beside the weights.
    """

    vocab_size: int
    context_length: int
    pad_id: int = 0
    tokenizer: TokenizerKind = "clip"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_ids("pad_id")

    def _check_ids(self, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            if value is not None and not 0 <= value < self.vocab_size:
                raise UserError(f"{type(self).__name__}: {name} {value} is not below vocab_size {self.vocab_size}")


@dataclass(frozen=True, kw_only=True)
class TextConfig(_TextConfig):
    """Pre-norm text transformer: CLIP's by default (causal, pooled at the end of the text), or SigLIP's.

    Attributes:
        eos_id: id of the end-of-text token; None: the highest id of each row, which is OpenAI's rule.
        attention: the tokens that a token attends to. "causal": itself and those before it; "text": all up to the end
            of the text; "full": all, padding included.
        pool: the token whose state is the embedding: the end-of-text token ("eos"), or the last of the row ("last"),
            which in a short text is padding.
        positions: learned position embeddings, or fixed sinusoids.
        projection_bias: whether the projection to the joint space has a bias.
    """

    eos_id: int | None = None
    attention: Literal["causal", "text", "full"] = "causal"
    pool: Literal["eos", "last"] = "eos"
    positions: Positions = "learned"
    projection_bias: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_ids("eos_id")


@dataclass(frozen=True, kw_only=True)
class BertConfig(_TextConfig):
    """BERT (Devlin et al. 2018) or, with `positions="roberta"`, RoBERTa (Liu et al. 2019): post-norm, bidirectional.

    Attributes:
        max_positions: rows of the position embedding table; `context_length` may be smaller.
        type_vocab_size: rows of the token type embedding table, of which only row 0 is used.
        positions: "bert" counts from 0; "roberta" from pad_id + 1, over the tokens that are not padding.
        pool: "cls", the state of the first token; "pooler", that state after a dense layer and tanh.
        projection_bias: whether the projection to the joint space has a bias.
    """

    activation: Activation = "gelu"
    ln_eps: float = 1e-12
    tokenizer: TokenizerKind = "bert"
    max_positions: int = 512
    type_vocab_size: int = 2
    positions: Literal["bert", "roberta"] = "bert"
    pool: Literal["cls", "pooler"] = "cls"
    projection_bias: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        room = self.max_positions - (self.pad_id + 1 if self.positions == "roberta" else 0)
        if self.context_length > room:
            raise UserError(f"{type(self).__name__}: context_length {self.context_length} exceeds the {room} positions")


@dataclass(frozen=True, kw_only=True)
class PreprocessConfig:
    """Preprocessing of pictures: resize, centre crop, normalise. It belongs to the weights, not to the architecture.

    Attributes:
        mean: one number per channel (three for RGB, one for grey), in units of a pixel / 255. A recipe that rescales
            pixels differently is written as another mean and std.
        std: as `mean`.
        resize: "shortest": the shorter side becomes `resize_to` pixels and the aspect is kept; "squash": both sides do;
            "none": no resizing. The centre crop follows; a picture smaller than the crop gets a black border.
        interpolation: Pillow's resampling filter.
        resize_to: in pixels; None: the size of the network's input.
        crop: rounding of the crop's offset where the excess is odd: "round", half to even, as torchvision; "floor", as
            transformers.
    """

    mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)
    resize: Literal["shortest", "squash", "none"] = "shortest"
    interpolation: Interpolation = "bicubic"
    resize_to: int | None = None
    crop: Literal["round", "floor"] = "round"

    def __post_init__(self) -> None:
        check_types(self)
        if len(self.mean) != len(self.std) or not self.mean or min(self.std) <= 0:
            raise UserError(
                f"PreprocessConfig: mean {brief(self.mean)}, std {brief(self.std)}: as many numbers each as the "
                "pictures have channels, std above 0"
            )
        if max(map(abs, (*self.mean, *self.std))) > LARGEST_STATISTIC:
            raise UserError(
                f"PreprocessConfig: mean {brief(self.mean)}, std {brief(self.std)}: give numbers up to "
                f"{LARGEST_STATISTIC:g}, in units of a pixel / 255"
            )


VisionConfig = ViTConfig | EVA02Config | ResNetConfig | PlainResNetConfig
TextTowerConfig = TextConfig | BertConfig


@dataclass(frozen=True, kw_only=True)
class CLIPConfig:
    """A CLIP: two towers and the joint space, or one tower alone (the other is None).

    Attributes:
        embed_dim: dimension D of the joint space; None: the pooled state is not projected (the text encoders of Stable
            Diffusion), which only a single tower can have.
        vision: a `VisionConfig`, or None.
        text: a `TextTowerConfig`, or None.
        preprocess: of the pictures.
        logit_scale_init: initial log of the inverse temperature.
        logit_scale_learned: whether the scale is a parameter; if not, it is the constant `logit_scale_init`.
        logit_bias_init: initial value of SigLIP's bias; None: no bias.
    """

    embed_dim: int | None
    vision: Any  # VisionConfig | None; Any, so that code for two towers need not exclude None
    text: Any  # TextTowerConfig | None; Any, as `vision`
    preprocess: PreprocessConfig = field(default_factory=PreprocessConfig)
    logit_scale_init: float = math.log(1 / 0.07)
    logit_scale_learned: bool = True
    logit_bias_init: float | None = None

    def __post_init__(self) -> None:
        check_types(self)
        if self.vision is None and self.text is None:
            raise UserError("CLIPConfig: vision and text are both None: a CLIP has at least one tower")
        for name, types in (("vision", VISION_TYPES), ("text", TEXT_TYPES)):
            tower = getattr(self, name)
            if tower is not None and type(tower) not in types.values():
                raise UserError(f"CLIPConfig.{name} is a {type(tower).__name__}: give one of {', '.join(types)}")
        if type(self.preprocess) is not PreprocessConfig:
            raise UserError(f"CLIPConfig.preprocess is {brief(self.preprocess)}: give a PreprocessConfig")
        if self.embed_dim is None and self.two_towers:
            raise UserError("CLIPConfig.embed_dim is None: two towers need the dimension of the space they meet in")
        if self.embed_dim is None and isinstance(self.vision, ResNetConfig):
            raise UserError("CLIPConfig.embed_dim is None: attention pooling ends in a projection")
        if self.vision is None:
            return
        if getattr(self.vision, "pool", None) == "map" and self.embed_dim not in (None, self.vision.width):
            raise UserError(
                f"CLIPConfig: embed_dim {self.embed_dim} is not vision.width {self.vision.width}: "
                "pooling by attention has no projection"
            )
        if self.vision.channels != len(self.preprocess.mean):
            raise UserError(
                f"CLIPConfig: the image tower takes {self.vision.channels} channels, "
                f"preprocess.mean has {len(self.preprocess.mean)}"
            )

    @property
    def two_towers(self) -> bool:
        """Whether there are both an image tower and a text tower."""
        return self.vision is not None and self.text is not None

    def to_dict(self) -> dict[str, Any]:
        """A dict for JSON; each tower has a field `type` with the name of its class."""
        data = dataclasses.asdict(self)
        for name in ("vision", "text"):
            if data[name] is not None:
                data[name] = {"type": type(getattr(self, name)).__name__, **_with_lists(data[name])}
        data["preprocess"] = _with_lists(data["preprocess"])
        return data

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "CLIPConfig":
        """The inverse of `to_dict`.

        Raises:
            UserError: If a field is unknown, missing or of a wrong type, or sizes do not fit together.
        """
        fields = _object(data, "the CLIP config")
        fields["vision"] = _tower(fields, "vision", VISION_TYPES)
        fields["text"] = _tower(fields, "text", TEXT_TYPES)
        if "preprocess" in fields:
            fields["preprocess"] = _build(PreprocessConfig, fields["preprocess"], "preprocess")
        return _build(cls, fields, "the CLIP config")


VISION_TYPES: dict[str, type] = {c.__name__: c for c in (ViTConfig, EVA02Config, ResNetConfig, PlainResNetConfig)}
TEXT_TYPES: dict[str, type] = {c.__name__: c for c in (TextConfig, BertConfig)}


def _with_lists(data: dict[str, Any]) -> dict[str, Any]:
    return {k: list(v) if isinstance(v, tuple) else v for k, v in data.items()}


def _object(data: Any, where: str) -> dict[str, Any]:
    if not isinstance(data, Mapping):
        raise UserError(f"{where} is {brief(data)}: it must be an object of fields")
    return dict(data)


def _tower(fields: dict[str, Any], name: str, types: dict[str, type]) -> Any:
    if name in fields and fields[name] is None:
        return None
    tower = _object(fields.get(name, {}), f"config field {name}")
    kind = tower.pop("type", None)
    if not isinstance(kind, str) or kind not in types:
        raise UserError(f"config field {name}.type is {brief(kind)}: this version knows {', '.join(types)}")
    return _build(types[kind], tower, name)


def _build(cls: type, data: Any, where: str) -> Any:
    data = _object(data, where)
    known = {f.name: f for f in dataclasses.fields(cls)}
    required = {
        n for n, f in known.items() if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    }
    unknown, missing = sorted(data.keys() - known), sorted(required - data.keys())
    if unknown or missing:
        raise UserError(f"{where}: unknown fields {brief(unknown, 300)}, missing fields {missing}")
    return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in data.items()})
