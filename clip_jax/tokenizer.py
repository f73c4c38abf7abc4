"""CLIP's byte-pair encoding, over the `tokenizers` library.

The ids of every CLIP vocabulary are laid out alike: 256 bytes, the same 256 bytes at the end of a word (`</w>`), one id
per merge, then `<|startoftext|>` and `<|endoftext|>`. The merges are therefore the whole vocabulary. As every byte has
an id in both places, no text is ever lost.

Prompts are cleaned as OpenAI does (ftfy, HTML entities, white space, lower case). Unlike there, the literal text
`<|endoftext|>` inside a prompt stays text: as the real token it would end the prompt where pooling looks for the end.
"""

import gzip
import html
import json
import os
import re
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

import ftfy
import numpy as np
import tokenizers
from jaxtyping import Int
from tokenizers import models, pre_tokenizers, trainers

from clip_jax.errors import UserError

SOT, EOT = "<|startoftext|>", "<|endoftext|>"
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
END_OF_WORD = "</w>"
CONTEXT_LENGTH = 77


class TruncationWarning(UserWarning):
    """A prompt did not fit the context and lost its tail."""


def clean(text: str) -> str:
    """The text the encoding sees: mojibake repaired, entities resolved, white space collapsed, lower case.

    Lone surrogates, which are no text, become U+FFFD. U+0345, a combining mark that is case-folded differently here and
    in OpenAI's regular expressions, is dropped.
    """
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    text = html.unescape(html.unescape(ftfy.fix_text(text))).replace("\u0345", "")
    return re.sub(r"\s+", " ", text).strip().lower()


def byte_alphabet() -> list[str]:
    """The character that stands for each byte, in the order of the ids (that of GPT-2): printable bytes first."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(256 - len(printable))]


class Tokenizer:
    """`tokenizer(texts)` -> int32 [B, L]: start, text, end, padding.

    Args:
        merges: the pairs to join, in order.
        context_length: the default L.
        pad_id: what follows the end. The original pads with 0, an id that is also the token "!".
    """

    def __init__(self, merges: Sequence[tuple[str, str]], *, context_length: int = CONTEXT_LENGTH, pad_id: int = 0):
        letters = byte_alphabet()
        words = [*letters, *(c + END_OF_WORD for c in letters), *(a + b for a, b in merges), SOT, EOT]
        vocab = {word: i for i, word in enumerate(words)}
        if len(vocab) != len(words):
            raise UserError("the merges of this vocabulary make the same token twice: it is not a CLIP vocabulary")
        self.merges = tuple(merges)
        self.context_length = context_length
        self.pad_id = pad_id
        self.vocab_size = len(vocab)
        self.sot_id, self.eot_id = vocab[SOT], vocab[EOT]
        self._words = words
        self._library = tokenizers.Tokenizer(
            models.BPE(vocab=vocab, merges=list(merges), end_of_word_suffix=END_OF_WORD, fuse_unk=False)
        )
        self._library.pre_tokenizer = _pre_tokenizer(WORDS)
        self._with_specials = pre_tokenizers.Split(
            tokenizers.Regex(f"{re.escape(SOT)}|{re.escape(EOT)}|{WORDS}"), "removed", invert=True
        )

    def __call__(self, texts: str | Sequence[str], context_length: int | None = None) -> Int[np.ndarray, "B L"]:
        """Tokens of one text or several. Raises UserError for anything but text.

        A text that does not fit keeps its start and its end token; a TruncationWarning says how much was dropped.
        """
        length = context_length or self.context_length
        if length < 2:
            raise UserError(f"context_length is {length}: start and end alone take 2")
        rows = self.encode([texts] if isinstance(texts, str) else texts)
        tokens = np.full((len(rows), length), self.pad_id, np.int32)
        dropped = [max(0, len(row) + 2 - length) for row in rows]
        for i, row in enumerate(rows):
            row = [self.sot_id, *row[: length - 2], self.eot_id]
            tokens[i, : len(row)] = row
        if any(dropped):
            warnings.warn(
                f"{np.count_nonzero(dropped)} of {len(rows)} texts exceed the context of {length} tokens: "
                f"{sum(dropped)} tokens were dropped, {max(dropped)} of them from text {int(np.argmax(dropped))}",
                TruncationWarning,
                stacklevel=2,
            )
        return tokens

    def encode(self, texts: Sequence[str], *, specials: bool = False) -> list[list[int]]:
        """Ids of each text, without start, end, padding or truncation.

        `specials=True` is OpenAI's behaviour to the letter: the literal text of a special token becomes that token.
        """
        for text in texts:
            if not isinstance(text, str):
                raise UserError(f"prompts must be text, got {type(text).__name__}: {repr(text)[:60]}")
        cleaned = [clean(text) for text in texts]
        if specials:
            return [self._encode_with_specials(text) for text in cleaned]
        return [encoding.ids for encoding in self._library.encode_batch(cleaned, add_special_tokens=False)]

    def _encode_with_specials(self, text: str) -> list[int]:
        ids = {SOT: [self.sot_id], EOT: [self.eot_id]}
        pieces = (piece for piece, _ in self._with_specials.pre_tokenize_str(text))
        return [i for p in pieces for i in ids.get(p) or self._library.encode(p, add_special_tokens=False).ids]

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of one row up to its end token; unknown bytes become U+FFFD."""
        words = []
        for token in map(int, tokens):
            if token == self.eot_id:
                break
            if token != self.sot_id:
                words.append(self._words[token])
        byte = {c: b for b, c in _byte_characters()}
        text = "".join(words).replace(END_OF_WORD, " ")
        return b"".join(b" " if c == " " else bytes([byte[c]]) for c in text).decode("utf-8", "replace").strip()

    def save(self, path: str | os.PathLike) -> None:
        """One JSON file in the layout of the `tokenizers` library, which also carries context length and padding."""
        self._library.enable_truncation(self.context_length)
        self._library.enable_padding(length=self.context_length, pad_id=self.pad_id, pad_token=self._words[self.pad_id])
        text = self._library.to_str(pretty=True)
        self._library.no_truncation()
        self._library.no_padding()
        Path(path).write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Tokenizer":
        """Reads what `save` wrote. Raises UserError when the file is not such a vocabulary."""
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
            vocab, merges = data["model"]["vocab"], [_pair(m) for m in data["model"]["merges"]]
            options = {}
            if data.get("truncation"):
                options["context_length"] = data["truncation"]["max_length"]
            if data.get("padding"):
                options["pad_id"] = data["padding"]["pad_id"]
        except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path} is not a tokenizer.json of a CLIP vocabulary: {error}") from error
        tokenizer = cls(merges, **options)
        if vocab != {word: i for i, word in enumerate(tokenizer._words)}:
            raise UserError(f"{path}: its ids are not laid out as CLIP's are (bytes, bytes</w>, merges, start, end)")
        return tokenizer

    @classmethod
    def from_openai(cls, path: str | os.PathLike) -> "Tokenizer":
        """Reads OpenAI's `bpe_simple_vocab_16e6.txt.gz`: a header line, then merges, of which CLIP uses 48,894."""
        try:
            lines = gzip.decompress(Path(path).read_bytes()).decode("utf-8").split("\n")
            merges = [_pair(line) for line in lines[1 : 49152 - 256 - 2 + 1]]
        except (OSError, EOFError, ValueError) as error:
            raise UserError(f"{path} is not OpenAI's bpe_simple_vocab_16e6.txt.gz: {error}") from error
        return cls(merges)


