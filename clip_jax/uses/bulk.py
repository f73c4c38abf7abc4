"""Features of very many pictures or texts: damaged pictures are left out and counted, and a killed run continues."""

import hashlib
import io
import json
import math
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from clip_jax.errors import UserError
from clip_jax.pretrained import LoadedCLIP
from clip_jax.uses.embed import Progress, features_of_prepared, text_features
from image_text.locks import lock
from image_text.source import Source

ALWAYS_ALLOWED = 2  # damaged pictures in a small set, of which 1 % would be none
NAMED = 5  # in the word that is given about them
TEXTS_AT_ONCE = 4096  # a part of the work; a multiple of the batches of `text_features`


class TooManyBadPictures(UserError):
    """More pictures cannot be read than are let pass.

    Args:
        message: names the last of them.
        half: whether that is half of all, so that the source is wrong and not a few files.
    """

    def __init__(self, message: str, *, half: bool):
        super().__init__(message)
        self.exit_status = 2 if half else 1  # of a command: bad input, or a fault in the middle of the work


class BadPictures:
    """Counts the pictures that cannot be read, and lets so many pass: `fraction` of `total`, but at least two.

    A fraction of 0 lets none pass, and half of the pictures are never let pass.

    Args:
        total: how many pictures there are.
        fraction: how many of them may be bad, in [0, 1].
    """

    def __init__(self, total: int, fraction: float = 0.01):
        if not 0 <= fraction <= 1:
            raise UserError(f"max_bad_fraction: {fraction} is not between 0 and 1")
        self.total = total
        self.allowed = max(int(fraction * total), min(ALWAYS_ALLOWED, math.ceil(total / 2) - 1)) if fraction else 0
        self.errors: dict[int, str] = {}

    def add(self, index: int, error: str) -> None:
        """Notes that the picture at `index` cannot be read. Raises TooManyBadPictures, naming it, at one too many."""
        self.errors[index] = error
        if len(self.errors) > self.allowed:
            raise TooManyBadPictures(
                f"{error} ({len(self.errors)} of {self.total} pictures cannot be read, {self.allowed} are let pass)",
                half=2 * len(self.errors) >= self.total,
            )

    def __str__(self) -> str:
        """How many, and the first few, in one line."""
        first = "; ".join(list(self.errors.values())[:NAMED])
        rest = f"; and {len(self.errors) - NAMED} more" if len(self.errors) > NAMED else ""
        return f"{len(self.errors)} of {self.total} pictures cannot be read and are left out: {first}{rest}"


class Parts:
    """Finished parts of a long computation, appended to one file, so that it continues after the process was killed.

    A line of JSON (what the part is, the shape and checksum of its rows, what went wrong in it), then the rows as
    float32. What a killed process left half-written, or a disk damaged, ends what is taken for done.

    Args:
        path: the file.
        key: of everything that the rows depend on; a file with another key is begun anew, with a warning.

    Raises:
        UserError: another process is writing the file, or it cannot be written.
    """

    def __init__(self, path: Path, key: str):
        self.path, self.count = path, 0
        try:
            self._file: io.BufferedRandom = open(path, "r+b" if path.exists() else "w+b")  # noqa: SIM115
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}") from None
        try:
            lock(self._file, path, wait=False)
        except OSError:
            raise UserError(f"{path}: another process is writing it; wait for it, or name another --out") from None
        self._key = json.dumps({"key": key}).encode() + b"\n"
        found = self._file.readline(len(self._key))
        if found != self._key:
            if found:
                warnings.warn(
                    f"{path} was begun with another model or other pictures; all is encoded anew", stacklevel=2
                )
            self._file.seek(0)
            self._file.truncate()
            self._file.write(self._key)
        self._end = self._file.tell()

    def take(self, what: str, start: int) -> tuple[np.ndarray, dict[int, str]] | None:
        """The rows of the next part and the errors in it if that part is `what` from `start`, else None."""
        self._file.seek(self._end)
        try:
            head = json.loads(self._file.readline(2**24))
            shape, errors = tuple(head["shape"]), {int(i): str(text) for i, text in head["errors"].items()}
            data = self._file.read(4 * math.prod(shape))
            rows = np.frombuffer(data, "<f4").reshape(shape)
            right = (head["what"], head["start"], head["crc"]) == (what, start, zlib.crc32(data))
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, MemoryError):
            right = False
        if not right:
            return None
        self._end = self._file.tell()
        self.count += 1
        return rows, errors

    def add(self, what: str, start: int, rows: np.ndarray, errors: dict[int, str]) -> None:
        """Appends a part, in place of anything after those that were taken."""
        data = np.ascontiguousarray(rows, "<f4").tobytes()
        head = {"what": what, "start": start, "shape": rows.shape, "errors": errors, "crc": zlib.crc32(data)}
        try:
            self._file.seek(self._end)
            self._file.truncate()
            self._file.write(json.dumps(head).encode() + b"\n" + data)
            self._file.flush()
        except OSError as error:  # a full disk, of which the error does not name the file
            raise OSError(error.errno, error.strerror, str(self.path)) from error
        self._end = self._file.tell()
        self.count += 1

    def close(self, *, remove: bool) -> None:
        """Lets go of the file, and removes it: at the end, or when there is nothing in it to continue with."""
        if remove:  # while the lock is held: another process may be waiting to write there
            self.path.unlink(missing_ok=True)
        self._file.close()


