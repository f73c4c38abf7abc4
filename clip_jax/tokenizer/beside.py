"""What Hugging Face's files beside a vocabulary say of it, read as transformers reads them.

They are `tokenizer_config.json`, `special_tokens_map.json` and `added_tokens.json`.

What they ask for is done, or refused by its name; a field that is not known here is refused.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clip_jax.errors import UserError
from clip_jax.tokenizer.added import AddedToken, added_token, merged
from clip_jax.tokenizer.base import integer
from clip_jax.weights.files import read_json

CONFIG, SPECIALS, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
UNLIMITED = 100_000  # a length from here on stands for none: transformers writes 1e30

NAMES = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")
MORE = ("additional_special_tokens", "extra_special_tokens")

# Fields that change nothing of the ids of a text.
HARMLESS = {
    "auto_map", "backend", "chat_template", "clean_up_tokenization_spaces", "device_map", "errors", "extra_ids",
    "init_inputs", "is_local", "legacy", "local_files_only", "max_length", "model_input_names", "name_or_path",
    "pad_token_type_id", "processor_class", "response_template", "revision", "slow_tokenizer_class",
    "spaces_between_special_tokens", "special_tokens_map_file", "stride", "token_type_ids", "tokenizer_class",
    "tokenizer_file", "transformers_version", "truncation_strategy", "use_default_system_prompt", "use_fast", "verbose",
    "vocab_file", "merges_file",
}  # fmt: skip

# Fields that have to say what is done here anyway; None stands for the same.
FIXED: dict[str, tuple[Any, ...]] = {
    "padding_side": ("right",),
    "truncation_side": ("right",),
    "pad_to_multiple_of": (None,),
    "split_special_tokens": (False,),
    "do_basic_tokenize": (True,),
    "never_split": ([],),
    "sp_model_kwargs": ({},),
    "add_eos_token": (True,),
}
# The same for each kind of vocabulary, where the kinds differ.
FIXED_OF_KIND: dict[str, dict[str, tuple[Any, ...]]] = {
    "clip": {"do_lower_case": (True,), "add_prefix_space": (False,), "add_bos_token": (True,)},
    "bert": {"add_prefix_space": (False,), "add_bos_token": (True,)},
    "siglip": {"do_lower_case": (True,), "add_prefix_space": (True,), "add_bos_token": (False,)},
}
BERT_OPTIONS = {
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "chinese_chars",
}


@dataclass(frozen=True)
class Beside:
    """What is said beside a vocabulary.

    Attributes:
        where: the file that said most of it, for error lines.
        context_length: `model_max_length`, where it is a limit.
        specials: the tokens by their role, as "pad_token".
        more: further special tokens, which have no role.
        added: tokens with ids of their own.
        fields: those of `tokenizer_config.json` whose meaning depends on the kind of the vocabulary.
        config: the name of that file, for errors about them.
    """

    where: str
    context_length: int | None = None
    specials: Mapping[str, str] = field(default_factory=dict)
    more: tuple[str, ...] = ()
    added: Mapping[str, AddedToken] = field(default_factory=dict)
    fields: Mapping[str, Any] = field(default_factory=dict)
    config: str = ""

    def check(self, kind: str, *, with_json: bool = False) -> None:
        """Raises UserError for a field that asks for what a vocabulary of this kind is not read with.

        `with_json`: there is a `tokenizer.json`, by which transformers decides about the start.
        """
        kind = kind.removesuffix("2")
        fixed = FIXED_OF_KIND[kind]
        for name, value in self.fields.items():
            if kind == "bert" and name in BERT_OPTIONS:
                if not isinstance(value, bool) and (value is not None or name != "strip_accents"):
                    raise UserError(f"{self.config}: {name} is {_short(value)}: it must be true or false")
            elif with_json and name == "add_bos_token":
                continue
            elif name not in fixed:
                raise UserError(f"{self.config}: a {kind} tokenizer has no {name}: remove it if it does nothing")
            elif not _is_one_of(value, fixed[name]):
                raise UserError(f"{self.config}: {name} is {_short(value)}: only {_short(fixed[name][0])} is supported")

    def bert_options(self) -> dict[str, Any]:
        """Options of a `WordPieceTokenizer`."""
        return {option: self.fields[name] for name, option in BERT_OPTIONS.items() if name in self.fields}

    def check_specials(self, roles: Mapping[str, str]) -> None:
        """Raises UserError when a role is played by another token than that of `roles`."""
        for role, token in roles.items():
            if self.specials.get(role, token) != token:
                raise UserError(f"{self.where}: {role} is {_short(self.specials[role])}: only {token!r} is supported")


def read_beside(folder: Path) -> Beside:
    """What is said in a directory, nothing where there are no such files.

    Raises:
        UserError: it names the file; one is damaged or has a field that is not known.
    """
    files = {name: folder / name for name in (CONFIG, SPECIALS, ADDED) if (folder / name).is_file()}
    if not files:
        return Beside(str(folder))
    config, of_config = (read_json(files[CONFIG]), str(files[CONFIG])) if CONFIG in files else ({}, "")
    where = of_config or str(next(iter(files.values())))
    specials, more = _specials(config, where)
    decoder = config.get("added_tokens_decoder")
    groups = [_decoder(decoder, where)]
    if SPECIALS in files:
        said, further = _specials(read_json(files[SPECIALS]), str(files[SPECIALS]), alone=True)
        if decoder is None:  # with one, transformers takes the map for an old copy
            specials, more = specials | said, further or more
            where = str(files[SPECIALS])
    if ADDED in files:
        groups.append(_added(read_json(files[ADDED]), str(files[ADDED]), {*specials.values(), *more}))
    return Beside(
        where,
        _max_length(config, of_config),
        {role: token for role, token in specials.items() if token is not None},
        more,
        merged(groups, str(folder)),
        _fields(config, of_config),
        of_config,
    )


def _max_length(config: Mapping[str, Any], where: str) -> int | None:
    length = config.get("model_max_length")
    if isinstance(length, float) and length >= UNLIMITED:  # 1e30, and also Infinity
        return None
    if length is None:
        return None
    length = integer(f"{where}: model_max_length", length)
    if length < 1:
        raise UserError(f"{where}: model_max_length is {length}: it must be above 0")
    return length if length < UNLIMITED else None


def _fields(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Those that depend on the kind. Raises UserError for what is not known or not supported of any."""
    known = {name for fields in FIXED_OF_KIND.values() for name in fields} | set(BERT_OPTIONS)
    apart = {*NAMES, *MORE, "model_max_length", "added_tokens_decoder"} | HARMLESS
    found = {}
    for name, value in config.items():
        if name in FIXED:
            if not _is_one_of(value, FIXED[name]):
                raise UserError(f"{where}: {name} is {_short(value)}: only {_short(FIXED[name][0])} is supported")
        elif name in known:
            found[name] = value
        elif name not in apart and value is not None:
            raise UserError(f"{where}: the field {_short(name)} is not known: remove it if it changes no token")
    return found


