"""Decoding: from whatever holds a picture to an upright Pillow image without transparency. numpy and Pillow only.

Every error is a `UserError` that begins with the name of the picture, however Pillow's decoder put it.
"""

import io
import os
import re
import struct
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from image_text.errors import UserError, printable

# Pillow only warns above this many pixels, and decodes; 74 bytes of PNG can ask for them. Counted before decoding.
MOST_PIXELS_DECODED = 89_478_485

# What Pillow recognises but does not decode by itself, or only by running another program on it.
NOT_DECODED = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"})

_PNG = b"\x89PNG\r\n\x1a\n"
_WHAT_IT_IS = (  # how files begin that are given as pictures and are none, or none that Pillow reads
    (re.compile(rb"\s*<(!doctype html|html|head)", re.IGNORECASE), "it is a web page"),
    (re.compile(rb"(\xef\xbb\xbf)?(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)?<svg", re.DOTALL), "it is SVG: convert it to PNG"),
    (re.compile(rb"version https://git-lfs"), "it is a Git LFS pointer: run `git lfs pull`"),
    (re.compile(rb"%!PS|\xc5\xd0\xd3\xc6"), "it is PostScript, which is not run: convert it to PNG"),
    (re.compile(rb"\xff\x0a|\0\0\0\x0cJXL "), "it is JPEG XL: convert it to PNG"),
    (re.compile(rb"%PDF"), "it is a PDF: convert its pages to PNG"),
    (re.compile(rb"....ftyp(hei|hev|mif1|msf1)", re.DOTALL), "it is HEIC: convert it, or register pillow-heif"),
)
# One picture may be given to several threads; two pictures seldom share a lock.
_LOCKS = tuple(threading.Lock() for _ in range(64))


class NamedBytes(bytes):
    """An encoded picture with the name that errors call it by, such as a record of a dataset."""

    name: str

    def __new__(cls, data: bytes, name: str) -> "NamedBytes":
        """`data` under `name`."""
        self = super().__new__(cls, data)
        self.name = name
        return self


def is_one(images: Any) -> bool:
    """Whether it is one picture (or nothing of the kind), not several: a list, a generator, an array [B, H, W, c]."""
    single = isinstance(images, str | os.PathLike | bytes | bytearray | memoryview | Image.Image | Mapping)
    if single or hasattr(images, "read") or not isinstance(images, Iterable):
        return True
    if not hasattr(images, "__array__"):
        return False
    axes, kind = getattr(images, "ndim", 4), getattr(getattr(images, "dtype", None), "kind", "")
    return axes < 4 and not (axes == 1 and kind in ("O", "U"))  # a row of names is several


def open_image(source: Any) -> Image.Image:
    """A picture upright and without transparency, in RGB, grey or CMYK.

    Args:
        source: a path; encoded bytes (`bytes`, `bytearray`, `memoryview`); a binary file, read from its position, which
            stays (from its start when it is at its end, as Pillow does); a Pillow image; or an array, uint8 [H, W, 3],
            [H, W] or [H, W, 1] grey, [H, W, 4] with transparency, or uint16 [H, W] grey.

    Raises:
        UserError: there is no such file, it is damaged or no picture, it has more than 89,478,485 pixels, or its
            numbers could mean anything. The line begins with the name of the picture.
    """
    with naming(source):
        return decode(source)


