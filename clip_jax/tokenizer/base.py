"""What every tokenizer does alike: rows of one length, the end never lost, truncation told."""

import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, SupportsIndex

import numpy as np
from jaxtyping import Int

from clip_jax.errors import UserError

MAX_CONTEXT = 100_000  # tokens: rows are padded to it, so that a typing error in a file would take all memory


class TruncationWarning(UserWarning):
    """A prompt did not fit the context and lost its tail."""


class Tokenizer(ABC):
    """`tokenizer(texts)` -> int32 [B, L]: start (where the vocabulary has one), text, end, padding.

    Attributes:
        kind: "clip", "bert", "siglip", "siglip2" or "ascii".
        context_length: the default L.
        pad_id: what follows the end.
        sot_id: what precedes the text, or None.
        eot_id: what follows the text, in a text too long as well.
    """

    kind: str

    def __init__(self, *, vocab_size: int, context_length: int, pad_id: int, sot_id: int | None, eot_id: int):
        for name, value in (("context_length", context_length), ("pad_id", pad_id)):
            if isinstance(value, bool) or not isinstance(value, int | np.integer):
                raise UserError(f"{name} is {value!r}: it must be an integer")
        if not 1 <= context_length < MAX_CONTEXT:
            raise UserError(f"context_length is {context_length}: it must be between 1 and {MAX_CONTEXT}")
        if not 0 <= pad_id < vocab_size:
            raise UserError(f"pad_id {pad_id} is not one of the {vocab_size} ids of this vocabulary")
        self.vocab_size = vocab_size
        self.context_length = context_length
        self.pad_id = pad_id
        self.sot_id = sot_id
        self.eot_id = eot_id

    def __call__(self, texts: str | Sequence[Any], context_length: int | None = None) -> Int[np.ndarray, "B L"]:
        """Tokens of one text or several. Raises UserError for anything but text.

        A text that does not fit keeps its start and its end token; a TruncationWarning says how much was dropped.
        """
        length = context_length or self.context_length
        start = [] if self.sot_id is None else [self.sot_id]
        room = length - len(start) - 1
        if room < 0:
            raise UserError(f"context_length is {length}: start and end alone take {len(start) + 1}")
        rows = self.encode([texts] if isinstance(texts, str) else texts)
        tokens = np.full((len(rows), length), self.pad_id, np.int32)
        dropped = [max(0, len(row) - room) for row in rows]
        for i, row in enumerate(rows):
            row = [*start, *row[:room], self.eot_id]
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
        """Ids of each text, without start, end, padding or truncation. Raises UserError for anything but text."""

    @abstractmethod
    def decode(self, tokens: Iterable[SupportsIndex]) -> str:
        """The text of one row up to its end token."""

    @abstractmethod
    def save(self, path: str | os.PathLike) -> None:
        """One JSON file that `load_tokenizer` reads back, with context length and padding."""

    @staticmethod
    def load(path: str | os.PathLike) -> "Tokenizer":
        """`load_tokenizer(path)`."""
        from clip_jax.tokenizer.load import load_tokenizer  # it knows the kinds, and they are made of this class

        return load_tokenizer(path)

    def body(self, tokens: Iterable[SupportsIndex]) -> list[int]:
        """The ids of a row between its start and its end."""
        ids: list[int] = []
        for token in map(int, tokens):
            if token == self.eot_id:
                break
            if token != self.sot_id:
                ids.append(token)
        return ids


def check_texts(texts: Sequence[Any]) -> None:
    """Raises UserError when one of them is not text."""
    for text in texts:
        if not isinstance(text, str):
            raise UserError(f"prompts must be text, got {type(text).__name__}: {repr(text)[:60]}")


def without_surrogates(text: str) -> str:
    """Halves of a character joined, and lone ones, which are no text, replaced by U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
