"""What holds a picture, and what only looks like it."""

import io
import struct
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from clip_jax import PreprocessConfig, UserError
from clip_jax.images import Preprocess
from image_text.decode import MOST_PIXELS_DECODED, NamedBytes, open_image

PREPROCESS = Preprocess(PreprocessConfig(), 32)
PIXELS = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)


def encoded(kind="png", image=None, **options):
    buffer = io.BytesIO()
    (Image.fromarray(PIXELS) if image is None else image).save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of(width, height):
    """A PNG of a few bytes that says it is as large as that."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


class Unseekable(io.RawIOBase):
    def __init__(self, data):
        self._file = io.BytesIO(data)

    def readable(self):
        return True

    def readinto(self, buffer):
        return self._file.readinto(buffer)


def test_every_holder_of_bytes_gives_the_same(tmp_path):
    data = encoded()
    (tmp_path / "a.png").write_bytes(data)
    behind = io.BytesIO(b"something before it" + data)
    behind.seek(19)
    at_its_end = io.BytesIO(data)
    at_its_end.seek(0, io.SEEK_END)
    with open(tmp_path / "a.png", "rb") as file:
        sources = [data, bytearray(data), memoryview(data), io.BytesIO(data), file, behind, at_its_end]
        for source in (*sources, Unseekable(data), NamedBytes(data, "train/3")):
            np.testing.assert_array_equal(np.asarray(open_image(source)), PIXELS)
        for source in sources:  # and again: none was used up
            np.testing.assert_array_equal(np.asarray(open_image(source)), PIXELS)
    assert behind.tell() == 19


def test_iterables_of_pictures():
    expected = PREPROCESS([PIXELS, PIXELS])
    for several in (
        (picture for picture in [PIXELS, encoded()]),
        iter([PIXELS, PIXELS]),
        (PIXELS, PIXELS),
        {0: PIXELS, 1: PIXELS}.values(),
        np.stack([PIXELS, PIXELS]),
    ):
        np.testing.assert_array_equal(PREPROCESS(several), expected)
    assert PREPROCESS(iter(())).shape == (0, 32, 32, 3)
    for threads in (0, -1):
        with pytest.raises(UserError, match=r"threads: .* is less than 1"):
            PREPROCESS([PIXELS], threads=threads)


def test_an_array_of_names(tmp_path):
    names = [str(tmp_path / f"{i}.png") for i in range(2)]
    for name in names:
        Image.fromarray(PIXELS).save(name)
    assert PREPROCESS(np.array(names)).shape == (2, 32, 32, 3)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("https://example.com/cat.jpg", "https://example.com/cat.jpg: it is an address, not a file"),
        (io.StringIO("text"), "StringIO: the file gives str: open it in binary mode"),
        (b"<!DOCTYPE html><html>", "21 bytes: cannot read the picture: it is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "PostScript"),
        (b"\0\0\0\x18ftypheic" + bytes(99), "HEIC"),
        (NamedBytes(b"", "train/7"), "train/7: cannot read the picture: it is empty"),
        (np.zeros((3, 8, 9), np.uint8), r"uint8 \[3, 8, 9\]; the channels come last"),
        (b"\xef\xbb\xbf<?xml version='1.0'?><svg/>", "it is SVG"),
        (b"\xff\x0a" + bytes(30), "it is JPEG XL"),
        (Image.new("RGB", (0, 5)), "it has no pixels: 0 × 5"),
        ("x" * 5000, "^.{0,700}$"),
        (np.zeros((8, 9, 3), bool), "got bool"),
        ({"image": 1}, "not dict"),
        (None, "not NoneType"),
    ],
)
def test_what_it_is_instead_is_said(source, words):
    with pytest.raises(UserError, match=words) as error:
        PREPROCESS(source)
    assert "\n" not in str(error.value)


def test_pictures_are_measured_before_they_are_decoded(tmp_path, monkeypatch):
    side = 9460  # squared, a little more than the limit
    assert (side - 1) ** 2 < MOST_PIXELS_DECODED < side**2
    (tmp_path / "bomb.png").write_bytes(png_of(side, side))
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    for data in (tmp_path / "bomb.png", png_of(side, side), png_of(2**20, 2**20), Image.open(tmp_path / "bomb.png")):
        with pytest.raises(UserError, match="too many pixels"):
            open_image(data)
    with pytest.raises(UserError, match=r"bomb\.png: too many pixels \(9460 × 9460\)"):
        open_image(tmp_path / "bomb.png")


def test_a_large_picture_that_is_decoded_already_is_taken():
    tall = Image.new("1", (9460, 9460), 1)
    assert open_image(tall).size == (9460, 9460)
    webp = bytearray(encoded("webp", Image.new("RGB", (16, 16)), lossless=True))
    at = webp.index(b"VP8L") + 9  # 14 bits of the width less one, then of the height
    webp[at : at + 4] = struct.pack("<I", 9999 | 9999 << 14)
    with pytest.raises(UserError, match=r"too many pixels \(10000 × 10000\)"):
        open_image(Image.open(io.BytesIO(webp)))


def test_the_first_frame_of_several_counts():
    frames = [Image.new("P", (300, 300), i) for i in range(4)]
    moving = encoded("gif", frames[0], save_all=True, append_images=frames[1:])
    assert open_image(moving).size == (300, 300)
    screen = struct.pack("<HH", 60_000, 60_000)  # what the header of the GIF says instead
    with pytest.raises(UserError, match="too many pixels"):
        open_image(moving[:6] + screen + moving[10:])


def test_an_icon_with_a_picture_of_another_size():
    inside = png_of(9460, 9460)
    icon = struct.pack("<HHH", 0, 1, 1) + struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(inside), 22) + inside
    with pytest.raises(UserError, match=r"pixels|cannot read"):
        open_image(icon)


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"tEXt", b"iCCP"])
def test_texts_in_a_png_are_not_needed(kind):
    bomb = zlib.compress(bytes(3_000_000))
    data = {b"zTXt": b"a\0\0" + bomb, b"iTXt": b"a\0\1\0\0\0" + bomb, b"iCCP": b"a\0\0" + bomb}
    text = chunk(kind, data.get(kind, b"a\0" + b"x" * 3_000_000))
    png = encoded()
    for there in (png[:33] + text + png[33:], png[:33] + 30 * text + png[33:], png[:-12] + text + png[-12:]):
        np.testing.assert_array_equal(np.asarray(open_image(there)), PIXELS)


def test_a_picture_with_texts_is_still_turned_upright():
    exif = Image.Exif()
    exif[0x0112] = 6
    png = encoded(exif=exif)
    bomb = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(3_000_000)))
    assert open_image(png).size == open_image(png[:33] + bomb + png[33:]).size == (40, 50)


def test_errors_after_decoding_name_the_file_too(tmp_path):
    Image.new("L", (1, 20_000)).save(tmp_path / "strip.png")
    with pytest.raises(UserError, match=r"strip\.png: a picture of 1 × 20000"):
        Preprocess(PreprocessConfig(), 224)(tmp_path / "strip.png")
    lazy = Image.open(io.BytesIO(encoded()[:-400]))
    with pytest.raises(UserError, match="a Pillow image of 50 × 40: cannot read the picture"):
        PREPROCESS(lazy)
    (tmp_path / "cut.jpg").write_bytes(encoded("jpeg")[:-300])
    with pytest.raises(UserError, match=r"cut\.jpg: cannot read"):
        PREPROCESS(Image.open(tmp_path / "cut.jpg"))


def test_one_lazily_opened_picture_in_many_threads():
    data = encoded("jpeg", Image.fromarray(np.tile(PIXELS, (8, 8, 1))))
    expected = np.asarray(open_image(data))
    for _ in range(5):
        lazy, gate = Image.open(io.BytesIO(data)), threading.Barrier(8)

        def decode(_, lazy=lazy, gate=gate):
            gate.wait()
            return np.asarray(open_image(lazy))

        with ThreadPoolExecutor(8) as pool:
            for found in pool.map(decode, range(8)):
                np.testing.assert_array_equal(found, expected)
