"""`Source`, the type of all image datasets, and helpers for names and labels."""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np

from image_text.errors import printable

INTEGER = re.compile(r"[+-]?[0-9]{1,18}(\.0+)?")
IN_A_LINE = 80  # characters: longer names and values are shortened in an error


@dataclass(frozen=True)
class Source:
    r"""A random-access dataset of N pictures with captions or labels: `len(source)`, `source[i]`.

    A picture with several captions has one row per caption. Names can always be printed and encoded as UTF-8: other
    bytes of a file name are escaped (`caf\xe9.png`).

    Attributes:
        names: the names of the N pictures.
        pictures: N inputs of `image_text.decode.open_image` (paths or encoded bytes), made lazily.
        captions: N texts, or None.
        labels: int64 [N], indices into `classes`, or None.
        classes: the names of the classes, or None.
    """

    names: list[str]
    pictures: "LazySequence"
    captions: list[str] | None = None
    labels: np.ndarray | None = None
    classes: list[str] | None = None

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The example at `index`: {"name", "image"}, and "caption" and "label" where the source has them."""
        example = {"name": self.names[index], "image": self.pictures[index]}
        if self.captions is not None:
            example["caption"] = self.captions[index]
        if self.labels is not None:
            example["label"] = int(self.labels[index])
        return example

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """The examples in order."""
        return (self[index] for index in range(len(self)))

    def take(self, rows: Sequence[int]) -> "Source":
        """The source with only these rows, in this order. `classes` is unchanged."""
        return Source(
            [self.names[i] for i in rows],
            _Taken(self.pictures, rows),
            None if self.captions is None else [self.captions[i] for i in rows],
            None if self.labels is None else self.labels[list(rows)],
            self.classes,
        )


class LazySequence(Sequence[Any]):
    """A sequence whose items are made on access, by `item(index)`; a slice is a list."""

    def __len__(self) -> int:
        raise NotImplementedError

    def item(self, index: int) -> Any:
        """The item at `index`, in [0, len)."""
        raise NotImplementedError

    def stamp(self, index: int) -> list[Any] | None:
        """The path, size and time of the file of the item at `index`, for caches; None for items without a file."""
        return None

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self.item(i) for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return self.item(index % len(self))


class Files(LazySequence):
    """Paths below a folder, made on access, as a `Path` takes about ten times the memory of its text."""

    def __init__(self, folder: Path, names: list[str]):
        self._folder, self._names = folder, names

    def __len__(self) -> int:
        return len(self._names)

    def item(self, index: int) -> Path:
        """The path at `index`."""
        return self._folder / as_file_name(self._names[index])

    def stamp(self, index: int) -> list[Any] | None:
        """The absolute path, size in bytes and modification time in ns of the file at `index`."""
        return stamp_of(self.item(index))


class _Taken(LazySequence):
    def __init__(self, items: LazySequence, rows: Sequence[int]):
        self._items, self._rows = items, rows

    def __len__(self) -> int:
        return len(self._rows)

    def item(self, index: int) -> Any:
        """The item of the row at `index`."""
        return self._items[self._rows[index]]

    def stamp(self, index: int) -> list[Any] | None:
        """The stamp of the item of the row at `index`."""
        return self._items.stamp(self._rows[index])


def stamp_of(path: str | Path) -> list[Any] | None:
    """[absolute path, size in bytes, modification time in ns] of a file; None if the file is absent."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return [os.path.abspath(path), status.st_size, status.st_mtime_ns]


def in_words(name: str) -> str:
    r"""A file name for printing: bytes that are not UTF-8 are escaped (`caf\xe9.png`)."""
    try:
        return name if name.isascii() else os.fsencode(name).decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # text from a table that the encoding of the file system lacks
        return name


def as_file_name(text: str) -> str:
    """The file name for a text from a table: encoded as UTF-8, whatever the locale."""
    return text if text.isascii() else os.fsdecode(text.encode("utf-8", "surrogateescape"))


def integer_of(word: str) -> int | None:
    """The integer of a label in text form ("7", or pandas' "7.0"); None if the label is not an integer."""
    return int(word.partition(".")[0]) if INTEGER.fullmatch(word) else None


def labelled(words: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """Labels int64 [N] and the classes that they index, sorted by number if all are integers, else as text."""
    numbers = {word: integer_of(word) for word in dict.fromkeys(words)}
    if all(number is not None for number in numbers.values()):
        classes = sorted(numbers, key=lambda word: (numbers[word], word))
    else:
        classes = sorted(numbers)
    places = {word: i for i, word in enumerate(classes)}
    return np.fromiter((places[word] for word in words), np.int64, len(words)), classes


def quoted(text: object) -> str:
    """A name or value from a file, quoted, printable and shortened for an error."""
    return repr(printable(text, IN_A_LINE)) if isinstance(text, str) else printable(repr(text), IN_A_LINE)


def some(words: Iterable[object], most: int = 12) -> str:
    """A list for an error: the first `most` words, and how many more there are."""
    listed = [printable(word, IN_A_LINE) or "''" for word in words]
    return ", ".join(listed[:most]) + (f" and {len(listed) - most} more" if len(listed) > most else "")
