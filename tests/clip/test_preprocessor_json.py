"""transformers' `preprocessor_config.json`: what its processor would do, pixel by pixel, or a refusal."""

import json

import numpy as np
import pytest
from PIL import Image

from clip_jax import PreprocessConfig, UserError, ViTConfig
from clip_jax.images import Preprocess
from clip_jax.weights.huggingface_images import preprocess_of, preprocess_to_json

VISION = ViTConfig(image_size=32, patch_size=8, width=64, layers=1, heads=1)
LARGE = ViTConfig(image_size=224, patch_size=8, width=64, layers=1, heads=1)
BASE = {
    "image_processor_type": "CLIPImageProcessor", "do_resize": True, "size": {"shortest_edge": 32},
    "do_center_crop": True, "crop_size": {"height": 32, "width": 32}, "do_rescale": True, "rescale_factor": 1 / 255,
    "do_normalize": True, "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711], "resample": 3, "do_convert_rgb": True,
}  # fmt: skip
PICTURE = np.random.default_rng(0).integers(0, 256, (70, 51, 3), np.uint8)
MEAN, STD = np.array(BASE["image_mean"]), np.array(BASE["image_std"])


def read(**changes):
    data = {name: value for name, value in {**BASE, **changes}.items() if value is not ...}
    return preprocess_of(json.loads(json.dumps(data)), VISION, "preprocessor_config.json")


def seen(**changes):
    return Preprocess(read(**changes), 32)(PICTURE)[0]


def test_as_published():
    assert read() == PreprocessConfig(crop="floor")
    older = {"image_processor_type": ..., "feature_extractor_type": "CLIPFeatureExtractor"}
    assert read(size=32, crop_size=32, **older) == read()
    assert read(image_mean=..., image_std=..., do_rescale=..., rescale_factor=..., resample=...) == read()


def test_null_stands_for_what_the_class_does():
    """The fast processors of transformers 4.5x write all their fields, most of them null."""
    names = ("do_resize", "size", "do_center_crop", "do_rescale", "rescale_factor", "do_normalize", "image_mean")
    assert preprocess_of({**BASE, "size": None, "crop_size": None}, LARGE, "x") == PreprocessConfig(crop="floor")
    for name in {*names, "resample", "image_std", "do_pad", "data_format"} - {"size"}:
        assert read(**{name: None}) == read(), name
    assert read(image_processor_type="BitImageProcessor") == read()
    square = {"image_processor_type": "SiglipImageProcessorFast", "size": {"height": 32, "width": 32}}
    siglip = read(**square, do_center_crop=None, crop_size=None, default_to_square=True, device=None)
    assert (siglip.resize, siglip.resize_to) == ("squash", None)


def test_resized_larger_than_cropped():
    """36 pixels, of which 32 are cut out; the odd remainder of the long side (49 − 32) is rounded down."""
    small = Image.fromarray(PICTURE).resize((36, 49), Image.Resampling.BICUBIC)
    pixels = np.asarray(small)[8:40, 2:34]
    np.testing.assert_allclose(seen(size={"shortest_edge": 36}), (pixels / 255 - MEAN) / STD, atol=1e-5)
    squashed = Image.fromarray(PICTURE).resize((36, 36), Image.Resampling.BICUBIC)
    found = seen(size={"height": 36, "width": 36})
    np.testing.assert_allclose(found, (np.asarray(squashed)[2:34, 2:34] / 255 - MEAN) / STD, atol=1e-5)


def test_a_crop_begins_where_transformers_begins():
    """35 × 48 pixels: 3 are too many, of which one is left out before, where torchvision leaves out two."""
    small = Image.fromarray(PICTURE).resize((35, 48), Image.Resampling.BICUBIC)
    expected = (np.asarray(small)[8:40, 1:33] / 255 - MEAN) / STD
    np.testing.assert_allclose(seen(size={"shortest_edge": 35}), expected, atol=1e-5)


def test_not_resized():
    expected = (PICTURE[19:51, 9:41] / 255 - MEAN) / STD
    np.testing.assert_allclose(seen(do_resize=False), expected, atol=1e-5)
    small = np.full((20, 40, 3), 255, np.uint8)
    bordered = Preprocess(read(do_resize=False, do_normalize=False), 32)(small)[0]
    assert (bordered[6:26] == 1).all()
    assert not bordered[:6].any()
    assert not bordered[26:].any()


def test_numbers_as_the_file_has_them():
    pixels = np.asarray(Image.fromarray(PICTURE).resize((32, 43), Image.Resampling.BICUBIC))[5:37].astype(float)
    for changes, expected in [
        ({"rescale_factor": 1 / 127.5}, (pixels / 127.5 - MEAN) / STD),
        ({"do_rescale": False}, (pixels - MEAN) / STD),
        ({"do_normalize": False}, pixels / 255),
        ({"do_normalize": False, "do_rescale": False}, pixels),
        ({"image_mean": 0.5, "image_std": 0.25}, (pixels / 255 - 0.5) / 0.25),
    ]:
        np.testing.assert_allclose(seen(**changes), expected, rtol=1e-5, atol=1e-5)


