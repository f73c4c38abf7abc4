"""`open_source`: what is named is opened, and what cannot be is refused in one line."""

import json
import subprocess
import sys

import numpy as np
import pytest

import shapes_world
from image_text import UserError, fashion_mnist, open_image, open_source, shapes
from tests.support.floors import ROOT
from tests.support.idx import write_idx
from tests.support.pictures import save


def test_a_folder(tmp_path):
    save(tmp_path / "b.png"), save(tmp_path / "sub" / "a.JPG"), (tmp_path / "note.txt").write_text("")
    source = open_source(str(tmp_path))
    assert source.names == ["b.png", "sub/a.JPG"]
    assert source.labels is source.captions is None


def test_subfolders_are_classes(tmp_path):
    for name in ("red_fox/1.png", "cat/2.png", "red_fox/deep/3.png"):
        save(tmp_path / name)
    source = open_source(str(tmp_path))
    assert source.names == ["cat/2.png", "red_fox/1.png", "red_fox/deep/3.png"]
    assert source.classes == ["cat", "red fox"]
    assert source.labels.tolist() == [0, 1, 1]


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl"])
def test_a_table(tmp_path, suffix):
    rows = [("pictures/a.png", 'a "red" one,\nin two lines', "red"), ("pictures/b.png", "été", "blue")]
    for name, *_ in rows:
        save(tmp_path / name)
    table = tmp_path / f"captions.{suffix}"
    if suffix == "jsonl":
        table.write_text("\n".join(json.dumps({"file_name": i, "text": c, "label": x}) for i, c, x in rows) + "\n\n")
    else:
        between = "," if suffix == "csv" else "\t"
        quoted = [between.join('"' + cell.replace('"', '""') + '"' for cell in row) for row in rows]
        table.write_text("\ufeff" + "\n".join([between.join(("image", "caption", "label")), *quoted]), encoding="utf-8")
    source = open_source(str(table))
    assert source.names == [row[0] for row in rows]
    assert source.captions == [row[1] for row in rows]
    assert (source.classes, source.labels.tolist()) == (["blue", "red"], [1, 0])
    assert open_image(source.pictures[1]).size == (9, 8)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("t.csv", "", "no rows"),
        ("t.csv", "image\n", "no rows"),
        ("t.csv", "name,caption\na,b\n", "no column for pictures"),
        ("t.csv", "image,caption\na.png,\n", "line 2 has no caption"),
        ("t.csv", "image,caption\na.png\n", "line 2 has no caption"),
        ("t.csv", "image,caption\nnone.png,x\n", "none.png, which is not there"),
        ("t.jsonl", '{"image": "a.png"}\n{"caption": 1}\n', "line 2 has no image"),
        ("t.jsonl", '{"image": "a.png"}\n{', "line 2 is not JSON"),
        ("t.jsonl", "[1]\n", "line 1 is not an object"),
        ("t.csv", "image\n\udcff", "not UTF-8"),
        ("t.txt", "x", "neither a folder nor a table"),
    ],
)
def test_a_bad_table_is_refused(tmp_path, name, content, words):
    save(tmp_path / "a.png")
    (tmp_path / name).write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError) as error:
        open_source(str(tmp_path / name))
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_what_is_not_there_is_refused(tmp_path):
    for source, words in [
        (str(tmp_path), "no picture in it"),
        (str(tmp_path / "none"), "no such file"),
        ("tfds:cifar10", "write tfds:NAME:SPLIT"),
        ("tfds:cifar10:test", "not prepared in"),
    ]:
        with pytest.raises(UserError, match=words):
            open_source(source, data_dir=tmp_path)


