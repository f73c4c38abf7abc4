import json
import random
import string
import unicodedata

import pytest

from clip_jax import UserError, load_tokenizer
from clip_jax.tokenizer import WordPieceTokenizer

PIECES = ["a", "photo", "of", "the", "dog", "##s", "cat", "un", "##aff", "##able", *"中国狗,.![]"]
LETTERS = [c for letter in "abcdefghijklmnopqrstuvwxyz0123456789" for c in (letter, f"##{letter}")]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *dict.fromkeys(PIECES + LETTERS), "cls", "sep"]
VOCAB = {word: i for i, word in enumerate(WORDS)}


@pytest.fixture(scope="module")
def tokenizer():
    return WordPieceTokenizer(VOCAB, context_length=12)


def googles_rule(text):
    """BERT's tokenisation written out (Devlin et al.): clean, lower, no accents, cut, greedy pieces."""
    text = "".join(
        " " if c in " \t\n\r" or unicodedata.category(c) == "Zs" else c
        for c in text
        if not (c in "\0\ufffd" or (unicodedata.category(c) in ("Cc", "Cf") and c not in "\t\n\r"))
    )
    text = "".join(f" {c} " if 0x4E00 <= ord(c) <= 0x9FFF or 0x3400 <= ord(c) <= 0x4DBF else c for c in text)
    ids = []
    for word in text.split():
        word = "".join(c for c in unicodedata.normalize("NFD", word.lower()) if unicodedata.category(c) != "Mn")
        spaced = "".join(f" {c} " if is_punctuation(c) else c for c in word)
        for token in spaced.split():
            ids += pieces(token)
    return ids


def is_punctuation(c):
    return c in string.punctuation or unicodedata.category(c)[0] == "P"


def pieces(word):
    found, start = [], 0
    while start < len(word):
        ends = [e for e in range(len(word), start, -1) if ("##" if start else "") + word[start:e] in VOCAB]
        if not ends or len(word) > 200:
            return [VOCAB["[UNK]"]]
        found.append(VOCAB[("##" if start else "") + word[start : ends[0]]])
        start = ends[0]
    return found


def test_rows_start_end_and_pad(tokenizer):
    row = tokenizer(["A photo of the dogs"])[0]
    words = ["[CLS]", "a", "photo", "of", "the", "dog", "##s", "[SEP]", *["[PAD]"] * 4]
    assert row.tolist() == [VOCAB[word] for word in words]
    assert tokenizer.decode(row) == "a photo of the dogs"


def test_chinese_and_the_rest_follow_googles_rule(tokenizer):
    rng = random.Random(0)
    alphabet = "abcdefghxyz ABC 019 ,.!?-_[]()'\" éÉüñçÅ 中国狗猫\t\n\u3000，。「」–…\u200b\u00ad€日本"
    texts = ["".join(rng.choices(alphabet, k=rng.randint(0, 40))) for _ in range(1000)]
    texts += ["unaffable", "[CLS] [SEP]", "a" * 200, "a" * 201, "", "中国dog", "Ｆｕｌｌ", "ﬁ", "İstanbul", "ß"]
    assert tokenizer.encode(texts) == [googles_rule(text) for text in texts]


def test_a_special_token_in_a_text_stays_text(tokenizer):
    assert not {tokenizer.sot_id, tokenizer.eot_id, tokenizer.pad_id} & set(
        tokenizer.encode(["[CLS] a [SEP] [PAD]"])[0]
    )


def test_saved_and_loaded_is_the_same(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "tokenizer.json")
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    text = ["A dog, 中国.", "a" * 150]
    for file in ("tokenizer.json", "vocab.txt"):
        loaded = load_tokenizer(tmp_path / file, kind="bert")
        assert loaded.encode(text) == tokenizer.encode(text)
        assert loaded.context_length == (12 if file == "tokenizer.json" else 512)
    cased = WordPieceTokenizer(VOCAB, lowercase=False)
    cased.save(tmp_path / "cased.json")
    assert load_tokenizer(tmp_path / "cased.json").encode(["A é"]) == cased.encode(["A é"]) != tokenizer.encode(["A é"])


def test_bad_vocabularies_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"no \[CLS\], \[SEP\], \[PAD\]"):
        WordPieceTokenizer({"[UNK]": 0})
    (tmp_path / "vocab.txt").write_text("a\nb\n")
    with pytest.raises(UserError, match=r"vocab\.txt: this WordPiece vocabulary"):
        load_tokenizer(tmp_path)
    data = {"model": {"type": "WordPiece", "vocab": VOCAB}, "normalizer": {"type": "NFC"}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(UserError, match=r"tokenizer\.json: its normalizer is NFC"):
        load_tokenizer(tmp_path)


@pytest.mark.parity
def test_transformers_agrees(tokenizer, tmp_path):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.BertTokenizer(vocab=dict(VOCAB))
    theirs.save_pretrained(tmp_path)
    texts = ["A photo of the dogs.", "中国狗, unaffable!", "éclair", "x-y_z", "  "]
    assert [theirs(text, add_special_tokens=False)["input_ids"] for text in texts] == tokenizer.encode(texts)
    loaded = load_tokenizer(tmp_path, context_length=52)
    assert loaded.encode(texts) == tokenizer.encode(texts)
    assert theirs(texts[0], max_length=52, padding="max_length")["input_ids"] == loaded(texts[0])[0].tolist()
