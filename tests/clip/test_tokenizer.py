import json
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_jax import Tokenizer, TruncationWarning, UserError, train_bpe
from clip_jax.tokenizer import clean

HARD = ["quiz", "café", "한국어 中文", "😀👨‍👩‍👧", "x̀ y", "<b>", "\x00\x01", "‮rtl", "a" * 500]


@pytest.fixture(scope="module")
def openai(request):
    name = "bpe_simple_vocab_16e6.txt.gz"
    shared = request.config.rootpath.parent / "shared" / "data" / name
    path = Path(os.environ.get("CLIP_BPE_VOCAB", shared))
    if not path.is_file():
        pytest.skip(f"set CLIP_BPE_VOCAB to the path of OpenAI's {name}")
    return Tokenizer.from_openai(path)


def test_equals_openais_tokenizer(openai, request):
    rows = json.loads((request.config.rootpath / "tests" / "golden" / "openai_bpe.json").read_text())
    ids = openai.encode([row["text"] for row in rows], specials=True)
    assert [[openai.sot_id, *row, openai.eot_id] for row in ids] == [row["ids"] for row in rows]


def test_openai_layout(openai):
    assert (openai.vocab_size, openai.sot_id, openai.eot_id) == (49408, 49406, 49407)
    assert openai(["a dog"])[0, :5].tolist() == [49406, 320, 1929, 49407, 0]


def test_trained_layout(tokenizer, captions):
    assert tokenizer.vocab_size == 2 * 256 + len(tokenizer.merges) + 2
    assert tokenizer.eot_id == tokenizer.vocab_size - 1 == tokenizer.sot_id + 1
    words = captions[0].split()
    assert len(tokenizer.encode(captions)[0]) == len(words), "few captions, so every word becomes one token"
    assert len(train_bpe(captions, 530).merges) == 530 - 514


@pytest.mark.parametrize("text", HARD)
def test_nothing_is_lost_on_text_unlike_the_training_captions(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode([text])[0]).replace(" ", "") == clean(text).replace(" ", "")


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=60))
def test_nothing_is_lost_on_any_text(text):
    tokenizer = Tokenizer([("a", "b")])
    assert tokenizer.decode(tokenizer.encode([text])[0]).replace(" ", "") == clean(text).replace(" ", "")


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
    assert clean("  A &amp;amp;  B\n\tÃ©’s \u0345") == "a & b é's"
    assert clean("\ud83d\ude00 \ud800") == "😀 �"


def test_saved_and_loaded_is_the_same(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "tokenizer.json")
    loaded = Tokenizer.load(tmp_path / "tokenizer.json")
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
            Tokenizer.load(path)
    with pytest.raises(UserError, match="absent"):
        Tokenizer.load(tmp_path / "absent")
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        Tokenizer.from_openai(path)


def test_bad_prompts_are_refused(tokenizer):
    with pytest.raises(UserError, match="int: 3"):
        tokenizer(["a", 3])
    with pytest.raises(UserError, match="context_length is 1"):
        tokenizer(["a"], context_length=1)
    with pytest.raises(UserError, match="514"):
        train_bpe(["a"], 500)
