"""Tokenizers: `tokenize(texts)` -> int32 [B, L].

`load_tokenizer(directory_or_file)` detects the kind:

    clip        byte-pair encoding (BPE), of OpenAI, OpenCLIP, EVA and Stable Diffusion    bpe.py
    bert        WordPiece, of Chinese-CLIP and `resnet50_bert_base`                        wordpiece.py
    siglip      SentencePiece, of SigLIP (`siglip`) and SigLIP 2 (`siglip2`)               sentencepiece.py
    ascii       each byte is a token, of `mini_fashion`                                    ascii.py
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
