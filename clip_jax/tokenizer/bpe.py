"""CLIP's byte-pair encoding, equal to OpenAI's on every string.

The ids of every CLIP vocabulary are laid out alike: 256 bytes, the same 256 bytes at the end of a word (`</w>`), one id
per merge, then `<|startoftext|>` and `<|endoftext|>`. The merges are therefore the whole vocabulary. As every byte has
an id in both places, no text is ever lost.

Prompts are cleaned as OpenAI does (ftfy, HTML entities, white space, lower case) and cut into words by the same library
with the same expression, because no two libraries agree on what is a letter. The merging is `tokenizers`'. Unlike
there, the literal text `<|endoftext|>` inside a prompt stays text: as the real token it would end the prompt where
pooling looks for the end.
"""

import copy
import gzip
import json
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, SupportsIndex

import regex
import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from clip_jax.errors import UserError
from clip_jax.tokenizer.added import AddedToken, Splitter, learned
from clip_jax.tokenizer.base import Tokenizer, check_texts
from clip_jax.tokenizer.cleaning import clean, cleaning

SOT, EOT = "<|startoftext|>", "<|endoftext|>"
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
# Case is ignored in all of it, as by OpenAI. One character is the worse for it: the combining U+0345 is then neither a
# letter nor anything else, and falls out.
WORD = regex.compile(WORDS, regex.IGNORECASE)
WORD_OR_SPECIAL = regex.compile(f"{regex.escape(SOT)}|{regex.escape(EOT)}|{WORDS}", regex.IGNORECASE)
END_OF_WORD = "</w>"
CONTEXT_LENGTH = 77
OPENAI_MERGES = 49152 - 256 - 2  # what CLIP takes of the merges in OpenAI's file
SMALLEST = 2 * 256 + 2  # ids of a vocabulary without merges
MAX_MERGES_BYTES = 64 * 2**20  # of a merges file, unpacked; OpenAI's has 3 MiB


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
        clean: what is done to a text first, a name of `clip_jax.tokenizer.cleaning`; "lower" is OpenAI's.
        added: tokens learned later, as those of textual inversion: each is one token wherever it stands in a text.

    Raises:
        UserError: the merges make no CLIP vocabulary, or an added token does not fit it.
    """

    kind = "clip"

    def __init__(
        self,
        merges: Sequence[tuple[str, str]],
        *,
        context_length: int = CONTEXT_LENGTH,
        pad_id: int = 0,
        clean: str = "lower",
        added: Iterable[AddedToken] = (),
    ):
        letters = byte_alphabet().values()
        words = [*letters, *(c + END_OF_WORD for c in letters), *(a + b for a, b in merges), SOT, EOT]
        vocab = {word: i for i, word in enumerate(words)}
        if len(vocab) != len(words):
            raise UserError("the merges of this vocabulary make the same token twice: it is not a CLIP vocabulary")
        self._added = tuple(learned(added, vocab, "this CLIP vocabulary"))
        super().__init__(
            vocab_size=max([len(vocab), *(token.id + 1 for token in self._added)]),
            context_length=context_length,
            pad_id=pad_id,
            sot_id=vocab[SOT],
            eot_id=vocab[EOT],
        )
        self.merges = tuple(merges)
        self.clean = clean
        self._words = words
        self._split = Splitter(self._added, cleaning(clean))
        try:
            model = models.BPE(vocab=vocab, merges=list(merges), end_of_word_suffix=END_OF_WORD, fuse_unk=False)
        except Exception as error:  # the library raises nothing more special
            raise UserError(f"its merges are not those of a CLIP vocabulary: {error}") from error
        self._library = tokenizers.Tokenizer(model)
        self._library.pre_tokenizer = AS_BYTES

    def encode(self, texts: Sequence[Any], *, specials: bool = False) -> list[list[int]]:
        """Ids of each text, without start, end, padding or truncation.

        `specials=True` is OpenAI's behaviour to the letter: the literal text of a special token becomes that token.
        """
        check_texts(texts)
        pieces = [self._pieces(text, specials) for text in texts]
        words = [piece for row in pieces for piece in row if not isinstance(piece, int)]
        encoded = iter(self._library.encode_batch(words, is_pretokenized=True, add_special_tokens=False))
        return [
            [i for piece in row for i in ([piece] if isinstance(piece, int) else next(encoded).ids)] for row in pieces
        ]

    def _pieces(self, text: str, specials: bool) -> list[list[str] | int]:
        """What a text is made of: words in a row, and the ids of added tokens, of special ones too with `specials`."""
        found: list[list[str] | int] = []
        for piece in self._split(text):
            if isinstance(piece, int):
                found.append(piece)
            elif not specials:
                found.append(WORD.findall(piece))
            else:
                ids: dict[str, Any] = {SOT: self.sot_id, EOT: self.eot_id}
                found += [ids.get(word, [word]) for word in WORD_OR_SPECIAL.findall(piece)]
        return found

    def decode(self, tokens: Iterable[SupportsIndex]) -> str:
        """The text of one row up to its end token; unknown bytes become U+FFFD."""
        byte = {c: b for b, c in byte_alphabet().items()} | {" ": ord(" ")}
        written = {token.id: f"{token.content} ".encode() for token in self._added}
        text = b""
        for token in self.body(tokens):
            if token in written:
                text += written[token]
            elif token < len(self._words):  # between the words and an added token there may be ids of nothing
                text += bytes(byte[c] for c in self._words[token].replace(END_OF_WORD, " "))
        return text.decode("utf-8", "replace").strip()

    def to_json(self) -> str:
        """The layout of the `tokenizers` library, which also carries context length and padding."""
        library = copy.deepcopy(self._library)
        library.enable_truncation(self.context_length)
        library.enable_padding(length=self.context_length, pad_id=self.pad_id, pad_token=self._word(self.pad_id))
        library.pre_tokenizer = pre_tokenizers.Sequence([_split(WORDS), AS_BYTES])
        text = library.to_str(pretty=True)
        if not self._added and self.clean == "lower":
            return text
        data = json.loads(text)
        data["added_tokens"] = [token.to_json() for token in self._added]
        return json.dumps(data | {"clean": self.clean}, indent=2, ensure_ascii=False)

    def _word(self, token: int) -> str:
        added = (a.content for a in self._added if a.id == token)
        return self._words[token] if token < len(self._words) else next(added, "")

    @classmethod
    def from_vocabulary(
        cls, vocab: Mapping[str, int], merges: Iterable[Any], *, where: str, **options: Any
    ) -> "BPETokenizer":
        """From a vocabulary and its merges ("a b", or pairs), as `vocab.json` and `tokenizer.json` hold them.

        Raises:
            UserError: it names `where`; when they are not laid out as CLIP's.
        """
        if not isinstance(vocab, Mapping):
            raise UserError(f"{where}: its vocabulary is no object of words and ids")
        try:
            tokenizer = cls([pair(merge) for merge in merges], **options)
        except (ValueError, TypeError) as error:
            raise UserError(f"{where} holds no CLIP vocabulary: {error}") from error
        added = {token.content: token.id for token in tokenizer._added if token.content in vocab}
        if {**vocab, **added} != {word: i for i, word in enumerate(tokenizer._words)} | added:
            raise UserError(f"{where}: its ids are not laid out as CLIP's are (bytes, bytes</w>, merges, start, end)")
        return tokenizer

    @classmethod
    def from_openai(cls, path: str | os.PathLike, **options: Any) -> "BPETokenizer":
        """Reads OpenAI's `bpe_simple_vocab_16e6.txt.gz`, packed or not: a header, then merges; CLIP uses 48,894."""
        try:
            lines = _unpacked(Path(path)).decode("utf-8").rstrip("\n").split("\n")
            merges = [pair(line) for line in lines[1 : OPENAI_MERGES + 1]]
            if not merges:
                raise ValueError("it holds no merges")
            return cls(merges, **options)
        except (OSError, EOFError, ValueError, zlib.error) as error:
            raise UserError(f"{path} is not OpenAI's bpe_simple_vocab_16e6.txt.gz: {error}") from error


