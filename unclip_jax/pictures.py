"""Pictures as files: PNGs that appear whole or not at all, and contact sheets to look at."""

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
    """Writes uint8 [H, W, 3] (or a Pillow image) as PNG, with `text` as its tEXt/iTXt metadata."""
    picture = image if isinstance(image, Image.Image) else Image.fromarray(np.asarray(image))
    info = PngImagePlugin.PngInfo()
    for name, value in (text or {}).items():
        info.add_itxt(name, _metadata(value))
    with atomic_path(path) as temporary:
        picture.save(temporary, format="PNG", pnginfo=info)


def read_text(path: str | os.PathLike) -> dict[str, str]:
    """The metadata of a PNG, as `save_png` wrote it. Raises UserError where the file is no PNG."""
    with reading(path, "the metadata"), Image.open(path, formats=["PNG"]) as picture:
        picture.load()
        return {name: str(value) for name, value in getattr(picture, "text", {}).items()}


def holds_other(
    path: str | os.PathLike, text: Mapping[str, str], image: np.ndarray | Image.Image | None = None
) -> bool:
    """Whether a file is there already that is not this PNG: of other metadata, or of other pixels where given."""
    if not Path(path).exists():
        return False
    try:
        with Image.open(path) as there:
            there.load()
            said = getattr(there, "text", {})
            if {name: said.get(name) for name in text} != {name: _metadata(value) for name, value in text.items()}:
                return True
            return image is not None and not np.array_equal(np.asarray(there), np.asarray(image))
    except Exception:  # whatever Pillow raises at what it cannot read
        return True


def _metadata(value: str, limit: int = 10_000) -> str:
    """A text as it is kept in a PNG: a prompt may hold what is no text (lone surrogates), or a million characters."""
    return value[:limit].encode("utf-8", "replace").decode("utf-8")


def contact_sheet(rows: Sequence[tuple[str, Sequence[np.ndarray]]], *, scale: int = 2, columns: int = 8) -> Image.Image:
    """Captions with their pictures below, `columns` to a line, each enlarged `scale` times with sharp pixels.

    Args:
        rows: (caption, [uint8 [H, W, 3], ...]), all pictures of one size.
        scale: how many times a picture is enlarged.
        columns: pictures in a line.
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
    words = " ".join(caption.split())
    return words if len(words) <= limit else words[: limit - 1] + "…"


def file_stem(prompt: str, limit: int = 60) -> str:
    """A prompt as a file name, never empty or a path: letters and digits of any script stay, the rest is hyphens."""
    words = "".join(c if c.isalnum() else " " for c in prompt.lower()).split()
    stem = "-".join(words).encode("utf-8")[:limit].decode("utf-8", "ignore").strip("-")
    return stem or "empty"


def output_directory(path: str | os.PathLike) -> Path:
    """Creates the directory for pictures. Raises OSError when it cannot be (it is a file, or not writable)."""
    directory = Path(path)
    directory.mkdir(parents=True, exist_ok=True)
    return directory
