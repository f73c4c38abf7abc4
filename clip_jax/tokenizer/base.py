"""Base class of the tokenizers: padding, truncation that keeps the end token, and a warning about it."""

import operator
import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn, SupportsIndex

import numpy as np
from jaxtyping import Int

from clip_jax.errors import UserError

MAX_CONTEXT_LENGTH = 100_000  # tokens; a larger number is damaged, and would fill the memory


class TruncationWarning(UserWarning):
    """A text exceeded the context length and was truncated."""


class Tokenizer(ABC):
    """`tokenizer(texts)` -> int32 [B, L]: start token (if the vocabulary has one), text, end token, padding.

    Attributes:
        kind: "clip", "bert", "siglip", "siglip2" or "ascii".
        vocab_size: number of ids.
        context_length: the default L.
        pad_id: id of the padding.
        sot_id: id of the start token, or None.
        eot_id: id of the end token, which truncated texts keep.
        end_id: the id that is written at the end, which is `eot_id` except with BERT's option `strip_sep_token`.

    Raises:
        UserError: If the context length is out of range, or `pad_id` is not in the vocabulary.
    """

    kind: str

    def __init__(self, *, vocab_size: int, context_length: int, pad_id: int, sot_id: int | None, eot_id: int):
        pad_id = integer("pad_id", pad_id)
        if not 0 <= pad_id < vocab_size:
            raise UserError(f"pad_id {pad_id} is not one of the {vocab_size} ids of this vocabulary")
        self.vocab_size = vocab_size
        self.context_length = length_in_tokens(context_length)
        self.pad_id = pad_id
        self.sot_id = sot_id
        self.eot_id = eot_id
        self.end_id = eot_id

    def __call__(self, texts: Any, context_length: int | None = None) -> Int[np.ndarray, "B L"]:
        """Tokenizes one text or several.

        A text that is too long is truncated, but keeps its end token; a TruncationWarning counts the dropped tokens.

        Args:
            texts: a str, or an ordered iterable of str: list, tuple, generator, array, column of a table.
            context_length: L; None: the tokenizer's own.

        Returns:
            int32 [B, L].

        Raises:
            UserError: If something is not text, or the context length is out of range.
        """
        length = self.context_length if context_length is None else length_in_tokens(context_length)
        start = [] if self.sot_id is None else [self.sot_id]
        room = length - len(start) - 1
        if room < 0:
            raise UserError(f"context_length is {length}: start and end alone take {len(start) + 1}")
        rows = self.encode(as_texts(texts))
        tokens = np.full((len(rows), length), self.pad_id, np.int32)
        dropped = [max(0, len(row) - room) for row in rows]
        for i, row in enumerate(rows):
            row = [*start, *row[:room], self.end_id]
            tokens[i, : len(row)] = row
        if any(dropped):
            warnings.warn(
                f"{np.count_nonzero(dropped)} of {len(rows)} texts exceed the context of {length} tokens: "
                f"{sum(dropped)} tokens were dropped, {max(dropped)} of them from text {int(np.argmax(dropped))}",
                TruncationWarning,
                stacklevel=2,
            )
        return tokens

    @abstractmethod
    def encode(self, texts: Sequence[Any]) -> list[list[int]]:
        """Ids of each text, without start, end, padding or truncation.

        Raises:
            UserError: If something is not text.
        """

    @abstractmethod
    def decode(self, tokens: Iterable[SupportsIndex]) -> str:
        """The text of one row of ids up to its end token.

        Raises:
            UserError: If an id is not in the vocabulary.
        """

    @abstractmethod
    def to_json(self) -> str:
        """The JSON that `save` writes."""

    def save(self, path: str | os.PathLike) -> None:
        """Writes one JSON file that `load_tokenizer` reads, with context length and padding.

        It is thread-safe: it does not change the tokenizer.
        """
        Path(path).write_text(self.to_json(), encoding="utf-8")

    def body(self, tokens: Iterable[SupportsIndex]) -> list[int]:
        """The ids of a row between its start and its end token.

        Raises:
            UserError: If an id is not in the vocabulary.
        """
        ids: list[int] = []
        for token in map(operator.index, tokens):
            if token == self.eot_id or (token == self.end_id and self.end_id != self.eot_id):
                break
            if not 0 <= token < self.vocab_size:
                raise UserError(f"tokens: there is an id {token}, the vocabulary has 0 to {self.vocab_size - 1}")
            if token != self.sot_id:
                ids.append(token)
        return ids