def train_bpe(
    texts: Iterable[str], vocab_size: int, *, context_length: int = CONTEXT_LENGTH, pad_id: int = 0
) -> Tokenizer:
    """A vocabulary for these texts, of at most `vocab_size` ids; of fewer once every word is one token.

    Only the merges are taken from the library's trainer: its own vocabulary lacks the end-of-word form of bytes it has
    not seen there, and drops them silently from later texts.
    """
    smallest = 2 * 256 + 2
    if vocab_size < smallest:
        raise UserError(f"vocab_size {vocab_size} is too small: bytes and special tokens alone take {smallest}")
    library = tokenizers.Tokenizer(models.BPE(end_of_word_suffix=END_OF_WORD, fuse_unk=False))
    library.pre_tokenizer = _pre_tokenizer(WORDS)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=byte_alphabet(), end_of_word_suffix=END_OF_WORD, show_progress=False
    )
    library.train_from_iterator((clean(text) for text in texts), trainer)
    merges = [_pair(m) for m in json.loads(library.to_str())["model"]["merges"]]
    return Tokenizer(merges[: vocab_size - smallest], context_length=context_length, pad_id=pad_id)


def _pre_tokenizer(words: str) -> pre_tokenizers.PreTokenizer:
    split = pre_tokenizers.Split(tokenizers.Regex(words), "removed", invert=True)
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _pair(merge: str | Sequence[str]) -> tuple[str, str]:
    left, right = merge.split() if isinstance(merge, str) else merge
    return left, right


def _byte_characters() -> list[tuple[int, str]]:
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [b for b in range(256) if b not in printable]
    return list(zip([*printable, *others], byte_alphabet(), strict=True))
