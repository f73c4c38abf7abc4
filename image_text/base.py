"""What a source of pictures is read into."""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np

from image_text.errors import printable

INTEGER = re.compile(r"[+-]?[0-9]{1,18}(\.0+)?")
IN_A_LINE = 80  # characters of a name or value that an error quotes


@dataclass(frozen=True)
class Source:
    r"""Pictures with captions or labels, read at random: `len(source)`, `source[i]`.

    A picture with several captions has a row, and its name, for each of them. Names can be printed and written as
    UTF-8: bytes of a file name that are not are spelled out (`caf\xe9.png`).

    Attributes:
        names: what each picture is called, N of them.
        pictures: what `image_text.decode.open_image` takes, N of them; a file is opened when it is asked for.
        captions: N texts, or None.
        labels: int [N], indices into `classes`, or None.
        classes: names of the classes, or None.
    """

    names: list[str]
    pictures: "LazySequence"
    captions: list[str] | None = None
    labels: np.ndarray | None = None
    classes: list[str] | None = None

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The example at `index`: "name", "image" and, where there are some, "caption" and "label"."""
        example = {"name": self.names[index], "image": self.pictures[index]}
        if self.captions is not None:
            example["caption"] = self.captions[index]
        if self.labels is not None:
            example["label"] = int(self.labels[index])
        return example

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """The examples in their order."""
        return (self[index] for index in range(len(self)))

    def take(self, rows: Sequence[int]) -> "Source":
        """These rows alone. The classes stay."""
        return Source(
            [self.names[i] for i in rows],
            _Taken(self.pictures, rows),
            None if self.captions is None else [self.captions[i] for i in rows],
            None if self.labels is None else self.labels[list(rows)],
            self.classes,
        )


class LazySequence(Sequence[Any]):
    """Items that are made when they are asked for, by `item(index)`; slices are lists."""

    def __len__(self) -> int:
        raise NotImplementedError

    def item(self, index: int) -> Any:
        """The item at `index`, in [0, len)."""
        raise NotImplementedError

    def stamp(self, index: int) -> list[Any] | None:
        """What changes when the file of the item at `index` is replaced; None for what is in no file."""
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
    """Paths below a folder. A `Path` takes some ten times the memory of its text, so it is made when it is needed."""

    def __init__(self, folder: Path, names: list[str]):
        self._folder, self._names = folder, names

    def __len__(self) -> int:
        return len(self._names)

    def item(self, index: int) -> Path:
        """The path at `index`."""
        return self._folder / as_file_name(self._names[index])

    def stamp(self, index: int) -> list[Any] | None:
        """The path, size and time of the file at `index`."""
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
        """That of the item of the row at `index`."""
        return self._items.stamp(self._rows[index])


def stamp_of(path: str | Path) -> list[Any] | None:
    """The path of a file, its size and when it was written; None if it is not there."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return [os.path.abspath(path), status.st_size, status.st_mtime_ns]


def in_words(name: str) -> str:
    """A file name that can be printed and written as UTF-8; bytes of it that are not UTF-8 are spelled out."""
    try:
        return name if name.isascii() else os.fsencode(name).decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # text from a table, in a locale that cannot write it
        return name


def as_file_name(text: str) -> str:
    """The name of a file as text from a table, for the file system: as UTF-8, whatever the locale."""
    return text if text.isascii() else os.fsdecode(text.encode("utf-8", "surrogateescape"))


def integer_of(word: str) -> int | None:
    """The integer that a label is, as text ("7", or pandas' "7.0"), or None."""
    return int(word.partition(".")[0]) if INTEGER.fullmatch(word) else None


def labelled(words: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """Labels int [N] and the classes that they index: in order of their numbers if all are integers, else sorted."""
    numbers = {word: integer_of(word) for word in dict.fromkeys(words)}
    if all(number is not None for number in numbers.values()):
        classes = sorted(numbers, key=lambda word: (numbers[word], word))
    else:
        classes = sorted(numbers)
    places = {word: i for i, word in enumerate(classes)}
    return np.fromiter((places[word] for word in words), np.int64, len(words)), classes


def quoted(text: object) -> str:
    """A name or value from a file, short enough for an error line."""
    return repr(printable(text, IN_A_LINE)) if isinstance(text, str) else printable(repr(text), IN_A_LINE)


def some(words: Iterable[object], most: int = 12) -> str:
    """The first few, and how many more there are."""
    listed = [printable(word, IN_A_LINE) or "''" for word in words]
    return ", ".join(listed[:most]) + (f" and {len(listed) - most} more" if len(listed) > most else "")
