import json

import numpy as np
import pytest

from clip_jax import UserError
from clip_jax.images import open_image
from image_text.source import open_source
from tests.support.pictures import save


def test_a_folder(tmp_path):
    save(tmp_path / "b.png"), save(tmp_path / "sub" / "a.JPG"), (tmp_path / "note.txt").write_text("")
    listing = open_source(str(tmp_path))
    assert listing.names == ["b.png", "sub/a.JPG"]
    assert listing.labels is listing.captions is None


def test_subfolders_are_classes(tmp_path):
    for name in ("red_fox/1.png", "cat/2.png", "red_fox/deep/3.png"):
        save(tmp_path / name)
    listing = open_source(str(tmp_path))
    assert listing.names == ["cat/2.png", "red_fox/1.png", "red_fox/deep/3.png"]
    assert listing.classes == ["cat", "red fox"]
    assert listing.labels.tolist() == [0, 1, 1]


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
    listing = open_source(str(table))
    assert listing.names == [row[0] for row in rows]
    assert listing.captions == [row[1] for row in rows]
    assert (listing.classes, listing.labels.tolist()) == (["blue", "red"], [1, 0])
    assert open_image(listing.pictures[1]).size == (9, 8)


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
    from image_text import shapes

    builder = shapes.prepare(tmp_path, resolution=16, split_sizes={"train": 6})
    listing = open_source(f"tfds:shapes/{builder.settings.name}:train[:4]", data_dir=tmp_path)
    source = shapes.source("train[:4]", data_dir=tmp_path, resolution=16, split_sizes={"train": 6})
    assert len(listing.pictures) == len(listing.names) == 4
    assert listing.captions == [example["caption"] for example in source]
    for picture, example in zip(listing.pictures, source, strict=True):
        np.testing.assert_array_equal(np.asarray(open_image(picture)), example["image"])
    assert listing.labels is not None
    with pytest.raises(UserError, match="no split 'test'; choose one of train"):
        open_source(f"tfds:shapes/{builder.settings.name}:test", data_dir=tmp_path)
