"""Tokens learned after the vocabulary was made, such as those of textual inversion (Gal et al. 2022)."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import regex

from clip_jax.errors import UserError
from clip_jax.tokenizer.base import integer

MAX_ID = 10_000_000
FIELDS = {"id", "content", "normalized", "special", "single_word", "lstrip", "rstrip", "__type"}


class AddedToken(NamedTuple):
    """A word that is one token wherever it stands in a text.

    Attributes:
        content: as it is written.
        id: the row of the embedding table.
        normalized: whether it is looked for in the cleaned text, so that its case does not matter.
        single_word: whether it counts only where no letter or digit touches it.
        special: as Hugging Face marks what is no ordinary word.
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
    """From an entry of `added_tokens`, or of `added_tokens_decoder`, whose key is its id.

    Spaces about a token (`lstrip`, `rstrip`) make no difference here, as a space is no token.

    Raises:
        UserError: it names `where`; for anything else.
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
    """All of them by their content. Raises UserError when a token has two ids, or an id two tokens."""
    found: dict[str, AddedToken] = {}
    for token in (token for group in groups for token in group):
        if found.setdefault(token.content, token).id != token.id:
            raise UserError(
                f"{where}: the token {token.content!r} has the ids {found[token.content].id} and {token.id}"
            )
    by_id: dict[int, str] = {}
    for token in found.values():
        if by_id.setdefault(token.id, token.content) != token.content:
            raise UserError(f"{where}: the id {token.id} belongs to {by_id[token.id]!r} and to {token.content!r}")
    return found


def learned(tokens: Iterable[AddedToken], base: Mapping[str, int], where: str) -> list[AddedToken]:
    """Those that are not in the vocabulary itself.

    Raises:
        UserError: one is there under another id, or its id belongs to another word.
    """
    found = []
    for token in tokens:
        if token.content not in base:
            if token.id < len(base):
                raise UserError(f"{where}: the added token {token.content!r} has the id {token.id} of another token")
            found.append(token)
        elif base[token.content] != token.id:
            raise UserError(
                f"{where}: the token {token.content!r} has the ids {base[token.content]} and {token.id}: one is wrong"
            )
    return found


class Splitter:
    """Cuts texts at learned tokens: the longest that fits at a place, from left to right, as `tokenizers` does.

    Args:
        clean: what is done to the text between them.
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
        """Cleaned texts and ids, in the order in which they stand."""
        return [
            piece
            for raw in self._cut(text, False)
            for piece in ([raw] if isinstance(raw, int) else self._cut(self._clean(raw), True))
        ]

    def _cut(self, text: str, stage: bool) -> list[str | int]:
        pattern, ids = self._patterns[stage], self._ids[stage]
        if pattern is None:
            return [text]
        parts = pattern.split(text)  # texts and tokens in turns
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
