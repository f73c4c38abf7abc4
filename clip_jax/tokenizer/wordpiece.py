"""BERT's WordPiece (Devlin et al. 2018), the tokenizer of Chinese-CLIP and of `resnet50_bert_base`.

Text is cleaned, lower-cased and stripped of accents, a space goes round every Chinese character and punctuation mark,
and each word is cut greedily into the longest pieces of the vocabulary. A row is [CLS], text, [SEP], [PAD].
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, SupportsIndex

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from clip_jax.errors import UserError
from clip_jax.tokenizer.base import Tokenizer, check_texts, without_surrogates

CLS, SEP, PAD, UNK = "[CLS]", "[SEP]", "[PAD]", "[UNK]"
CONTEXT_LENGTH = 512  # BERT's positions; Chinese-CLIP takes 52 of them
LONGEST_WORD = 200  # characters; Google's and Chinese-CLIP's, where Hugging Face's default is 100


class WordPieceTokenizer(Tokenizer):
    """`tokenizer(texts)` -> int32 [B, L]: [CLS], text, [SEP], [PAD].

    Special tokens written in a text stay text, as in the original.

    Args:
        vocab: token -> id.
        lowercase: and strip accents; False for a cased vocabulary.
        longest_word: longer ones are unknown as a whole.
    """

    kind = "bert"

    def __init__(
        self,
        vocab: Mapping[str, int],
        *,
        lowercase: bool = True,
        longest_word: int = LONGEST_WORD,
        context_length: int = CONTEXT_LENGTH,
        pad_id: int | None = None,
    ):
        if missing := [word for word in (CLS, SEP, PAD, UNK) if word not in vocab]:
            raise UserError(f"this WordPiece vocabulary has no {', '.join(missing)}: it is not BERT's")
        super().__init__(
            vocab_size=max(vocab.values()) + 1,
            context_length=context_length,
            pad_id=vocab[PAD] if pad_id is None else pad_id,
            sot_id=vocab[CLS],
            eot_id=vocab[SEP],
        )
        self._library = tokenizers.Tokenizer(
            models.WordPiece(vocab=dict(vocab), unk_token=UNK, max_input_chars_per_word=longest_word)
        )
        self._library.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
        self._library.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        self._library.decoder = decoders.WordPiece()

    def encode(self, texts: Sequence[Any]) -> list[list[int]]:
        """Ids of each text, without [CLS], [SEP], padding or truncation."""
        check_texts(texts)
        cleaned = [without_surrogates(text) for text in texts]
        return [encoding.ids for encoding in self._library.encode_batch(cleaned, add_special_tokens=False)]

    def decode(self, tokens: Iterable[SupportsIndex]) -> str:
        """The pieces of one row up to its [SEP], joined."""
        return self._library.decode(self.body(tokens), skip_special_tokens=False)

    def save(self, path: str | os.PathLike) -> None:
        """One JSON file in the layout of the `tokenizers` library, which also carries context length and padding."""
        self._library.enable_truncation(self.context_length)
        self._library.enable_padding(length=self.context_length, pad_id=self.pad_id, pad_token=PAD)
        text = self._library.to_str(pretty=True)
        self._library.no_truncation()
        self._library.no_padding()
        Path(path).write_text(text, encoding="utf-8")

    @classmethod
    def from_json(cls, data: Mapping[str, Any], **options: Any) -> "WordPieceTokenizer":
        """From the content of a `tokenizer.json`. Raises KeyError or TypeError when it is none."""
        model, normalizer = data["model"], data.get("normalizer") or {}
        if normalizer.get("type", "BertNormalizer") != "BertNormalizer":
            raise UserError(f"its normalizer is {normalizer['type']}, not BERT's")
        return cls(
            model["vocab"],
            lowercase=bool(normalizer.get("lowercase", True)),
            longest_word=model.get("max_input_chars_per_word", LONGEST_WORD),
            **options,
        )

    @classmethod
    def from_vocabulary(cls, path: str | os.PathLike, **options: Any) -> "WordPieceTokenizer":
        """Reads `vocab.txt`: a token per line, its id the number of the line."""
        try:
            lines = Path(path).read_text(encoding="utf-8").rstrip("\n").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path} is not BERT's vocab.txt: {error}") from error
        vocab: dict[str, int] = {}
        for i, line in enumerate(lines):
            vocab.setdefault(line.rstrip("\r"), i)
        try:
            return cls(vocab, **options)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
