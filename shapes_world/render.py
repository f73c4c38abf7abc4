"""Drawing: a scene in unit coordinates becomes pixels, at any resolution the same picture.

Coordinates run from 0 to 1 over the image, x to the right and y downwards. `radius` is that of the circumscribed circle
and `centre` is every shape's centroid, which is what lets the checker find a shape by its centre of mass.
"""

import math
from typing import NamedTuple

import numpy as np

# Samples per pixel side. Each is itself softened by its distance to the outline, so two are enough for sharp star tips.
SUPERSAMPLING = 2


class Polygon(NamedTuple):
    """A polygon of `tips` equal tips: radius 1 at a tip, `waist` halfway between two; one tip is `turn` rad from up."""

    tips: int
    waist: float
    turn: float = 0.0


POLYGONS = {
    "square": Polygon(4, waist=math.cos(math.pi / 4), turn=math.pi / 4),
    "triangle": Polygon(3, waist=math.cos(math.pi / 3)),
    "star": Polygon(5, waist=0.48),  # fatter than the pentagram's 0.38, so that its arms survive at 32 pixels
}


class Scene(NamedTuple):
    """One object on a plain background, in unit coordinates."""

    shape: str  # "circle" or a key of POLYGONS
    rgb: tuple[int, int, int]
    centre: tuple[float, float]  # (x, y)
    radius: float  # of the circumscribed circle
    rotation: float  # radians, clockwise
    background: float  # grey level, 0 to 255


def signed_distance(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Distance to the outline of the shape of radius 1 around the origin, negative inside.

    Beyond a tip it is the distance to the line of the nearer edge: the tip is mitred, not rounded.

    Args:
        shape: "circle" or a key of `POLYGONS` (else KeyError).
        x: to the right; broadcasts with `y`, and the result has their common shape.
        y: downwards.
    """
    r = np.hypot(x, y)
    if shape == "circle":
        return r - 1
    tips, waist, turn = POLYGONS[shape]
    # All tips are alike and symmetric: fold the angle into the half wedge [0, π/tips] beside one of them. There the
    # outline is one segment, from the tip (1, 0) to the waist, and the distance a projection on its outward normal.
    half = math.pi / tips
    angle = np.abs((np.arctan2(x, -y) - turn + half) % (2 * half) - half)
    normal_x, normal_y = waist * math.sin(half), 1 - waist * math.cos(half)
    along_normal = (r * np.cos(angle) - 1) * normal_x + r * np.sin(angle) * normal_y
    return along_normal / math.hypot(normal_x, normal_y)


def coverage(shape: str, centre: tuple[float, float], radius: float, rotation: float, resolution: int) -> np.ndarray:
    """How much of each pixel the shape covers.

    Returns:
        float32 [R, R] in [0, 1]. What lies outside the image is cut off.
    """
    mask = np.zeros((resolution, resolution), np.float32)
    reach = radius + 1 / resolution
    x0, y0 = (max(math.floor((c - reach) * resolution), 0) for c in centre)
    x1, y1 = (min(math.ceil((c + reach) * resolution), resolution) for c in centre)
    if x0 >= x1 or y0 >= y1:
        return mask
    fine = resolution * SUPERSAMPLING
    samples = (np.arange(fine, dtype=np.float32) + 0.5) / fine
    x = (samples[None, x0 * SUPERSAMPLING : x1 * SUPERSAMPLING] - centre[0]) / radius
    y = (samples[y0 * SUPERSAMPLING : y1 * SUPERSAMPLING, None] - centre[1]) / radius
    cos, sin = math.cos(rotation), math.sin(rotation)
    distance = signed_distance(shape, cos * x + sin * y, cos * y - sin * x)
    inside = np.clip(0.5 - distance * (radius * fine), 0, 1)
    blocks = inside.reshape(y1 - y0, SUPERSAMPLING, x1 - x0, SUPERSAMPLING)
    mask[y0:y1, x0:x1] = blocks.mean(axis=(1, 3))
    return mask


def draw(scene: Scene, resolution: int = 64) -> np.ndarray:
    """The scene as a picture: uint8 [R, R, 3]."""
    mask = coverage(scene.shape, scene.centre, scene.radius, scene.rotation, resolution)[..., None]
    pixels = scene.background + mask * (np.asarray(scene.rgb, np.float32) - np.float32(scene.background))
    return np.rint(pixels).astype(np.uint8)