@contextmanager
def naming(source: Any) -> Iterator[None]:
    """Whatever is raised inside becomes one line that begins with the name of the picture `source`."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{picture_name(source)}{error}") from error
    except Exception as error:  # Pillow's decoders raise whatever they like at damaged data
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        text = " ".join(str(reason).split()) or type(error).__name__
        raise UserError(f"{picture_name(source)}cannot read the picture: {text}") from error


def picture_name(source: Any) -> str:
    """How an error line begins: the name of the picture and ": ", or "" for an array, whose shape the error tells."""
    if isinstance(source, Image.Image):
        name = getattr(source, "filename", "") or f"a Pillow image of {source.width} × {source.height}"
    elif isinstance(source, bytes | bytearray | memoryview):
        size = source.nbytes if isinstance(source, memoryview) else len(source)
        name = getattr(source, "name", f"{size} bytes")
    elif isinstance(source, str | os.PathLike):
        name = source
    elif hasattr(source, "read"):
        name = getattr(source, "name", None)
        name = name if isinstance(name, str | bytes) else type(source).__name__
    else:
        return ""
    return f"{printable(os.fsdecode(name), 500)}: "


def decode(source: Any) -> Image.Image:
    """`open_image`, whose errors do not name the picture: for use inside `naming`."""
    if isinstance(source, Image.Image):
        with _lock_of(source):  # loading, and reading its EXIF, change the object that other threads may hold
            if not _is_decoded(source):  # a large picture that is in memory already is its owner's choice
                _check_pixels(source)
            source.load()
            return plain(source)
    if isinstance(source, str | os.PathLike):
        if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://|data:", os.fsdecode(source)):
            raise UserError("it is an address, not a file: download the picture first")
        with open(source, "rb") as file:
            return _decode_file(file)
    if isinstance(source, bytes | bytearray | memoryview):
        return _decode_file(io.BytesIO(source))
    if hasattr(source, "read"):
        return _decode_file(io.BytesIO(_rest_of(source)))
    if not hasattr(source, "__array__"):
        raise UserError(
            f"a picture is a path, bytes, a binary file, a Pillow image or an array, not {type(source).__name__}"
        )
    return plain(_from_array(np.asarray(source)))


def _is_decoded(image: Image.Image) -> bool:
    try:
        return image.im is not None
    except Exception:  # by its version, Pillow asserts that it is, or has kept an error to raise
        return False


def _lock_of(source: Any) -> threading.Lock:
    return _LOCKS[hash(id(source) >> 4) % len(_LOCKS)]


def _rest_of(file: Any) -> bytes:
    with _lock_of(file):
        if not (hasattr(file, "seekable") and file.seekable()):
            data = file.read()
        else:
            start = file.tell()
            data = file.read()
            if not data:
                file.seek(0)
                data = file.read()
            file.seek(start)
    if not isinstance(data, bytes | bytearray | memoryview):
        raise UserError(f"the file gives {type(data).__name__}: open it in binary mode, 'rb'")
    return bytes(data)


def _decode_file(file: io.BufferedIOBase) -> Image.Image:
    try:
        return _load(file)
    except Image.DecompressionBombError:
        raise UserError(_too_many_pixels("more than Pillow opens")) from None
    except UnidentifiedImageError:
        file.seek(0)
        raise UserError(f"cannot read the picture: {_what_it_is(file.read(1024))}") from None
    except ValueError as error:
        file.seek(0)
        if isinstance(error, UserError) or file.read(len(_PNG)) != _PNG:
            raise
        file.seek(0)
        return _load(io.BytesIO(_without_text(file.read())))


def _load(file: io.BufferedIOBase) -> Image.Image:
    Image.init()
    formats = [name for name in Image.ID if name not in NOT_DECODED]
    image = Image.open(file, formats=formats)  # type: ignore[arg-type] # it wants IO[bytes]
    _check_pixels(image)
    image.load()
    _check_pixels(image)  # the pictures in an icon have sizes of their own
    return plain(image)


def _check_pixels(image: Image.Image) -> None:
    if image.width * image.height > MOST_PIXELS_DECODED:
        raise UserError(_too_many_pixels(f"{image.width} × {image.height}"))


def _too_many_pixels(how_many: str) -> str:
    return f"too many pixels ({how_many}): at most {MOST_PIXELS_DECODED:,} are decoded; make it smaller first"


def _what_it_is(start: bytes) -> str:
    if not start:
        return "it is empty"
    return next((what for pattern, what in _WHAT_IT_IS if pattern.match(start)), "cannot identify image file")


def _without_text(png: bytes) -> bytes:
    """The PNG without its texts and colour profile, of which Pillow refuses more than a megabyte.

    Those that may say which side is up stay.
    """
    kept, at = [png[:8]], 8
    while at + 8 <= len(png):
        (length,) = struct.unpack(">I", png[at : at + 4])
        kind, end = png[at + 4 : at + 8], at + 12 + length
        keyword = png[at + 8 : at + 88].partition(b"\0")[0]
        orientation = keyword in (b"Raw profile type exif", b"XML:com.adobe.xmp")
        if kind not in (b"tEXt", b"zTXt", b"iTXt", b"iCCP") or orientation:
            kept.append(png[at:end])
        at = end
    return b"".join(kept)


def _from_array(array: np.ndarray) -> Image.Image:
    grey = array.ndim == 2 or (array.ndim == 3 and array.shape[-1] == 1)
    fits = grey or (array.ndim == 3 and array.shape[-1] in (3, 4) and array.dtype == np.uint8)
    if array.dtype not in (np.uint8, np.uint16) or not fits or not array.size:
        hint = ""
        if np.issubdtype(array.dtype, np.floating):
            hint = "; if it lies in [0, 1], multiply by 255 and round"
        elif array.ndim == 3 and array.shape[0] in (1, 3, 4):
            hint = "; the channels come last: transpose(1, 2, 0)"
        raise UserError(
            f"an image array is uint8 [H, W, 3] (or [H, W], [H, W, 4]), got {array.dtype} {list(array.shape)}{hint}"
        )
    return Image.fromarray(np.ascontiguousarray(array[..., 0] if grey and array.ndim == 3 else array))


def plain(image: Image.Image) -> Image.Image:
    """The same picture upright, in RGB, grey or CMYK (which the recipe turns into RGB only after resizing).

    Raises: UserError for numbers without a known range.
    """
    if not (image.width and image.height):
        raise UserError(f"it has no pixels: {image.width} × {image.height}")
    image = ImageOps.exif_transpose(image)
    if image.mode == "F" or image.mode == "I":
        values = np.asarray(image)
        if image.mode == "F" or values.min() < 0 or values.max() > 65535:
            raise UserError(f"a picture of mode {image.mode} has no known range: convert it to 8 or 16 bits")
        return _from_16_bits(values)
    if image.mode.startswith("I;16"):
        return _from_16_bits(np.asarray(image))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image if image.mode in ("RGB", "L", "CMYK") else image.convert("L" if image.mode == "1" else "RGB")


def _from_16_bits(values: np.ndarray) -> Image.Image:
    return Image.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8))  # 65535 = 255 × 257
