"""Byte tokenizer of `mini_fashion`: each byte of the UTF-8 is a token, without a vocabulary.

The ids are 0 to 255: 2 starts a text, 3 ends it, 0 pads.
"""

import json
from collections.abc import Iterable, Sequence
from typing import Any, SupportsIndex

from clip_jax.tokenizer.base import Tokenizer, check_texts, without_surrogates

PAD, SOT, EOT = 0, 2, 3
CONTEXT_LENGTH = 32


class AsciiTokenizer(Tokenizer):
    """Byte tokenizer: `tokenizer(texts)` -> int32 [B, L] with ids 0 to 255.

    The characters chr(0), chr(2) and chr(3), whose ids are special, are dropped from texts.

    Args:
        context_length: the default L.
        pad_id: id of the padding.
    """

    kind = "ascii"

    def __init__(self, *, context_length: int = CONTEXT_LENGTH, pad_id: int = PAD):
        super().__init__(vocab_size=256, context_length=context_length, pad_id=pad_id, sot_id=SOT, eot_id=EOT)

    def encode(self, texts: Sequence[Any]) -> list[list[int]]:
        """The bytes of each text, without start, end, padding or truncation."""
        check_texts(texts)
        return [[b for b in without_surrogates(text).encode() if b not in (PAD, SOT, EOT)] for text in texts]

    def decode(self, tokens: Iterable[SupportsIndex]) -> str:
        """The text of one row up to its end; a character of which bytes are missing becomes U+FFFD."""
        return bytes(self.body(tokens)).decode("utf-8", "replace")

    def to_json(self) -> str:
        """JSON with the type, the context length and the padding."""
        data = {"type": "ascii", "context_length": self.context_length, "pad_id": self.pad_id}
        return json.dumps(data) + "\n"
