import importlib.util
import json
import random

import pytest
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers

from clip_jax import TruncationWarning, UserError, load_tokenizer
from clip_jax.tokenizer import SigLIPTokenizer
from clip_jax.tokenizer.sentencepiece import canonicalize

needs_sentencepiece = pytest.mark.skipif(
    importlib.util.find_spec("sentencepiece") is None, reason="pip install sentencepiece (the extra siglip)"
)
CORPUS = ["a photo of a dog", "a red circle, in the top left!", "café 中国 naïve ①", "cats & dogs - don't panic"] * 50


@pytest.fixture(scope="module")
def unigram():
    """A `tokenizer.json` as SigLIP's: unigram pieces, <pad> 0, </s> 1, <unk> 2."""
    words = ["a", "photo", "of", "dog", "s", "cat", "dont"]
    pieces = [(f"▁{word}", -1.0 - i) for i, word in enumerate(words)]
    letters = [(c, -9.0) for c in "abcdefghijklmnopqrstuvwxyz▁"]
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *pieces, *letters]
    library = tokenizers.Tokenizer(models.Unigram(vocab, unk_id=2))
    library.pre_tokenizer = pre_tokenizers.Metaspace()
    library.add_special_tokens(["<pad>", "</s>", "<unk>"])
    return json.loads(library.to_str())


@pytest.fixture(scope="module")
def gemma():
    """A `tokenizer.json` as SigLIP 2's: byte pairs over text whose spaces are "▁"."""
    words = ["<pad>", "<eos>", "<bos>", "<unk>", "▁", *"abdgo!<>es", "do", "dog"]
    merges = [("d", "o"), ("do", "g")]
    library = tokenizers.Tokenizer(
        models.BPE(vocab={w: i for i, w in enumerate(words)}, merges=merges, unk_token="<unk>", fuse_unk=True)
    )
    library.normalizer = normalizers.Replace(" ", "▁")
    library.add_special_tokens(["<pad>", "<eos>", "<bos>", "<unk>"])
    return json.loads(library.to_str())


def test_canonical_text():
    assert canonicalize("  It's a   DOG, (really)! \n ") == "its a dog really"


def test_the_end_sticks_and_pads(unigram):
    tokenizer = SigLIPTokenizer(unigram, context_length=6)
    ids = {word: i for i, (word, _) in enumerate(unigram["model"]["vocab"])}
    assert tokenizer("A photo!")[0].tolist() == [ids["▁a"], ids["▁photo"], 1, 1, 1, 1]
    with pytest.warns(TruncationWarning, match="2 tokens"):
        assert tokenizer("a a a a a a a")[0].tolist() == [ids["▁a"]] * 5 + [1]
    assert (tokenizer.pad_id, tokenizer.eot_id, tokenizer.sot_id) == (1, 1, None)


def test_specials_in_a_text_stay_text(unigram, gemma):
    assert 1 not in SigLIPTokenizer(unigram).encode(["a </s> photo"])[0]
    assert 1 not in SigLIPTokenizer(gemma).encode(["a<eos>dog"])[0]


def test_siglip2_keeps_punctuation_and_pads_with_zero(gemma):
    tokenizer = SigLIPTokenizer(gemma, context_length=8)
    ids = gemma["model"]["vocab"]
    assert tokenizer("A dog!")[0].tolist() == [ids["a"], ids["▁"], ids["dog"], ids["!"], 1, 0, 0, 0]
    assert tokenizer.decode(tokenizer("dog")[0]) == "dog"


def test_a_directory_says_which_of_the_two(unigram, gemma, tmp_path):
    for data, kind, other in ((unigram, "siglip", "siglip2"), (gemma, "siglip2", "siglip")):
        (tmp_path / "tokenizer.json").write_text(json.dumps(data))
        assert load_tokenizer(tmp_path).kind == kind
        loaded = load_tokenizer(tmp_path, kind=kind, context_length=16)
        assert (loaded.context_length, loaded.pad_id) == (16, 1 if kind == "siglip" else 0)
        with pytest.raises(UserError, match=f"is a {kind} tokenizer, the model needs {other}"):
            load_tokenizer(tmp_path, kind=other)


def test_saved_and_loaded_is_the_same(unigram, gemma, tmp_path):
    for data in (unigram, gemma):
        tokenizer = SigLIPTokenizer(data, context_length=9)
        tokenizer.save(tmp_path / "tokenizer.json")
        loaded = load_tokenizer(tmp_path)
        assert loaded("a dog!").tolist() == tokenizer("a dog!").tolist()


def test_what_is_no_model_is_refused(unigram, tmp_path):
    with pytest.raises(UserError, match="neither </s> nor <eos>"):
        SigLIPTokenizer({"model": {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0]]}})
    (tmp_path / "tokenizer.json").write_text(json.dumps(unigram | {"model": {"type": "Unigram", "vocab": 3}}))
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path)


def test_without_the_package_the_line_says_what_to_do(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sentencepiece", None)
    with pytest.raises(UserError, match="pip install sentencepiece"):
        SigLIPTokenizer(b"any")


@pytest.fixture(scope="module")
def spiece(tmp_path_factory):
    """The path of a trained `spiece.model` with SigLIP's ids for the specials."""
    sentencepiece = pytest.importorskip("sentencepiece")
    directory = tmp_path_factory.mktemp("spiece")
    (directory / "corpus.txt").write_text("\n".join(CORPUS), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(directory / "corpus.txt"), model_prefix=str(directory / "spiece"), vocab_size=38,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    return directory / "spiece.model"


@pytest.mark.parity
@needs_sentencepiece
def test_a_spiece_model_is_read(spiece, tmp_path):
    tokenizer = load_tokenizer(spiece, kind="siglip")
    assert (tokenizer.vocab_size, tokenizer.eot_id, tokenizer.pad_id, tokenizer.context_length) == (38, 1, 1, 64)
    assert tokenizer.decode(tokenizer("A photo of a DOG!")[0]) == "a photo of a dog"
    tokenizer.save(tmp_path / "tokenizer.json")
    assert load_tokenizer(tmp_path)(CORPUS).tolist() == tokenizer(CORPUS).tolist()
    with pytest.raises(UserError, match="no SentencePiece model"):
        SigLIPTokenizer(b"garbage")


@pytest.mark.parity
@needs_sentencepiece
def test_transformers_agrees(spiece):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.SiglipTokenizer(str(spiece))
    ours = load_tokenizer(spiece)
    rng = random.Random(0)
    alphabet = "abcdefghijklmno ABC 012 .,!?-_'\"()\t éü中①ﬁ"
    texts = ["".join(rng.choices(alphabet, k=rng.randint(0, 80))) for _ in range(500)]
    texts += ["", " ", "A photo of a dog.", "x" * 200]
    expected = [theirs(text, padding="max_length", truncation=True, max_length=64)["input_ids"] for text in texts]
    assert ours(texts).tolist() == expected
