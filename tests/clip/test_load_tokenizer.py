"""The kinds without a file of their own, and what finds out which kind a file is."""

import gzip
import json

import numpy as np
import pytest

import clip_jax
from clip_jax import BPETokenizer, UserError, load_tokenizer
from clip_jax.tokenizer import AsciiTokenizer, TruncationWarning


@pytest.fixture
def huggingface(tokenizer, tmp_path):
    """A checkpoint's directory with `vocab.json`, `merges.txt` and `tokenizer_config.json`."""
    vocab = {word: i for i, word in enumerate(tokenizer._words)}
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *map(" ".join, tokenizer.merges)]) + "\n")
    config = {"model_max_length": 77, "pad_token": {"content": "<|endoftext|>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    return tmp_path


def test_ascii_is_the_seeds():
    tokenizer = AsciiTokenizer()
    text = "An image of a Dress"
    row = tokenizer(text)[0]
    assert row.tolist() == [2, *map(ord, text), 3, *[0] * (32 - len(text) - 2)]
    assert tokenizer.decode(row) == text
    assert tokenizer.encode(["é\0\2\3中"]) == [list("é中".encode())]
    with pytest.warns(TruncationWarning, match="10 tokens"):
        assert tokenizer("x" * 40)[0, -2:].tolist() == [ord("x"), 3]


def test_ascii_is_saved_and_loaded(tmp_path):
    AsciiTokenizer(context_length=9).save(tmp_path / "tokenizer.json")
    loaded = load_tokenizer(tmp_path, kind="ascii")
    assert (type(loaded), loaded.context_length, loaded.vocab_size) == (AsciiTokenizer, 9, 256)


def test_every_form_of_a_bpe_vocabulary_is_the_same(tokenizer, captions, huggingface, tmp_path):
    merges = "\n".join(["a header", *map(" ".join, tokenizer.merges)]) + "\n"
    (tmp_path / "plain.txt").write_text(merges, encoding="utf-8")
    (tmp_path / "packed.gz").write_bytes(gzip.compress(merges.encode()))
    tokenizer.save(tmp_path / "own.json")
    for name in (".", "vocab.json", "plain.txt", "packed.gz", "own.json"):
        loaded = load_tokenizer(tmp_path / name, context_length=24, pad_id=0)
        np.testing.assert_array_equal(loaded(captions), tokenizer(captions))


def test_what_is_said_beside_the_vocabulary_counts(tokenizer, huggingface):
    loaded = load_tokenizer(huggingface)
    assert (loaded.context_length, loaded.pad_id) == (77, tokenizer.eot_id)
    assert load_tokenizer(huggingface, pad_id=0).pad_id == 0
    (huggingface / "tokenizer_config.json").write_text('{"model_max_length": 1000000000000000019884624838656}')
    assert load_tokenizer(huggingface).context_length == 77


def test_the_shipped_tokenizer_still_gives_its_ids():
    from unclip_jax.pipeline import SHIPPED

    tokenizer = load_tokenizer(SHIPPED / "clip", kind="clip")
    data = json.loads((SHIPPED / "clip" / "tokenizer.json").read_text())
    words = ["a", "small", "red", "circle", "in", "the", "top", "left"]
    row = tokenizer(" ".join(words))[0]
    assert row.tolist()[: len(words) + 2] == [
        tokenizer.sot_id,
        *(data["model"]["vocab"][f"{word}</w>"] for word in words),
        tokenizer.eot_id,
    ]
    assert (tokenizer.context_length, tokenizer.pad_id) == (24, 0)


def test_each_file_is_refused_in_one_line(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "own.json")
    for name, content, words in [
        ("lfs.json", "version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        ("odd.json", '{"model": {"type": "WordLevel", "vocab": {}}}', "its model is WordLevel"),
        ("empty.json", "", "is not the tokenizer of a CLIP"),
        ("list.json", "[]", "is not the tokenizer of a CLIP"),
        ("vocab.json", "{}", "merges.txt"),
        ("merges.txt", "#version\na b c\n", "bpe_simple_vocab"),
        ("empty.txt", "", "bpe_simple_vocab"),
        ("packed.gz", b"\x1f\x8b broken", "bpe_simple_vocab"),
        ("ascii.json", '{"type": "ascii"}', "context_length"),
        ("siglip.json", '{"type": "siglip", "model": "%%%"}', "siglip.json"),
        ("pad.json", '{"type": "ascii", "context_length": 8, "pad_id": 256}', "pad_id 256 is not one of the 256 ids"),
    ]:
        data = content if isinstance(content, bytes) else content.encode()
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError) as error:
            load_tokenizer(tmp_path / name)
        assert words in str(error.value)
        assert "\n" not in str(error.value)
        (tmp_path / name).unlink()
    with pytest.raises(UserError, match="is a clip tokenizer, the model needs bert"):
        load_tokenizer(tmp_path / "own.json", kind="bert")
    with pytest.raises(UserError, match="there is no tokenizer 'gpt'"):
        load_tokenizer(tmp_path / "own.json", kind="gpt")
    with pytest.raises(UserError, match="holds no tokenizer"):
        load_tokenizer(tmp_path)
    with pytest.raises(UserError, match="no such file"):
        load_tokenizer(tmp_path / "nowhere")


def test_the_public_names():
    assert clip_jax.load_tokenizer is load_tokenizer
    assert issubclass(BPETokenizer, clip_jax.Tokenizer)
