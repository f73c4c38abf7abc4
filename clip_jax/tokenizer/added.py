"""Added tokens, which are not in the original vocabulary, such as those of textual inversion (Gal et al. 2022)."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import regex

from clip_jax.errors import UserError
from clip_jax.tokenizer.base import integer

MAX_ID = 10_000_000
FIELDS = {"id", "content", "normalized", "special", "single_word", "lstrip", "rstrip", "__type"}


class AddedToken(NamedTuple):
    """A string that is one token wherever it occurs in a text.

    Attributes:
        content: the string.
        id: the row of the embedding table.
        normalized: whether it is searched in the cleaned text, regardless of case; else in the text as given.
        single_word: whether it matches only where no letter, digit or underscore adjoins it.
        special: Hugging Face's mark of special tokens.
    """

    content: str
    id: int
    normalized: bool = True
    single_word: bool = False
    special: bool = False

    def to_json(self) -> dict[str, Any]:
        """An entry of `added_tokens` in a `tokenizer.json`."""
        return {
            "id": self.id, "content": self.content, "single_word": self.single_word, "lstrip": False, "rstrip": False,
            "normalized": self.normalized, "special": self.special,
        }  # fmt: skip


def added_token(entry: Any, where: str, id: Any = None) -> AddedToken:
    """Parses an entry of `added_tokens`, or of `added_tokens_decoder`.

    `lstrip` and `rstrip`, which strip spaces around a token, are ignored: spaces are no tokens here.

    Args:
        entry: the object.
        where: name of the file and field, for errors.
        id: of an entry of `added_tokens_decoder`, whose key it is; None: the entry has it.

    Raises:
        UserError: If it is no object with a valid content and id, or has an unknown field.
    """
    if not isinstance(entry, Mapping) or not isinstance(entry.get("content"), str) or not entry["content"]:
        raise UserError(f"{where}: an added token has to be an object with a content, got {str(entry)[:60]!r}")
    content = entry["content"]
    if unknown := sorted(set(entry) - FIELDS):
        raise UserError(f"{where}: the added token {content!r} has an unknown field {unknown[0]!r}")
    flags = {name: entry.get(name) or False for name in ("normalized", "single_word", "special")}
    if not all(isinstance(flag, bool) for flag in flags.values()):
        raise UserError(f"{where}: the added token {content!r} has flags that are neither true nor false")
    number = integer(f"{where}: the id of {content!r}", entry.get("id") if id is None else id)
    if not 0 <= number <= MAX_ID:
        raise UserError(f"{where}: the id of {content!r} is {number}: it must be from 0 to {MAX_ID}")
    return AddedToken(content, number, **flags)


def merged(groups: Iterable[Iterable[AddedToken]], where: str) -> dict[str, AddedToken]:
    """Merges groups of added tokens into a dict by content; the first of equal tokens is kept.

    Raises:
        UserError: If a token has two ids, or an id two tokens.
    """
    by_content: dict[str, AddedToken] = {}
    for token in (token for group in groups for token in group):
        if by_content.setdefault(token.content, token).id != token.id:
            raise UserError(
                f"{where}: the token {token.content!r} has the ids {by_content[token.content].id} and {token.id}"
            )
    by_id: dict[int, str] = {}
    for token in by_content.values():
        if by_id.setdefault(token.id, token.content) != token.content:
            raise UserError(f"{where}: the id {token.id} belongs to {by_id[token.id]!r} and to {token.content!r}")
    return by_content


def learned(tokens: Iterable[AddedToken], base: Mapping[str, int], where: str) -> list[AddedToken]:
    """The added tokens that are not in the vocabulary `base` itself.

    Args:
        tokens: all added tokens.
        base: the vocabulary, token -> id.
        where: name of the file, for errors.

    Raises:
        UserError: If a token is in the vocabulary under another id, or its id is below the size of the vocabulary.
    """
    new = []
    for token in tokens:
        if token.content not in base:
            if token.id < len(base):
                raise UserError(f"{where}: the added token {token.content!r} has the id {token.id} of another token")
            new.append(token)
        elif base[token.content] != token.id:
            raise UserError(
                f"{where}: the token {token.content!r} has the ids {base[token.content]} and {token.id}: one is wrong"
            )
    return new


class Splitter:
    """Splits texts at added tokens, from left to right, by the longest match at a place, as `tokenizers` does.

    Tokens that are not `normalized` are searched first, in the text as given; then the pieces between them are cleaned
    and searched for the others.

    Args:
        tokens: the added tokens.
        clean: cleaning function of the text between them.

    Raises:
        UserError: If cleaning leaves nothing of a token.
    """

    def __init__(self, tokens: Iterable[AddedToken], clean: Callable[[str], str]):
        tokens = list(tokens)
        self._clean = clean
        self._ids = {False: {}, True: {}}  # type: dict[bool, dict[str, int]]
        for token in tokens:
            word = clean(token.content) if token.normalized else token.content
            if not word:
                raise UserError(f"the added token {token.content!r} has nothing left once it is cleaned")
            self._ids[token.normalized][word] = token.id
        self._patterns = {stage: _pattern(tokens, stage, clean) for stage in (False, True)}

    def __call__(self, text: str) -> list[str | int]:
        """Cleaned pieces of text and ids of added tokens, in order."""
        return [
            piece
            for raw in self._cut(text, False)
            for piece in ([raw] if isinstance(raw, int) else self._cut(self._clean(raw), True))
        ]

    def _cut(self, text: str, stage: bool) -> list[str | int]:
        pattern, ids = self._patterns[stage], self._ids[stage]
        if pattern is None:
            return [text]
        parts = pattern.split(text)  # text and token alternate, as the pattern has one group
        return [ids[part] if i % 2 else part for i, part in enumerate(parts) if i % 2 or part]


def _pattern(tokens: list[AddedToken], normalized: bool, clean: Callable[[str], str]) -> Any:
    words = {
        clean(token.content) if normalized else token.content: token.single_word
        for token in tokens
        if token.normalized == normalized
    }
    if not words:
        return None
    longest_first = sorted(words, key=len, reverse=True)
    escaped = (regex.escape(word) for word in longest_first)
    parts = (rf"(?<!\w){e}(?!\w)" if words[word] else e for word, e in zip(longest_first, escaped, strict=True))
    return regex.compile(f"({'|'.join(parts)})")
