"""The dataset: pictures of one coloured shape on grey, with captions that name its four attributes.

Some pairs of shape and colour are held out of training, to test composition. An example is a pure function of (split,
index, seed, resolution); nothing is downloaded. The resolution does not change what the picture shows.
"""

import itertools
import math
from typing import NamedTuple

import numpy as np

from shapes_world.render import Scene, draw

SIZES = ("small", "large")
COLOUR_RGB = {
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (50, 80, 220),
    "yellow": (240, 210, 40),
    "purple": (150, 60, 190),
    "orange": (240, 130, 30),
}
COLOURS = tuple(COLOUR_RGB)
SHAPES = ("circle", "square", "triangle", "star")
POSITIONS = ("top left", "top right", "bottom left", "bottom right")

# Sizes and positions, in units of the image's side. Radii are those of the circumscribed circle, chosen so that the
# areas of the four shapes are comparable and the largest object at its outermost position still lies inside the image.
LARGE_RADIUS = {"circle": 0.150, "square": 0.185, "triangle": 0.205, "star": 0.205}
SIZE_SCALE = {"small": 0.65, "large": 1.0}
POSITION_CENTRE = {
    "top left": (0.27, 0.27),
    "top right": (0.73, 0.27),
    "bottom left": (0.27, 0.73),
    "bottom right": (0.73, 0.73),
}

# How examples of the same labels differ: each quantity is jittered uniformly between minus and plus this much.
CENTRE_JITTER = 0.04
SIZE_JITTER = 0.10
ROTATION_JITTER = {"circle": 10.0, "square": 8.0, "triangle": 10.0, "star": 10.0}  # degrees
BACKGROUND_RANGE = (90.0, 215.0)  # grey level; every palette colour is more than 90 away (in RGB) from every grey

# One pair per shape is held out of training; each of these shapes and colours is trained on in other pairs.
HELD_OUT_PAIRS = frozenset({("star", "red"), ("circle", "green"), ("triangle", "blue"), ("square", "yellow")})
SPLIT_SIZES = {"train": 20_000, "test": 2_000, "heldout": 1_000}

# No template has an article directly before {colour}, which would give "a orange".
TEMPLATES = (
    "a {size} {colour} {shape} in the {position}",
    "in the {position} there is a {size} {colour} {shape}",
    "{size} {colour} {shape}, {position}",
    "the {shape} in the {position} corner is {size} and {colour}",
    "{position}: one {size} {shape} in {colour}",
    "a picture of one {colour} {shape} that is {size}, at the {position}",
    "a {shape}, {colour} and {size}, sits in the {position} of a plain grey picture",
    "{colour} {shape} of {size} size drawn in the {position}",
)


class Labels(NamedTuple):
    """The attributes of an object, as indices into `SIZES`, `COLOURS`, `SHAPES` and `POSITIONS`."""

    size: int
    colour: int
    shape: int
    position: int

    @property
    def words(self) -> dict[str, str]:
        """The attributes by name, e.g. {"size": "small", "colour": "red", "shape": "star", "position": "top left"}."""
        return {
            "size": SIZES[self.size],
            "colour": COLOURS[self.colour],
            "shape": SHAPES[self.shape],
            "position": POSITIONS[self.position],
        }


class Example(NamedTuple):
    """A picture, its caption and its labels."""

    image: np.ndarray  # uint8 [R, R, 3]
    caption: str
    labels: Labels


ALL_COMBINATIONS = tuple(
    Labels(*indices) for indices in itertools.product(*(range(len(v)) for v in (SIZES, COLOURS, SHAPES, POSITIONS)))
)


def is_held_out(labels: Labels) -> bool:
    """Whether the (shape, colour) pair of these labels is held out of training."""
    return (SHAPES[labels.shape], COLOURS[labels.colour]) in HELD_OUT_PAIRS


SEEN_COMBINATIONS = tuple(labels for labels in ALL_COMBINATIONS if not is_held_out(labels))
HELD_OUT_COMBINATIONS = tuple(labels for labels in ALL_COMBINATIONS if is_held_out(labels))


def combinations(split: str) -> tuple[Labels, ...]:
    """The label combinations of a split: the 160 seen ones for "train" and "test", the 32 held-out ones for "heldout".

    Raises:
        ValueError: there is no such split.
    """
    _split_id(split)
    return HELD_OUT_COMBINATIONS if split == "heldout" else SEEN_COMBINATIONS


def caption(labels: Labels, template: int = 0) -> str:
    """The caption of these labels by `TEMPLATES[template]`; it is lower case and names all four attributes."""
    return TEMPLATES[template].format(**labels.words)


def scene(labels: Labels, rng: np.random.Generator) -> Scene:
    """A random scene with these labels.

    Background, x, y, size and rotation are drawn from `rng` in this order, whatever the labels.
    """
    words = labels.words
    u = rng.uniform(-1, 1, size=5)
    low, high = BACKGROUND_RANGE
    x, y = POSITION_CENTRE[words["position"]]
    return Scene(
        shape=words["shape"],
        rgb=COLOUR_RGB[words["colour"]],
        background=low + (high - low) * (u[0] + 1) / 2,
        centre=(x + CENTRE_JITTER * u[1], y + CENTRE_JITTER * u[2]),
        radius=LARGE_RADIUS[words["shape"]] * SIZE_SCALE[words["size"]] * (1 + SIZE_JITTER * u[3]),
        rotation=math.radians(ROTATION_JITTER[words["shape"]] * u[4]),
    )


def render(labels: Labels, rng: np.random.Generator, resolution: int = 64) -> np.ndarray:
    """Draws a random picture with these labels: uint8 [R, R, 3]."""
    return draw(scene(labels, rng), resolution)


def example(split: str, index: int, *, seed: int = 0, resolution: int = 64) -> Example:
    """Example `index` of a split; a pure function of its arguments.

    Splits are infinite: `SPLIT_SIZES` says how many examples the prepared dataset contains.

    Args:
        split: "train", "test" or "heldout".
        index: number of the example, >= 0.
        seed: seed of the world, >= 0.
        resolution: side of the picture in pixels, R.

    Returns:
        Image uint8 [R, R, 3], caption and labels.

    Raises:
        ValueError: there is no such split, or `index` or `seed` is negative.
    """
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, _split_id(split), index])))
    choices = combinations(split)
    labels = choices[rng.integers(len(choices))]
    template = int(rng.integers(len(TEMPLATES)))
    return Example(render(labels, rng, resolution), caption(labels, template), labels)


def _split_id(split: str) -> int:
    if split not in SPLIT_SIZES:
        raise ValueError(f"no split {split!r} in the shapes world; choose from {', '.join(SPLIT_SIZES)}")
    return list(SPLIT_SIZES).index(split)
