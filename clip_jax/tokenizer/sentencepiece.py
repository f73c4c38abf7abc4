"""SentencePiece tokenizers of SigLIP and SigLIP 2: lower-cased text, no start token, an end token.

    siglip    32,000 unigram pieces of C4, punctuation removed, padded with the end token </s> (id 1)
    siglip2   256,000 pieces of Gemma, punctuation kept, padded with <pad> (id 0)

SigLIP's text tower pools at the last position, padding or not. So every row must have the context length of the
training (64, or 16 for SO400M-224); with a shorter one accuracy collapses. A truncated text keeps its end token
("sticky").

Sources: Zhai et al. 2023 and Tschannen et al. 2025; `tokenize(…, eos="sticky")` and `canonicalize` of big_vision.

A `tokenizer.json` is read by the library `tokenizers`. A `spiece.model` needs the package `sentencepiece` (the extra
`siglip`).
"""

import base64
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, SupportsIndex

import tokenizers

from clip_jax.errors import UserError
from clip_jax.tokenizer.added import MAX_ID, AddedToken
from clip_jax.tokenizer.base import Tokenizer, check_texts, printable, without_surrogates
from clip_jax.tokenizer.cleaning import NO_PUNCTUATION, cleaning

CONTEXT_LENGTH = 64


def canonicalize(text: str) -> str:
    """big_vision's `canonicalize`, of SigLIP's texts: lower case, no ASCII punctuation, single spaces."""
    return re.sub(r"\s+", " ", text.lower().translate(NO_PUNCTUATION)).strip()


class SigLIPTokenizer(Tokenizer):
    """SigLIP's tokenizer: `tokenizer(texts)` -> int32 [B, L]: text, end, padding.

    The vocabulary determines whether it is SigLIP's, with the end token </s>, or SigLIP 2's, with <eos>. The literal
    text of a special token stays text.

    Args:
        model: the bytes of a `spiece.model`, or the content of a `tokenizer.json`.
        context_length: the default L.
        pad_id: id of the padding; None: <pad> for SigLIP 2, </s> for SigLIP.
        clean: name of the cleaning that a text gets first, see `clip_jax.tokenizer.cleaning` (OpenCLIP:
            "canonicalize"). None: as in big_vision, `canonicalize` for SigLIP, lower case for SigLIP 2.

    Raises:
        UserError: If the model is damaged or not SigLIP's, or the package `sentencepiece` is missing.
    """

    def __init__(
        self,
        model: bytes | Mapping[str, Any],
        *,
        context_length: int = CONTEXT_LENGTH,
        pad_id: int | None = None,
        clean: str | None = None,
    ):
        self._model = model
        self._pieces: SentencePieceModel | LibraryModel
        self._pieces = SentencePieceModel(model) if isinstance(model, bytes) else LibraryModel(model)
        ends = {name: self._pieces.id_of(name) for name in ("</s>", "<eos>")}
        present = [(name, i) for name, i in ends.items() if i is not None]
        if not present:
            raise UserError("this SentencePiece vocabulary has neither </s> nor <eos>: it is not SigLIP's")
        (end, eot_id), *_ = present
        self.end = end
        if not 0 < self._pieces.size <= MAX_ID:
            raise UserError(f"this SentencePiece vocabulary has ids up to {self._pieces.size}: it is damaged")
        self.kind = "siglip2" if end == "<eos>" else "siglip"
        self.clean = clean
        default = str.lower if self.kind == "siglip2" else canonicalize
        self._clean: Callable[[str], str] = default if clean is None else cleaning(clean)
        if pad_id is None and self.kind == "siglip2":
            pad_id = self._pieces.id_of("<pad>")
        super().__init__(
            vocab_size=self._pieces.size,
            context_length=context_length,
            pad_id=eot_id if pad_id is None else pad_id,
            sot_id=None,
            eot_id=eot_id,
        )

    def encode(self, texts: Sequence[Any]) -> list[list[int]]:
        """Ids of each text, without end, padding or truncation.

        Raises:
            UserError: If something is not text, or the vocabulary is damaged.
        """
        check_texts(texts)
        cleaned = [self._clean(without_surrogates(text)) for text in texts]
        try:
            return self._pieces.encode(cleaned)
        except Exception as error:  # such as of a damaged vocabulary without a piece for unknown text
            raise UserError(f"this SentencePiece vocabulary cannot encode the texts: {printable(error)}") from error

    def id_of(self, piece: str) -> int | None:
        """The id of a piece, or None if it is not in the vocabulary."""
        return self._pieces.id_of(piece)

    def check_added(self, tokens: Iterable[AddedToken], where: str) -> None:
        """Checks that added tokens are in the vocabulary itself: new ones are not supported.

        Args:
            tokens: the added tokens.
            where: name of the file, for errors.

        Raises:
            UserError: If a token is not in the vocabulary, or has another id there.
        """
        for token in tokens:
            if self._pieces.id_of(token.content) != token.id or (token.special and token.id >= self._pieces.base_size):
                raise UserError(
                    f"{where}: the added token {token.content!r} (id {token.id}) is not in the vocabulary: "
                    "tokens learned later are not supported here; load it without them"
                )

    def decode(self, tokens: Iterable[SupportsIndex]) -> str:
        """The text of one row up to its end token."""
        return self._pieces.decode(self.body(tokens))

    def to_json(self) -> str:
        """JSON with the whole model, context length and padding."""
        model = base64.b64encode(self._model).decode() if isinstance(self._model, bytes) else self._model
        data = {
            "type": "siglip",
            "context_length": self.context_length,
            "pad_id": self.pad_id,
            "model": model,
        }
        if self.clean is not None:
            data["clean"] = self.clean
        return json.dumps(data, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, data: Mapping[str, Any], **options: Any) -> "SigLIPTokenizer":
        """Makes a tokenizer from the JSON that `save` wrote.

        Args:
            data: the content of the file.
            options: arguments of the class that take precedence.

        Raises:
            KeyError: If a field is missing.
            ValueError: If the model is not base64.
            UserError: If the model is damaged.
        """
        model = base64.b64decode(data["model"], validate=True) if isinstance(data["model"], str) else data["model"]
        saved = {name: data[name] for name in ("context_length", "pad_id")} | {"clean": data.get("clean")}
        return cls(model, **(saved | options))