def train_bpe(
    texts: Iterable[str], vocab_size: int, *, context_length: int = CONTEXT_LENGTH, pad_id: int = 0
) -> BPETokenizer:
    """A vocabulary for these texts, of at most `vocab_size` ids; of fewer once every word is one token.

    Only the merges are taken from the library's trainer: its own vocabulary lacks the end-of-word form of bytes it has
    not seen there, and drops them silently from later texts.
    """
    if vocab_size < SMALLEST:
        raise UserError(f"vocab_size {vocab_size} is too small: bytes and special tokens alone take {SMALLEST}")
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
    return BPETokenizer(merges[: vocab_size - SMALLEST], context_length=context_length, pad_id=pad_id)


AS_BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def _split(words: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Split(tokenizers.Regex(words), "removed", invert=True)


def _unpacked(path: Path) -> bytes:
    """A file's content, of which a packed one may not be more than a merges file can be."""
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        data = (gzip.GzipFile(fileobj=file) if packed else file).read(MAX_MERGES_BYTES + 1)
    if len(data) > MAX_MERGES_BYTES:
        raise ValueError(f"it holds more than {MAX_MERGES_BYTES} bytes")
    return data


def pair(merge: str | Sequence[str]) -> tuple[str, str]:
    """A merge as two tokens. Raises ValueError for anything else."""
    parts = merge.split() if isinstance(merge, str) else merge
    if not isinstance(parts, list | tuple) or len(parts) != 2 or not all(isinstance(part, str) for part in parts):
        raise ValueError(f"the merge {str(merge)[:60]!r} is no pair of tokens")
    return parts[0], parts[1]