def _is_one_of(value: Any, allowed: tuple[Any, ...]) -> bool:
    return value is None or any(type(value) is type(one) and value == one for one in allowed)


def _specials(
    data: Mapping[str, Any], where: str, *, alone: bool = False
) -> tuple[dict[str, str | None], tuple[str, ...]]:
    """Tokens by their role, and those without one. `alone`: there may be nothing else in `data`."""
    found: dict[str, str | None] = {}
    more: list[str] = []
    for name, value in data.items():
        if name in NAMES:
            found[name] = None if value is None else _content(value, name, where)
        elif name in MORE and value is not None:
            tokens = value.values() if isinstance(value, Mapping) else value  # transformers 4.46+: by their names
            if not isinstance(tokens, Iterable) or isinstance(tokens, str):
                raise UserError(f"{where}: {name} is {_short(value)}: it must be a list of tokens")
            more += [_content(token, name, where) for token in tokens]
        elif alone and value is not None:
            raise UserError(f"{where}: the field {_short(name)} is not known: remove it if it changes no token")
    return found, tuple(more)


def _content(token: Any, name: str, where: str) -> str:
    content = token.get("content") if isinstance(token, Mapping) else token
    if not isinstance(content, str) or not content:
        raise UserError(f"{where}: {name} is {_short(token)}: it must be a token, or an object with its content")
    return content


def _decoder(decoder: Any, where: str) -> list[AddedToken]:
    if decoder is None:
        return []
    where = f"{where}: added_tokens_decoder"
    if not isinstance(decoder, Mapping):
        raise UserError(f"{where} must be an object of ids and tokens")
    if bad := [id for id in decoder if not (id.isascii() and id.isdigit() and len(id) < 12)]:
        raise UserError(f"{where}: {_short(bad[0])} is no id")
    return [added_token(token, where, int(id)) for id, token in decoder.items()]


def _added(data: Mapping[str, Any], where: str, specials: set[str | None]) -> list[AddedToken]:
    """`added_tokens.json`: tokens and their ids."""
    entries = [
        {"content": content, "id": id, "normalized": content not in specials, "special": content in specials}
        for content, id in data.items()
    ]
    return [added_token(entry, where) for entry in entries]


def _short(value: Any) -> str:
    return " ".join(repr(value).split())[:60]
