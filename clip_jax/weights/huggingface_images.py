"""Conversion between transformers' `preprocessor_config.json` and `PreprocessConfig`.

The reference is the processor on Pillow and numpy (`CLIPImageProcessorPil`). Where an odd number of pixels is cropped,
it rounds half of them down; torchvision rounds to the nearest, so its crop may begin one pixel later.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from clip_jax.config import PreprocessConfig, VisionConfig
from clip_jax.errors import UserError, names_its_file
from clip_jax.fields import brief
from clip_jax.weights.settings import Settings, located

RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}  # Pillow's numbers


class _Processor(NamedTuple):
    """The defaults of a class of image processors."""

    size: dict[str, int]
    crop: bool
    square: bool | None  # a size of one number is: True, a square; False, the shortest edge; None, not allowed
    resample: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


_OPENAI = PreprocessConfig()
_HALF = (0.5, 0.5, 0.5)
_SQUARE = {"height": 224, "width": 224}
_CLIP = _Processor({"shortest_edge": 224}, True, False, 3, _OPENAI.mean, _OPENAI.std)
_SIGLIP = _Processor(_SQUARE, False, None, 3, _HALF, _HALF)
_VIT = _Processor(_SQUARE, False, True, 2, _HALF, _HALF)
PROCESSORS = {"CLIP": _CLIP, "ChineseCLIP": _CLIP, "Bit": _CLIP, "Siglip": _SIGLIP, "ViT": _VIT}
_KINDS = ("ImageProcessor", "ImageProcessorFast", "ImageProcessorPil", "FeatureExtractor")

# Fields that do not change the pixel values. `do_convert_rgb`: pictures always get the channels of the model.
HARMLESS = {
    "processor_class", "_processor_class", "data_format", "input_data_format", "device", "return_tensors",
    "disable_grouping", "image_seq_length", "_valid_processor_keys", "do_convert_rgb", "use_fast",
    "_name_or_path", "name_or_path", "transformers_version", "torch_dtype", "dtype",
}  # fmt: skip
# Fields that are supported with this value only.
FIXED = {
    "do_pad": False, "pad_size": None, "size_divisor": None, "do_flip_channel_order": False, "crop_pct": None,
    "use_square_size": False, "auto_map": None, "do_reduce_labels": False,
}  # fmt: skip


@names_its_file
def preprocess_of(data: Mapping[str, Any], vision: VisionConfig, where: str) -> PreprocessConfig:
    """Converts transformers' `preprocessor_config.json`, or `image_processor` of `processor_config.json`.

    Args:
        data: the content of the file.
        vision: the image tower, whose image size and channels the file must have.
        where: how an error names the file.

    Raises:
        UserError: the size differs, or a setting is not supported; the error names the field.
    """
    if "image_processor" in data:
        data = Settings(data, where).inner("image_processor").data
    data = Settings(data, where).data
    # transformers' fast processors write every field; null means the default of the class.
    settings = Settings({name: value for name, value in data.items() if value is not None}, where)
    usual = _processor(settings, vision)
    settings.fixed(FIXED)
    resize, to, side = _sizes(settings, usual)
    if side != vision.image_size:
        raise UserError(
            f"{where}: the pictures become {side} pixels wide, image_size of the model is {vision.image_size}: "
            "take the file of this checkpoint"
        )
    resample = settings.get("resample", usual.resample)
    if isinstance(resample, bool) or not isinstance(resample, int) or resample not in RESAMPLE:
        known = ", ".join(f"{number} ({name})" for number, name in RESAMPLE.items())
        raise UserError(f"{where}: resample is {brief(resample)}, supported are {known}: set one of them")
    mean, std = _normalisation(settings, usual, vision.channels)
    settings.done(HARMLESS)
    try:
        return PreprocessConfig(
            mean=mean,
            std=std,
            resize=resize,  # type: ignore[arg-type]
            interpolation=RESAMPLE[resample],  # type: ignore[arg-type]
            resize_to=None if to == side else to,
            crop="round" if (resize, to) == ("squash", side) else "floor",  # has no effect without a crop
        )
    except UserError as error:
        raise located(where, error) from error


def _processor(settings: Settings, vision: VisionConfig) -> _Processor:
    usual = _SIGLIP if getattr(vision, "pool", None) == "map" else _CLIP
    processors: dict[str, _Processor] = {}
    for name in ("image_processor_type", "feature_extractor_type"):
        kind = settings.get(name)
        family = next((f for f in PROCESSORS for end in _KINDS if kind == f + end), None)
        if kind is not None and family is None:
            known = ", ".join(f"{family}ImageProcessor" for family in PROCESSORS)
            raise settings.error(name, f"supported are {known}")
        processors |= {} if family is None else {name: PROCESSORS[family]}
    if len(processors) == 2 and processors["image_processor_type"] != processors["feature_extractor_type"]:
        other = settings.get("feature_extractor_type")
        raise settings.error("image_processor_type", f"feature_extractor_type is {other}, which does other things")
    return next(iter(processors.values()), usual)


def _sizes(settings: Settings, usual: _Processor) -> tuple[str, int | None, int]:
    """(resize mode, side to resize to, side after the crop), in pixels."""
    square = settings.get("default_to_square", usual.square)
    edge, both = _size(settings, "size", usual.size, square)
    settings.get("crop_size")  # has no effect without a crop: counts as read
    if not settings.flag("do_center_crop", usual.crop):
        if not settings.flag("do_resize", True):
            raise settings.error("do_resize", "without resizing and cropping the pictures stay of any size: set one")
        if both is None:
            raise settings.error("size", "without do_center_crop the pictures stay rectangles: give height and width")
        return "squash", both, both
    cut, side = _size(settings, "crop_size", _SQUARE, True)
    if side is None:
        raise settings.error("crop_size", f"a crop has a height and a width, not a shortest_edge {cut}")
    if not settings.flag("do_resize", True):
        return "none", None, side
    return ("shortest", edge, side) if both is None else ("squash", both, side)


def _size(settings: Settings, name: str, default: Any, square: bool | None) -> tuple[int | None, int | None]:
    """(shortest edge, None) or (None, side of a square), in pixels. Raises UserError for any other size."""
    value = settings.get(name, default)
    if isinstance(value, int) and not isinstance(value, bool):
        if square is None:
            raise settings.error(name, 'this processor needs {"height": …, "width": …}')
        value = {"height": value, "width": value} if square else {"shortest_edge": value}
    if isinstance(value, list) and len(value) == 2:
        value = {"height": value[0], "width": value[1]}
    value = {key: side for key, side in value.items() if side is not None} if isinstance(value, Mapping) else None
    if value is None or any(isinstance(side, bool) or not isinstance(side, int) or side < 1 for side in value.values()):
        raise settings.error(name, "it must be a number of pixels, or an object of them")
    if value.keys() == {"shortest_edge"}:
        return value["shortest_edge"], None
    if value.keys() != {"height", "width"}:
        raise settings.error(name, "supported are shortest_edge, or height and width")
    if value["height"] != value["width"]:
        raise settings.error(name, "it is not square: only square pictures are supported")
    return None, value["height"]


def _normalisation(settings: Settings, usual: _Processor, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std for pixels p/255, with k = 255 · factor: (p · factor − mean) / std = (p/255 − mean/k) / (std/k)."""
    rescale, factor = settings.flag("do_rescale", True), settings.number("rescale_factor", 1 / 255)
    k = 255 * (factor if rescale else 1.0)
    if not k > 0:
        raise settings.error("rescale_factor", "it must be a number above 0")
    k = 1.0 if math.isclose(k, 1.0, rel_tol=1e-9) else k
    normalise = settings.flag("do_normalize", True)
    mean, std = (
        _numbers(settings, name, default, channels)
        for name, default in (("image_mean", usual.mean), ("image_std", usual.std))
    )
    if not normalise:
        mean, std = (0.0,) * channels, (1.0,) * channels
    return (mean, std) if k == 1.0 else (tuple(m / k for m in mean), tuple(s / k for s in std))


