"""Picture files: PNGs with metadata, written atomically, and contact sheets."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from clip_jax.weights.native import atomic_path
from image_text.errors import reading

MARGIN, INK, PAPER = 8, (40, 40, 40), (255, 255, 255)


def save_png(path: str | os.PathLike, image: np.ndarray | Image.Image, text: Mapping[str, str] | None = None) -> None:
    """Writes a PNG atomically.

    Args:
        path: the file, replaced if it exists.
        image: uint8 [H, W, 3], or a Pillow image.
        text: metadata, written as iTXt chunks; each value is cut to 10,000 characters.
    """
    picture = image if isinstance(image, Image.Image) else Image.fromarray(np.asarray(image))
    info = PngImagePlugin.PngInfo()
    for name, value in (text or {}).items():
        info.add_itxt(name, _metadata(value))
    with atomic_path(path) as temporary:
        picture.save(temporary, format="PNG", pnginfo=info)


def read_text(path: str | os.PathLike) -> dict[str, str]:
    """Reads the metadata of a PNG, as `save_png` wrote it.

    Raises:
        UserError: the file is no PNG, or cannot be read.
    """
    with reading(path, "the metadata"), Image.open(path, formats=["PNG"]) as picture:
        picture.load()
        return {name: str(value) for name, value in getattr(picture, "text", {}).items()}


def holds_other(
    path: str | os.PathLike, text: Mapping[str, str], image: np.ndarray | Image.Image | None = None
) -> bool:
    """Whether a file exists that is not the PNG to be written.

    Args:
        path: the file.
        text: metadata to be written; other keys of the existing file are ignored.
        image: pixels to be written; None compares the metadata alone.

    Returns:
        False if there is no file, or if its metadata and pixels are equal.
    """
    if not Path(path).exists():
        return False
    try:
        with Image.open(path) as there:
            there.load()
            stored = getattr(there, "text", {})
            if {name: stored.get(name) for name in text} != {name: _metadata(value) for name, value in text.items()}:
                return True
            return image is not None and not np.array_equal(np.asarray(there), np.asarray(image))
    except Exception:  # Pillow raises many kinds of errors for a file that it cannot read
        return True


def _metadata(value: str, limit: int = 10_000) -> str:
    """A text as a PNG can hold it: cut to `limit` characters, lone surrogates (as a prompt may have) replaced."""
    return value[:limit].encode("utf-8", "replace").decode("utf-8")


def contact_sheet(rows: Sequence[tuple[str, Sequence[np.ndarray]]], *, scale: int = 2, columns: int = 8) -> Image.Image:
    """Draws a contact sheet: each caption with its pictures below, enlarged with nearest-neighbour pixels.

    Args:
        rows: (caption, [uint8 [H, W, 3], ...]) per row, all pictures of one size; at least one row with a picture.
        scale: factor by which pictures are enlarged.
        columns: most pictures in a line; a row with more goes on in further lines.
    """
    rows = [(_one_line(caption), images) for caption, images in rows]
    font = ImageFont.load_default(size=13)
    height, width = rows[0][1][0].shape[:2]
    tile_w, tile_h = width * scale + MARGIN, height * scale + MARGIN
    columns = max(1, min(columns, max(len(images) for _, images in rows)))
    sheet_width = max(columns * tile_w + MARGIN, max(int(font.getlength(caption)) for caption, _ in rows) + 2 * MARGIN)
    line = 22
    sheet_height = MARGIN + sum(line + -(-len(images) // columns) * tile_h for _, images in rows)
    sheet = Image.new("RGB", (sheet_width, sheet_height), PAPER)
    pen = ImageDraw.Draw(sheet)
    top = MARGIN
    for caption, images in rows:
        pen.text((MARGIN, top), caption, fill=INK, font=font)
        top += line
        for i, image in enumerate(images):
            tile = Image.fromarray(np.asarray(image)).resize((width * scale, height * scale), Image.Resampling.NEAREST)
            sheet.paste(tile, (MARGIN + i % columns * tile_w, top + i // columns * tile_h))
        top += -(-len(images) // columns) * tile_h
    return sheet


def _one_line(caption: str, limit: int = 120) -> str:
    """A caption on one line, cut to `limit` characters."""
    words = " ".join(caption.split())
    return words if len(words) <= limit else words[: limit - 1] + "…"


def file_stem(prompt: str, limit: int = 60) -> str:
    """A prompt as the stem of a file name, which is never empty and never a path.

    Letters (in lower case) and digits of any script are kept, everything else becomes hyphens.

    Args:
        prompt: any text.
        limit: most bytes of the stem, in UTF-8.
    """
    words = "".join(c if c.isalnum() else " " for c in prompt.lower()).split()
    stem = "-".join(words).encode("utf-8")[:limit].decode("utf-8", "ignore").strip("-")
    return stem or "empty"


def output_directory(path: str | os.PathLike) -> Path:
    """Creates the directory for pictures, if it does not exist, and returns it.

    Raises:
        OSError: it cannot be created: it is a file, or its parent is not writable.
    """
    directory = Path(path)
    directory.mkdir(parents=True, exist_ok=True)
    return directory