def test_other_processors_have_other_defaults():
    square = {"size": {"height": 32, "width": 32}, "do_center_crop": ..., "crop_size": ...}
    half = {"image_mean": ..., "image_std": ..., "resample": ...}
    siglip = read(image_processor_type="SiglipImageProcessor", **square, **half)
    assert siglip == PreprocessConfig(mean=(0.5,) * 3, std=(0.5,) * 3, resize="squash")
    vit = read(image_processor_type="ViTFeatureExtractor", **{**square, "size": 32}, **half)
    assert (vit.resize, vit.interpolation) == ("squash", "bilinear")
    assert read(image_processor_type="CLIPImageProcessorFast") == read()
    assert [read(resample=n).interpolation for n in range(6)] == [
        "nearest", "lanczos", "bilinear", "bicubic", "box", "hamming",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"new_idea": 3}, ["new_idea is 3", "not known"]),
        ({"do_pad": True}, ["do_pad is True"]),
        ({"image_processor_type": "BlipImageProcessor"}, ["image_processor_type", "CLIPImageProcessor"]),
        ({"do_center_crop": False}, ["size", "rectangles"]),
        ({"do_center_crop": False, "do_resize": False}, ["do_resize is False", "any size"]),
        ({"do_resize": "no"}, ["do_resize is 'no'", "true or false"]),
        ({"size": {"longest_edge": 32}}, ["size", "shortest_edge"]),
        ({"size": {"shortest_edge": 32, "longest_edge": 64}}, ["size", "longest_edge"]),
        ({"size": "x"}, ["size is 'x'"]),
        ({"size": {"shortest_edge": -1}}, ["size", "pixels"]),
        ({"crop_size": {"height": 32, "width": 48}}, ["crop_size", "square"]),
        ({"crop_size": 24}, ["24 pixels wide", "image_size of the model is 32"]),
        ({"crop_size": {"shortest_edge": 32}}, ["crop_size", "height and a width"]),
        ({"resample": 7}, ["resample is 7", "3 (bicubic)"]),
        ({"resample": "bicubic"}, ["resample is 'bicubic'"]),
        ({"rescale_factor": 0}, ["rescale_factor", "above 0"]),
        ({"rescale_factor": "x"}, ["rescale_factor is 'x'"]),
        ({"image_mean": ["a", "b", "c"]}, ["image_mean", "numbers"]),
        ({"image_mean": [0.5]}, ["image_mean has 1 numbers", "3 channels"]),
        ({"image_std": [1, 1, 0]}, ["std"]),
        ({"image_processor_type": "SiglipImageProcessor", "size": 32}, ["size is 32", "height"]),
        ({"feature_extractor_type": "SiglipFeatureExtractor"}, ["image_processor_type", "SiglipFeatureExtractor"]),
        ({"auto_map": {"AutoImageProcessor": "x.Y"}}, ["auto_map"]),
    ],
)
def test_what_is_not_followed_is_refused_by_name(changes, words):
    with pytest.raises(UserError) as error:
        read(**changes)
    assert all(word in str(error.value) for word in ["preprocessor_config.json", *words]), error.value


@pytest.mark.parametrize(
    "config",
    [
        PreprocessConfig(crop="floor"),
        PreprocessConfig(resize="squash", interpolation="bilinear"),
        PreprocessConfig(resize_to=36, crop="floor"),
        PreprocessConfig(resize="squash", resize_to=40, crop="floor", interpolation="lanczos"),
        PreprocessConfig(resize="none", crop="floor"),
    ],
)
def test_there_and_back(config):
    data = json.loads(json.dumps(preprocess_to_json(config, 32, "CLIPImageProcessor")))
    assert preprocess_of(data, VISION, "x") == config


@pytest.mark.parity
@pytest.mark.parametrize(
    "changes",
    [
        {}, {"size": {"shortest_edge": 36}}, {"size": {"shortest_edge": 35}}, {"size": {"height": 41, "width": 41}},
        {"do_resize": False}, {"rescale_factor": 1 / 127.5}, {"do_rescale": False}, {"do_normalize": False},
        {"do_convert_rgb": False}, {"image_mean": 0.5, "image_std": 0.5}, *({"resample": n} for n in (0, 1, 2, 4, 5)),
        {"size": {"height": 32, "width": 32}, "do_center_crop": False}, {"crop_size": 32, "size": 40},
    ],
)  # fmt: skip
def test_transformers_sees_the_same(changes):
    module = pytest.importorskip("transformers.models.clip.image_processing_pil_clip")
    options = {**BASE, **changes}
    del options["image_processor_type"]
    processor = module.CLIPImageProcessorPil(**options)
    rng = np.random.default_rng(1)
    for shape in ((70, 51, 3), (33, 60, 3), (20, 31, 3), (100, 35, 3), (32, 32, 3)):
        picture = rng.integers(0, 256, shape, np.uint8)
        theirs = processor(Image.fromarray(picture), return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
        np.testing.assert_allclose(Preprocess(read(**changes), 32)(picture)[0], theirs, rtol=2e-6, atol=2e-5)
