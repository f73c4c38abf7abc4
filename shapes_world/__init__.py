"""The shapes world: a synthetic dataset of coloured shapes with captions, and a checker that reads the pictures.

    image, caption, labels = shapes_world.example("train", 0)        # uint8 [64, 64, 3], str, Labels
    shapes_world.exact_match(shapes_world.check(image[None]), [labels])    # array([True])

It depends on numpy only, so every package may import it.
"""

from shapes_world.checker import MIN_IOU, Checked, check, exact_match
from shapes_world.render import Scene, draw
from shapes_world.version import __version__
from shapes_world.world import (
    ALL_COMBINATIONS,
    COLOUR_RGB,
    COLOURS,
    HELD_OUT_PAIRS,
    POSITIONS,
    SHAPES,
    SIZES,
    SPLIT_SIZES,
    TEMPLATES,
    Example,
    Labels,
    caption,
    combinations,
    example,
    is_held_out,
    render,
    scene,
)

__all__ = [
    "ALL_COMBINATIONS",
    "COLOURS",
    "COLOUR_RGB",
    "HELD_OUT_PAIRS",
    "MIN_IOU",
    "POSITIONS",
    "SHAPES",
    "SIZES",
    "SPLIT_SIZES",
    "TEMPLATES",
    "Checked",
    "Example",
    "Labels",
    "Scene",
    "__version__",
    "caption",
    "check",
    "combinations",
    "draw",
    "exact_match",
    "example",
    "is_held_out",
    "render",
    "scene",
]