def encode_pictures(
    clip: LoadedCLIP,
    pictures: Sequence[Any],
    *,
    bad: BadPictures,
    batch_size: int = 64,
    threads: int = 8,
    progress: Progress | None = None,
    parts: Parts | None = None,
) -> Float[np.ndarray, "N D"]:
    """Unit-norm float32 features of the pictures that can be read, in their order; `bad.errors` has the others.

    The features of a picture are those of `image_features`. Pictures of one batch are always the same, so a run that
    continues gives the same bits as one that was not stopped.

    Raises:
        TooManyBadPictures: more cannot be read than `bad` lets pass.
    """
    batch_size = min(batch_size, max(1, len(pictures)))
    one = clip.preprocess.one  # of a CLIP without an image tower: an error here, and not of every picture

    def compute(pool: ThreadPoolExecutor, start: int) -> tuple[np.ndarray, dict[int, str]]:
        indices = range(start, min(start + batch_size, len(pictures)))
        images, errors = [], {}
        for i, image in zip(indices, pool.map(partial(_prepared, one, pictures), indices), strict=True):
            if isinstance(image, UserError):
                errors[i] = str(image)
            else:
                images.append(image)
        rows = features_of_prepared(clip, np.stack(images), batch_size) if images else np.zeros((0, 0), np.float32)
        return rows, errors

    found = []
    with ThreadPoolExecutor(threads) as pool:
        starts = range(0, len(pictures), batch_size)
        for rows, errors in _continued("pictures", starts, partial(compute, pool), parts, bad):
            found.append(rows)
            if progress is not None:
                progress(len(rows) + len(errors))
    return _joined(found)


def encode_texts(clip: LoadedCLIP, texts: Sequence[str], *, parts: Parts | None = None) -> Float[np.ndarray, "N D"]:
    """`text_features`, continued where `parts` ends."""

    def compute(start: int) -> tuple[np.ndarray, dict[int, str]]:
        return text_features(clip, texts[start : start + TEXTS_AT_ONCE]), {}

    starts = range(0, len(texts), TEXTS_AT_ONCE)
    return _joined([rows for rows, _ in _continued("texts", starts, compute, parts, BadPictures(0))])


def _continued(
    what: str,
    starts: Sequence[int],
    compute: Callable[[int], tuple[np.ndarray, dict[int, str]]],
    parts: Parts | None,
    bad: BadPictures,
) -> Iterator[tuple[np.ndarray, dict[int, str]]]:
    """The parts from each start, those that are done already and then those computed; what is too bad is not kept."""
    for start in starts:
        taken = None if parts is None else parts.take(what, start)
        rows, errors = compute(start) if taken is None else taken
        for i, error in errors.items():
            bad.add(i, error)
        if parts is not None and taken is None:
            parts.add(what, start, rows, errors)
        yield rows, errors


def _prepared(one: Callable[[Any], np.ndarray], pictures: Sequence[Any], index: int) -> np.ndarray | UserError:
    try:
        return one(pictures[index])
    except UserError as error:
        return error


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    """The parts as one array; each is let go of once it is copied, so that they are not all there twice."""
    filled = [part for part in parts if len(part)]
    parts.clear()
    if not filled:
        return np.zeros((0, 0), np.float32)
    rows = np.empty((sum(map(len, filled)), filled[0].shape[1]), np.float32)
    end = len(rows)
    while filled:
        part = filled.pop()
        rows[end - len(part) : end] = part
        end -= len(part)
    return rows


def key_of(clip: LoadedCLIP, source: Source, batch_size: int) -> str:
    """A digest of what features depend on: the weights and config, the pictures' files and the captions, the batch."""
    digest = hashlib.blake2b(digest_size=16)

    def add(*words: Any) -> None:
        digest.update(json.dumps(words, default=repr).encode("utf-8", "backslashreplace"))

    add(jax.__version__, jax.default_backend(), batch_size, clip.model.config)
    for path, leaf in jax.tree_util.tree_leaves_with_path(clip.variables):
        array = np.ascontiguousarray(leaf)
        add(jax.tree_util.keystr(path), str(array.dtype), array.shape)
        digest.update(array.reshape(-1).view(np.uint8).data)
    if source.names:
        add(clip.preprocess.config, clip.preprocess.size)
    if source.captions:  # two texts tell tokenizers apart, and are not so long that they are cut off
        digest.update(np.ascontiguousarray(clip.tokenize(["a Cat!", "é 猫 8"])).tobytes())
    for i, name in enumerate(source.names):
        add(name, source.pictures.stamp(i))
    for caption in source.captions or ():
        add(caption)
    return digest.hexdigest()
