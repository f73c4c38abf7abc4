import gzip
import html
import itertools
import json
import os
import random
import unicodedata
import warnings
from pathlib import Path

import ftfy
import numpy as np
import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_jax import BPETokenizer, TruncationWarning, UserError, load_tokenizer, train_bpe
from clip_jax.tokenizer import clean

HARD = ["quiz", "café", "한국어 中文", "😀👨‍👩‍👧", "x̀ y", "<b>", "\x00\x01", "‮rtl", "a" * 500]


@pytest.fixture(scope="module")
def openai_file(request):
    name = "bpe_simple_vocab_16e6.txt.gz"
    shared = request.config.rootpath.parent / "shared" / "data" / name
    path = Path(os.environ.get("CLIP_BPE_VOCAB", shared))
    if not path.is_file():
        pytest.skip(f"set CLIP_BPE_VOCAB to the path of OpenAI's {name}")
    return path


@pytest.fixture(scope="module")
def openai(openai_file):
    return BPETokenizer.from_openai(openai_file)


class Rule:
    """OpenAI's rule written out: clean, cut into words, write as bytes, then join the pair that was learned first."""

    PATTERN = regex.compile(
        r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+", regex.IGNORECASE
    )

    def __init__(self, path):
        lines = gzip.decompress(path.read_bytes()).decode().split("\n")
        merges = [tuple(line.split()) for line in lines[1:48895]]
        printable = [b for b in range(256) if 33 <= b <= 126 or 161 <= b <= 172 or b >= 174]
        self.letter = {b: chr(b) for b in printable}
        for b in sorted(set(range(256)) - set(printable)):
            self.letter[b] = chr(256 + len(self.letter) - len(printable))
        first = list(self.letter.values())
        vocab = [*first, *(c + "</w>" for c in first), *map("".join, merges), "<|startoftext|>", "<|endoftext|>"]
        self.ids = {word: i for i, word in enumerate(vocab)}
        self.rank = {pair: i for i, pair in enumerate(merges)}

    def __call__(self, text):
        text = html.unescape(html.unescape(ftfy.fix_text(text))).strip()
        text = regex.sub(r"\s+", " ", text).strip().lower()
        return [i for word in self.PATTERN.findall(text) for i in self.word(word)]

    def word(self, word):
        if word in ("<|startoftext|>", "<|endoftext|>"):
            return [self.ids[word]]
        parts = [self.letter[b] for b in word.encode()]
        parts[-1] += "</w>"
        while len(parts) > 1:
            best = min(itertools.pairwise(parts), key=lambda pair: self.rank.get(pair, len(self.rank)))
            if best not in self.rank:
                break
            joined, i = [], 0
            while i < len(parts):
                here = tuple(parts[i : i + 2]) == best
                joined.append("".join(parts[i : i + 1 + here]))
                i += 1 + here
            parts = joined
        return [self.ids[part] for part in parts]


@pytest.fixture(scope="module")
def rule(openai_file):
    return Rule(openai_file)


def random_strings(count):
    """Of ASCII, of letters of many scripts, of anything that Unicode has assigned, and of what gets repaired."""
    rng = random.Random(0)
    assigned = [chr(c) for c in range(0x30000) if unicodedata.category(chr(c)) not in ("Cn", "Cs", "Co")]
    words = [
        "a photo",
        "it's",
        "we'LL",
        "&lt;b&gt;",
        "&amp;amp;",
        "Ã©tÃ©",
        "\t\n",
        "\u3000",
        "'\u017f",
        "<|endoftext|>",
    ]
    pools = (range(32, 127), range(0xA0, 0x600), range(0x4E00, 0x4F00))
    for _ in range(count):
        pieces = []
        for _ in range(rng.randint(1, 8)):
            kind = rng.randrange(5)
            if kind < 3:
                pieces.append("".join(chr(rng.choice(pools[kind])) for _ in range(rng.randint(1, 6))))
            elif kind == 3:
                pieces.append("".join(rng.choices(assigned, k=rng.randint(1, 6))))
            else:
                pieces.append(rng.choice(words))
        yield rng.choice(["", " "]).join(pieces)


def test_equals_openais_tokenizer(openai, request):
    rows = json.loads((request.config.rootpath / "tests" / "golden" / "openai_bpe.json").read_text())
    ids = openai.encode([row["text"] for row in rows], specials=True)
    assert [[openai.sot_id, *row, openai.eot_id] for row in ids] == [row["ids"] for row in rows]


def test_the_rule_below_is_openais(rule, request):
    rows = json.loads((request.config.rootpath / "tests" / "golden" / "openai_bpe.json").read_text())
    assert [[49406, *rule(row["text"]), 49407] for row in rows] == [row["ids"] for row in rows]


def test_random_strings_follow_openais_rule(openai, rule):
    texts = list(random_strings(1000))
    mismatches = [
        text for text, ids in zip(texts, openai.encode(texts, specials=True), strict=True) if ids != rule(text)
    ]
    assert not mismatches


