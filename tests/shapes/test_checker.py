"""The checker reads every real picture and no damaged one."""

import itertools

import numpy as np
import pytest
from PIL import Image, ImageFilter

from shapes_world import (
    ALL_COMBINATIONS,
    COLOURS,
    MIN_IOU,
    SPLIT_SIZES,
    Checked,
    Labels,
    check,
    combinations,
    exact_match,
    example,
    render,
    scene,
)


def pictures(count: int, *, split: str = "test", resolution: int = 64) -> tuple[np.ndarray, np.ndarray]:
    examples = [example(split, index, seed=11, resolution=resolution) for index in range(count)]
    return np.stack([e.image for e in examples]), np.array([e.labels for e in examples])


@pytest.fixture(scope="module")
def real() -> tuple[np.ndarray, np.ndarray]:
    return pictures(64)


@pytest.mark.slow
@pytest.mark.parametrize("resolution", [32, 64])
def test_recovers_the_labels_of_every_combination(resolution):
    rng = np.random.default_rng(0)
    images = np.stack([render(labels, rng, resolution) for labels in ALL_COMBINATIONS])
    checked = check(images)
    np.testing.assert_array_equal(checked.labels, ALL_COMBINATIONS)
    assert exact_match(checked, ALL_COMBINATIONS).all()
    assert checked.iou.min() > 0.85


