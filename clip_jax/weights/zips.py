"""Safe reading of zip archives: members are checked before they are read, and nothing is unpacked to disk."""

import os
import zipfile
from pathlib import Path, PurePosixPath

from clip_jax.errors import UserError
from clip_jax.weights.untrusted import MAX_NAME

MAX_INFLATION = 20  # weights hardly compress: a large archive with a higher ratio is a decompression bomb
BIG = 1 << 26  # bytes: below this size the ratio is not checked
MAX_DIRECTORY = 1 << 22  # bytes of the central directory: about 60,000 members, whose objects take about 40 MiB
END = b"PK\x05\x06"  # end of central directory record: 22 bytes, then a comment of at most 64 KiB
END_SIZE, MAX_COMMENT = 22, 1 << 16
ENCRYPTED = 1  # bit in the flags of a member


class Archive:
    """A checked zip archive: no decompression bomb, no duplicate names, no paths that point outside.

    Raises:
        UserError: a check fails.
        Exception: the file is damaged (`zipfile.BadZipFile` and others).
    """

    def __init__(self, path: Path):
        self.path = path
        _check_directory(path)
        self._zip = zipfile.ZipFile(path)
        self._sizes = {info.filename: info.file_size for info in self._zip.infolist()}
        _check_members(path.stat().st_size, self._zip.infolist())
        self._recent = "", b""

    @property
    def names(self) -> list[str]:
        """The names of all members."""
        return list(self._sizes)

    def __contains__(self, name: str) -> bool:
        return name in self._sizes

    def size(self, name: str) -> int:
        """The uncompressed size of a member in bytes, as the archive claims it."""
        return self._sizes[name]

    def read(self, name: str) -> bytes:
        """The content of a member; its checksum is verified.

        Raises:
            UserError: the member has not the size that the archive claims.
        """
        content = self._zip.read(name)
        if len(content) != self.size(name):
            raise UserError(f"{name} has {len(content)} bytes, the archive claims {self.size(name)}: it is damaged")
        return content

    def recent(self, name: str) -> bytes:
        """`read` with a cache of the last member: arrays that share a member are read one after the other."""
        kept, content = self._recent
        if kept != name:
            content = self.read(name)
            self._recent = name, content
        return content

    def start(self, name: str, count: int) -> bytes:
        """The first `count` bytes of a member, fewer if the member is shorter."""
        with self._zip.open(name) as file:
            return file.read(count)


def _check_directory(path: Path) -> None:
    """Raises UserError for a large central directory before it is parsed, as each member becomes an object."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        file.seek(-min(size, END_SIZE + MAX_COMMENT), os.SEEK_END)
        tail = file.read()
    at = tail.rfind(END)
    if at < 0 or len(tail) < at + END_SIZE:
        raise UserError("it is a zip archive that is cut off: the list of its members is not there; download it again")
    length = int.from_bytes(tail[at + 12 : at + 16], "little")
    if length == 0xFFFFFFFF:  # zip64: the length is in a record of 56 bytes, before a locator of 20 bytes
        length = int.from_bytes(tail[at - 36 : at - 28], "little") if at >= 76 else length
    if length > MAX_DIRECTORY:
        raise UserError(f"the list of its members claims {length} bytes: it is not a weights file")


def _check_members(size: int, infos: list[zipfile.ZipInfo]) -> None:
    if len({info.filename for info in infos}) != len(infos):
        raise UserError("it holds the same name twice: it is not what a program that saves weights writes")
    for info in infos:
        name = info.filename
        if len(name) > MAX_NAME or not name.isprintable():
            raise UserError(f"it holds a member of the name {name[:MAX_NAME]!r}: it is not a weights file")
        if name.startswith("/") or "\\" in name or ".." in PurePosixPath(name).parts:
            raise UserError(f"it holds the file {name!r}, which points outside: it is not a weights file")
        if info.flag_bits & ENCRYPTED:
            raise UserError(f"its member {name} is encrypted: unpack it, and save it without a password")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise UserError(f"its member {name} is compressed in a way that weights are not: save it again")
    total = sum(info.file_size for info in infos)
    if sum(info.compress_size for info in infos) > size or (total > BIG and total > MAX_INFLATION * size):
        raise UserError(f"of {size} bytes it claims to hold {total}: it is not a weights file")
