"""Text to ids: `tokenize(texts)` -> int32 [B, L], whatever the vocabulary.

`load_tokenizer(directory_or_file)` finds out which of the four kinds it is:

    clip        OpenAI's byte pairs, and all of OpenCLIP, EVA and Stable Diffusion     bpe.py
    bert        WordPiece, for Chinese-CLIP and `resnet50_bert_base`                      wordpiece.py
    siglip      SentencePiece, as SigLIP (`siglip`) and SigLIP 2 (`siglip2`) use it    sentencepiece.py
    ascii       a byte is a token, for `mini_fashion`                                  ascii.py
"""

from clip_jax.tokenizer.added import AddedToken
from clip_jax.tokenizer.ascii import AsciiTokenizer
from clip_jax.tokenizer.base import MissingTokenizer, Tokenizer, TruncationWarning
from clip_jax.tokenizer.bpe import BPETokenizer, train_bpe
from clip_jax.tokenizer.cleaning import clean
from clip_jax.tokenizer.load import load_tokenizer
from clip_jax.tokenizer.sentencepiece import SigLIPTokenizer
from clip_jax.tokenizer.wordpiece import WordPieceTokenizer

__all__ = [
    "AddedToken",
    "AsciiTokenizer",
    "BPETokenizer",
    "MissingTokenizer",
    "SigLIPTokenizer",
    "Tokenizer",
    "TruncationWarning",
    "WordPieceTokenizer",
    "clean",
    "load_tokenizer",
    "train_bpe",
]
