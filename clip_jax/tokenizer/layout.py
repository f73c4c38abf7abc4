"""Checks that a `tokenizer.json` of the `tokenizers` library describes what the tokenizers here do.

A step that would give other tokens is a UserError that names it.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from clip_jax.errors import UserError
from clip_jax.tokenizer.added import AddedToken, added_token, merged
from clip_jax.tokenizer.bpe import EOT, SOT, WORDS
from clip_jax.tokenizer.wordpiece import CLS, SEP, UNK

PIECES = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
PUBLISHED = (rf"<\|startoftext\|>|<\|endoftext\|>|{PIECES}", PIECES)
TOP = {
    "version", "truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer", "post_processor", "decoder",
    "model", "clean", "strip_sep_token",
}  # fmt: skip
MODEL = {
    "type", "dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", "byte_fallback",
    "ignore_merges", "vocab", "merges", "max_input_chars_per_word", "unk_id",
}  # fmt: skip


def check_top(data: Mapping[str, Any]) -> None:
    """Checks the top-level fields of a `tokenizer.json`.

    Raises:
        UserError: If a field is unknown, padding or truncation is on the left, or the model has BPE dropout.
    """
    if not isinstance(data["model"], Mapping):
        raise UserError(f"its model is {str(data['model'])[:40]!r}: it must be an object")
    for name, known in (("", TOP), ("model", MODEL)):
        if unknown := sorted(set(data[name] if name else data) - known):
            raise UserError(
                f"its {name or 'top'} has an unknown field {unknown[0]!r}: remove it if it changes no token"
            )
    for name in ("truncation", "padding"):
        part = data.get(name)
        if part is not None and not isinstance(part, Mapping):
            raise UserError(f"its {name} is {str(part)[:40]!r}: it must be an object or null")
        if part and part.get("direction", "Right") != "Right":
            raise UserError(f"its {name} is at the side {str(part['direction'])[:40]!r}: only 'Right' is supported")
    if data["model"].get("dropout"):
        raise UserError("its model has a dropout: the same text would not always get the same tokens")


def added_tokens(data: Mapping[str, Any]) -> dict[str, AddedToken]:
    """The tokens of `added_tokens` by their content.

    Raises:
        UserError: If an entry is damaged, or two contradict each other.
    """
    entries = data.get("added_tokens") or []
    if not isinstance(entries, list):
        raise UserError("its added_tokens are no list")
    return merged([[added_token(entry, "added_tokens") for entry in entries]], "added_tokens")


def is_own(data: Mapping[str, Any]) -> bool:
    """Whether `BPETokenizer.save` wrote the file: it has no normalizer, as texts are cleaned before the library."""
    pre = _steps(data.get("pre_tokenizer"), "pretokenizers")
    return bool(pre) and _pattern(pre[0]) == WORDS and data.get("normalizer") is None


def check_clip(data: Mapping[str, Any]) -> None:
    """Checks that a BPE `tokenizer.json` is CLIP's.

    Raises:
        UserError: If the model, pre-tokenizer, normalizer or post-processor differs.
    """
    model = data["model"]
    if model.get("continuing_subword_prefix") or model.get("ignore_merges"):
        raise UserError("its model has a continuing_subword_prefix or ignore_merges, which CLIP's has not")
    pre = _steps(data.get("pre_tokenizer"), "pretokenizers")
    split = pre[0] if pre else {}
    if (
        [step.get("type") for step in pre] != ["Split", "ByteLevel"]
        or _pattern(split) not in (WORDS, *PUBLISHED)
        or (split.get("behavior"), split.get("invert")) != ("Removed", True)
        or pre[1].get("add_prefix_space")
    ):
        raise UserError("its pre_tokenizer does not cut texts as CLIP's does (Split, then ByteLevel)")
    if not is_own(data):
        steps = _steps(data.get("normalizer"), "normalizers")
        kinds = [step.get("type") for step in steps]
        if unknown := [str(kind)[:40] for kind in kinds if kind not in ("NFC", "Replace", "Lowercase")]:
            raise UserError(f"its normalizer has a step {unknown[0]}, which CLIP's has not")
        if "Lowercase" not in kinds:
            raise UserError("its normalizer does not lower-case texts, as CLIP's does: a cased CLIP is not supported")
        for step in steps:
            if step["type"] == "Replace" and (step.get("pattern"), step.get("content")) != ({"Regex": r"\s+"}, " "):
                raise UserError(f"its normalizer replaces {str(step.get('pattern'))[:40]}, which CLIP's does not")
    _check_ends(data, [SOT, None, EOT])


def check_bert(data: Mapping[str, Any]) -> None:
    """Checks that a WordPiece `tokenizer.json` is BERT's.

    Raises:
        UserError: If the model, pre-tokenizer, normalizer or post-processor differs.
    """
    model = data["model"]
    for name, value in (("continuing_subword_prefix", "##"), ("unk_token", UNK)):
        if model.get(name, value) != value:
            raise UserError(f"its {name} is {str(model[name])[:40]!r}, not BERT's {value!r}")
    for name, value in (("normalizer", "BertNormalizer"), ("pre_tokenizer", "BertPreTokenizer")):
        steps = _steps(data.get(name), "")
        if any(step.get("type") != value for step in steps):
            raise UserError(f"its {name} is {str(steps[0].get('type'))[:40]}, not BERT's")
        if any(step.get("clean_text", True) is not True for step in steps):
            raise UserError(f"its {name} does not clean texts (clean_text), as BERT's does")
    for name in ("lowercase", "handle_chinese_chars", "strip_accents"):
        flag = (data.get("normalizer") or {}).get(name)
        if not isinstance(flag, bool | None):
            raise UserError(f"its normalizer has {name} {str(flag)[:40]!r}: it must be true or false")
    _check_ends(data, [CLS, None, SEP])


def check_siglip(data: Mapping[str, Any], end: str) -> None:
    """Checks that the post-processor appends `end` and adds nothing else.

    Raises:
        UserError: If it does something else.
    """
    _check_ends(data, [None, end])


def _check_ends(data: Mapping[str, Any], wanted: list[str | None]) -> None:
    """Raises UserError if the post-processor writes other tokens than `wanted`, where None is the text itself."""
    ends: list[list[str | None]] = [
        _ends(step) for step in _steps(data.get("post_processor"), "processors") if step.get("type") != "ByteLevel"
    ]
    if any(found != wanted for found in ends):
        written = " ".join("text" if token is None else token for token in wanted)
        raise UserError(f"its post_processor does not write {written!r}, as the tokenizer of this kind does")


def _ends(step: Mapping[str, Any]) -> list[str | None]:
    if step.get("type") in ("RobertaProcessing", "BertProcessing"):
        return [step["cls"][0], None, step["sep"][0]]
    if step.get("type") != "TemplateProcessing":
        return []
    pieces = step["single"]
    return [piece["SpecialToken"]["id"] if "SpecialToken" in piece else None for piece in pieces]


def _steps(part: Any, name: str) -> list[Mapping[str, Any]]:
    """The steps of a component: its members if it is a sequence, else itself; none if it is null."""
    if part is None:
        return []
    if not isinstance(part, Mapping):
        raise UserError(f"a part of it is {str(part)[:40]!r} where an object has to be")
    if part.get("type") != "Sequence":
        return [part]
    inner: Iterable[Any] = part.get(name) or ()
    return [step for one in inner for step in _steps(one, name)]


def _pattern(step: Mapping[str, Any]) -> Any:
    pattern = step.get("pattern")
    return pattern.get("Regex") if isinstance(pattern, Mapping) else None