def _numbers(settings: Settings, name: str, default: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """One number per channel; a single number is used for all channels."""
    value = settings.get(name, default)
    values = tuple(value) if isinstance(value, list | tuple) else (value,) * channels
    if not all(isinstance(x, int | float) and not isinstance(x, bool) and abs(x) < math.inf for x in values):
        raise settings.error(name, "it must be a list of numbers")
    if len(values) != channels:
        raise UserError(
            f"{settings.where}: {name} has {len(values)} numbers, the pictures have {channels} channels: give as many"
        )
    return values


def preprocess_to_json(preprocess: PreprocessConfig, size: int, kind: str) -> dict[str, Any]:
    """The content of transformers' `preprocessor_config.json` for our preprocessing.

    `PreprocessConfig.crop` is lost: where an odd number of pixels is cropped, transformers' crop may begin one pixel
    before torchvision's, and its processors have no setting for that.

    Args:
        preprocess: our preprocessing.
        size: the image size of the model in pixels.
        kind: the class of the processor, such as "CLIPImageProcessor".
    """
    to, squash = preprocess.resize_to or size, preprocess.resize == "squash"
    crop = not squash or to != size
    return {
        "image_processor_type": kind,
        "do_resize": preprocess.resize != "none",
        "size": {"height": to, "width": to} if squash else {"shortest_edge": to},
        "do_center_crop": crop,
        **({"crop_size": {"height": size, "width": size}} if crop else {}),
        "resample": {name: number for number, name in RESAMPLE.items()}[preprocess.interpolation],
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocess.mean),
        "image_std": list(preprocess.std),
        "do_convert_rgb": len(preprocess.mean) == 3,
    }
