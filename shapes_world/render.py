"""The renderer: draws a scene, given in unit coordinates, at any resolution.

Coordinates run from 0 to 1 over the image, x to the right and y downwards. `radius` is that of the circumscribed
circle. `centre` is the centroid of every shape, so that the checker finds a shape by its centre of mass.
"""

import math
from typing import NamedTuple

import numpy as np

# Samples per pixel side. Each sample is antialiased by its distance to the outline, so two suffice for star tips.
SUPERSAMPLING = 2


class Polygon(NamedTuple):
    """A regular polygon or star.

    Attributes:
        tips: number of tips, at radius 1.
        waist: radius of the outline halfway between two tips.
        turn: angle of the first tip from straight up, in radians, clockwise.
    """

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
    """Signed distance to the outline of a shape of radius 1 around the origin; negative inside.

    Beyond a tip it is the distance to the line through the nearer edge, so offsets of the outline have sharp tips.

    Args:
        shape: "circle" or a key of `POLYGONS`.
        x: coordinates to the right; broadcasts with `y`.
        y: coordinates downwards.

    Returns:
        Distances of the broadcast shape of `x` and `y`.

    Raises:
        KeyError: there is no such shape.
    """
    r = np.hypot(x, y)
    if shape == "circle":
        return r - 1
    tips, waist, turn = POLYGONS[shape]
    # By symmetry, fold the angle into the half wedge [0, π/tips] beside one tip. There the outline is one segment, from
    # the tip at (1, 0) to the waist, and the distance is the projection on its outward normal.
    half = math.pi / tips
    angle = np.abs((np.arctan2(x, -y) - turn + half) % (2 * half) - half)
    normal_x, normal_y = waist * math.sin(half), 1 - waist * math.cos(half)
    along_normal = (r * np.cos(angle) - 1) * normal_x + r * np.sin(angle) * normal_y
    return along_normal / math.hypot(normal_x, normal_y)


def coverage(shape: str, centre: tuple[float, float], radius: float, rotation: float, resolution: int) -> np.ndarray:
    """The coverage mask: the share of each pixel that the shape covers.

    Args:
        shape: "circle" or a key of `POLYGONS`.
        centre: (x, y) in unit coordinates.
        radius: of the circumscribed circle, in unit coordinates.
        rotation: in radians, clockwise.
        resolution: side of the image in pixels, R.

    Returns:
        float32 [R, R] in [0, 1]; parts of the shape outside the image are cropped.
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
    """Draws the scene as uint8 [R, R, 3], R being `resolution`."""
    mask = coverage(scene.shape, scene.centre, scene.radius, scene.rotation, resolution)[..., None]
    pixels = scene.background + mask * (np.asarray(scene.rgb, np.float32) - np.float32(scene.background))
    return np.rint(pixels).astype(np.uint8)
