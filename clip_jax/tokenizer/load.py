"""Loads a tokenizer from a file or the directory of a checkpoint, in any of the supported formats."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from clip_jax.errors import UserError, reading
from clip_jax.tokenizer import layout
from clip_jax.tokenizer.added import AddedToken, learned, merged
from clip_jax.tokenizer.ascii import AsciiTokenizer
from clip_jax.tokenizer.base import Tokenizer, printable
from clip_jax.tokenizer.beside import Beside, read_beside
from clip_jax.tokenizer.bpe import EOT, SOT, BPETokenizer
from clip_jax.tokenizer.sentencepiece import SigLIPTokenizer
from clip_jax.tokenizer.wordpiece import CLS, SEP, UNK, WordPieceTokenizer, read_vocabulary
from clip_jax.weights.jsons import read_json

Kind = Literal["clip", "bert", "siglip", "siglip2", "ascii"]
KINDS = get_args(Kind)

# Names of tokenizer files in a directory, in the order of preference.
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
EMPTY: Mapping[str, AddedToken] = {}


def find_tokenizer(directory: Path) -> Path | None:
    """The tokenizer's file in a directory, or None."""
    return next((directory / name for name in FILES if (directory / name).is_file()), None)


def load_tokenizer(
    source: str | os.PathLike,
    *,
    context_length: int | None = None,
    pad_id: int | None = None,
    kind: Kind | str | None = None,
    clean: str | None = None,
    strip_sep_token: bool = False,
) -> Tokenizer:
    """Loads the tokenizer in a file or in the directory of a checkpoint.

    Reads what `Tokenizer.save` wrote, OpenAI's `bpe_simple_vocab_16e6.txt.gz`, Hugging Face's `tokenizer.json` or
    `vocab.json` with `merges.txt`, BERT's `vocab.txt`, and SentencePiece's `spiece.model`.

    Hugging Face's files beside the vocabulary (`tokenizer_config.json`, `special_tokens_map.json`, `added_tokens.json`)
    apply as in transformers, added tokens included; a field that is unknown or not supported is a UserError.

    Args:
        source: the file or directory.
        context_length: None: the one stated in or beside the vocabulary (`model_max_length` in
            `tokenizer_config.json`), else the default of the kind.
        pad_id: None: that of the `pad_token` stated in or beside the vocabulary, else the default of the kind.
        kind: the required kind; None: any.
        clean: name of the cleaning that a text gets first: "lower", "whitespace" or "canonicalize"
            (`clip_jax.tokenizer.cleaning`), as in OpenCLIP's `tokenizer_kwargs`. None: the default of the kind.
        strip_sep_token: of a "bert" vocabulary: write id 0 in place of [SEP], as OpenCLIP's option of that name.

    Raises:
        UserError: If there is no tokenizer, it is damaged or of another kind, or an option does not apply to its kind.
    """
    if kind is not None and kind not in KINDS:
        raise UserError(f"there is no tokenizer {kind!r}: choose one of {', '.join(KINDS)}")
    path = Path(source)
    if path.is_dir():
        file_path = find_tokenizer(path)
        if file_path is None:
            raise UserError(f"{source} holds no tokenizer: none of {', '.join(FILES)} is in it")
        path = file_path
    elif not path.is_file():
        raise UserError(f"{source}: there is no such file or directory")
    with path.open("rb") as file:
        if file.read(len(LFS_HEADER)) == LFS_HEADER:
            raise UserError(f"{path} is a pointer of Git LFS, not the file itself: run `git lfs pull`")
    arguments = {
        "context_length": context_length,
        "pad_id": pad_id,
        "clean": clean,
        "strip_sep_token": strip_sep_token or None,
    }
    options = {name: value for name, value in arguments.items() if value is not None}
    with reading(path, "a tokenizer"):
        tokenizer = _read(path, options)
    if kind not in (None, tokenizer.kind):
        raise UserError(f"{path} is a {tokenizer.kind} tokenizer, the model needs {kind}: it belongs to another model")
    return tokenizer


def _read(path: Path, options: dict[str, Any]) -> Tokenizer:
    """Reads a tokenizer; every exception becomes a UserError of one line with the file's name."""
    try:
        with path.open("rb") as file:
            if file.read(len(LFS_HEADER)) == LFS_HEADER:
                raise UserError(f"{path} is a pointer of Git LFS, not the file itself: run `git lfs pull`")
        return _read_kind(path, options)
    except UserError as error:
        line = str(error) if str(path.parent) in str(error) else f"{path}: {error}"
        raise UserError(printable(line)) from error
    except Exception as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise UserError(printable(f"{path} is not the tokenizer of a CLIP: {reason[:200]}")) from error


def _read_kind(path: Path, options: dict[str, Any]) -> Tokenizer:
    if path.suffix == ".json" and path.name != "vocab.json":
        return _read_json(path, _json(path), options)
    beside = read_beside(path.parent)
    if path.name == "vocab.json":
        return _clip(path, {"vocab": _json(path), "merges": _merges(path.with_name("merges.txt"))}, beside, {}, options)
    if path.name.endswith(".model"):
        return _siglip(path, path.read_bytes(), beside, {}, options)
    if path.name == "vocab.txt":
        return _bert(path, None, beside, {}, options)
    return BPETokenizer.from_openai(path, **(_length(beside) | _for_kind(options, "clip")))