def test_measures_what_was_drawn():
    scenes, images = [], []
    for index, labels in enumerate(ALL_COMBINATIONS[::7]):
        scenes.append(scene(labels, np.random.default_rng(index)))
        images.append(render(labels, np.random.default_rng(index)))
    checked = check(np.stack(images))
    np.testing.assert_allclose(checked.centre, [s.centre for s in scenes], atol=2e-3)
    np.testing.assert_allclose(checked.background, [s.background for s in scenes], atol=0.51)
    circles = [index for index, s in enumerate(scenes) if s.shape == "circle"]
    np.testing.assert_allclose(checked.extent[circles], [scenes[i].radius for i in circles], rtol=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("resolution", [32, 64])
@pytest.mark.parametrize("split", SPLIT_SIZES)
def test_ceiling(split, resolution):
    images, labels = pictures(1000, split=split, resolution=resolution)
    assert exact_match(check(images), labels).mean() >= 0.995


@pytest.mark.slow
def test_rolled_labels_match_by_chance_only():
    # With n pictures over c combinations a wrong label matches once in c.
    for split in ("test", "heldout"):
        images, labels = pictures(1000, split=split)
        chance = 1 / len(combinations(split))
        matched = exact_match(check(images), np.roll(labels, 1, axis=0)).mean()
        assert abs(matched - chance) < 4 * np.sqrt(chance / 1000)


def test_one_wrong_attribute_is_no_match(real):
    images, labels = real
    checked = check(images)
    for attribute in range(4):
        wrong = labels.copy()
        wrong[:, attribute] = (wrong[:, attribute] + 1) % 2
        assert not exact_match(checked, wrong)[wrong[:, attribute] != labels[:, attribute]].any()


def filtered(images: np.ndarray, function) -> np.ndarray:
    return np.stack([np.asarray(function(Image.fromarray(image))) for image in images])


@pytest.mark.parametrize(
    "milden",
    [
        lambda images: filtered(images, lambda image: image.filter(ImageFilter.GaussianBlur(0.8))),
        lambda images: filtered(images, lambda image: image.resize((32, 32), Image.Resampling.BOX).resize((64, 64))),
        lambda images: (images.astype(int) + np.random.default_rng(0).integers(-8, 9, images.shape)).clip(0, 255),
        lambda images: images * 0.85 + 20,  # paler colours
    ],
    ids=["slight blur", "32 to 64", "slight noise", "paler"],
)
def test_tolerates_what_a_good_generator_may_do(real, milden):
    images, labels = real
    assert exact_match(check(milden(images).astype(np.uint8)), labels).mean() > 0.98


def half_wiped(images: np.ndarray) -> np.ndarray:
    """Wipe the half of the object that lies left of its centre."""
    cut = images.copy()
    for image, (x, _) in zip(cut, check(images).centre, strict=True):
        image[:, : round(x * 64)] = image[0, 0]
    return cut


@pytest.mark.parametrize(
    "damage",
    [
        lambda images: filtered(images, lambda image: image.filter(ImageFilter.GaussianBlur(4))),
        lambda images: np.where((images == images[:, :1, :1]).all(-1, keepdims=True), images[:, :, ::-1], images),
        half_wiped,
        lambda images: np.random.default_rng(0).integers(0, 256, images.shape),
        lambda images: np.full_like(images, 128),
        lambda images: images.mean(-1, keepdims=True).repeat(3, -1),  # no colour left
        lambda images: np.broadcast_to(255 * (np.indices((64, 64)).sum(0) % 2)[:, :, None], images.shape),
    ],
    ids=["blurred", "two objects", "half an object", "noise", "blank", "grey", "checkerboard"],
)
def test_damaged_pictures_show_nothing(real, damage):
    images, labels = real
    checked = check(damage(images).astype(np.uint8))
    assert (checked.labels == -1).all()
    assert not exact_match(checked, labels).any()


def painted(colour: int, size: int, shape: int, position: int) -> np.ndarray:
    return render(Labels(size, colour, shape, position), np.random.default_rng(0))


@pytest.mark.parametrize("size", range(2))
@pytest.mark.parametrize("second", range(2))
def test_a_second_object_of_any_colour_is_seen(size, second):
    """Also where its colour lies opposite to the first one's, as seen from the background."""
    images = []
    for one, other in itertools.permutations(range(len(COLOURS)), 2):
        image, addition = painted(one, size, shape=3, position=0), painted(other, second, shape=0, position=3)
        images.append(np.where((addition == addition[0, 0]).all(-1, keepdims=True), image, addition))
    assert (check(np.stack(images)).labels == -1).all()


@pytest.mark.parametrize("background", [(0, 200, 0), (40, 60, 220), (240, 240, 60), (160, 120, 120)])
def test_the_background_has_to_be_grey(background):
    image = painted(0, size=1, shape=3, position=0)
    coverage = (image.astype(float) - image[0, 0])[..., :1] / (220.0 - image[0, 0, 0])
    image = coverage * (220, 40, 40) + (1 - coverage) * background
    assert (check(image.astype(np.uint8)[None]).labels == -1).all()


def test_soft_blobs_do_not_pass_for_shapes():
    at = (np.arange(64) + 0.5) / 64 - 0.27
    blob = np.exp(-(at[:, None] ** 2 + at**2) / (2 * 0.08**2))[..., None]
    image = (128 + blob * (np.array([220, 40, 40]) - 128)).astype(np.uint8)
    checked = check(image[None])
    assert checked.iou[0] < MIN_IOU
    assert (checked.labels == -1).all()


def test_each_picture_is_judged_alone(real):
    images, _ = real
    together = check(images)
    for index in (0, 5, 63):
        alone = check(images[index : index + 1])
        for field in Checked._fields:
            np.testing.assert_array_equal(getattr(alone, field)[0], getattr(together, field)[index])


def test_no_pictures_and_nothing_found():
    assert check(np.zeros((0, 64, 64, 3), np.uint8)).labels.shape == (0, 4)
    checked = check(np.full((2, 32, 32, 3), 90, np.uint8))
    assert (checked.iou == 0).all()
    assert np.isnan(checked.centre).all()
    assert (checked.background == 90).all()


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((1, 64, 64, 3), np.float32),
        np.zeros((64, 64, 3), np.uint8),
        np.zeros((1, 64, 32, 3), np.uint8),
        np.zeros((1, 64, 64, 1), np.uint8),
        np.zeros((1, 8, 8, 3), np.uint8),
    ],
)
def test_wrong_input_is_refused(images):
    with pytest.raises(ValueError, match=r"reads uint8 images \[N, R, R, 3\]|use 16 or more"):
        check(images)


def test_one_label_for_many_pictures_is_refused(real):
    images, labels = real
    with pytest.raises(ValueError, match="cannot match"):
        exact_match(check(images[:2]), labels[:1])


def test_labels_are_in_the_order_of_the_vocabulary():
    checked = check(render(Labels(size=1, colour=2, shape=3, position=1), np.random.default_rng(0))[None])
    assert Labels(*checked.labels[0]).words == {
        "size": "large",
        "colour": "blue",
        "shape": "star",
        "position": "top right",
    }
