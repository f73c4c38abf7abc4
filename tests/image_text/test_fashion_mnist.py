"""Fashion-MNIST: what is read back is what was in the files, and files that are not right are named."""

import gzip
import http.server
import json
import struct
import threading
from functools import partial

import numpy as np
import pytest
import tensorflow_datasets as tfds

from image_text import fashion_mnist
from image_text.fashion_mnist import CAPTIONS, CLASSES, DIGITS, FILES, read_idx, source
from tests.support.idx import SIZES, idx, write_idx
from train_jax.errors import UserError

TRAIN_IMAGES, TRAIN_LABELS = (f"{name}.gz" for name in FILES["train"])


@pytest.fixture
def files(tmp_path):
    directory = tmp_path / "files"
    write_idx(directory)
    return directory


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    """(the splits, a directory with their files, one with data prepared from them)."""
    directory = tmp_path_factory.mktemp("fashion")
    splits = write_idx(directory / "files")
    fashion_mnist.prepare(directory / "data", files=directory / "files")
    return splits, directory / "files", directory / "data"


@pytest.mark.parametrize("split", SIZES)
def test_record_i_is_example_i_of_the_files(once, split):
    splits, files, data_dir = once
    records = source(split, data_dir=data_dir, files=files)
    assert len(list(records)) == len(records) == SIZES[split]
    for record, image, label in zip(records, *splits[split], strict=True):
        np.testing.assert_array_equal(record["image"][..., 0], image)
        assert record["image"].dtype == np.uint8
        assert (type(record["label"]), record["label"]) == (int, label)
        assert record["caption"] == CAPTIONS[label]
    with pytest.raises(IndexError):
        records[len(records)]


def test_every_class_has_a_caption_of_its_own():
    assert len(set(CAPTIONS)) == len(CLASSES) == 10
    for name, caption in zip(CLASSES, CAPTIONS, strict=True):
        assert name.lower() in caption  # "Trouser" in "An image of trousers"


def test_packed_or_not(files):
    before = read_idx(files)
    for path in list(files.iterdir()):
        plain = gzip.decompress(path.read_bytes())
        path.unlink()
        # A browser may have unpacked a file and left its name.
        (path if "t10k" in path.name else path.with_suffix("")).write_bytes(plain)
    for split, arrays in read_idx(files).items():
        for a, b in zip(arrays, before[split], strict=True):
            np.testing.assert_array_equal(a, b)


def test_prepared_data_is_not_written_again(once, capfd):
    _, files, data_dir = once
    before = {path: path.stat().st_mtime_ns for path in data_dir.rglob("*.array_record*")}
    assert before
    source("train", data_dir=data_dir, files=files)
    assert {path: path.stat().st_mtime_ns for path in data_dir.rglob("*.array_record*")} == before
    assert capfd.readouterr() == ("", "")


def test_other_files_are_other_data(once, tmp_path, capfd):
    _, files, data_dir = once
    write_idx(tmp_path / "more", {"train": 30, "test": 10})
    assert len(source("train", data_dir=data_dir, files=tmp_path / "more")) == 30
    assert len(source("train", data_dir=data_dir, files=files)) == SIZES["train"]
    assert capfd.readouterr().err == "preparing fashion_mnist: 40 images\n"


def damaged(name, change):
    """What spoils a file: `change` of its unpacked bytes."""

    def spoil(directory):
        path = directory / name
        path.write_bytes(gzip.compress(change(gzip.decompress(path.read_bytes()))))

    return spoil


def broken_pack(name, change):
    def spoil(directory):
        (directory / name).write_bytes(change((directory / name).read_bytes()))

    return spoil


