"""BERT's WordPiece (Devlin et al. 2018), the tokenizer of Chinese-CLIP and of `resnet50_bert_base`.

Text is cleaned, lower-cased and stripped of accents; every Chinese character and punctuation mark becomes a word of its
own; each word is split greedily into the longest pieces of the vocabulary. A row is [CLS], text, [SEP], [PAD].
"""

import copy
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, SupportsIndex

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from clip_jax.errors import UserError
from clip_jax.tokenizer.added import MAX_ID
from clip_jax.tokenizer.base import Tokenizer, check_texts, integer, without_surrogates
from clip_jax.tokenizer.cleaning import cleaning

CLS, SEP, PAD, UNK = "[CLS]", "[SEP]", "[PAD]", "[UNK]"
CONTEXT_LENGTH = 512  # BERT's positions; Chinese-CLIP takes 52 of them
LONGEST_WORD = 200  # characters, as in Google's and Chinese-CLIP's code; Hugging Face's default is 100


class WordPieceTokenizer(Tokenizer):
    """BERT's WordPiece tokenizer: `tokenizer(texts)` -> int32 [B, L]: [CLS], text, [SEP], [PAD].

    The literal text of a special token stays text, as in the original.

    Args:
        vocab: token -> id.
        lowercase: whether to lower-case texts; False for a cased vocabulary.
        strip_accents: whether to remove accents; None: as `lowercase`.
        chinese_chars: whether each Chinese character is a word of its own.
        longest_word: in characters; a longer word becomes [UNK].
        context_length: the default L.
        pad_id: id of the padding; None: that of [PAD].
        clean: name of the cleaning before BERT's own, see `clip_jax.tokenizer.cleaning`: OpenCLIP has "whitespace" or,
            for CLIPA, "canonicalize". None: no cleaning.
        strip_sep_token: whether to write id 0 in place of [SEP] (OpenCLIP's option of that name, for CLIPA).

    Raises:
        UserError: If the vocabulary is not BERT's, or an option is out of range.
    """

    kind = "bert"

    def __init__(
        self,
        vocab: Mapping[str, int],
        *,
        lowercase: bool = True,
        strip_accents: bool | None = None,
        chinese_chars: bool = True,
        longest_word: int = LONGEST_WORD,
        context_length: int = CONTEXT_LENGTH,
        pad_id: int | None = None,
        clean: str | None = None,
        strip_sep_token: bool = False,
    ):
        if missing := [word for word in (CLS, SEP, PAD, UNK) if word not in vocab]:
            raise UserError(f"this WordPiece vocabulary has no {', '.join(missing)}: it is not BERT's")
        _check_ids(vocab)
        longest_word = integer("max_input_chars_per_word", longest_word)
        if not 1 <= longest_word <= MAX_ID:
            raise UserError(f"max_input_chars_per_word is {longest_word}: it must be from 1 to {MAX_ID}")
        super().__init__(
            vocab_size=max(vocab.values()) + 1,
            context_length=context_length,
            pad_id=vocab[PAD] if pad_id is None else pad_id,
            sot_id=vocab[CLS],
            eot_id=vocab[SEP],
        )
        self.clean = clean
        self.strip_sep_token = strip_sep_token
        if strip_sep_token:
            self.end_id = 0
        self._clean: Callable[[str], str] = without_surrogates if clean is None else cleaning(clean)
        self._library = tokenizers.Tokenizer(
            models.WordPiece(vocab=dict(vocab), unk_token=UNK, max_input_chars_per_word=longest_word)
        )
        self._library.normalizer = normalizers.BertNormalizer(
            lowercase=lowercase, strip_accents=strip_accents, handle_chinese_chars=chinese_chars
        )
        self._library.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        self._library.decoder = decoders.WordPiece()

    def encode(self, texts: Sequence[Any]) -> list[list[int]]:
        """Ids of each text, without [CLS], [SEP], padding or truncation.

        Raises:
            UserError: If something is not text.
        """
        check_texts(texts)
        cleaned = [self._clean(text) for text in texts]
        return [encoding.ids for encoding in self._library.encode_batch(cleaned, add_special_tokens=False)]

    def decode(self, tokens: Iterable[SupportsIndex]) -> str:
        """The text of one row up to its [SEP].

        Raises:
            UserError: If an id is not in the vocabulary.
        """
        return self._library.decode(self.body(tokens), skip_special_tokens=False)

    def to_json(self) -> str:
        """JSON in the layout of the `tokenizers` library, with context length and padding."""
        library = copy.deepcopy(self._library)
        library.enable_truncation(self.context_length)
        library.enable_padding(length=self.context_length, pad_id=self.pad_id, pad_token=PAD)
        text = library.to_str(pretty=True)
        if self.clean is None and not self.strip_sep_token:
            return text
        options = {"clean": self.clean, "strip_sep_token": self.strip_sep_token}
        return json.dumps(json.loads(text) | options, indent=2, ensure_ascii=False)

    @classmethod
    def from_json(cls, data: Mapping[str, Any], **options: Any) -> "WordPieceTokenizer":
        """Makes a tokenizer from the content of a `tokenizer.json`.

        Args:
            data: the content of the file.
            options: arguments of the class that take precedence.

        Raises:
            KeyError: If the vocabulary is missing.
            UserError: If the vocabulary is not BERT's, or an option is out of range.
        """
        normalizer = data.get("normalizer") or {}
        saved = {
            "lowercase": normalizer.get("lowercase", True),
            "strip_accents": normalizer.get("strip_accents"),
            "chinese_chars": normalizer.get("handle_chinese_chars", True),
            "longest_word": data["model"].get("max_input_chars_per_word", LONGEST_WORD),
            "clean": data.get("clean"),
            "strip_sep_token": data.get("strip_sep_token", False),
        }
        return cls(data["model"]["vocab"], **(saved | options))

    @classmethod
    def from_vocabulary(cls, path: str | os.PathLike, **options: Any) -> "WordPieceTokenizer":
        """Makes a tokenizer from a `vocab.txt`.

        Args:
            path: the file.
            options: further arguments of the class.

        Raises:
            UserError: If the file is not BERT's vocabulary.
        """
        try:
            return cls(read_vocabulary(path), **options)
        except UserError as error:
            raise UserError(str(error) if str(path) in str(error) else f"{path}: {error}") from error


def read_vocabulary(path: str | os.PathLike) -> dict[str, int]:
    """Reads a `vocab.txt`, one token per line: token -> number of its first line, from 0.

    Raises:
        UserError: If the file cannot be read.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").rstrip("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not BERT's vocab.txt: {error}") from error
    vocab: dict[str, int] = {}
    for i, line in enumerate(lines):
        vocab.setdefault(line.rstrip("\r"), i)
    return vocab


def _check_ids(vocab: Mapping[str, Any]) -> None:
    word_of: dict[int, str] = {}
    for word, i in vocab.items():
        if type(i) is not int or not 0 <= i <= MAX_ID:
            raise UserError(f"the id of {word[:40]!r} is {str(i)[:40]!r}: it must be an integer from 0 to {MAX_ID}")
        if word_of.setdefault(i, word) != word:
            raise UserError(f"the id {i} belongs to {word_of[i][:40]!r} and to {word[:40]!r}")
