"""Text cleaning before tokenization, as in OpenAI's and OpenCLIP's tokenizers.

    lower           mojibake repaired (ftfy), HTML entities resolved, white space collapsed, lower case: OpenAI's
    whitespace      the same without lower case: OpenCLIP's for tokenizers of Hugging Face
    canonicalize    the same with "_" as a space and without ASCII punctuation, lower case: OpenCLIP's for SigLIP, CLIPA

An OpenCLIP config names one in `text_cfg.tokenizer_kwargs.clean`.
"""

import html
import string
from collections.abc import Callable

import ftfy
import regex

from clip_jax.errors import UserError
from clip_jax.tokenizer.base import without_surrogates

NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def clean(text: str) -> str:
    """OpenAI's cleaning: mojibake repaired, entities resolved, white space collapsed, lower case.

    Lone surrogates, on which OpenAI's tokenizer fails, become U+FFFD.
    """
    return whitespace(text).lower()


def whitespace(text: str) -> str:
    """`clean` without lower case."""
    text = html.unescape(html.unescape(ftfy.fix_text(without_surrogates(text))))
    return regex.sub(r"\s+", " ", text.strip()).strip()


def without_punctuation(text: str) -> str:
    """OpenCLIP's `canonicalize_text`: repaired, "_" as a space, no ASCII punctuation, lower case, single spaces."""
    text = html.unescape(html.unescape(ftfy.fix_text(without_surrogates(text)))).strip()
    return " ".join(text.replace("_", " ").translate(NO_PUNCTUATION).lower().split())


CLEANINGS: dict[str, Callable[[str], str]] = {
    "lower": clean,
    "whitespace": whitespace,
    "canonicalize": without_punctuation,
}


def cleaning(name: object) -> Callable[[str], str]:
    """The cleaning function of a name of `CLEANINGS`.

    Raises:
        UserError: If there is none of this name.
    """
    if not isinstance(name, str) or name not in CLEANINGS:
        raise UserError(f"clean is {str(name)[:40]!r}: choose one of {', '.join(CLEANINGS)}")
    return CLEANINGS[name]
