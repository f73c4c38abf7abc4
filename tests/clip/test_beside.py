"""What Hugging Face's files beside a vocabulary say: followed, or refused by name."""

import dataclasses
import gzip
import json
import warnings

import numpy as np
import pytest

import clip_jax
from clip_jax import UserError, load_tokenizer
from clip_jax.tokenizer import AddedToken, BPETokenizer, WordPieceTokenizer
from clip_jax.tokenizer.cleaning import CLEANINGS

SOT, EOT = "<|startoftext|>", "<|endoftext|>"
TOY = "<cat-toy>"
PATTERN = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
WORDS = {
    w: i for i, w in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "A", "a", "##b", "é", "e", "中", "!"])
}


def write(folder, **files):
    for name, data in files.items():
        (folder / f"{name}.json").write_text(json.dumps(data), encoding="utf-8")
    return folder


@pytest.fixture
def folder(tokenizer, tmp_path):
    """`vocab.json` and `merges.txt`, and nothing beside them."""
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *map(" ".join, tokenizer.merges)]) + "\n")
    return write(tmp_path, vocab={word: i for i, word in enumerate(tokenizer._words)})


def published(tokenizer, **changes):
    """A `tokenizer.json` as Hugging Face writes it for CLIP."""
    data = json.loads(tokenizer.to_json())
    steps = [{"type": "NFC"}, {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "}, {"type": "Lowercase"}]
    data["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = PATTERN
    ends = {"sep": [EOT, tokenizer.eot_id], "cls": [SOT, tokenizer.sot_id], "trim_offsets": False}
    return data | {
        "truncation": None,
        "padding": None,
        "normalizer": {"type": "Sequence", "normalizers": steps},
        "post_processor": {"type": "RobertaProcessing", "add_prefix_space": False, **ends},
    } | changes  # fmt: skip


def toy(tokenizer, **changes):
    return {"id": tokenizer.vocab_size, "content": TOY, "normalized": True, "special": False, "lstrip": False} | changes


def test_the_pad_token_is_the_one_that_transformers_takes(tokenizer, folder):
    assert load_tokenizer(folder).pad_id == tokenizer.eot_id, "the class's own"
    write(folder, tokenizer_config={"pad_token": EOT, "bos_token": SOT}, special_tokens_map={"pad_token": "!"})
    assert load_tokenizer(folder).pad_id == 0, "Stable Diffusion 2"
    assert load_tokenizer(folder, pad_id=5).pad_id == 5
    write(folder, tokenizer_config={"pad_token": EOT, "added_tokens_decoder": {"0": {"content": "!", "special": True}}})
    assert load_tokenizer(folder).pad_id == tokenizer.eot_id, "the map is an old copy then"
    assert tokenizer.encode(["a !"]) == load_tokenizer(folder).encode(["a !"]), "a special token in a text stays text"
    write(folder, tokenizer_config={"pad_token": "[PAD]"}, special_tokens_map={}, added_tokens={"[PAD]": 700})
    assert load_tokenizer(folder).pad_id == 700


def test_a_learned_token_is_used_wherever_it_is_written_down(tokenizer, folder, tmp_path_factory):
    new = tokenizer.vocab_size
    wanted = [*tokenizer.encode(["a small"])[0], new, *tokenizer.encode([", red"])[0]]
    text = f"A small {TOY}, red"
    write(folder, added_tokens={TOY: new})
    places = [folder]
    for name, files in (
        (
            "config",
            {
                "tokenizer": published(tokenizer),
                "tokenizer_config": {"added_tokens_decoder": {str(new): toy(tokenizer)}},
            },
        ),
        ("json", {"tokenizer": published(tokenizer, added_tokens=[toy(tokenizer)])}),
    ):
        if "tokenizer_config" in files:
            del files["tokenizer_config"]["added_tokens_decoder"][str(new)]["id"]
        places.append(write(tmp_path_factory.mktemp(name), **files))
    for place in places:
        loaded = load_tokenizer(place)
        assert loaded.encode([text, text.replace("<c", "<C")]) == [wanted, wanted]
        assert loaded.vocab_size == new + 1
        assert loaded.decode([loaded.sot_id, *wanted, loaded.eot_id]) == f"a small {TOY} , red"
        loaded.save(place / "own.json")
        again = load_tokenizer(place / "own.json")
        assert (again.encode([text]), again.vocab_size, again.pad_id) == ([wanted], new + 1, loaded.pad_id)


def test_learned_tokens_are_found_as_their_flags_say(tokenizer):
    new = tokenizer.vocab_size
    plain = tokenizer.encode
    made = [
        AddedToken("<A>", new, normalized=False),
        AddedToken("ab", new + 1, single_word=True),
        AddedToken("<A>b", new + 2),
    ]
    found = BPETokenizer(tokenizer.merges, added=made).encode
    assert found(["<A>", "<a>", "ab", "abc <A>b"]) == [
        [new],
        *plain(["<a>"]),
        [new + 1],
        [*plain(["abc"])[0], new, *plain(["b"])[0]],
    ]
    assert found(["", "<A><A>"], specials=True) == [[], [new, new]]
    with pytest.raises(UserError, match="the id 7 of another token"):
        BPETokenizer(tokenizer.merges, added=[AddedToken(TOY, 7)])


def test_the_end_of_a_text_is_found_before_learned_tokens(tokenizer, tiny, tiny_variables, tmp_path):
    config = dataclasses.replace(tiny, text=dataclasses.replace(tiny.text, vocab_size=tokenizer.vocab_size + 1))
    table = np.zeros((config.text.vocab_size, tiny.text.width), np.float32)
    text = {**tiny_variables["params"]["text"], "token_embedding": {"embedding": table}}
    toys = BPETokenizer(tokenizer.merges, context_length=24, added=[AddedToken(TOY, tokenizer.vocab_size)])
    clip_jax.save(tmp_path, config, {"params": {**tiny_variables["params"], "text": text}}, toys)
    loaded = clip_jax.load(tmp_path)
    assert loaded.model.config.text.eos_id == tokenizer.eot_id
    assert load_tokenizer(tmp_path).encode([TOY]) == [[tokenizer.vocab_size]]


REFUSED_CONFIGS = {
    "a field nobody knows": ({"lower_camel": True}, "lower_camel"),
    "no lower case": ({"do_lower_case": False}, "do_lower_case is False"),
    "padding on the left": ({"padding_side": "left"}, "padding_side"),
    "truncation on the left": ({"truncation_side": "left"}, "truncation_side"),
    "a space before": ({"add_prefix_space": True}, "add_prefix_space"),
    "no end": ({"add_eos_token": False}, "add_eos_token"),
    "another start": ({"bos_token": EOT}, "bos_token"),
    "multiples": ({"pad_to_multiple_of": 8}, "pad_to_multiple_of"),
    "a pad token without an id": ({"pad_token": "[PAD]"}, r"\[PAD\]"),
    "a special token without an id": ({"additional_special_tokens": [TOY]}, TOY),
    "a length that is none": ({"model_max_length": "x"}, "model_max_length"),
    "a length below 1": ({"model_max_length": 0}, "model_max_length"),
    "a length that is true": ({"model_max_length": True}, "model_max_length"),
    "a broken length": ({"model_max_length": 7.5}, "model_max_length"),
    "a token that is a number": ({"pad_token": 3}, "pad_token"),
    "an object without content": ({"eos_token": {"lstrip": False}}, "eos_token"),
    "a list of specials that is none": ({"extra_special_tokens": "x"}, "extra_special_tokens"),
    "no id": ({"added_tokens_decoder": {"x": {"content": "y"}}}, "added_tokens_decoder"),
    "no token": ({"added_tokens_decoder": {"700": "y"}}, "added_tokens_decoder"),
    "an id of another word": ({"added_tokens_decoder": {"7": {"content": TOY}}}, TOY),
    "a list": ([], "JSON object"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED_CONFIGS)
def test_what_a_config_asks_for_in_vain_is_refused_by_name(folder, name):
    config, words = REFUSED_CONFIGS[name]
    write(folder, tokenizer_config=config)
    with pytest.raises(UserError, match=words) as error:
        load_tokenizer(folder)
    assert "tokenizer_config.json" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "file", ["tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json"]
)
@pytest.mark.parametrize("content", [b"", b"{", b"[" * 100_000, b"\xff\xfe", b'{"a": "\x1b[31m"}', b"{} {}"])
def test_a_damaged_file_is_one_line_with_its_name(folder, file, content):
    (folder / file).write_bytes(content)
    with pytest.raises(UserError) as error:
        load_tokenizer(folder)
    assert file in str(error.value) or (file == "vocab.json" and str(folder) in str(error.value))
    assert str(error.value).isprintable()


REFUSED_STEPS = {
    "keeps case": ({"normalizer": {"type": "NFC"}}, "lower-case"),
    "strips accents": ({"normalizer": {"type": "Sequence", "normalizers": [{"type": "StripAccents"}]}}, "StripAccents"),
    "cuts otherwise": ({"pre_tokenizer": {"type": "ByteLevel"}}, "pre_tokenizer"),
    "other ends": (
        {"post_processor": {"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A"}}]}}, "post_processor"),
    "on the left": ({"padding": {"direction": "Left", "pad_id": 0}}, "Left"),
    "an unknown part": ({"extra": 1}, "extra"),
    "no model": ({"model": 3}, "model"),
    "a length that is none": ({"truncation": {"max_length": "x"}}, "context_length"),
    "a pad id that is none": ({"padding": {"pad_id": -1}}, "pad_id"),
    "two ids": ({"added_tokens": [{"id": 700, "content": EOT}]}, "700"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED_STEPS)
def test_steps_that_would_give_other_tokens_are_refused_by_name(tokenizer, tmp_path, name):
    changes, words = REFUSED_STEPS[name]
    write(tmp_path, tokenizer=published(tokenizer))
    assert load_tokenizer(tmp_path).encode(["A  Small"]) == tokenizer.encode(["a small"])
    write(tmp_path, tokenizer=published(tokenizer, **changes))
    with pytest.raises(UserError, match=words) as error:
        load_tokenizer(tmp_path)
    assert "tokenizer.json" in str(error.value)


def test_a_model_that_drops_merges_at_random_is_refused(tokenizer, tmp_path):
    data = published(tokenizer)
    for change in ({"dropout": 0.5}, {"ignore_merges": True}, {"continuing_subword_prefix": "##"}, {"foo": 1}):
        write(tmp_path, tokenizer=data | {"model": data["model"] | change})
        with pytest.raises(UserError, match=next(iter(change))):
            load_tokenizer(tmp_path)


@pytest.mark.parametrize("merge", [["a"], ["a", "b", "c"], "ab", 3, None, [1, 2], ["zz", "yy"]])
def test_merges_that_are_no_pairs_of_tokens_are_refused(tokenizer, tmp_path, merge):
    data = published(tokenizer)
    data["model"]["merges"][3] = merge
    write(tmp_path, tokenizer=data)
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("i", [-1, 3, 2**40, True, "5", None, 5.0])
def test_ids_that_are_none_are_refused(tmp_path, i):
    data = json.loads(WordPieceTokenizer(WORDS).to_json())
    data["model"]["vocab"]["a"] = i
    write(tmp_path, tokenizer=data)
    with pytest.raises(UserError, match=r"tokenizer\.json: the id"):
        load_tokenizer(tmp_path)


def test_bert_follows_its_config(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    text = ["A é中!"]
    assert load_tokenizer(tmp_path).encode(text) == [[6, 9, 10, 11]]
    write(tmp_path, tokenizer_config={"do_lower_case": False, "pad_token": "[MASK]", "model_max_length": 9})
    cased = load_tokenizer(tmp_path)
    assert (cased.encode(text), cased.pad_id, cased.context_length) == ([[5, 8, 10, 11]], 4, 9)
    write(tmp_path, tokenizer_config={"strip_accents": False})
    assert load_tokenizer(tmp_path).encode(text) == [[6, 8, 10, 11]]
    write(tmp_path, tokenizer_config={"tokenize_chinese_chars": False})
    assert load_tokenizer(tmp_path).encode(text) == [[6, 1, 11]]
    for config in (
        {"cls_token": "[SEP]"},
        {"do_basic_tokenize": False},
        {"never_split": ["a"]},
        {"do_lower_case": "no"},
    ):
        write(tmp_path, tokenizer_config=config)
        with pytest.raises(UserError, match=next(iter(config))):
            load_tokenizer(tmp_path)
    write(tmp_path, tokenizer_config={}, added_tokens={TOY: 12})
    with pytest.raises(UserError, match=TOY):
        load_tokenizer(tmp_path)


def test_openclips_cleanings_are_options_and_are_saved(tokenizer, tmp_path):
    text = "  Hello_World,  it&amp;amp;'s Ａ "
    assert {name: clean(text) for name, clean in CLEANINGS.items()} == {
        "lower": "hello_world, it&'s a",
        "whitespace": "Hello_World, it&'s A",
        "canonicalize": "hello world its a",
    }
    tokenizer.save(tmp_path / "tokenizer.json")
    other = load_tokenizer(tmp_path, clean="canonicalize")
    assert other.encode([text]) == tokenizer.encode(["hello world its a"])
    other.save(tmp_path / "tokenizer.json")
    assert load_tokenizer(tmp_path).encode([text]) == other.encode([text])
    with pytest.raises(UserError, match="clean is 'upper'"):
        load_tokenizer(tmp_path, clean="upper")
    with pytest.raises(UserError, match="strip_sep_token"):
        load_tokenizer(tmp_path, strip_sep_token=True)

    words = WordPieceTokenizer(WORDS, context_length=5, clean="canonicalize", strip_sep_token=True)
    words.save(tmp_path / "words.json")
    for one in (words, load_tokenizer(tmp_path / "words.json")):
        assert one("a_b!").tolist() == [[2, 6, 1, 0, 0]]
        assert one.decode(one("a a")[0]) == "a a"


def test_a_packed_file_that_would_fill_the_memory_is_refused(tmp_path):
    (tmp_path / "merges.gz").write_bytes(gzip.compress(b"\n" * (65 * 2**20), 1))
    with pytest.raises(UserError, match="holds more than"):
        load_tokenizer(tmp_path / "merges.gz")
    (tmp_path / "merges.gz").write_bytes(gzip.compress(b"a b\n" * 99)[:40] + b"\x00" * 40)
    with pytest.raises(UserError, match=r"merges\.gz"):
        load_tokenizer(tmp_path / "merges.gz")


@pytest.mark.parity
def test_transformers_reads_the_same_files_alike(tokenizer, folder, tmp_path_factory):
    transformers = pytest.importorskip("transformers")
    specials = {"bos_token": SOT, "eos_token": EOT, "unk_token": EOT, "pad_token": EOT}
    write(folder, tokenizer_config=specials, special_tokens_map=specials | {"pad_token": "!"})
    theirs = transformers.CLIPTokenizer.from_pretrained(folder)
    theirs.add_tokens([TOY, "<long one>", transformers.AddedToken("wort", single_word=True)])
    theirs.add_tokens(["<S1>"], special_tokens=True)
    saved = tmp_path_factory.mktemp("saved")
    theirs.save_pretrained(saved)
    texts = [f"a {TOY} red", f"{TOY}{TOY}x", "A <LONG ONE>.", "wort worte wort.", "<S1> <s1>", "a small", ""]
    wanted = [theirs(text, padding="max_length", max_length=24)["input_ids"] for text in texts]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(load_tokenizer(saved, context_length=24)(texts), wanted)


def test_openclip_cleans_alike():
    """What `open_clip.tokenizer.get_clean_fn` of open_clip 3.3.0 gives (it can't be installed beside our torch)."""
    texts = ["Hello, World! it's_a", "a &lt;b&gt; &amp;amp; c", " x\t y\n", "ÜBER 'quoted' \"text\"", "café ﬁ …"]
    theirs = {
        "lower": ["hello, world! it's_a", "a <b> & c", "x y", "über 'quoted' \"text\"", "café fi …"],
        "whitespace": ["Hello, World! it's_a", "a <b> & c", "x y", "ÜBER 'quoted' \"text\"", "café fi …"],
        "canonicalize": ["hello world its a", "a b c", "x y", "über quoted text", "café fi …"],
    }
    assert {name: [clean(text) for text in texts] for name, clean in CLEANINGS.items()} == theirs


def test_fields_that_say_nothing_are_taken(folder):
    """transformers writes `extra_special_tokens` as an object of names, empty or not, and some fields as null."""
    said = {"extra_special_tokens": {}, "chat_idea": None, "vocab_file": None, "additional_special_tokens": None}
    assert load_tokenizer(write(folder, tokenizer_config=said))(["a b"]).shape == (1, 77)
    write(folder, tokenizer_config={"extra_special_tokens": {"end": EOT}})
    assert load_tokenizer(folder)(["a b"]).shape == (1, 77)
    for given in ({"image": "<image>"}, "word", 3):
        write(folder, tokenizer_config={"extra_special_tokens": given})
        with pytest.raises(UserError, match=r"<image>|extra_special_tokens is"):
            load_tokenizer(folder)


def test_the_file_at_fault_is_named(folder):
    write(folder, special_tokens_map={"pad_token": EOT})
    for name, value in (("padding_side", "left"), ("do_lower_case", False), ("model_max_length", "x"), ("idea", 1)):
        write(folder, tokenizer_config={name: value})
        with pytest.raises(UserError, match=f"tokenizer_config.json: .*{name}"):
            load_tokenizer(folder)


def test_headers_and_ends_of_merges(folder):
    path = folder / "merges.txt"
    expected, (header, *lines) = load_tokenizer(folder)(["a cat, a dog"]), path.read_text().splitlines()
    assert header == "#version: 0.2"
    for first in ("\ufeff#version: 0.2", '"bpe_simple_vocab_16e6.txt#version: 0.2', "#version: 0.1 - Trained by x"):
        for end in ("\n", "\r\n", "\n\n"):
            path.write_bytes(end.join([first, *lines, ""]).encode())
            np.testing.assert_array_equal(load_tokenizer(folder)(["a cat, a dog"]), expected)
    path.write_text("\n")
    with pytest.raises(UserError, match=r"merges\.txt is empty"):
        load_tokenizer(folder)
