"""Features of very many pictures or texts: skips and counts damaged pictures, and resumes a killed run."""

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

ALWAYS_ALLOWED = 2  # damaged pictures: in a small set, 1 % would allow none
NAMED = 5  # damaged pictures that the warning names
TEXTS_AT_ONCE = 4096  # texts of one part of a `Parts` file; a multiple of the batch size of `text_features`


class TooManyBadPictures(UserError):
    """More pictures are damaged than allowed.

    Args:
        message: names the last damaged picture.
        half: whether at least half of all pictures are damaged: then the source is wrong, not a few files.

    Attributes:
        exit_status: exit code of a command: 2, bad input, if `half`; else 1.
    """

    def __init__(self, message: str, *, half: bool):
        super().__init__(message)
        self.exit_status = 2 if half else 1


class BadPictures:
    """Counts the damaged pictures, and raises an error when there are more than allowed.

    The largest allowed number is `fraction` · `total`, or two in a small set, if two are less than half of it. A
    fraction of 0 allows none.

    Args:
        total: number of pictures.
        fraction: share of them that may be damaged, in [0, 1].

    Attributes:
        allowed: number of damaged pictures that are allowed.
        errors: the error of each damaged picture, by its index.

    Raises:
        UserError: If the fraction is not between 0 and 1.
    """

    def __init__(self, total: int, fraction: float = 0.01):
        if not 0 <= fraction <= 1:
            raise UserError(f"max_bad_fraction: {fraction} is not between 0 and 1")
        self.total = total
        self.allowed = max(int(fraction * total), min(ALWAYS_ALLOWED, math.ceil(total / 2) - 1)) if fraction else 0
        self.errors: dict[int, str] = {}

    def add(self, index: int, error: str) -> None:
        """Records the error of the picture at `index`.

        Raises:
            TooManyBadPictures: If more than `allowed` are damaged.
        """
        self.errors[index] = error
        if len(self.errors) > self.allowed:
            raise TooManyBadPictures(
                f"{error} ({len(self.errors)} of {self.total} pictures cannot be read, {self.allowed} are let pass)",
                half=2 * len(self.errors) >= self.total,
            )

    def __str__(self) -> str:
        """Number of damaged pictures and the errors of the first, in one line."""
        first = "; ".join(list(self.errors.values())[:NAMED])
        rest = f"; and {len(self.errors) - NAMED} more" if len(self.errors) > NAMED else ""
        return f"{len(self.errors)} of {self.total} pictures cannot be read and are left out: {first}{rest}"


