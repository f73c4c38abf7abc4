"""The checker: reads size, colour, shape and position from a picture, without learned parts.

    checked = check(images)                    # uint8 [N, R, R, 3]
    exact_match(checked, labels)               # bool [N]: all four attributes right, and drawn well enough to count

The method: the background colour is the median of the border, the object's colour the median of the pixels furthest
from it. Projecting every pixel's colour on the line between the two recovers the coverage mask with which the renderer
painted. The mask's centre of mass is the position. The mask is compared with templates at that centre: the renderer's
masks of all shapes, sizes and rotations in small steps. Shape and size are those of the template with the best
intersection over union (IoU).

A picture is rejected, with labels -1, if the best IoU is below `MIN_IOU` (a smear, two objects of one colour, plain
grey), if pixels whose colour lies off the line cover more than `MAX_STRAY` of it (two colours), if the object's colour
is none of the palette, or if the background is not grey.
"""

import itertools
import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from shapes_world.render import coverage
from shapes_world.world import (
    COLOUR_RGB,
    COLOURS,
    LARGE_RADIUS,
    ROTATION_JITTER,
    SHAPES,
    SIZE_JITTER,
    SIZE_SCALE,
    SIZES,
    Labels,
)

MIN_IOU = 0.7
MAX_BACKGROUND_DISTANCE = 25.0  # RGB distance of the background from the grey of the same mean
# RGB distance from the line between background and object colour above which a pixel is stray. Every palette colour is
# at least 65 away from the line of any other.
MAX_STRAY_DISTANCE = 50.0
MAX_STRAY = 0.006  # share of the image that may be stray: a third of the smallest object
MIN_CONTRAST = 30.0  # RGB distance from the background below which a picture is empty
MAX_COLOUR_DISTANCE = 80.0  # no grey is this near to any palette colour
CORE_AREA = 0.006  # share of the image whose purest pixels give the colour: a third of the smallest object, inside it
MASK_FLOOR = 0.25  # lower coverage is taken for background noise, which would pull the centre of mass to the middle
SCALE_STEPS = 7  # template scales over the size jitter, per shape and size
ROTATION_STEPS = 7  # template angles over the rotation jitter; a circle needs one
PHASES = 4  # sub-pixel positions of the templates per axis
CHUNK = 8  # images compared with all templates at once: bounds the memory, which then fits the processor's cache


class Checked(NamedTuple):
    """What the checker reads from N pictures."""

    labels: np.ndarray  # int [N, 4], in the order of `Labels`; all -1 for a rejected picture
    iou: np.ndarray  # float [N], of the best template; 0 where nothing stands out from the background
    centre: np.ndarray  # float [N, 2], (x, y) of the centre of mass in unit coordinates; nan where nothing stands out
    extent: np.ndarray  # float [N], radius of the disc of the same area, in unit coordinates
    background: np.ndarray  # float [N], grey level 0 to 255


class _Templates(NamedTuple):
    """The masks to compare pictures with: K combinations of shape, size and rotation, at every sub-pixel phase."""

    masks: np.ndarray  # float32 [PHASES², K, window²]
    areas: np.ndarray  # float32 [PHASES², K], in pixels
    size: np.ndarray  # int [K]
    shape: np.ndarray  # int [K]
    window: int  # side in pixels; odd, the object's centre is in the middle pixel


def check(images: np.ndarray) -> Checked:
    """Reads what the pictures show.

    Args:
        images: uint8 [N, R, R, 3], R >= 16.

    Returns:
        Labels, IoU, centre, extent and background of each picture.

    Raises:
        ValueError: the images are not of that type and shape.
    """
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] != images.shape[2] or images.shape[3] != 3:
        raise ValueError(f"check() reads uint8 images [N, R, R, 3], not {images.dtype} {list(images.shape)}")
    resolution = images.shape[1]
    if resolution < 16:
        raise ValueError(f"at {resolution} pixels a side the shapes cannot be told apart; use 16 or more")
    pixels = images.astype(np.float32)
    border = np.concatenate([pixels[:, 0], pixels[:, -1], pixels[:, :, 0], pixels[:, :, -1]], axis=1)
    background = np.median(border, axis=1)  # [N, 3]
    colour, rgb, contrast = _colours(pixels, background)
    mask, stray = _masks(pixels, background, rgb)
    mask[contrast < MIN_CONTRAST] = 0
    grey = np.linalg.norm(background - background.mean(-1, keepdims=True), axis=-1) <= MAX_BACKGROUND_DISTANCE

    area = mask.sum((1, 2))  # in pixels
    coordinates = (np.arange(resolution, dtype=np.float32) + 0.5) / resolution
    with np.errstate(invalid="ignore"):  # 0 / 0 where the mask is empty
        # No matmul: BLAS may round a row differently in another batch.
        moments = [(mask.sum(axis) * coordinates).sum(-1) for axis in (1, 2)]
        centre = np.stack(moments, axis=-1) / area[:, None]
    iou, size, shape = _best_templates(mask, area, centre)
    position = (centre[:, 1] > 0.5) * 2 + (centre[:, 0] > 0.5)  # the order of POSITIONS
    labels = np.stack([size, colour, shape, position], axis=-1)
    labels[(iou < MIN_IOU) | (colour < 0) | (stray > MAX_STRAY) | ~grey] = -1
    return Checked(labels, iou, centre, np.sqrt(area / math.pi) / resolution, background.mean(-1))


