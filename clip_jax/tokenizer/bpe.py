"""CLIP's byte-pair encoding, equal to OpenAI's on every string.

The ids of every CLIP vocabulary are laid out alike: 256 bytes, the same 256 bytes at the end of a word (`</w>`), one id
per merge, then `<|startoftext|>` and `<|endoftext|>`. The merges are therefore the whole vocabulary. As every byte has
an id in both places, no text is ever lost.

Prompts are cleaned as OpenAI does (ftfy, HTML entities, white space, lower case) and cut into words by the same library
with the same expression, because no two libraries agree on what is a letter. The merging is `tokenizers`'. Unlike
there, the literal text `<|endoftext|>` inside a prompt stays text: as the real token it would end the prompt where
pooling looks for the end.
"""

import gzip
import html
import io
import json
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, SupportsIndex

import ftfy
import regex
import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from clip_jax.errors import UserError
from clip_jax.tokenizer.base import Tokenizer, check_texts, without_surrogates

SOT, EOT = "<|startoftext|>", "<|endoftext|>"
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
# Case is ignored in all of it, as by OpenAI. One character is the worse for it: the combining U+0345 is then neither a
# letter nor anything else, and falls out.
WORD = regex.compile(WORDS, regex.IGNORECASE)
WORD_OR_SPECIAL = regex.compile(f"{regex.escape(SOT)}|{regex.escape(EOT)}|{WORDS}", regex.IGNORECASE)
END_OF_WORD = "</w>"
CONTEXT_LENGTH = 77
MAX_FILE = 1 << 26  # bytes, unpacked: OpenAI's file has 3 MB of merges, and gzip can claim a thousand times its size
OPENAI_MERGES = 49152 - 256 - 2  # what CLIP takes of the merges in OpenAI's file


def clean(text: str) -> str:
    """The text the encoding sees: mojibake repaired, entities resolved, white space collapsed, lower case.

    Lone surrogates, on which OpenAI's encoding fails, become U+FFFD.
    """
    text = html.unescape(html.unescape(ftfy.fix_text(without_surrogates(text))))
    return regex.sub(r"\s+", " ", text.strip()).strip().lower()