def digits(data):
    labels = np.frombuffer(DIGITS + bytes(4), np.uint8)
    assert len(data) == len(idx(labels))
    return idx(labels)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda d: (d / TRAIN_LABELS).unlink(), [TRAIN_LABELS, "no such file", "put the four files of http"]),
        (
            damaged(TRAIN_IMAGES, lambda b: b[:-1]),
            [TRAIN_IMAGES, "is truncated", "[24, 28, 28] are 18816 bytes", "18815"],
        ),
        (damaged(TRAIN_IMAGES, lambda b: b + b"x"), [TRAIN_IMAGES, "is too long"]),
        (damaged(TRAIN_IMAGES, lambda b: b[:7]), [TRAIN_IMAGES, "no idx file of images", "begins with 00000803"]),
        (damaged(TRAIN_IMAGES, lambda b: b""), [TRAIN_IMAGES, "begins with nothing, not 00000803"]),
        (damaged(TRAIN_IMAGES, lambda b: b"<htm" + b[4:]), [TRAIN_IMAGES, "begins with 3c68746d, not 00000803"]),
        (damaged(TRAIN_LABELS, lambda b: b"\0\0\x08\x03" + b[4:]), [TRAIN_LABELS, "no idx file of labels"]),
        (damaged(TRAIN_IMAGES, lambda b: struct.pack(">4I", 0x803, 0, 28, 28)), [TRAIN_IMAGES, "has no images"]),
        (
            damaged(TRAIN_IMAGES, lambda b: idx(np.zeros((24, 32, 32), np.uint8))),
            [TRAIN_IMAGES, "images of 32 × 32 pixels, Fashion-MNIST's are 28 × 28"],
        ),
        (damaged(TRAIN_LABELS, lambda b: idx(np.zeros(23, np.uint8))), [TRAIN_LABELS, "23 labels for 24 images"]),
        (damaged(TRAIN_LABELS, lambda b: b[:-1] + b"\x0a"), [TRAIN_LABELS, "has the label 10", "0 to 9"]),
        (damaged(TRAIN_LABELS, digits), [TRAIN_LABELS, "MNIST, the handwritten digits"]),
        (broken_pack(TRAIN_IMAGES, lambda b: b[: len(b) // 2]), [TRAIN_IMAGES, "is damaged"]),
        (broken_pack(TRAIN_IMAGES, lambda b: b[:100] + b"\xff" * 50 + b[150:]), [TRAIN_IMAGES, "is damaged"]),
    ],
)
def test_bad_files_are_named_and_nothing_is_written(files, tmp_path, spoil, words):
    spoil(files)
    with pytest.raises(UserError) as error:
        source("train", data_dir=tmp_path / "data", files=files)
    assert all(word in str(error.value) for word in words), error.value
    assert "\n" not in str(error.value)
    assert not (tmp_path / "data").exists()


def test_bad_settings_are_named(once, tmp_path):
    _, files, data_dir = once
    with pytest.raises(UserError, match=r"no 'valid'; choose from train, test"):
        source("valid", data_dir=data_dir, files=files)
    with pytest.raises(UserError, match="nowhere is not a directory"):
        source("train", data_dir=data_dir, files=tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file: no data can go there"):
        source("train", data_dir=tmp_path / "file", files=files)


# Without files: TFDS's own


@pytest.fixture
def served(files, monkeypatch):
    """The files on a server of this machine, in place of the published address."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=files))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setattr(fashion_mnist, "URL", f"http://127.0.0.1:{server.server_port}/")
    yield files
    server.shutdown()
    thread.join()
    server.server_close()


def test_downloaded_once_and_laid_out_as_tfds_does(served, tmp_path):
    data_dir = tmp_path / "data"
    images = read_idx(served)["test"].images
    assert len(source("train", data_dir=data_dir)) == SIZES["train"]
    for path in served.iterdir():
        path.unlink()
    np.testing.assert_array_equal(source("test", data_dir=data_dir)[3]["image"][..., 0], images[3])
    theirs = tfds.data_source("fashion_mnist", split="test", data_dir=data_dir, download=False)
    assert [int(record["label"]) for record in theirs] == [i % 10 for i in range(SIZES["test"])]
    assert not list(data_dir.glob(".fashion_mnist-*"))


@pytest.mark.parametrize("absent", FILES["test"])  # the first is noticed in the middle, the second at once
def test_a_download_that_fails_leaves_nothing(served, tmp_path, absent):
    (served / f"{absent}.gz").unlink()
    with pytest.raises(
        UserError, match=r"is not in .*data and cannot be downloaded \(.*404.*\); download the four files"
    ):
        source("train", data_dir=tmp_path / "data")
    assert not list((tmp_path / "data").rglob("*"))


def test_no_network(tmp_path, monkeypatch):
    monkeypatch.setattr(fashion_mnist, "URL", "http://nowhere.invalid/")
    with pytest.raises(UserError, match=r"cannot be downloaded .* name their directory by --data.files"):
        source("train", data_dir=tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_what_was_prepared_and_is_not_whole_is_told(served, tmp_path):
    source("train", data_dir=tmp_path)
    directory = tmp_path / "fashion_mnist" / "3.0.1"
    info = directory / "dataset_info.json"
    text = info.read_text()
    info.write_text(text.replace("array_record", "tfrecord"))
    for path in directory.glob("*.array_record*"):
        path.rename(str(path).replace("array_record", "tfrecord"))
    with pytest.raises(UserError, match="written as tfrecord, which only TensorFlow reads"):
        source("train", data_dir=tmp_path)
    info.write_text(text)
    with pytest.raises(UserError, match=r"is missing; remove .*3\.0\.1, and it is prepared anew"):
        source("train", data_dir=tmp_path)


@pytest.mark.parametrize("key", ["pythonClassName", "python_class_name", "type"])
def test_no_module_is_imported_because_a_file_names_it(served, tmp_path, key, monkeypatch):
    source("train", data_dir=tmp_path / "data")
    (tmp_path / "foreign_features.py").write_text(f"open({str(tmp_path / 'was here')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "data" / "fashion_mnist" / "3.0.1" / "features.json"
    features = json.loads(path.read_text())
    features["featuresDict"]["features"]["label"].pop("pythonClassName")
    features["featuresDict"]["features"]["label"][key] = "foreign_features.Label"
    path.write_text(json.dumps(features))
    with pytest.raises(
        UserError, match=r"features\.json names code outside TFDS, 'foreign_features\.Label': it is not run"
    ):
        source("train", data_dir=tmp_path / "data")
    assert not (tmp_path / "was here").exists()