def test_a_tfds_split(tmp_path):
    builder = shapes.prepare(tmp_path, resolution=16, split_sizes={"train": 6})
    source = open_source(f"tfds:shapes/{builder.info.config_name}:train[:4]", data_dir=tmp_path)
    records = shapes.source("train[:4]", data_dir=tmp_path, resolution=16, split_sizes={"train": 6})
    assert len(source.pictures) == len(source.names) == 4
    assert source.captions == [example["caption"] for example in records]
    for picture, example in zip(source.pictures, records, strict=True):
        np.testing.assert_array_equal(np.asarray(open_image(picture)), example["image"])
    assert source.labels is not None
    with pytest.raises(UserError, match="no split 'test'; choose one of train"):
        open_source(f"tfds:shapes/{builder.info.config_name}:test", data_dir=tmp_path)


# Built-in sets


@pytest.fixture
def few_shapes(tmp_path, monkeypatch):
    """A directory of data in which the shapes are prepared, a few of each split."""
    monkeypatch.setattr(shapes_world, "SPLIT_SIZES", {"train": 6, "test": 4, "heldout": 3})
    return tmp_path / "data"


@pytest.mark.parametrize(
    ("name", "split"), [("shapes", "train"), ("shapes:test", "test"), ("shapes:heldout", "heldout")]
)
def test_shapes_by_name_are_prepared_and_opened(few_shapes, name, split):
    source = open_source(name, data_dir=few_shapes)
    assert len(source) == shapes_world.SPLIT_SIZES[split]
    for i, example in enumerate(source):
        image, caption, _ = shapes_world.example(split, i)
        assert (example["name"], example["caption"]) == (f"{split}/{i}", caption)
        np.testing.assert_array_equal(np.asarray(open_image(example["image"])), image)
    assert open_source(name, data_dir=few_shapes).pictures.stamp(0)  # read again from what was written


def test_fashion_mnist_by_name(tmp_path, monkeypatch):
    splits = write_idx(tmp_path / "files")
    monkeypatch.setattr(fashion_mnist, "_download", lambda data_dir: fashion_mnist.read_idx(tmp_path / "files"))
    source = open_source("fashion_mnist:test", data_dir=tmp_path / "data")
    assert source.labels.tolist() == splits["test"].labels.tolist()
    assert source.classes == list(fashion_mnist.CLASSES)
    assert source[9]["caption"] == "An image of an ankle boot"
    np.testing.assert_array_equal(np.asarray(open_image(source[3]["image"])), splits["test"].images[3])


def test_a_folder_of_the_name_goes_before_a_built_in_set(tmp_path, monkeypatch):
    save(tmp_path / "shapes" / "a.png")
    monkeypatch.chdir(tmp_path)
    assert open_source("shapes").names == ["a.png"]


def test_an_unknown_split_of_a_built_in_set(tmp_path):
    for source, words in [("shapes:valid", "choose from train, test, heldout"), ("fashion_mnist:x", "train, test")]:
        with pytest.raises(UserError, match=words):
            open_source(source, data_dir=tmp_path)
    assert not list(tmp_path.iterdir())


WITHOUT_TFDS = """
import sys

for name in ("tensorflow_datasets", "array_record"):
    sys.modules[name] = None  # as if it were not installed
import image_text, image_text.source, image_text.shapes, image_text.fashion_mnist, image_text.building

print(len(image_text.open_source(sys.argv[1])))
for source in sys.argv[2:]:
    try:
        image_text.open_source(source)
    except image_text.UserError as error:
        print(error)
print([name for name in ("jax", "tqdm.auto", "clip_jax") if name in sys.modules])
"""


def test_without_tfds_all_else_works(tmp_path):
    save(tmp_path / "a.png")
    asked = ["tfds:cifar10:test", "shapes", "fashion_mnist:test"]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TFDS, tmp_path, *asked],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PYTHONPATH": ":".join([str(ROOT), *filter(None, sys.path)])},
    )
    assert not done.stderr
    count, *refusals, loaded = done.stdout.splitlines()
    assert (count, loaded) == ("1", "[]")
    for source, line in zip(
        ["tfds:cifar10:test", "the data set shapes", "the data set fashion_mnist"], refusals, strict=True
    ):
        assert line.startswith(f"{source} needs the package tensorflow-datasets")
        assert "'unclip-jax[data]'" in line