class MissingTokenizer(Tokenizer):
    """Placeholder of a checkpoint without a tokenizer: every call and every attribute raises a UserError.

    Args:
        message: of the error, in one line.
    """

    kind = "missing"

    def __init__(self, message: str):
        self.message = message

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("__"):  # copy and pickle look these up
            return object.__getattribute__(self, name)
        raise UserError(self.__dict__["message"])

    def __call__(self, texts: Any, context_length: int | None = None) -> NoReturn:
        """Raises the error.

        Raises:
            UserError: Always.
        """
        raise UserError(self.__dict__["message"])

    def encode(self, texts: Sequence[Any]) -> NoReturn:
        """Raises the error.

        Raises:
            UserError: Always.
        """
        raise UserError(self.__dict__["message"])

    def decode(self, tokens: Iterable[SupportsIndex]) -> NoReturn:
        """Raises the error.

        Raises:
            UserError: Always.
        """
        raise UserError(self.__dict__["message"])

    def to_json(self) -> NoReturn:
        """Raises the error.

        Raises:
            UserError: Always.
        """
        raise UserError(self.__dict__["message"])


def as_texts(texts: Any, name: str = "texts") -> list[str]:
    """One text or an iterable of texts as a list.

    Args:
        texts: a str, or an ordered iterable of str.
        name: of the argument, for errors.

    Raises:
        UserError: If it is anything else: bytes, numbers, None, nested lists, sets.
    """
    if isinstance(texts, str):
        return [texts]
    if isinstance(texts, bytes | bytearray):
        raise UserError(f"{name}: got bytes, not text: decode them, as in {name}.decode('utf-8')")
    if isinstance(texts, set | frozenset):
        raise UserError(f"{name}: a set has no order, so no row would belong to a text: give a list")
    try:
        items = list(texts)
    except TypeError:
        raise UserError(f"{name}: expected a text or a list of texts, got {_described(texts)}") from None
    check_texts(items)
    return items


def check_texts(texts: Iterable[Any]) -> None:
    """Checks that all items are text.

    Raises:
        UserError: If one is not.
    """
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise UserError(f"prompts must be text, got {_described(text)} at place {i}")


def _described(value: Any) -> str:
    return f"{type(value).__name__}: {' '.join(repr(value).split())[:60]}"


def printable(message: object) -> str:
    """A message on one line, with unprintable characters, such as terminal escapes, replaced by U+FFFD."""
    return "".join(c if c.isprintable() else "\ufffd" for c in " ".join(str(message).split()))


def integer(name: str, value: Any) -> int:
    """An int, also from an integer of NumPy.

    Raises:
        UserError: If the value is anything else, bool included; the message begins with `name`.
    """
    try:
        if isinstance(value, bool | np.bool_):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise UserError(f"{name} is {str(value)[:40]!r}: it must be an integer") from None


def length_in_tokens(value: Any) -> int:
    """A context length as an int.

    Raises:
        UserError: If it is not an integer from 1 to `MAX_CONTEXT_LENGTH`.
    """
    length = integer("context_length", value)
    if not 1 <= length <= MAX_CONTEXT_LENGTH:
        raise UserError(f"context_length is {length}: it must be from 1 to {MAX_CONTEXT_LENGTH}")
    return length


def without_surrogates(text: str) -> str:
    """Joins surrogate pairs into characters, and replaces lone surrogates, which UTF-8 cannot encode, by U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
