"""Files in the layout of Fashion-MNIST's, with noise for images and every class in turn."""

import gzip
import struct

import numpy as np

from image_text.fashion_mnist import FILES, Split

SIZES = {"train": 24, "test": 20}


def idx(array):
    """An array of bytes as an idx file."""
    return struct.pack(f">{1 + array.ndim}I", 0x800 + array.ndim, *array.shape) + array.tobytes()


def write_idx(directory, sizes=SIZES):
    """The four files, packed, of splits of these sizes; returns the splits."""
    directory.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    splits = {}
    for split, size in sizes.items():
        images = rng.integers(0, 256, (size, 28, 28), np.uint8)
        splits[split] = Split(images, (np.arange(size) % 10).astype(np.uint8))
        for name, array in zip(FILES[split], splits[split], strict=True):
            (directory / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
    return splits
