"""Decoding of pictures from files, bytes and arrays to upright Pillow images without transparency.

Needs numpy and Pillow only. Every error is a `UserError` that begins with the name of the picture.
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

# Limit against decompression bombs, checked before decoding: Pillow itself only warns above this number of pixels,
# which 74 bytes of PNG can claim.
MOST_PIXELS_DECODED = 89_478_485

# Formats that Pillow recognises but decodes only with another program, or not at all.
NOT_DECODED = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"})

_PNG = b"\x89PNG\r\n\x1a\n"
_WHAT_IT_IS = (  # (start of a file that is not a picture, or that Pillow does not read; what the file is)
    (re.compile(rb"\s*<(!doctype html|html|head)", re.IGNORECASE), "it is a web page"),
    (re.compile(rb"(\xef\xbb\xbf)?(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)?<svg", re.DOTALL), "it is SVG: convert it to PNG"),
    (re.compile(rb"version https://git-lfs"), "it is a Git LFS pointer: run `git lfs pull`"),
    (re.compile(rb"%!PS|\xc5\xd0\xd3\xc6"), "it is PostScript, which is not run: convert it to PNG"),
    (re.compile(rb"\xff\x0a|\0\0\0\x0cJXL "), "it is JPEG XL: convert it to PNG"),
    (re.compile(rb"%PDF"), "it is a PDF: convert its pages to PNG"),
    (re.compile(rb"....ftyp(hei|hev|mif1|msf1)", re.DOTALL), "it is HEIC: convert it, or register pillow-heif"),
)
# Several threads may decode the same object. A lock is chosen by the object's id, so two objects seldom share one.
_LOCKS = tuple(threading.Lock() for _ in range(64))


class NamedBytes(bytes):
    """An encoded picture with a name for errors, such as a record of a dataset ("train/7")."""

    name: str

    def __new__(cls, data: bytes, name: str) -> "NamedBytes":
        """The bytes `data` with the name `name`."""
        self = super().__new__(cls, data)
        self.name = name
        return self


def is_one(images: Any) -> bool:
    """False for several pictures (a list, a generator, an array [B, H, W, c]), True for anything else."""
    single = isinstance(images, str | os.PathLike | bytes | bytearray | memoryview | Image.Image | Mapping)
    if single or hasattr(images, "read") or not isinstance(images, Iterable):
        return True
    if not hasattr(images, "__array__"):
        return False
    axes, kind = getattr(images, "ndim", 4), getattr(getattr(images, "dtype", None), "kind", "")
    return axes < 4 and not (axes == 1 and kind in ("O", "U"))  # a 1-d array of names or objects is several


def open_image(source: Any) -> Image.Image:
    """Decodes a picture: upright (EXIF orientation applied), on white instead of transparency.

    Args:
        source: a path; encoded bytes (`bytes`, `bytearray`, `memoryview`); a binary file, read from its position, which
            is restored (from its start when it is at its end, as Pillow does); a Pillow image; or an array, uint8
            [H, W, 3], [H, W] or [H, W, 1] grey, [H, W, 4] with transparency, or uint16 [H, W] or [H, W, 1] grey.

    Returns:
        A Pillow image of mode "RGB", "L" or "CMYK".

    Raises:
        UserError: the file is absent, damaged or not a picture, has more than 89,478,485 pixels, or its values have no
            known range. The error begins with the name of the picture.
    """
    with naming(source):
        return decode(source)


@contextmanager
def naming(source: Any) -> Iterator[None]:
    """Turns any exception of the block into a `UserError` of one line that begins with the name of `source`.

    Raises:
        UserError: the block raised an exception.
    """
    try:
        yield
    except UserError as error:
        raise UserError(f"{picture_name(source)}{error}") from error
    except Exception as error:  # Pillow's decoders raise many types for damaged data
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        text = " ".join(str(reason).split()) or type(error).__name__
        raise UserError(f"{picture_name(source)}cannot read the picture: {text}") from error


def picture_name(source: Any) -> str:
    """The beginning of an error: the name of the picture and ": ", or "" for an array, whose shape the error gives."""
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
    """`open_image` for use inside `naming`: errors do not name the picture, and may be of any type."""
    if isinstance(source, Image.Image):
        with _lock_of(source):  # loading and reading EXIF change the object, which other threads may use
            if not _is_decoded(source):  # a picture that is in memory already may have any size
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
    except Exception:  # depending on its version, Pillow fails an assertion or raises a stored error
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
    _check_pixels(image)  # loading an icon may select a picture of another size
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
    """The PNG without text chunks and colour profile, as Pillow refuses those above a megabyte.

    Chunks that may hold the EXIF orientation are kept.
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
    """The picture upright, on white instead of transparency, of mode "RGB", "L" or "CMYK".

    CMYK is kept because preprocessing converts it to RGB after resizing.

    Raises:
        UserError: the picture has no pixels, or its values (mode F, or I outside 16 bits) have no known range.
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