class Parts:
    """Checkpoint file of a long computation, to which finished parts are appended.

    The file begins with its key. A part is a line of JSON (kind, start, shape and checksum of its rows, and the errors
    in it), then the rows as little-endian float32. The first part that is incomplete or damaged ends the finished ones:
    it and all after it are computed again.

    Args:
        path: the file.
        key: digest of everything that the rows depend on, see `key_of`; a file with another key is overwritten, with a
            warning.

    Attributes:
        count: number of parts that were taken or added.

    Raises:
        UserError: If another process is writing the file, or it cannot be written.
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
        stored_key = self._file.readline(len(self._key))
        if stored_key != self._key:
            if stored_key:
                warnings.warn(
                    f"{path} was begun with another model or other pictures; all is encoded anew", stacklevel=2
                )
            self._file.seek(0)
            self._file.truncate()
            self._file.write(self._key)
        self._end = self._file.tell()

    def take(self, what: str, start: int) -> tuple[np.ndarray, dict[int, str]] | None:
        """Reads the next finished part.

        Args:
            what: expected kind of the part, "pictures" or "texts".
            start: expected index of its first row.

        Returns:
            (rows, errors by index), or None if the next part is another one, damaged or missing.
        """
        self._file.seek(self._end)
        try:
            head = json.loads(self._file.readline(2**24))
            shape, errors = tuple(head["shape"]), {int(i): str(text) for i, text in head["errors"].items()}
            data = self._file.read(4 * math.prod(shape))
            rows = np.frombuffer(data, "<f4").reshape(shape)
            valid = (head["what"], head["start"], head["crc"]) == (what, start, zlib.crc32(data))
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, MemoryError):
            valid = False
        if not valid:
            return None
        self._end = self._file.tell()
        self.count += 1
        return rows, errors

    def add(self, what: str, start: int, rows: np.ndarray, errors: dict[int, str]) -> None:
        """Appends a finished part after those that were taken; anything behind them is overwritten.

        Args:
            what: kind of the part, "pictures" or "texts".
            start: index of its first row.
            rows: features [N, D], stored as float32.
            errors: of the damaged pictures, by index.

        Raises:
            OSError: If it cannot be written; the error names the file.
        """
        data = np.ascontiguousarray(rows, "<f4").tobytes()
        head = {"what": what, "start": start, "shape": rows.shape, "errors": errors, "crc": zlib.crc32(data)}
        try:
            self._file.seek(self._end)
            self._file.truncate()
            self._file.write(json.dumps(head).encode() + b"\n" + data)
            self._file.flush()
        except OSError as error:  # such as of a full disk, which does not name the file
            raise OSError(error.errno, error.strerror, str(self.path)) from error
        self._end = self._file.tell()
        self.count += 1

    def close(self, *, remove: bool) -> None:
        """Closes the file; `remove` deletes it, when the work is done or there is nothing to resume from."""
        if remove:  # before the lock is released: another process may be about to write there
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
    """Unit-norm float32 features [N, D] of the pictures that can be read, in their order.

    The features are those of `image_features`. Batches have the same pictures in every run, so a resumed run gives the
    same bits as an uninterrupted one.

    Args:
        clip: the model.
        pictures: by index; each is loaded when it is needed.
        bad: counts the damaged pictures; afterwards `bad.errors` has their indices.
        batch_size: pictures per batch.
        threads: pictures decoded in parallel.
        progress: called with the number of pictures of each finished batch.
        parts: the checkpoint file; None: the run cannot be resumed.

    Raises:
        TooManyBadPictures: If more pictures are damaged than `bad` allows.
        UserError: If the model has no image tower.
    """
    batch_size = min(batch_size, max(1, len(pictures)))
    one = clip.preprocess.one  # looked up here: without an image tower it is one error, not one per picture

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

    features = []
    with ThreadPoolExecutor(threads) as pool:
        starts = range(0, len(pictures), batch_size)
        for rows, errors in _continued("pictures", starts, partial(compute, pool), parts, bad):
            features.append(rows)
            if progress is not None:
                progress(len(rows) + len(errors))
    return _joined(features)


def encode_texts(clip: LoadedCLIP, texts: Sequence[str], *, parts: Parts | None = None) -> Float[np.ndarray, "N D"]:
    """Unit-norm float32 features [N, D] of texts, as of `text_features`.

    Args:
        clip: the model.
        texts: N of them.
        parts: the checkpoint file; None: the run cannot be resumed.

    Raises:
        UserError: If the model has no text tower or tokenizer.
    """

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
    """Yields the part of each start, from the checkpoint file or computed. Stops before it stores too many errors."""
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
    """Concatenates the parts; each is freed once it is copied, so that the rows are not in memory twice."""
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
    """Key of a `Parts` file: a digest of the weights, the config, the pictures' files, the captions and the batch size.

    Args:
        clip: the model.
        source: the pictures and captions.
        batch_size: of the pictures; another one changes the last bits of the features.
    """
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
    if source.captions:  # two sample texts tell tokenizers apart, and are too short for truncation
        digest.update(np.ascontiguousarray(clip.tokenize(["a Cat!", "é 猫 8"])).tobytes())
    for i, name in enumerate(source.names):
        add(name, source.pictures.stamp(i))
    for caption in source.captions or ():
        add(caption)
    return digest.hexdigest()