def test_every_assigned_character_follows_openais_rule(openai, rule):
    """Between letters and punctuation, where it matters which of the two it is; 300 to a text, for speed."""
    assigned = [chr(c) for c in range(0x110000) if unicodedata.category(chr(c)) not in ("Cn", "Cs", "Co", "Lo")]
    assigned += [chr(c) for c in range(0x110000) if unicodedata.category(chr(c)) == "Lo"][::97]
    texts = [" ".join(f"a{c}b!{c}?" for c in assigned[i : i + 300]) for i in range(0, len(assigned), 300)]
    assert openai.encode(texts, specials=True) == [rule(text) for text in texts]


@pytest.mark.parity
def test_transformers_agrees_where_it_can(openai, openai_file):
    """It knows neither ftfy nor HTML and composes accents: on plain ASCII both must be the same."""
    transformers = pytest.importorskip("transformers")
    vocab = {word: i for i, word in enumerate(openai._words)}
    theirs = transformers.CLIPTokenizer(vocab=vocab, merges=list(openai.merges))
    rng = random.Random(1)
    texts = ["".join(rng.choices("abcdefghij klmnop QRSTUVWXYZ 0123456789 .,!?'-\"()", k=40)) for _ in range(1000)]
    assert [theirs(text)["input_ids"][1:-1] for text in texts] == openai.encode(texts)


def test_openai_layout(openai):
    assert (openai.vocab_size, openai.sot_id, openai.eot_id) == (49408, 49406, 49407)
    assert openai(["a dog"])[0, :5].tolist() == [49406, 320, 1929, 49407, 0]


def test_trained_layout(tokenizer, captions):
    assert tokenizer.vocab_size == 2 * 256 + len(tokenizer.merges) + 2
    assert tokenizer.eot_id == tokenizer.vocab_size - 1 == tokenizer.sot_id + 1
    words = captions[0].split()
    assert len(tokenizer.encode(captions)[0]) == len(words), "few captions, so every word becomes one token"
    assert len(train_bpe(captions, 530).merges) == 530 - 514


def written(text):
    """What must come back: U+0345 falls out, as it does in the original."""
    return clean(text).replace(" ", "").replace("\u0345", "")


@pytest.mark.parametrize("text", HARD)
def test_nothing_is_lost_on_text_unlike_the_training_captions(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode([text])[0]).replace(" ", "") == written(text)


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=60))
def test_nothing_is_lost_on_any_text(text):
    tokenizer = BPETokenizer([("a", "b")])
    assert tokenizer.decode(tokenizer.encode([text])[0]).replace(" ", "") == written(text)


def test_rows_start_end_and_pad(tokenizer):
    tokens = tokenizer(["a red circle", ""])
    assert tokens.dtype == np.int32
    assert tokens.shape == (2, 24)
    assert tokens[0, 0] == tokenizer.sot_id
    assert tokens[0].argmax() == 4
    assert tokens[1].tolist() == [tokenizer.sot_id, tokenizer.eot_id] + [0] * 22
    np.testing.assert_array_equal(tokenizer("a red circle")[0], tokens[0])


@pytest.mark.parametrize("words", [21, 22, 23, 60])
def test_truncation_keeps_the_end_and_tells(tokenizer, words):
    text = " ".join(["red"] * words)
    if words <= 22:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            tokens = tokenizer(["a", text])
    else:
        with pytest.warns(TruncationWarning, match=f"1 of 2 texts.* {words - 22} tokens.*text 1"):
            tokens = tokenizer(["a", text])
    assert tokens[1].argmax() == min(words + 1, 23)
    assert tokens[1].max() == tokenizer.eot_id


def test_special_tokens_in_a_prompt_stay_text(tokenizer):
    text = "a red<|endoftext|> circle <|startoftext|>"
    ids = tokenizer.encode([text])[0]
    assert not {tokenizer.sot_id, tokenizer.eot_id} & set(ids)
    literal = tokenizer.encode([text], specials=True)[0]
    assert literal.count(tokenizer.eot_id) == 1
    assert literal[-1] == tokenizer.sot_id


def test_cleaning():
    assert clean("  A &amp;amp;  B\n\tÃ©’s") == "a & b é's"
    assert clean("\ud83d\ude00 \ud800") == "😀 �"


def test_saved_and_loaded_is_the_same(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "tokenizer.json")
    loaded = load_tokenizer(tmp_path / "tokenizer.json")
    assert loaded.merges == tokenizer.merges
    assert (loaded.context_length, loaded.pad_id) == (24, 0)
    assert loaded.encode(HARD) == tokenizer.encode(HARD)


def test_bad_files_are_refused(tokenizer, tmp_path):
    path = tmp_path / "tokenizer.json"
    tokenizer.save(path)
    data = json.loads(path.read_text())
    data["model"]["vocab"]["!"], data["model"]["vocab"]['"'] = 1, 0
    for text, word in [(json.dumps(data), "laid out"), ("{}", "model"), ("no json", "Expecting"), ("[1]", "CLIP")]:
        path.write_text(text)
        with pytest.raises(UserError, match=word):
            load_tokenizer(path)
    with pytest.raises(UserError, match="absent"):
        load_tokenizer(tmp_path / "absent")
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        BPETokenizer.from_openai(path)


def test_bad_prompts_are_refused(tokenizer):
    with pytest.raises(UserError, match="int: 3"):
        tokenizer(["a", 3])
    with pytest.raises(UserError, match="context_length is 1"):
        tokenizer(["a"], context_length=1)
    with pytest.raises(UserError, match="514"):
        train_bpe(["a"], 500)
