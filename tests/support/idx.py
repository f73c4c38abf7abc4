"""Files in Fashion-MNIST's idx format, with images of noise and labels 0 to 9 in turn."""

import gzip
import struct

import numpy as np

from image_text.fashion_mnist import FILES, Split

SIZES = {"train": 24, "test": 20}


def idx(array):
    """The content of an idx file of a uint8 array."""
    return struct.pack(f">{1 + array.ndim}I", 0x800 + array.ndim, *array.shape) + array.tobytes()


def write_idx(directory, sizes=SIZES):
    """Writes the four gzipped files, with `sizes` examples per split; returns the splits."""
    directory.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    splits = {}
    for split, size in sizes.items():
        images = rng.integers(0, 256, (size, 28, 28), np.uint8)
        splits[split] = Split(images, (np.arange(size) % 10).astype(np.uint8))
        for name, array in zip(FILES[split], splits[split], strict=True):
            (directory / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
    return splits
