"""CLIP's byte-pair encoding (BPE): OpenAI's tokens for every string, except the literal text of a special token.

The ids of every CLIP vocabulary have the same layout: 256 bytes, the same 256 bytes at the end of a word (`</w>`), one
id per merge, then `<|startoftext|>` and `<|endoftext|>`. So the merges determine the vocabulary. As every byte has an
id in both places, every text can be encoded without an unknown token.

Texts are cleaned as by OpenAI (ftfy, HTML entities, white space, lower case) and split into words by OpenAI's regular
expression in the library `regex`, because libraries differ in what they count as a letter. The library `tokenizers`
merges the bytes. The literal text `<|endoftext|>` inside a prompt stays text: as the special token it would be the
position at which the text tower pools.
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
# IGNORECASE for the whole expression, as in OpenAI's code. With it the combining character U+0345 matches none of the
# alternatives, and is dropped.
WORD = regex.compile(WORDS, regex.IGNORECASE)
WORD_OR_SPECIAL = regex.compile(f"{regex.escape(SOT)}|{regex.escape(EOT)}|{WORDS}", regex.IGNORECASE)
END_OF_WORD = "</w>"
CONTEXT_LENGTH = 77
OPENAI_MERGES = 49152 - 256 - 2  # merges that CLIP uses of those in OpenAI's file
SMALLEST = 2 * 256 + 2  # size of a vocabulary without merges
MAX_MERGES_BYTES = 64 * 2**20  # of an unpacked merges file; OpenAI's has 3 MiB


def byte_alphabet() -> dict[int, str]:
    """GPT-2's mapping of bytes to printable characters, in the order of the ids: printable bytes come first."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [b for b in range(256) if b not in printable]
    return {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}


class BPETokenizer(Tokenizer):
    """CLIP's BPE tokenizer: `tokenizer(texts)` -> int32 [B, L]: start, text, end, padding.

    Args:
        merges: pairs of tokens to merge, by priority.
        context_length: the default L.
        pad_id: id of the padding. OpenAI pads with 0, which is also the id of the token "!".
        clean: name of the cleaning that a text gets first, see `clip_jax.tokenizer.cleaning`; "lower" is OpenAI's.
        added: added tokens, such as those of textual inversion: each is one token wherever it occurs in a text.

    Raises:
        UserError: If the merges do not make a CLIP vocabulary, or an added token does not fit it.
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
        except Exception as error:  # the library raises plain Exceptions
            raise UserError(f"its merges are not those of a CLIP vocabulary: {error}") from error
        self._library = tokenizers.Tokenizer(model)
        self._library.pre_tokenizer = AS_BYTES

    def encode(self, texts: Sequence[Any], *, specials: bool = False) -> list[list[int]]:
        """Ids of each text, without start, end, padding or truncation.

        Args:
            texts: strings.
            specials: True is exactly OpenAI's behaviour: the literal text of a special token becomes that token.

        Raises:
            UserError: If something is not text.
        """
        check_texts(texts)
        pieces = [self._pieces(text, specials) for text in texts]
        words = [piece for row in pieces for piece in row if not isinstance(piece, int)]
        encoded = iter(self._library.encode_batch(words, is_pretokenized=True, add_special_tokens=False))
        return [
            [i for piece in row for i in ([piece] if isinstance(piece, int) else next(encoded).ids)] for row in pieces
        ]

    def _pieces(self, text: str, specials: bool) -> list[list[str] | int]:
        """Splits a text into lists of words and ids of added tokens; with `specials` also ids of special tokens."""
        pieces: list[list[str] | int] = []
        for piece in self._split(text):
            if isinstance(piece, int):
                pieces.append(piece)
            elif not specials:
                pieces.append(WORD.findall(piece))
            else:
                ids: dict[str, Any] = {SOT: self.sot_id, EOT: self.eot_id}
                pieces += [ids.get(word, [word]) for word in WORD_OR_SPECIAL.findall(piece)]
        return pieces

    def decode(self, tokens: Iterable[SupportsIndex]) -> str:
        """The text of one row up to its end token; bytes that are not UTF-8 become U+FFFD.

        Raises:
            UserError: If an id is not in the vocabulary.
        """
        byte = {c: b for b, c in byte_alphabet().items()} | {" ": ord(" ")}
        written = {token.id: f"{token.content} ".encode() for token in self._added}
        text = b""
        for token in self.body(tokens):
            if token in written:
                text += written[token]
            elif token < len(self._words):  # ids between the vocabulary and an added token may be unused
                text += bytes(byte[c] for c in self._words[token].replace(END_OF_WORD, " "))
        return text.decode("utf-8", "replace").strip()

    def to_json(self) -> str:
        """JSON in the layout of the `tokenizers` library, with context length and padding."""
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
        """Makes a tokenizer from the vocabulary and merges of a `tokenizer.json`, or `vocab.json` with `merges.txt`.

        Args:
            vocab: token -> id.
            merges: "a b", or pairs.
            where: name of the file, for errors.
            options: further arguments of the class.

        Raises:
            UserError: If the ids do not have the layout of CLIP's.
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
        """Reads OpenAI's `bpe_simple_vocab_16e6.txt.gz`, compressed or not: a header, then merges; CLIP uses 48,894.

        Args:
            path: the file.
            options: further arguments of the class.

        Raises:
            UserError: If it is not that file.
        """
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
    """Trains a BPE vocabulary on texts.

    Only the merges of the library's trainer are used: its vocabulary lacks the end-of-word form of bytes that do not
    end a word in `texts`, and would drop them silently from later texts.

    Args:
        texts: training data.
        vocab_size: at most; the vocabulary is smaller if every word becomes one token before.
        context_length: the default L of the tokenizer.
        pad_id: id of the padding.

    Raises:
        UserError: If `vocab_size` is less than 514, the number of bytes and special tokens.
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
    """Content of a file, decompressed if it is gzip; the size is limited against decompression bombs."""
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        data = (gzip.GzipFile(fileobj=file) if packed else file).read(MAX_MERGES_BYTES + 1)
    if len(data) > MAX_MERGES_BYTES:
        raise ValueError(f"it holds more than {MAX_MERGES_BYTES} bytes")
    return data


def pair(merge: str | Sequence[str]) -> tuple[str, str]:
    """Parses a merge, "a b" or a pair, into two tokens.

    Raises:
        ValueError: If it is anything else.
    """
    parts = merge.split() if isinstance(merge, str) else merge
    if not isinstance(parts, list | tuple) or len(parts) != 2 or not all(isinstance(part, str) for part in parts):
        raise ValueError(f"the merge {str(merge)[:60]!r} is no pair of tokens")
    return parts[0], parts[1]
