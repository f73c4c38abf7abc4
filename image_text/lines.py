"""Reads text files line by line: UTF-8, or UTF-16 and UTF-32 with a byte order mark; the length of lines is bounded."""

import codecs
from collections.abc import Iterator
from pathlib import Path

from image_text.errors import UserError

LONGEST_LINE = 2**24  # characters; a file without line breaks must not fill the memory

_MARKS = (  # UTF-32 first: its little-endian mark begins with that of UTF-16
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def encoding_of(path: Path) -> str:
    """The encoding of a file by its byte order mark; "utf-8" without one."""
    with path.open("rb") as file:
        start = file.read(4)
    return next((encoding for mark, encoding in _MARKS if start.startswith(mark)), "utf-8")


def lines_of(path: Path) -> Iterator[str]:
    """Yields the lines of a text file, line ends included.

    Raises:
        UserError: a line is not valid in the encoding of the file, holds a NUL byte, or is longer than `LONGEST_LINE`;
            the error gives its number.
    """
    encoding, number = encoding_of(path), 0
    try:
        with path.open(encoding=encoding, newline="") as file:
            while line := file.readline(LONGEST_LINE + 1):
                number += 1
                if len(line) > LONGEST_LINE:
                    raise UserError(f"{path}: line {number} is longer than {LONGEST_LINE:,} characters")
                if "\0" in line:
                    raise UserError(f"{path}: line {number} holds a NUL byte: save it as UTF-8 text")
                yield line
    except UnicodeDecodeError as error:
        where = _first_bad_line(path, encoding) if encoding.startswith("utf-8") else number + 1
        byte = error.object[error.start : error.start + 1].hex()
        named = "UTF-8" if encoding.startswith("utf-8") else encoding.upper()
        raise UserError(f"{path} is not {named}: line {where} has the byte 0x{byte}; save it as UTF-8") from None
    except UnicodeError as error:  # such as UTF-16 that ends in half a character
        raise UserError(f"{path} is not {encoding.upper()} in line {number + 1} ({error}): save it as UTF-8") from None


def words_of(path: Path) -> list[str]:
    """The lines of a file that are not blank, stripped.

    Raises:
        UserError: there are none; and as `lines_of`.
    """
    if lines := [line.strip() for line in lines_of(path) if line.strip()]:
        return lines
    raise UserError(f"{path} is empty")


def _first_bad_line(path: Path, encoding: str) -> int:
    """The number of the first line that cannot be decoded, which the decoder does not know, as it reads ahead."""
    number = 0
    with path.open("rb") as file:
        while line := file.readline(4 * LONGEST_LINE):
            number += 1
            try:
                line.decode(encoding)
            except UnicodeDecodeError:
                break
    return number