def _merges(path: Path) -> list[str]:
    """The lines of a `merges.txt`, without its header, a first line that contains "#version"."""
    lines = [line for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    if not lines:
        raise UserError(f"{path} is empty: fetch it again")
    return lines[1:] if "#version" in lines[0] else lines


def _read_json(path: Path, data: Mapping[str, Any], options: dict[str, Any]) -> Tokenizer:
    if data.get("type") == "ascii":
        saved = {name: data[name] for name in ("context_length", "pad_id")}
        return AsciiTokenizer(**(saved | _for_kind(options, "ascii")))
    if data.get("type") == "siglip":
        return SigLIPTokenizer.from_json(data, **_for_kind(options, "siglip"))
    layout.check_top(data)
    beside, model = read_beside(path.parent), data["model"]
    written: dict[str, Any] = {}
    if data.get("truncation"):
        written["context_length"] = data["truncation"]["max_length"]
    if data.get("padding"):
        written["pad_id"] = data["padding"]["pad_id"]
    if model.get("type") == "WordPiece":
        layout.check_bert(data)
        return _bert(path, data, beside, written, options)
    if model.get("end_of_word_suffix") == "</w>":
        layout.check_clip(data)
        if layout.is_own(data):  # what `save` wrote takes precedence over the files beside it
            options = written | {name: data[name] for name in ("clean",) if name in data} | options
        return _clip(path, model, beside, written, options, layout.added_tokens(data))
    if model.get("type") in ("Unigram", "BPE"):
        return _siglip(path, data, beside, written, options)
    raise UserError(f"{path} is not the tokenizer of a CLIP: its model is {str(model.get('type'))[:40]}")


def _json(path: Path) -> dict[str, Any]:
    try:
        return read_json(path)
    except UserError as error:
        reason = str(error).removeprefix(f"{path} is ")
        raise UserError(f"{path} is not the tokenizer of a CLIP: it is {reason}") from error


def _clip(
    path: Path,
    model: Mapping[str, Any],
    beside: Beside,
    written: Mapping[str, Any],
    options: Mapping[str, Any],
    added: Mapping[str, AddedToken] = EMPTY,
) -> BPETokenizer:
    """A BPE tokenizer of Hugging Face's layouts, where the default padding is the end token."""
    beside.check("clip", with_json=True)
    beside.check_specials({"bos_token": SOT, "eos_token": EOT})
    vocab = model["vocab"]
    learned(beside.added.values(), vocab, beside.where)
    added = merged([added.values(), beside.added.values()], str(path))
    ids = {**vocab, **{token.content: token.id for token in added.values()}}
    stated = {"pad_id": ids.get(EOT, 0), **written, **_pad(beside, ids), **_length(beside), "added": added.values()}
    return BPETokenizer.from_vocabulary(
        vocab, model["merges"], where=str(path), **(stated | _for_kind(options, "clip"))
    )


def _bert(
    path: Path,
    data: Mapping[str, Any] | None,
    beside: Beside,
    written: Mapping[str, Any],
    options: Mapping[str, Any],
) -> WordPieceTokenizer:
    """A WordPiece tokenizer, from the content of a `tokenizer.json`, or from a `vocab.txt` if `data` is None."""
    beside.check("bert", with_json=data is not None)
    beside.check_specials({"cls_token": CLS, "sep_token": SEP, "unk_token": UNK})
    vocab = read_vocabulary(path) if data is None else data["model"]["vocab"]
    stated = dict(written) | _pad(beside, vocab) | _length(beside) | beside.bert_options() | _for_kind(options, "bert")
    added = [*beside.added.values(), *(() if data is None else layout.added_tokens(data).values())]
    if new := learned(added, vocab, beside.where):
        raise UserError(
            f"{beside.where}: the added token {new[0].content!r} (id {new[0].id}) is not in BERT's vocabulary: "
            "tokens learned later are not supported here; load it without them"
        )
    return WordPieceTokenizer(vocab, **stated) if data is None else WordPieceTokenizer.from_json(data, **stated)


def _siglip(
    path: Path,
    model: bytes | Mapping[str, Any],
    beside: Beside,
    written: Mapping[str, Any],
    options: Mapping[str, Any],
) -> SigLIPTokenizer:
    """A SentencePiece tokenizer, from the content of a `tokenizer.json` or the bytes of a `spiece.model`."""
    stated = {**written, **_length(beside), **_for_kind(options, "siglip")}
    tokenizer = SigLIPTokenizer(model, **stated)
    beside.check(tokenizer.kind, with_json=not isinstance(model, bytes))
    beside.check_specials({"eos_token": tokenizer.end})
    added = list(beside.added.values())
    if not isinstance(model, bytes):
        layout.check_siglip(model, tokenizer.end)
        added += layout.added_tokens(model).values()
    tokenizer.check_added(added, beside.where)
    pad = beside.specials.get("pad_token")
    if pad is not None and "pad_id" not in options:
        stated["pad_id"] = _pad(beside, {pad: tokenizer.id_of(pad)})["pad_id"]
        tokenizer = SigLIPTokenizer(model, **stated)
    return tokenizer


def _length(beside: Beside) -> dict[str, Any]:
    return {} if beside.context_length is None else {"context_length": beside.context_length}


def _pad(beside: Beside, ids: Mapping[str, int | None]) -> dict[str, Any]:
    """The `pad_id` of the stated `pad_token`. Raises UserError if it or an additional special token has no id."""
    for token in (*beside.specials.values(), *beside.more):
        if ids.get(token) is None and token in (beside.specials.get("pad_token"), *beside.more):
            raise UserError(f"{beside.where}: the special token {token!r} has no id in the vocabulary beside it")
    pad = beside.specials.get("pad_token")
    return {} if pad is None else {"pad_id": ids[pad]}


def _for_kind(options: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """The options given by the caller. Raises UserError for one that a tokenizer of this kind does not have."""
    unsupported = {"ascii": ("clean", "strip_sep_token"), "bert": ()}.get(kind, ("strip_sep_token",))
    if given := [name for name in unsupported if name in options]:
        raise UserError(f"{given[0]}: a {kind} tokenizer has no such option")
    return dict(options)
