"""The renderer against geometry: areas, centroids, symmetry, and the same picture at every resolution."""

import itertools
import math

import numpy as np
import pytest

from shapes_world import ALL_COMBINATIONS, COLOUR_RGB, SHAPES, Labels, Scene, draw, example, render
from shapes_world.render import POLYGONS, coverage


def area(shape: str) -> float:
    """Area of the shape of radius 1: π, or 2·tips triangles between the centre, a tip and a waist."""
    if shape == "circle":
        return math.pi
    polygon = POLYGONS[shape]
    return polygon.tips * polygon.waist * math.sin(math.pi / polygon.tips)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rotation", [0.0, 0.15, -0.1])
def test_area_and_centroid(shape, rotation):
    resolution, centre, radius = 64, (0.4173, 0.5519), 0.21
    mask = coverage(shape, centre, radius, rotation, resolution)
    assert mask.dtype == np.float32
    assert mask.min() == 0
    assert mask.max() == 1
    assert mask.sum() / resolution**2 == pytest.approx(area(shape) * radius**2, rel=0.01)
    at = (np.arange(resolution) + 0.5) / resolution
    assert mask.sum(0) @ at / mask.sum() == pytest.approx(centre[0], abs=1e-3)
    assert mask.sum(1) @ at / mask.sum() == pytest.approx(centre[1], abs=1e-3)


@pytest.mark.parametrize("shape", POLYGONS)
def test_turning_by_one_tip_changes_nothing(shape):
    turned = coverage(shape, (0.5, 0.5), 0.3, 2 * math.pi / POLYGONS[shape].tips, 48)
    np.testing.assert_allclose(turned, coverage(shape, (0.5, 0.5), 0.3, 0.0, 48), atol=1e-4)


def test_rotation_is_clockwise():
    # A triangle's tip points up; turned clockwise a little, the top of the mask moves to the right.
    upright, turned = (coverage("triangle", (0.5, 0.5), 0.4, rotation, 64) for rotation in (0.0, 0.2))
    top = [np.average(np.arange(64), weights=mask[mask.any(1)][0]) for mask in (upright, turned)]
    assert top[1] > top[0] + 2


def test_triangle_and_star_point_up_and_the_square_stands_on_its_side():
    for shape in ("triangle", "star"):
        rows = coverage(shape, (0.5, 0.5), 0.4, 0.0, 64).sum(1)
        assert 0 < rows[rows > 0][0] < 3  # the first row touched holds no more than a tip
    rows = coverage("square", (0.5, 0.5), 0.4, 0.0, 64).sum(1)
    assert np.ptp(rows[rows > 0][1:-1]) < 1e-3


@pytest.mark.parametrize("resolution", [32, 64])
def test_twice_the_resolution_shows_the_same_picture(resolution):
    for index in range(100):
        once, twice = (example("test", index, resolution=r) for r in (resolution, 2 * resolution))
        assert once.caption == twice.caption
        assert once.labels == twice.labels
        boxed = twice.image.reshape(resolution, 2, resolution, 2, 3).mean((1, 3))
        difference = np.abs(boxed - once.image)
        assert difference.max() <= 26  # at the sharpest tips only
        assert difference.mean() < 0.1


def test_pictures_are_anti_aliased():
    for labels in ALL_COMBINATIONS[::11]:
        image = render(labels, np.random.default_rng(0))
        assert len(np.unique(image.reshape(-1, 3), axis=0)) > 15


def test_background_is_an_even_grey_and_the_middle_has_the_palette_colour():
    for index in range(50):
        image, _, labels = example("heldout", index)
        background = image[0, 0]
        assert np.ptp(background) == 0
        assert (image == background).all(-1).mean() > 0.8
        assert (image == COLOUR_RGB[labels.words["colour"]]).all(-1).sum() > 30


class Corner:
    """A generator that always draws one corner of the jitter."""

    def __init__(self, *draws: float):
        self.draws = np.array(draws)

    def uniform(self, low: float, high: float, size: int) -> np.ndarray:
        assert (low, high, size) == (-1, 1, len(self.draws))
        return self.draws


@pytest.mark.parametrize("shape", range(len(SHAPES)))
@pytest.mark.parametrize("position", range(4))
def test_whole_object_stays_inside_at_the_outermost_jitter(shape, position):
    for x, y, turn in itertools.product((-1, 1), (-1, 1), (-1, 0, 1)):
        image = render(Labels(1, 0, shape, position), Corner(0, x, y, 1, turn), 256)
        border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
        assert np.ptp(border, axis=0).max() == 0
        assert (image[128, 128] == image[0, 0]).all()


def test_an_object_beyond_the_border_is_cut_off():
    scene = Scene("circle", (220, 40, 40), (1.0, 0.5), 0.2, 0.0, 128.0)
    assert (draw(scene, 32)[:, :16] == 128).all()
    assert coverage("star", (-1.0, 0.5), 0.2, 0.0, 32).sum() == 0
    half = coverage("circle", (1.0, 0.5), 0.2, 0.0, 64).sum()
    assert half == pytest.approx(coverage("circle", (0.5, 0.5), 0.2, 0.0, 64).sum() / 2, rel=1e-4)


def test_image_type():
    image = render(Labels(1, 2, 3, 0), np.random.default_rng(0), 40)
    assert image.dtype == np.uint8
    assert image.shape == (40, 40, 3)
