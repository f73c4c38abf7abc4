"""Tables as people have them: read right, or refused with the line and what was seen."""

import contextlib
import json
import unicodedata

import numpy as np
import pytest
from PIL import Image

from clip_jax import UserError
from image_text.decode import open_image
from image_text.source import open_source

TWO = ["a cat", "two dogs"]


@pytest.fixture
def here(tmp_path):
    for name in ("a.png", "b.png"):
        (tmp_path / "img").mkdir(exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / "img" / name)
    return tmp_path


def read(here, name, content, encoding="utf-8"):
    data = content if isinstance(content, bytes) else content.encode(encoding, "surrogateescape")
    (here / name).write_bytes(data)
    return open_source(str(here / name))


@pytest.mark.parametrize(
    ("name", "header", "between"),
    [
        ("t.csv", "image,caption", ","),
        ("t.csv", "filepath\ttitle", "\t"),
        ("t.csv", "image;caption", ";"),
        ("t.csv", "Image Path,TEXT", ","),
        ("t.csv", "image-name,alt text", ","),
        ("t.csv", "image, caption", ", "),
        ("t.csv", '"image","caption"', ","),
        ("t.csv", "sep=;\nimage;caption", ";"),
        ("t.tsv", "file_name,caption", ","),
        ("t.TSV", "image\tcaption", "\t"),
        ("captions.txt", "image,caption", ","),
        ("results.csv", "image_name| comment", "| "),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_headers_separators_and_encodings(here, name, header, between, encoding, end):
    rows = [header.replace("\n", end), f"img/a.png{between}a cat", "", f"img/b.png{between}two dogs"]
    source = read(here, name, end.join(rows), encoding)
    assert source.names == ["img/a.png", "img/b.png"]
    assert source.captions == TWO


def test_more_columns_than_are_needed(here):
    source = read(
        here, "t.csv", ",image,caption_id,caption,split\n0,img/a.png,3,a cat,train\n1,img/b.png,4,two dogs,\n"
    )
    assert source.captions == TWO
    source = read(here, "r.csv", 'image_name| comment_number| comment\nimg/a.png| 0| a "cat\n')
    assert source.captions == ['a "cat']


def test_quotes_line_breaks_and_long_texts(here):
    source = read(here, "t.csv", 'image,caption\nimg/a.png,"a, ""cat""\nthere"\nimg/b.png,"' + "x" * 400_000 + '"\n,\n')
    assert source.captions == ['a, "cat"\nthere', "x" * 400_000]


def test_flickr8k_tokens(here):
    source = read(here, "Flickr8k.token.txt", 'a.png#0\ta cat .\na.png#1\ta pet, "here\nb.png#0\ttwo dogs\n')
    assert source.names == ["a.png", "a.png", "b.png"]  # found in the one folder beside the table that has them
    assert source.captions == ["a cat .", 'a pet, "here', "two dogs"]
    assert open_image(source.pictures[2]).size == (4, 4)
    with pytest.raises(UserError, match="line 2 is not like the first"):
        read(here, "t.txt", "a.png#0\ta cat\nb.png two dogs\n")


def test_several_captions_of_a_picture(here):
    expected = (["img/a.png"] * 2 + ["img/b.png"], [*TWO, "three"])
    rows = [{"image": "img/a.png", "caption": TWO}, {"image": "img/b.png", "caption": "three"}]
    source = read(here, "t.jsonl", "\n".join(map(json.dumps, rows)))
    assert (source.names, source.captions) == expected
    source = read(here, "t.csv", 'image,raw\nimg/a.png,"[""a cat"", ""two dogs""]"\nimg/b.png,three\n')
    assert (source.names, source.captions) == expected
    source = read(here, "list.json", json.dumps(rows))
    assert (source.names, source.captions) == expected
    labelled = [dict(row, label=i) for i, row in enumerate(rows)]
    source = read(here, "t.jsonl", "\n".join(map(json.dumps, labelled)))
    assert source.labels.tolist() == [0, 0, 1]


def test_coco(here):
    (here / "annotations").mkdir()
    (here / "val2017").mkdir()
    Image.new("RGB", (5, 4)).save(here / "val2017" / "000000000139.jpg")
    data = {
        "images": [{"id": 139, "file_name": "000000000139.jpg"}],
        "annotations": [{"image_id": 139, "id": i, "caption": text} for i, text in enumerate(TWO)],
    }
    source = read(here, "annotations/captions_val2017.json", json.dumps(data))
    assert (source.names, source.captions) == (["000000000139.jpg"] * 2, TWO)
    assert open_image(source.pictures[0]).size == (5, 4)
    more = {"images": [*data["images"], {"id": 1, "file_name": "none.jpg"}]}
    with pytest.warns(UserWarning, match="1 of 2 images have no caption and are left out"):
        assert read(here, "annotations/captions_val2017.json", json.dumps(data | more)).captions == TWO
    for change, words in [
        ({"annotations": [{"image_id": 139, "bbox": []}]}, "annotation 1 has no caption"),
        ({"annotations": [{"image_id": 7, "caption": "x"}]}, "annotation 1 is of the image 7, which is not listed"),
        ({"images": [{"id": 1}]}, "image 1 has no file_name"),
        ({"images": data["images"] * 2}, "image 2 has no id of its own"),
        ({"images": 3}, "neither COCO's captions nor a list"),
    ]:
        with pytest.raises(UserError, match=words):
            read(here, "annotations/captions_val2017.json", json.dumps(data | change))


def test_integers_are_in_their_order(here):
    rows = "".join(f"img/a.png,{i}\n" for i in (10, 2, 0, 11, 1))
    source = read(here, "t.csv", f"image,label\n{rows}")
    assert source.classes == ["0", "1", "2", "10", "11"]
    assert source.labels.tolist() == [3, 2, 0, 4, 1]
    source = read(here, "t.jsonl", '{"image": "img/a.png", "class": 10}\n{"image": "img/b.png", "class": 9.0}\n')
    assert source.classes == ["9", "10"]


def test_where_pictures_lie(here):
    assert read(here, "t.csv", "image,caption\nimg\\a.png,a cat\n").names == ["img/a.png"]
    (here / "img" / "a.png").rename(here / "img" / unicodedata.normalize("NFD", "ä.png"))  # as macOS writes it
    assert open_image(read(here, "t.csv", "image,caption\nimg/ä.png,a cat\n").pictures[0]).size == (4, 4)
    Image.new("RGB", (4, 4)).save(here / "img" / "a.png")
    source = read(here, "t.csv", f"image,caption\n{here / 'img' / 'a.png'},a cat\n")
    assert open_image(source.pictures[0]).size == (4, 4)
    source = read(here, "t.csv", "image,caption\nb.png,two dogs\na.png,a cat\n")  # only img/ has them
    assert source.pictures[1] == here / "img" / "a.png"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        (
            "t.csv",
            "image,caption\nimg/a.png,a red, round thing\n",
            "line 2 has 3 fields, the header 2 (image, caption)",
        ),
        ("t.csv", 'image,caption\nimg/a.png,"a\ncat"\nimg/b.png, \n', "line 4 has no caption"),
        ("t.csv", 'image,caption\nimg/a.png,"a "cat" there"\n', "line 2: "),
        ("t.csv", 'image,caption\nimg/a.png,"a cat\nimg/b.png,two dogs\n', "line 2: "),
        ("t.csv", "image,caption\nimg/a.png,\\N\n", "line 2 has no caption"),
        ("t.csv", 'image,caption\nimg/a.png,"a cat\n', "is a quotation mark not closed"),
        ("t.csv", "picture_of,words\nx,y\n", "no column for pictures; call it 'image'; columns: picture_of, words"),
        ("t.csv", "url,caption\nhttp://x/a.png,y\n", "url names what has to be downloaded first"),
        ("t.csv", "image,caption\nhttps://x/a.png,y\n", "line 2 names 'https://x/a.png': an address, not a file"),
        ("t.csv", "image,path,caption\na,b,c\n", "columns image, path could each be the picture"),
        ("t.csv", "image,title,text\na,b,c\n", "columns title, text could each be the caption"),
        ("t.csv", "image,caption,caption\na,b,c\n", "the column caption is there twice"),
        ("t.csv", "image,caption\nimg/a.png,a\0cat\n", "line 2 holds a NUL byte"),
        ("t.csv", "image,caption\nimg/a.png,ok\nimg/b.png,gr\udcfcn\n", "is not UTF-8: line 3 has the byte 0xfc"),
        ("t.csv", "image;caption\nimg/a.png;['a', 'b']\n", "line 2: the caption \"['a', 'b']\" looks like a list"),
        ("t.csv", "image,caption\n" + "x" * 5000 + ",a\n", "which is not there"),
        ("t.jsonl", '{"image": "img/a.png", "caption": {"en": "x"}}', "line 1: the caption is {'en': 'x'}, neither"),
        ("t.jsonl", '{"image": "img/a.png", "caption": []}', "neither text nor a list"),
        ("t.jsonl", '{"image": "img/a.png", "caption": ["a", " "]}', "line 1 has an empty caption among 2"),
        ("t.jsonl", '{"image": "img/a.png", "caption": 3.5}', "the caption is 3.5"),
        ("t.jsonl", '{"image": "img/a.png", "caption": "\\ud83d"}', "half of a character"),
        ("t.jsonl", '{"image": "img/a.png", "caption": "a", "caption": "b"}', "line 1 has 'caption' twice"),
        ("t.jsonl", '{"image": "img/a.png", "label": NaN}', "the label is nan"),
        ("t.jsonl", '{"image": "img/a.png", "label": [1]}', "the label is [1]"),
        ("t.jsonl", '{"image": {"bytes": 1}}', "the picture is {'bytes': 1}"),
        ("t.jsonl", '{"image": "img/a.png"}\n{"image": "img/b.png", "text": "x"}', "line 2 has a column text"),
        ("t.jsonl", "[" * 100_000, "line 1 is nested too deeply"),
        ("t.jsonl", '{"image": ' + "1" * 5000 + "}", "line 1 is not JSON"),
        ("t.json", '{"image": "img/a.png"}\n{"image": "img/b.png"}', "an object per line? call it .jsonl"),
        ("t.tar", "x", "is a tar (of WebDataset?), which is not read yet: unpack"),
        ("t.parquet", "PAR1....PAR1", "is a Parquet table, which is not read yet"),
        ("t.csv", "PAR1....PAR1", "is a Parquet table"),
        ("t.csv", "PK\x03\x04....", "is a zip"),
        ("t.xlsx", "PK\x03\x04....", "is an Excel sheet"),
        ("t.csv.gz", b"\x1f\x8b....", "is packed by gzip"),
        ("t.csv", "version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
        ("t.csv", "<!DOCTYPE html><html>", "is a web page"),
        ("t.heic", "x", "is a picture that Pillow does not read here"),
    ],
)
def test_what_will_not_do_is_named(here, name, content, words):
    with pytest.raises(UserError) as error:
        read(here, name, content)
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 6000


def test_a_line_without_end_is_not_read_whole(here, monkeypatch):
    monkeypatch.setattr("image_text.lines.LONGEST_LINE", 1000)
    with pytest.raises(UserError, match="line 2 is longer than 1,000 characters"):
        read(here, "t.csv", "image,caption\n" + "x" * 5000)


def test_columns_that_mean_nothing_here_are_told(here):
    with pytest.warns(
        UserWarning, match="no column is called caption or label, so there are none; columns: image, captoin"
    ):
        assert read(here, "t.csv", "image,captoin\nimg/a.png,a cat\n").captions is None


def test_captions_alone(here):
    (here / "t.csv").write_text("caption\na cat\ntwo dogs\n")
    source = open_source(str(here / "t.csv"), without_pictures=True)
    assert (source.captions, source.names, len(source.pictures)) == (TWO, [], 0)
    with pytest.raises(UserError, match="no column for pictures"):
        open_source(str(here / "t.csv"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*no column is called")
def test_two_thousand_damaged_tables(here):
    """Every one is read or refused in one line."""
    rng = np.random.default_rng(0)
    rows = [{"image": "img/a.png", "caption": text, "label": i} for i, text in enumerate(["ü cat", 'a "dog"'])]
    originals = {
        "t.csv": 'image,caption,label\nimg/a.png,"ü, cat",1\nimg/b.png,"a ""dog""",2\n',
        "t.tsv": "image\tcaption\nimg/a.png\tü cat\n",
        "t.jsonl": "\n".join(map(json.dumps, rows)),
        "t.json": json.dumps(
            {"images": [{"id": 1, "file_name": "img/a.png"}], "annotations": [{"image_id": 1, "caption": "x"}]}
        ),
    }
    for i in range(2000):
        name = [*originals][i % 4]
        data = bytearray(originals[name].encode(["utf-8", "utf-16"][i % 8 == 5]))
        for _ in range(int(rng.integers(1, 4))):
            at = int(rng.integers(len(data)))
            data[at : at + int(rng.integers(0, 4))] = rng.bytes(int(rng.integers(0, 4)))
        with contextlib.suppress(UserError):
            read(here, name, bytes(data))
