"""Fashion-MNIST (Xiao et al. 2017, arXiv:1708.07747) as a TFDS dataset that needs no TensorFlow.

    train = source("train", data_dir="data", files="fashion")  # from the four idx files in fashion/
    train = source("train", data_dir="data")  # TFDS's fashion_mnist in data/, downloaded if it is absent
    train[0]  # {"image": uint8 [28, 28, 1], "label": 9, "caption": "An image of an ankle boot"}

The files are those of github.com/zalandoresearch/fashion-mnist, compressed (.gz) or not. Data that TFDS prepared with
TensorFlow is read if its format is array_record; downloaded data is written in the same layout.
"""

import gzip
import hashlib
import io
import math
import tempfile
import urllib.request
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from image_text.base import Source
from image_text.building import Dataset, expanded, prepared
from image_text.errors import UserError
from image_text.tfds import split_source
from image_text.tfds_files import Records, import_tfds, open_directory, quiet_tfds, stored

__all__ = ["CAPTIONS", "CLASSES", "FashionSource", "open_fashion_mnist", "prepare", "read_idx", "source"]

NAME, VERSION = "fashion_mnist", "3.0.1"  # of TFDS's own dataset, whose layout the data has

CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
CAPTIONS = (
    "An image of a t-shirt/top",
    "An image of trousers",
    "An image of a pullover",
    "An image of a dress",
    "An image of a coat",
    "An image of a sandal",
    "An image of a shirt",
    "An image of a sneaker",
    "An image of a bag",
    "An image of an ankle boot",
)
SIDE = 28
URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"  # TFDS has the checksums of these files
FILES = {  # split: images, labels
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
IMAGES, LABELS = 0x803, 0x801  # magic numbers of idx: bytes (8) with 3 axes, bytes with 1 axis
PROBE_SECONDS = 5
# The first labels of MNIST, whose files have the same names, sizes and headers: refused, as the captions are about
# garments.
DIGITS = bytes([5, 0, 4, 1, 9, 2, 1, 3, 1, 4, 3, 5, 3, 6, 1, 7, 2, 8, 6, 9])


class Split(NamedTuple):
    """The arrays of a split."""

    images: np.ndarray  # uint8 [N, 28, 28]
    labels: np.ndarray  # uint8 [N], 0 to 9


Splits = Mapping[str, Split]


class FashionSource(Records):
    """A split as a random-access source of dicts: image uint8 [28, 28, 1], label int, caption str."""

    def example(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """Decodes a stored record."""
        label = int(record["label"])
        image = np.asarray(Image.open(io.BytesIO(record["image"])).convert("L"))
        return {"image": image[..., None], "label": label, "caption": CAPTIONS[label]}


def source(split: str, *, data_dir: str | Path, files: str | Path | None = None) -> FashionSource:
    """Opens a split for training; prepares the data first if it is absent.

    Args:
        split: "train" or "test", or a part of one in TFDS's notation, such as "train[:10%]".
        data_dir: the directory of all datasets.
        files: the directory with the four idx files; None: see `prepare`.

    Raises:
        UserError: there is no such split; and as `prepare`.
    """
    _check_split(split)
    builder = prepare(data_dir, files=files)
    return FashionSource(stored(builder, split), f"{builder.data_dir}, {split}")


def open_fashion_mnist(split: str = "train", *, data_dir: str | Path) -> Source:
    """Opens a split as a `Source` of PNG pictures with labels and captions ("An image of a dress").

    Args:
        split: "train" or "test", or a part of one in TFDS's notation.
        data_dir: the directory of TFDS's data; Fashion-MNIST is downloaded if it is absent.

    Raises:
        UserError: there is no such split; and as `prepare`.
    """
    _check_split(split)
    found = split_source(prepare(data_dir), split, image="image", label="label")
    assert found.labels is not None
    return replace(found, captions=[CAPTIONS[label] for label in found.labels], classes=list(CLASSES))


def _check_split(split: str) -> None:
    if split.partition("[")[0] not in FILES:
        raise UserError(f"split: fashion_mnist has no {split!r}; choose from {', '.join(FILES)}")


def prepare(data_dir: str | Path, *, files: str | Path | None = None) -> Any:
    """Writes Fashion-MNIST to disk under `data_dir`, if it is absent.

    Args:
        data_dir: the directory of all datasets.
        files: the directory with the four idx files, which are checked before anything is written; their digest is part
            of the data's directory name. None: TFDS's `fashion_mnist` in `data_dir`, downloaded (31 MB) if absent.

    Returns:
        The `tfds.core.DatasetBuilder` that reads the data.

    Raises:
        UserError: a file is missing, damaged or of other data; TFDS's data is in a format that needs TensorFlow; the
            download fails; the directory cannot be written; or TFDS is not installed.
    """
    data_dir = expanded(data_dir)
    if files is not None:
        splits = read_idx(files)
        return prepared(_dataset(splits, config=f"files-{_digest(splits)[:12]}"), data_dir)
    return _open(data_dir) or prepared(_dataset(_download(data_dir)), data_dir)


def _dataset(splits: Splits, *, config: str | None = None) -> Dataset:
    def features(kinds: Any) -> dict[str, Any]:
        return {
            "image": kinds.Image(shape=(SIDE, SIDE, 1), encoding_format="png"),
            "label": kinds.ClassLabel(names=CLASSES),
        }

    def examples(split: str) -> Iterator[dict[str, Any]]:
        for image, label in zip(*splits[split], strict=True):
            yield {"image": Image.fromarray(image), "label": int(label)}

    return Dataset(
        NAME,
        VERSION,
        "Articles of clothing of ten classes, 28 × 28 pixels, grey.",
        features,
        {name: len(split.labels) for name, split in splits.items()},
        examples,
        activity="preparing fashion_mnist",
        config=config,
        homepage="https://github.com/zalandoresearch/fashion-mnist",
    )


def _digest(splits: Splits) -> str:
    digest = hashlib.sha256()
    for split in splits.values():
        digest.update(split.labels.tobytes() + split.images.tobytes())
    return digest.hexdigest()


def _open(data_dir: Path) -> Any | None:
    """The builder of the data that TFDS, or an earlier call, prepared in `data_dir`; None if there is none."""
    directory = data_dir / NAME / VERSION
    if not (directory / "dataset_info.json").is_file():
        return None
    builder = open_directory(directory)
    files = [Path(path) for split in builder.info.splits.values() for path in split.filepaths]
    if missing := [path for path in files if not path.is_file()]:
        raise UserError(f"{missing[0]} is missing; remove {directory}, and it is prepared anew")
    if not builder.info.file_format.value == "array_record":
        raise UserError(
            f"{directory} is written as {builder.info.file_format.value}, which only TensorFlow reads; "
            "name another data directory, or prepare it with file_format='array_record'"
        )
    return builder


def _download(data_dir: Path) -> Splits:
    """Downloads the published files with TFDS, which checks their digests, to a temporary directory."""
    tfds = import_tfds("the data set fashion_mnist")
    instead = f"download the four files of {URL} elsewhere and name their directory by --data.files"
    try:
        probe = urllib.request.Request(f"{URL}{FILES['test'][1]}.gz", method="HEAD")
        urllib.request.urlopen(probe, timeout=PROBE_SECONDS).close()  # without a network, TFDS would retry for minutes
        data_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fashion_mnist-", dir=data_dir) as directory, quiet_tfds():
            manager = tfds.download.DownloadManager(download_dir=directory, dataset_name=NAME)
            # One by one: if one of several parallel downloads failed, the others would still write to the directory
            # while it is removed.
            names = [name for names in FILES.values() for name in names]
            return _splits({name: Path(manager.download(f"{URL}{name}.gz")) for name in names})
    except (FileExistsError, NotADirectoryError, PermissionError):
        raise UserError(f"{data_dir}: no data can go there; choose another directory") from None
    except (OSError, tfds.download.DownloadError) as error:
        reason = " ".join(str(error).strip("<>").split())[:200]
        raise UserError(f"fashion_mnist is not in {data_dir} and cannot be downloaded ({reason}); {instead}") from None


def read_idx(directory: str | Path) -> dict[str, Split]:
    """Reads the four idx files of a directory, each compressed (.gz) or not: {split: arrays}.

    Raises:
        UserError: a file is missing, damaged, does not match the others, or is MNIST's.
    """
    directory = expanded(directory)
    if not directory.is_dir():
        raise UserError(f"{directory} is not a directory; name the one with the four idx files of Fashion-MNIST")
    found = {}
    for name in (name for names in FILES.values() for name in names):
        paths = [path for path in (directory / name, directory / f"{name}.gz") if path.is_file()]
        if not paths:
            raise UserError(f"{directory / name}.gz: there is no such file; put the four files of {URL} there")
        found[name] = paths[0]
    return _splits(found)


def _splits(paths: Mapping[str, Path]) -> dict[str, Split]:
    splits = {}
    for split, (images, labels) in FILES.items():
        splits[split] = Split(_array(paths[images], IMAGES), _array(paths[labels], LABELS))
        _check(splits[split], paths[images], paths[labels])
    return splits


def _array(path: Path, magic: int) -> np.ndarray:
    """The uint8 array of an idx file: magic number and size of each axis (big-endian, 4 bytes each), then values."""
    try:
        data = path.read_bytes()
        if data.startswith(b"\x1f\x8b"):  # by content: browsers may decompress a .gz without renaming it
            data = gzip.decompress(data)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path} is damaged ({error}); download it again") from None
    axes = magic & 0xFF
    header = np.frombuffer(data[: 4 * (1 + axes)], ">u4") if len(data) >= 4 * (1 + axes) else np.zeros(0, ">u4")
    if not header.size or header[0] != magic:
        what, begins = "images" if axes == 3 else "labels", data[:4].hex() or "nothing"
        raise UserError(f"{path} is no idx file of {what}: it begins with {begins}, not {magic:08x}; download it again")
    shape = tuple(int(size) for size in header[1:])
    expected, actual = math.prod(shape), len(data) - 4 * (1 + axes)
    if actual != expected:
        fault = "truncated" if actual < expected else "too long"
        raise UserError(f"{path} is {fault}: {list(shape)} are {expected} bytes, it has {actual}; download it again")
    return np.frombuffer(data, np.uint8, offset=4 * (1 + axes)).reshape(shape)


def _check(split: Split, images: Path, labels: Path) -> None:
    if not len(split.images):
        raise UserError(f"{images} has no images; download it again")
    if split.images.shape[1:] != (SIDE, SIDE):
        height, width = split.images.shape[1:]
        raise UserError(f"{images} has images of {height} × {width} pixels, Fashion-MNIST's are {SIDE} × {SIDE}")
    if len(split.images) != len(split.labels):
        sizes = f"{len(split.labels)} labels for {len(split.images)} images of {images.name}"
        raise UserError(f"{labels} has {sizes}; take both from one place")
    if split.labels.max() >= len(CLASSES):
        raise UserError(f"{labels} has the label {split.labels.max()}, Fashion-MNIST's are 0 to {len(CLASSES) - 1}")
    if split.labels[: len(DIGITS)].tobytes() == DIGITS:
        raise UserError(f"{labels} is of MNIST, the handwritten digits; take the file of the same name of {URL}")
