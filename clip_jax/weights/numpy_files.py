"""Reading of `.npz` archives without evaluating Python: arrays of numbers only, no pickled objects.

The header of an array is a Python literal, which numpy evaluates. This reader matches it against the one form that
numpy writes for arrays of numbers.
"""

import math
import re

import ml_dtypes
import numpy as np

from clip_jax.errors import UserError, one_line
from clip_jax.weights.rules import Entry
from clip_jax.weights.zips import Archive

NUMBERS = "biufc"  # values of `dtype.kind`
TEXTS = "SU"  # texts beside the weights, such as a name: accepted, and read only on demand
MAGIC = b"\x93NUMPY"
MAX_HEADER = 10_000  # bytes, as in numpy
MAX_DIMS = 64  # numpy's limit
HEADER = re.compile(
    r"\{\s*'descr':\s*'(?P<descr>[<>|=]?[A-Za-z]\d{0,9})',\s*'fortran_order':\s*(?P<fortran>True|False),"
    r"\s*'shape':\s*\((?P<shape>[\d,L\s]*)\),?\s*\}\s*"
)


def read_npz(archive: Archive) -> dict[str, Entry]:
    """Opens an archive whose members are all `.npy`; the arrays are read lazily.

    Raises:
        UserError: a member is not an array of numbers or texts.
    """
    return {name.removesuffix(".npy"): _entry(archive, name) for name in archive.names}


def _entry(archive: Archive, name: str) -> Entry:
    shape, fortran, descr, offset = _header(archive, name)
    if descr[-1] == "O":
        raise UserError(f"{name} holds Python objects, which are read by running code: only numbers are read")
    dtype = _dtype(name, descr)
    if math.prod(shape) * dtype.itemsize != archive.size(name) - offset:
        raise UserError(f"{name} is {list(shape)}, but there are not as many numbers in it")

    def read() -> np.ndarray:
        values = np.frombuffer(archive.read(name), dtype, offset=offset)
        return values.reshape(shape, order="F" if fortran else "C")

    return Entry(shape, read)


def _dtype(name: str, descr: str) -> np.dtype:
    if descr.lstrip("<>|=") == "V2":  # how numpy writes bfloat16, a dtype that it does not know
        return np.dtype(ml_dtypes.bfloat16)
    try:
        dtype = np.dtype(descr)
    except (TypeError, ValueError):
        dtype = None
    if dtype is None or dtype.kind not in NUMBERS + TEXTS or not dtype.itemsize:
        raise UserError(f"{name} holds {descr}: only arrays of numbers are read")
    return dtype


def _header(archive: Archive, name: str) -> tuple[tuple[int, ...], bool, str, int]:
    """(shape, whether in Fortran order, type descriptor, offset of the data in bytes)."""
    start = archive.start(name, MAX_HEADER + 12)
    width = 2 if start[6:7] == b"\x01" else 4  # bytes of the header's length, since version 2
    begin = 8 + width
    length = int.from_bytes(start[8:begin], "little")
    if start[:6] != MAGIC or start[6:7] not in (b"\x01", b"\x02", b"\x03") or length > MAX_HEADER:
        raise UserError(f"{name} is not a numpy array: it does not begin as one")
    text = start[begin : begin + length].decode("latin-1")
    match = HEADER.fullmatch(text)
    if match is None:
        raise UserError(f"{name} is not a numpy array of plain numbers: its header is {one_line(repr(text), 120)}")
    sides = [part.strip().removesuffix("L") for part in match["shape"].split(",")]
    sides = sides[:-1] if sides[-1] == "" else sides
    if len(sides) > MAX_DIMS or not all(side.isdecimal() and len(side) < 19 for side in sides):
        raise UserError(f"{name} is not a numpy array: its shape is {one_line(match['shape'], 80)}")
    return tuple(map(int, sides)), match["fortran"] == "True", match["descr"], begin + length
