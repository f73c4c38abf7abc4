"""Reads Hugging Face's files beside a vocabulary, with the precedence of transformers.

They are `tokenizer_config.json`, `special_tokens_map.json` and `added_tokens.json`. A setting that is not supported and
a field that is unknown are a UserError that names it, as either could change the tokens.
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
UNLIMITED = 100_000  # tokens; a larger model_max_length means no limit: transformers writes 1e30

NAMES = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")
MORE = ("additional_special_tokens", "extra_special_tokens")

# Fields that have no effect on the ids of a text.
HARMLESS = {
    "auto_map", "backend", "chat_template", "clean_up_tokenization_spaces", "device_map", "errors", "extra_ids",
    "init_inputs", "is_local", "legacy", "local_files_only", "max_length", "model_input_names", "name_or_path",
    "pad_token_type_id", "processor_class", "response_template", "revision", "slow_tokenizer_class",
    "spaces_between_special_tokens", "special_tokens_map_file", "stride", "token_type_ids", "tokenizer_class",
    "tokenizer_file", "transformers_version", "truncation_strategy", "use_default_system_prompt", "use_fast", "verbose",
    "vocab_file", "merges_file",
}  # fmt: skip

# Fields of which only these values, and null, are supported: they state what the tokenizers here do anyway.
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
# The same, where the kinds of vocabulary differ.
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
    """Content of the files beside a vocabulary.

    Attributes:
        where: the file of the special tokens, or the directory if there are no files, for errors.
        context_length: `model_max_length`; None: no limit is stated.
        specials: special tokens by their role, such as "pad_token".
        more: additional special tokens, which have no role.
        added: added tokens by content, with their ids.
        fields: fields of `tokenizer_config.json` whose supported values depend on the kind of vocabulary.
        config: path of `tokenizer_config.json`, for errors about `fields`.
    """

    where: str
    context_length: int | None = None
    specials: Mapping[str, str] = field(default_factory=dict)
    more: tuple[str, ...] = ()
    added: Mapping[str, AddedToken] = field(default_factory=dict)
    fields: Mapping[str, Any] = field(default_factory=dict)
    config: str = ""

    def check(self, kind: str, *, with_json: bool = False) -> None:
        """Checks the fields whose supported values depend on the kind of vocabulary.

        Args:
            kind: "clip", "bert", "siglip" or "siglip2".
            with_json: whether there is a `tokenizer.json`, which takes precedence over `add_bos_token` in transformers.

        Raises:
            UserError: If a field has a value that is not supported for this kind.
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
        """The fields that are options of a `WordPieceTokenizer`, under the names of its arguments."""
        return {option: self.fields[name] for name, option in BERT_OPTIONS.items() if name in self.fields}

    def check_specials(self, roles: Mapping[str, str]) -> None:
        """Checks special tokens against the expected ones.

        Args:
            roles: the expected token of each role; a role that the files do not state is accepted.

        Raises:
            UserError: If a role has another token.
        """
        for role, token in roles.items():
            if self.specials.get(role, token) != token:
                raise UserError(f"{self.where}: {role} is {_short(self.specials[role])}: only {token!r} is supported")


def read_beside(folder: Path) -> Beside:
    """Reads the files of a directory; without any, the result is empty.

    Raises:
        UserError: If a file is damaged, or has an unknown field or an unsupported value; the message names the file.
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
        map_specials, map_more = _specials(read_json(files[SPECIALS]), str(files[SPECIALS]), alone=True)
        if decoder is None:  # if the config has `added_tokens_decoder`, transformers ignores the map as outdated
            specials, more = specials | map_specials, map_more or more
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
    """The fields whose values depend on the kind. Raises UserError for unknown fields and unsupported values."""
    of_kind = {name for fields in FIXED_OF_KIND.values() for name in fields} | set(BERT_OPTIONS)
    handled_elsewhere = {*NAMES, *MORE, "model_max_length", "added_tokens_decoder"} | HARMLESS
    fields_of_kind = {}
    for name, value in config.items():
        if name in FIXED:
            if not _is_one_of(value, FIXED[name]):
                raise UserError(f"{where}: {name} is {_short(value)}: only {_short(FIXED[name][0])} is supported")
        elif name in of_kind:
            fields_of_kind[name] = value
        elif name not in handled_elsewhere and value is not None:
            raise UserError(f"{where}: the field {_short(name)} is not known: remove it if it changes no token")
    return fields_of_kind


def _is_one_of(value: Any, allowed: tuple[Any, ...]) -> bool:
    return value is None or any(type(value) is type(one) and value == one for one in allowed)


def _specials(
    data: Mapping[str, Any], where: str, *, alone: bool = False
) -> tuple[dict[str, str | None], tuple[str, ...]]:
    """Special tokens by role, and those without a role. With `alone` other fields in `data` are a UserError."""
    by_role: dict[str, str | None] = {}
    more: list[str] = []
    for name, value in data.items():
        if name in NAMES:
            by_role[name] = None if value is None else _content(value, name, where)
        elif name in MORE and value is not None:
            tokens = value.values() if isinstance(value, Mapping) else value  # transformers 4.46+: an object of names
            if not isinstance(tokens, Iterable) or isinstance(tokens, str):
                raise UserError(f"{where}: {name} is {_short(value)}: it must be a list of tokens")
            more += [_content(token, name, where) for token in tokens]
        elif alone and value is not None:
            raise UserError(f"{where}: the field {_short(name)} is not known: remove it if it changes no token")
    return by_role, tuple(more)


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
    """The tokens of `added_tokens.json`, an object of contents and ids."""
    entries = [
        {"content": content, "id": id, "normalized": content not in specials, "special": content in specials}
        for content, id in data.items()
    ]
    return [added_token(entry, where) for entry in entries]


def _short(value: Any) -> str:
    return " ".join(repr(value).split())[:60]