class SentencePieceModel:
    """A `spiece.model`, read by the package `sentencepiece`.

    Args:
        model: the bytes of the file.

    Attributes:
        size: number of ids, added tokens included.
        base_size: number of ids without added tokens.

    Raises:
        UserError: If the package is missing or the model is damaged.
    """

    def __init__(self, model: bytes):
        try:
            from sentencepiece import SentencePieceProcessor
        except ImportError:
            raise UserError(
                "a spiece.model needs the package sentencepiece: pip install sentencepiece, or give a tokenizer.json"
            ) from None
        try:
            self._processor = SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise UserError(f"this is no SentencePiece model: {error}") from error
        self.size = self.base_size = self._processor.get_piece_size()

    def id_of(self, piece: str) -> int | None:
        """The id of a piece, None where it is none."""
        i = self._processor.piece_to_id(piece)
        return i if self._processor.id_to_piece(i) == piece else None

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Ids of each text, without an end."""
        return self._processor.encode(texts)

    def decode(self, ids: list[int]) -> str:
        """The text of ids."""
        return self._processor.decode(ids)


class LibraryModel:
    """A `tokenizer.json`, read by the library `tokenizers`; the same interface as `SentencePieceModel`.

    Args:
        data: the content of the file.

    Raises:
        UserError: If the content is damaged.
    """

    def __init__(self, data: Mapping[str, Any]):
        try:
            library = tokenizers.Tokenizer.from_str(json.dumps(data))
        except Exception as error:  # the library raises plain Exceptions
            raise UserError(f"this is no tokenizer.json: {error}") from error
        library.no_truncation()
        library.no_padding()
        self.__setstate__({"library": library})

    def __getstate__(self) -> dict[str, Any]:
        return {"library": self._library}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._library = state["library"]
        self._library.encode_special_tokens = True  # special tokens in a text stay text; copies lose this flag
        self.size = max(self._library.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        self.base_size = self._library.get_vocab_size(with_added_tokens=False)

    def id_of(self, piece: str) -> int | None:
        """The id of a piece, None where it is none."""
        return self._library.token_to_id(piece)

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Ids of each text, without an end."""
        return [encoding.ids for encoding in self._library.encode_batch(texts, add_special_tokens=False)]

    def decode(self, ids: list[int]) -> str:
        """The text of ids."""
        return self._library.decode(ids, skip_special_tokens=False)