def byte_alphabet() -> dict[int, str]:
    """The character that stands for each byte, in the order of the ids (that of GPT-2): printable bytes first."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [b for b in range(256) if b not in printable]
    return {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}


class BPETokenizer(Tokenizer):
    """`tokenizer(texts)` -> int32 [B, L]: start, text, end, padding.

    Args:
        merges: the pairs to join, in order.
        context_length: the default L.
        pad_id: what follows the end. The original pads with 0, an id that is also the token "!".
    """

    kind = "clip"

    def __init__(self, merges: Sequence[tuple[str, str]], *, context_length: int = CONTEXT_LENGTH, pad_id: int = 0):
        letters = byte_alphabet().values()
        words = [*letters, *(c + END_OF_WORD for c in letters), *(a + b for a, b in merges), SOT, EOT]
        vocab = {word: i for i, word in enumerate(words)}
        if len(vocab) != len(words):
            raise UserError("the merges of this vocabulary make the same token twice: it is not a CLIP vocabulary")
        super().__init__(
            vocab_size=len(vocab), context_length=context_length, pad_id=pad_id, sot_id=vocab[SOT], eot_id=vocab[EOT]
        )
        self.merges = tuple(merges)
        self._words = words
        self._library = tokenizers.Tokenizer(
            models.BPE(vocab=vocab, merges=list(merges), end_of_word_suffix=END_OF_WORD, fuse_unk=False)
        )
        self._library.pre_tokenizer = AS_BYTES

    def encode(self, texts: Sequence[Any], *, specials: bool = False) -> list[list[int]]:
        """Ids of each text, without start, end, padding or truncation.

        `specials=True` is OpenAI's behaviour to the letter: the literal text of a special token becomes that token.
        """
        check_texts(texts)
        if specials:
            return [self._encode_with_specials(clean(text)) for text in texts]
        words = [WORD.findall(clean(text)) for text in texts]
        return [e.ids for e in self._library.encode_batch(words, is_pretokenized=True, add_special_tokens=False)]

    def _encode_with_specials(self, text: str) -> list[int]:
        ids: list[int] = []
        for word in WORD_OR_SPECIAL.findall(text):
            if word in (SOT, EOT):
                ids.append(self._words.index(word))
            else:
                ids += self._library.encode([word], is_pretokenized=True, add_special_tokens=False).ids
        return ids

    def decode(self, tokens: Iterable[SupportsIndex]) -> str:
        """The text of one row up to its end token; unknown bytes become U+FFFD."""
        byte = {c: b for b, c in byte_alphabet().items()} | {" ": ord(" ")}
        text = "".join(self._words[token] for token in self.body(tokens)).replace(END_OF_WORD, " ")
        return bytes(byte[c] for c in text).decode("utf-8", "replace").strip()

    def save(self, path: str | os.PathLike) -> None:
        """One JSON file in the layout of the `tokenizers` library, which also carries context length and padding."""
        library = self._library
        library.enable_truncation(self.context_length)
        library.enable_padding(length=self.context_length, pad_id=self.pad_id, pad_token=self._words[self.pad_id])
        library.pre_tokenizer = pre_tokenizers.Sequence([_split(WORDS), AS_BYTES])
        text = library.to_str(pretty=True)
        library.pre_tokenizer = AS_BYTES
        library.no_truncation()
        library.no_padding()
        Path(path).write_text(text, encoding="utf-8")

    @classmethod
    def from_vocabulary(
        cls, vocab: Mapping[str, int], merges: Iterable[Any], *, where: str, **options: Any
    ) -> "BPETokenizer":
        """From a vocabulary and its merges ("a b", or pairs), as `vocab.json` and `tokenizer.json` hold them.

        Raises: UserError, which names `where`, when they are not laid out as CLIP's.
        """
        try:
            tokenizer = cls([pair(merge) for merge in merges], **options)
        except ValueError as error:
            raise UserError(f"{where} holds no CLIP vocabulary: {error}") from error
        if vocab != {word: i for i, word in enumerate(tokenizer._words)}:
            raise UserError(f"{where}: its ids are not laid out as CLIP's are (bytes, bytes</w>, merges, start, end)")
        return tokenizer

    @classmethod
    def from_openai(cls, path: str | os.PathLike, **options: Any) -> "BPETokenizer":
        """Reads OpenAI's `bpe_simple_vocab_16e6.txt.gz`, packed or not: a header, then merges; CLIP uses 48,894."""
        try:
            data = Path(path).read_bytes()
            if data[:2] == b"\x1f\x8b":
                with gzip.open(io.BytesIO(data)) as file:
                    data = file.read(MAX_FILE + 1)
            if len(data) > MAX_FILE:
                raise ValueError(f"it has more than {MAX_FILE} bytes")
            text = data.decode("utf-8")
            lines = text.rstrip("\n").split("\n")
            merges = [pair(line) for line in lines[1 : OPENAI_MERGES + 1]]
            if not merges:
                raise ValueError("it holds no merges")
        except (OSError, EOFError, ValueError, zlib.error) as error:
            raise UserError(f"{path} is not OpenAI's bpe_simple_vocab_16e6.txt.gz: {error}") from error
        return cls(merges, **options)


def train_bpe(
    texts: Iterable[str], vocab_size: int, *, context_length: int = CONTEXT_LENGTH, pad_id: int = 0
) -> BPETokenizer:
    """A vocabulary for these texts, of at most `vocab_size` ids; of fewer once every word is one token.

    Only the merges are taken from the library's trainer: its own vocabulary lacks the end-of-word form of bytes it has
    not seen there, and drops them silently from later texts.
    """
    smallest = 2 * 256 + 2
    if vocab_size < smallest:
        raise UserError(f"vocab_size {vocab_size} is too small: bytes and special tokens alone take {smallest}")
    library = tokenizers.Tokenizer(models.BPE(end_of_word_suffix=END_OF_WORD, fuse_unk=False))
    library.pre_tokenizer = pre_tokenizers.Sequence([_split(WORDS), AS_BYTES])
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=list(byte_alphabet().values()),
        end_of_word_suffix=END_OF_WORD,
        show_progress=False,
    )
    library.train_from_iterator((clean(text) for text in texts), trainer)
    merges = [pair(m) for m in json.loads(library.to_str())["model"]["merges"]]
    return BPETokenizer(merges[: vocab_size - smallest], context_length=context_length, pad_id=pad_id)


AS_BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def _split(words: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Split(tokenizers.Regex(words), "removed", invert=True)


def pair(merge: str | Sequence[str]) -> tuple[str, str]:
    """A merge as two tokens. Raises ValueError for another number of them."""
    left, right = merge.split() if isinstance(merge, str) else merge
    return left, right
