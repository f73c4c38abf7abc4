"""Finds the tokenizer in a file or a checkpoint's directory, whoever wrote it."""

import json
import os
from pathlib import Path
from typing import Any, Literal, get_args

from clip_jax.errors import UserError, reading
from clip_jax.tokenizer.ascii import AsciiTokenizer
from clip_jax.tokenizer.base import Tokenizer
from clip_jax.tokenizer.bpe import BPETokenizer
from clip_jax.tokenizer.sentencepiece import SigLIPTokenizer
from clip_jax.tokenizer.wordpiece import WordPieceTokenizer

Kind = Literal["clip", "bert", "siglip", "siglip2", "ascii"]
KINDS = get_args(Kind)

# What a directory is searched for, in this order.
FILES = (
    "tokenizer.json",
    "vocab.json",
    "bpe_simple_vocab_16e6.txt.gz",
    "bpe_simple_vocab_16e6.txt",
    "vocab.txt",
    "spiece.model",
    "tokenizer.model",
    "sentencepiece.model",
)
LFS_HEADER = b"version https://git-lfs"


def find_tokenizer(directory: Path) -> Path | None:
    """The tokenizer's file in a directory, None where there is none."""
    return next((directory / name for name in FILES if (directory / name).is_file()), None)


def load_tokenizer(
    source: str | os.PathLike,
    *,
    context_length: int | None = None,
    pad_id: int | None = None,
    kind: Kind | str | None = None,
) -> Tokenizer:
    """The tokenizer in a file, or in the directory of a checkpoint.

    Reads what `Tokenizer.save` wrote, OpenAI's `bpe_simple_vocab_16e6.txt.gz`, Hugging Face's `tokenizer.json` or
    `vocab.json` with `merges.txt`, BERT's `vocab.txt`, and SentencePiece's `spiece.model`.

    Args:
        context_length: None: what is said beside the vocabulary (`model_max_length` in `tokenizer_config.json`), else
            what is usual for the kind.
        pad_id: None: the `pad_token` named beside the vocabulary, else what is usual for the kind.
        kind: what it has to be; None: whatever it is.

    Raises: UserError when there is no tokenizer, it is damaged, or it is of another kind.
    """
    if kind is not None and kind not in KINDS:
        raise UserError(f"there is no tokenizer {kind!r}: choose one of {', '.join(KINDS)}")
    path = Path(source)
    if path.is_dir():
        found = find_tokenizer(path)
        if found is None:
            raise UserError(f"{source} holds no tokenizer: none of {', '.join(FILES)} is in it")
        path = found
    elif not path.is_file():
        raise UserError(f"{source}: there is no such file or directory")
    with path.open("rb") as file:
        if file.read(len(LFS_HEADER)) == LFS_HEADER:
            raise UserError(f"{path} is a pointer of Git LFS, not the file itself: run `git lfs pull`")
    options: dict[str, Any] = {} if context_length is None else {"context_length": context_length}
    if pad_id is not None:
        options["pad_id"] = pad_id

    with reading(path, "a tokenizer"):
        tokenizer = _read(path, options)
    if kind not in (None, tokenizer.kind):
        raise UserError(f"{path} is a {tokenizer.kind} tokenizer, the model needs {kind}: it belongs to another model")
    return tokenizer


def _read(path: Path, options: dict[str, Any]) -> Tokenizer:
    beside = _beside(path)
    context = {"context_length": beside["context_length"]} if "context_length" in beside else {}
    if path.name.endswith(".model"):
        return SigLIPTokenizer(path.read_bytes(), **(context | options))
    if path.suffix == ".json":
        return _read_json(path, options, beside)
    if path.name == "vocab.txt":
        lowercase = {"lowercase": beside["lowercase"]} if "lowercase" in beside else {}
        return WordPieceTokenizer.from_vocabulary(path, **(lowercase | context | options))
    return BPETokenizer.from_openai(path, **(context | options))


def _read_json(path: Path, options: dict[str, Any], beside: dict[str, Any]) -> Tokenizer:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if path.name == "vocab.json":
            lines = path.with_name("merges.txt").read_text(encoding="utf-8").rstrip("\n").split("\n")
            merges = lines[1:] if lines[0].startswith("#version") else lines
            data = {"model": {"type": "BPE", "end_of_word_suffix": "</w>", "vocab": data, "merges": merges}}
        if data.get("type") == "ascii":
            return AsciiTokenizer(**({name: data[name] for name in ("context_length", "pad_id")} | options))
        if data.get("type") == "siglip":
            return SigLIPTokenizer.from_json(data, **options)

        model = data["model"]
        vocab = model["vocab"]
        # Ours carry length and padding as the library writes them; those of Hugging Face have them beside.
        saved: dict[str, Any] = {}
        if "context_length" in beside:
            saved["context_length"] = beside["context_length"]
        if data.get("truncation"):
            saved["context_length"] = data["truncation"]["max_length"]
        if beside.get("pad_token") in vocab and isinstance(vocab, dict):
            saved["pad_id"] = vocab[beside["pad_token"]]
        if data.get("padding"):
            saved["pad_id"] = data["padding"]["pad_id"]
        options = saved | options
        if model.get("type") == "WordPiece":
            return WordPieceTokenizer.from_json(data, **options)
        if model.get("end_of_word_suffix") == "</w>":
            return BPETokenizer.from_vocabulary(vocab, model["merges"], where=str(path), **options)
        if model.get("type") in ("Unigram", "BPE"):
            return SigLIPTokenizer(data, **options)
        raise ValueError(f"its model is {model.get('type')}")
    except UserError as error:
        raise UserError(str(error) if str(path) in str(error) else f"{path}: {error}") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else error
        raise UserError(f"{path} is not the tokenizer of a CLIP: {what}") from error


def _beside(path: Path) -> dict[str, Any]:
    """What Hugging Face's `tokenizer_config.json` in the same directory says, as far as it matters here."""
    try:
        config = json.loads(path.with_name("tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(config, dict):
        return {}
    found: dict[str, Any] = {}
    length, pad = config.get("model_max_length"), config.get("pad_token")
    if isinstance(length, int) and length < 100_000:  # "unlimited" is written as 1e30
        found["context_length"] = length
    if isinstance(pad, dict):
        pad = pad.get("content")
    if isinstance(pad, str):
        found["pad_token"] = pad
    if isinstance(config.get("do_lower_case"), bool):
        found["lowercase"] = config["do_lower_case"]
    return found
