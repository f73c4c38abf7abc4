import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unclip_jax.pictures import contact_sheet, file_stem, output_directory, save_png

PICTURE = np.random.default_rng(0).integers(0, 256, (12, 10, 3), np.uint8)

NASTY = [
    "../../etc/passwd",
    "/absolute",
    "a\\b\\c",
    ".",
    "..",
    "~root",
    "con: a|b?c*d<e>f\"g'",
    "nul\0byte",
    "line\nbreak\ttab\rreturn",
    "  spaces  ",
    "-rf --help",
    "%2e%2e%2f $HOME `ls`",
    "é ü 漢字 Жук",
    "a\u202egnp.exe",
    "\ud800 alone",
    "🎨🖌",
    "",
    "x" * 5000,
    "漢" * 5000,
    "é" * 59 + "x",
]


def test_pixels_and_words_come_back(tmp_path):
    words = {"prompt": "a small red circle", "unicode": "ein grüner Stern, 星 🌟", "empty": "", "long": "x" * 3000}
    save_png(tmp_path / "a.png", PICTURE, words)
    with Image.open(tmp_path / "a.png") as image:
        image.load()
        assert image.format == "PNG"
        assert {k: str(v) for k, v in image.text.items()} == words
        np.testing.assert_array_equal(np.asarray(image), PICTURE)


@pytest.mark.parametrize("prompt", NASTY)
def test_any_prompt_can_be_written_down(tmp_path, prompt):
    save_png(tmp_path / f"{file_stem(prompt)}.png", PICTURE, {"prompt": prompt})
    (path,) = tmp_path.iterdir()
    with Image.open(path) as image:
        image.load()
        written = str(image.text["prompt"])
    assert written == prompt or "\ud800" in prompt


def test_same_picture_same_bytes(tmp_path):
    for name in ("a", "b"):
        save_png(tmp_path / name, PICTURE, {"prompt": "a", "seed": "1"})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_takes_pillow_images_and_no_words(tmp_path):
    save_png(tmp_path / "a.png", Image.fromarray(PICTURE))
    with Image.open(tmp_path / "a.png") as image:
        np.testing.assert_array_equal(np.asarray(image), PICTURE)


def test_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    save_png(path, PICTURE)
    before = path.read_bytes()

    def fails(self, target, **options):
        Path(target).write_bytes(b"half a picture")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", fails)
    with pytest.raises(OSError, match="disk full"):
        save_png(path, 255 - PICTURE)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.png"]


@pytest.mark.parametrize("prompt", NASTY)
def test_file_stem_is_a_plain_short_name(prompt):
    stem = file_stem(prompt)
    assert 0 < len(stem.encode("utf-8")) <= 60
    assert all(c.isalnum() or c == "-" for c in stem)
    assert stem.strip("-") == stem
    assert Path(stem).name == stem


def test_file_stem_keeps_what_one_reads():
    assert file_stem("A large, BLUE star in the bottom-right!") == "a-large-blue-star-in-the-bottom-right"
    assert file_stem("Жёлтый квадрат") == "жёлтый-квадрат"
    assert file_stem("🎨") == "empty"


def test_sheet_shows_every_picture_enlarged_below_its_caption():
    pictures = [np.full((8, 8, 3), level, np.uint8) for level in (10, 90, 170)]
    sheet = np.asarray(contact_sheet([("first", pictures), ("second", pictures[:1])], scale=3, columns=2))
    for level, times in ((10, 2), (90, 1), (170, 1)):
        pixels = (sheet == level).all(axis=-1)
        assert pixels.sum() == times * (3 * 8) ** 2
    first, third = ((sheet == level).all(axis=-1).nonzero() for level in (10, 170))
    assert first[0].min() < third[0].min()  # a third picture does not fit two columns
    assert (sheet < 60).any(axis=-1)[:20].any()  # there is ink where the first caption goes


@pytest.mark.parametrize("caption", NASTY)
def test_sheet_takes_any_caption(caption):
    """On one line, so that it does not run into the pictures, and cut where it would make the sheet endless."""
    sheet = contact_sheet([(caption, [PICTURE])])
    assert sheet.width < 2000
    line, tile = np.asarray(sheet)[8:30], np.asarray(sheet)[30:-8, 8:28]
    np.testing.assert_array_equal(tile, PICTURE.repeat(2, axis=0).repeat(2, axis=1))
    assert (line != 255).any() == bool(caption.strip())


def test_output_directory_is_made_or_refused(tmp_path):
    assert output_directory(tmp_path / "a" / "b").is_dir()
    assert output_directory(tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        output_directory(tmp_path / "file")
