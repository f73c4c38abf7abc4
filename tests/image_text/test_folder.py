"""Folders as people have them: what is data, links, classes, and captions beside the pictures."""

import os
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clip_jax import UserError
from image_text.decode import open_image
from image_text.source import open_source


def save(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(path, "PNG")


@pytest.fixture(autouse=True)
def _no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield


def test_what_programs_leave_behind_is_no_data(tmp_path):
    here = tmp_path / ".cache"  # the folder itself may be hidden
    save(here / "cat" / "a.png", here / "dog" / "b.PNG", here / ".ipynb_checkpoints" / "a-checkpoint.png")
    save(here / "__MACOSX" / "cat" / "._a.png", here / "cat" / "._a.png", here / "@eaDir" / "a.png", here / ".b.png")
    for name in ("Thumbs.db", ".DS_Store", "desktop.ini"):
        (here / "cat" / name).write_bytes(b"x")
    source = open_source(str(here))
    assert source.names == ["cat/a.png", "dog/b.PNG"]
    assert source.classes == ["cat", "dog"]


def test_every_suffix_that_pillow_decodes(tmp_path):
    for kind, suffix in [
        ("JPEG", "jfif"),
        ("JPEG", "jpe"),
        ("TGA", "tga"),
        ("PNG", "apng"),
        ("TIFF", "tif"),
        ("BMP", "DIB"),
    ]:
        Image.new("RGB", (4, 4)).save(tmp_path / f"{suffix}.{suffix}", kind)
    source = open_source(str(tmp_path))
    assert len(source.names) == 6
    assert {open_image(picture).size for picture in source.pictures} == {(4, 4)}


def test_pictures_that_pillow_does_not_read_are_counted(tmp_path):
    save(tmp_path / "a.png", tmp_path / "b.heic", tmp_path / "c.HEIC", tmp_path / "d.svg", tmp_path / "e.eps")
    with pytest.warns(UserWarning, match=r"left out.*: 1 \.eps, 2 \.heic, 1 \.svg"):
        assert open_source(str(tmp_path)).names == ["a.png"]


def test_one_picture(tmp_path):
    save(tmp_path / "a.JPG")
    source = open_source(str(tmp_path / "a.JPG"))
    assert source.names == ["a.JPG"]
    assert open_image(source.pictures[0]).size == (4, 4)


def test_links_are_followed(tmp_path):
    save(tmp_path / "all" / "cat" / "a.png", tmp_path / "all" / "dog" / "b.png")
    here = tmp_path / "some"
    here.mkdir()
    (here / "dog").symlink_to(tmp_path / "all" / "dog")
    (here / "cat").symlink_to(tmp_path / "all" / "cat")
    (here / "nowhere.png").symlink_to(tmp_path / "none.png")
    source = open_source(str(here))
    assert (source.names, source.classes) == (["cat/a.png", "dog/b.png"], ["cat", "dog"])


def test_links_in_a_circle_are_refused(tmp_path):
    save(tmp_path / "cat" / "a.png")
    (tmp_path / "cat" / "up").symlink_to(tmp_path)
    with pytest.raises(UserError, match="up: this link goes in a circle"):
        open_source(str(tmp_path))
    (tmp_path / "cat" / "up").unlink()
    (tmp_path / "self").symlink_to(tmp_path / "self")
    with pytest.raises(UserError, match="self: "):
        open_source(str(tmp_path))


def test_links_that_double_are_refused(tmp_path):
    for i in range(30):
        (tmp_path / f"{i}").mkdir()
        for side in "ab":
            (tmp_path / f"{i}" / side).symlink_to(tmp_path / f"{i + 1}")
    save(tmp_path / "30" / "a.png")
    with pytest.raises(UserError, match="more than 100 links"):
        open_source(str(tmp_path / "0"))


def test_integers_and_splits(tmp_path):
    save(*(tmp_path / "digits" / str(i) / "a.png" for i in range(12)))
    source = open_source(str(tmp_path / "digits"))
    assert source.classes == [str(i) for i in range(12)]
    assert [int(name.split("/")[0]) for name in source.names] == source.labels.tolist()
    save(tmp_path / "set" / "train" / "cat" / "a.png", tmp_path / "set" / "val" / "dog" / "b.png")
    assert open_source(str(tmp_path / "set")).classes == ["cat", "dog"]
    save(tmp_path / "flat" / "train" / "a.png", tmp_path / "flat" / "test" / "b.png")
    assert open_source(str(tmp_path / "flat")).classes is None


def test_a_name_that_is_not_utf8_can_be_written(tmp_path):
    save(tmp_path / "a.png")
    os.rename(tmp_path / "a.png", os.fsencode(tmp_path) + b"/caf\xe9.png")
    source = open_source(str(tmp_path))
    assert source.names == ["caf\\xe9.png"]
    assert open_image(source.pictures[0]).size == (4, 4)
    assert open_image(source.take([0]).pictures[0]).size == (4, 4)


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_metadata_as_in_an_imagefolder(tmp_path, suffix):
    expected = {}
    for part in ("train", "test"):
        save(*(tmp_path / part / f"{i}.png" for i in range(2)))
        rows = [(f"{i}.png", f"{part} {i}") for i in range(2)]
        expected |= {f"{part}/{name}": text for name, text in rows}
        if suffix == "csv":
            text = "file_name,text\n" + "".join(f"{name},{text}\n" for name, text in rows)
        else:
            text = "".join(f'{{"file_name": "{name}", "text": "{text}"}}\n' for name, text in rows)
        (tmp_path / part / f"metadata.{suffix}").write_text(text)
    source = open_source(str(tmp_path))
    assert dict(zip(source.names, source.captions, strict=True)) == expected
    assert open_image(source.pictures[3]).size == (4, 4)
    save(tmp_path / "train" / "x.png")
    with pytest.warns(UserWarning, match=r"1 pictures that .* does not name are left out, the first train/x\.png"):
        assert len(open_source(str(tmp_path)).names) == 4
    (tmp_path / "train" / "metadata.tsv").write_text("file_name\ttext\n0.png\tx\n")
    with pytest.raises(UserError, match="beside each other"):
        open_source(str(tmp_path))


def test_a_damaged_metadata_file_is_named(tmp_path):
    save(tmp_path / "a.png")
    (tmp_path / "metadata.csv").write_text("file_name,text\nb.png,x\n")
    with pytest.raises(UserError, match=r"metadata\.csv: line 2 names .*b\.png"):
        open_source(str(tmp_path))
    (tmp_path / "metadata.csv").rename(tmp_path / "metadata.parquet")
    (tmp_path / "metadata.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match="Parquet"):
        open_source(str(tmp_path))


def test_texts_beside_the_pictures(tmp_path):
    for name, text in [("a", "\ufeffone\r\n"), ("b", "two\n\nthree\n")]:
        save(tmp_path / "10_sks dog" / f"{name}.png")
        (tmp_path / "10_sks dog" / f"{name}.txt").write_bytes(text.encode())
    (tmp_path / "10_sks dog" / "README.txt").write_text("of no picture")
    source = open_source(str(tmp_path))
    assert source.captions == ["one", "two", "three"]
    assert source.names == [f"10_sks dog/{name}.png" for name in "abb"]
    save(tmp_path / "10_sks dog" / "c.png")
    with pytest.raises(UserError, match=r"1 of 3 pictures have no text beside them .* c\.png|dog/c\.png"):
        open_source(str(tmp_path))
    (tmp_path / "10_sks dog" / "c.txt").write_text(" \n")
    with pytest.raises(UserError, match=r"c\.txt is empty"):
        open_source(str(tmp_path))
    (tmp_path / "10_sks dog" / "c.txt").write_text("0 0.5 0.5 0.25 0.25\n")
    with pytest.raises(UserError, match="numbers, no caption"):
        open_source(str(tmp_path))


def test_a_table_in_the_folder_is_pointed_out(tmp_path):
    save(tmp_path / "Images" / "a.png")
    (tmp_path / "captions.txt").write_text("image,caption\na.png,a cat\n")
    with pytest.warns(UserWarning, match=r"captions\.txt in it is not read"):
        open_source(str(tmp_path))
    assert open_source(str(tmp_path / "captions.txt")).captions == ["a cat"]


def test_rows_can_be_taken(tmp_path):
    save(*(tmp_path / name / "a.png" for name in ("cat", "dog", "emu")))
    taken = open_source(str(tmp_path)).take([2, 0])
    assert taken.names == ["emu/a.png", "cat/a.png"]
    assert taken.pictures[:] == [tmp_path / "emu" / "a.png", tmp_path / "cat" / "a.png"]
    np.testing.assert_array_equal(taken.labels, [2, 0])