def exact_match(checked: Checked, labels: np.ndarray | list[Labels]) -> np.ndarray:
    """Whether the checker read exactly the expected labels.

    Args:
        checked: result of `check` for N pictures.
        labels: expected labels, int [N, 4], none -1.

    Returns:
        bool [N]: all four attributes are equal.

    Raises:
        ValueError: there are not as many labels as pictures.
    """
    expected = np.asarray(labels)
    if expected.shape != checked.labels.shape:
        raise ValueError(f"{list(checked.labels.shape)} labels were read; they cannot match {list(expected.shape)}")
    return (checked.labels == expected).all(axis=-1)


def _colours(pixels: np.ndarray, background: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The colour of each object.

    Returns:
        Palette index [N], -1 if no palette colour is near; RGB [N, 3]; RGB distance from the background [N].
    """
    count, resolution = pixels.shape[:2]
    flat = pixels.reshape(count, resolution**2, 3)
    distance = np.linalg.norm(flat - background[:, None], axis=-1)
    core = math.ceil(CORE_AREA * resolution**2)
    purest = np.argpartition(distance, -core, axis=1)[:, -core:, None]
    rgb = np.median(np.take_along_axis(flat, purest, axis=1), axis=1)  # [N, 3]
    palette = np.array([COLOUR_RGB[name] for name in COLOURS], np.float32)
    offsets = np.linalg.norm(rgb[:, None] - palette, axis=-1)  # [N, 6]
    colour = np.where(offsets.min(-1) <= MAX_COLOUR_DISTANCE, offsets.argmin(-1), -1)
    return colour, rgb, np.linalg.norm(rgb - background, axis=-1)


def _masks(pixels: np.ndarray, background: np.ndarray, rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The coverage masks, recovered by projecting every pixel's colour on the line from the background to `rgb`.

    Returns:
        Coverage [N, R, R] in [0, 1], and the share of stray pixels [N], whose colour is far from that line.
    """
    offset, axis = pixels - background[:, None, None], (rgb - background)[:, None, None]
    mask = (offset * axis).sum(-1) / np.maximum((axis**2).sum(-1), 1)
    mask = np.clip(mask, 0, 1)
    residual = np.linalg.norm(offset - mask[..., None] * axis, axis=-1)
    mask[mask < MASK_FLOOR] = 0
    return mask, (residual > MAX_STRAY_DISTANCE).mean((1, 2))


def _best_templates(
    mask: np.ndarray, area: np.ndarray, centre: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compares each mask with all templates at its centre of mass.

    Args:
        mask: coverage [N, R, R].
        area: sum of each mask, in pixels, [N].
        centre: centre of mass (x, y) in unit coordinates, [N, 2].

    Returns:
        IoU, size and shape of the best template, each [N]; IoU is 0 for an empty mask.
    """
    count, resolution = mask.shape[:2]
    templates = _templates(resolution)
    half = templates.window // 2
    in_pixels = np.where(area[:, None] > 0, centre, 0.5) * resolution
    corner = np.minimum(in_pixels.astype(int), resolution - 1)
    phase_x, phase_y = ((in_pixels - corner) * PHASES).astype(int).clip(0, PHASES - 1).T
    phases = phase_y * PHASES + phase_x
    padded = np.pad(mask, ((0, 0), (half, half), (half, half)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (templates.window, templates.window), axis=(1, 2))
    windows = windows[np.arange(count), corner[:, 1], corner[:, 0]].reshape(count, 1, templates.window**2)

    iou, best = np.zeros(count), np.zeros(count, int)
    for phase in np.unique(phases):
        same_phase = np.flatnonzero((phases == phase) & (area > 0))
        for rows in np.split(same_phase, range(CHUNK, len(same_phase), CHUNK)):
            common = np.minimum(windows[rows], templates.masks[phase]).sum(-1)  # [rows, K]
            ious = common / (area[rows, None] + templates.areas[phase] - common)
            best[rows] = ious.argmax(-1)
            iou[rows] = ious.max(-1)
    return iou, templates.size[best], templates.shape[best]


@lru_cache(maxsize=4)  # takes a second at 64 pixels
def _templates(resolution: int) -> _Templates:
    """Masks of every shape, size and rotation at every sub-pixel phase, as the renderer draws them at `resolution`."""
    scales = np.linspace(1 - SIZE_JITTER, 1 + SIZE_JITTER, SCALE_STEPS)
    looks = [  # (size, shape, radius in pixels, rotation)
        (size, shape, LARGE_RADIUS[name] * SIZE_SCALE[SIZES[size]] * scale * resolution, math.radians(degrees))
        for size, (shape, name), scale in itertools.product(range(len(SIZES)), enumerate(SHAPES), scales)
        for degrees in np.linspace(-1, 1, 1 if name == "circle" else ROTATION_STEPS) * ROTATION_JITTER[name]
    ]
    half = math.ceil(max(radius for _, _, radius, _ in looks)) + 1
    window = 2 * half + 1
    offsets = half + (np.arange(PHASES) + 0.5) / PHASES
    masks = np.stack(
        [
            coverage(SHAPES[shape], (x / window, y / window), radius / window, rotation, window)
            for y, x in itertools.product(offsets, offsets)
            for _, shape, radius, rotation in looks
        ]
    ).reshape(PHASES**2, len(looks), window**2)
    masks[masks < MASK_FLOOR] = 0  # as `_masks` does
    size, shape = (np.array(column) for column in list(zip(*looks, strict=True))[:2])
    return _Templates(masks, masks.sum(-1), size, shape, window)
