"""Draws the pictures of the documentation, docs/shapes.png and docs/edits.png, with the shipped weights.

    python docs/pictures.py

The rows are contact sheets of `sample.py`: the first pictures of seed 0, none chosen by hand.
"""

from __future__ import annotations

import runpy
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

CAPTIONS = [
    "a large purple star in the bottom right",
    "a small red circle in the top left",
    "in the top right: a large blue square",
    "a large yellow triangle in the bottom left",
    "a large red star in the top left",
    "a small green circle in the bottom right",
    "a large blue triangle in the top right",
    "a large yellow square in the bottom left",
]
STAR, CIRCLE = "a large purple star in the bottom right", "a large orange circle in the top left"


def sample(out: Path, *argv: object) -> None:
    """Runs `sample.py` with these arguments in this process; its files go to the folder `out`."""
    sys.argv = ["sample.py", *map(str, argv), "--out", str(out)]
    try:
        runpy.run_path(str(ROOT / "sample.py"), run_name="__main__")
    except SystemExit as end:
        if end.code:
            raise


def stack(paths: list[Path]) -> Image.Image:
    """One picture of the contact sheets, one below the other."""
    sheets = [Image.open(path) for path in paths]
    page = Image.new("RGB", (max(s.width for s in sheets), sum(s.height for s in sheets)), (255, 255, 255))
    top = 0
    for sheet in sheets:
        page.paste(sheet, (0, top))
        top += sheet.height
    return page


def main() -> None:
    """Draws both pictures and writes them to docs/."""
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        sample(work / "captions", *CAPTIONS, "--num", 6)
        Image.open(work / "captions" / "sheet.png").save(ROOT / "docs" / "shapes.png", optimize=True)

        sample(work / "originals", STAR, CIRCLE, "--num", 1)
        star, circle = sorted((work / "originals").glob("0*.png"))
        star, circle = star.rename(work / "star.png"), circle.rename(work / "circle.png")
        mask = np.zeros((64, 64), np.uint8)
        mask[:40, :40] = 255
        Image.fromarray(mask).save(work / "mask.png")
        edits = {
            "vary": ["vary", star],
            "interpolate": ["interpolate", circle, star],
            "edit": ["edit", star, "--from", STAR, "--to", STAR.replace("purple", "blue")],
            "inpaint": ["inpaint", star, "a large green square in the top left", "--mask", work / "mask.png"],
            "redraw": ["redraw", star, STAR.replace("star", "circle"), "--strength", 0.8],
        }
        for edit, argv in edits.items():
            sample(work / edit, *argv, "--num", 6)
        stack([work / edit / "sheet.png" for edit in edits]).save(ROOT / "docs" / "edits.png", optimize=True)


if __name__ == "__main__":
    main()
