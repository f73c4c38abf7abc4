"""Picture files for tests."""

from pathlib import Path

import numpy as np
from PIL import Image


def save(path: Path, seed: int = 0) -> Path:
    """Writes a picture of noise, 9 × 8 pixels, and returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 9, 3), np.uint8)).save(path)
    return path
