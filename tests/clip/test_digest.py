import json
import logging
import random
import shutil

import pytest

import clip_jax
from clip_jax.errors import UserError
from clip_jax.weights.digest import check_digest, digests, file_digest, read_digests
from clip_jax.weights.native import load_params

FILES = ("weights.safetensors", "tokenizer.json")


def flip(path, bit):
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


@pytest.fixture
def saved(tiny, tiny_variables, tokenizer, tmp_path):
    clip_jax.save(tmp_path / "clip", tiny, tiny_variables, tokenizer)
    return tmp_path / "clip"


def test_the_config_holds_the_digests_of_the_files_beside_it(saved):
    config = json.loads((saved / "config.json").read_text())
    assert config["digests"] == {name: file_digest(saved / name) for name in FILES} == digests(saved, FILES)
    assert clip_jax.load(saved).model.config == clip_jax.load(saved, config=saved / "config.json").model.config


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_anywhere_is_noticed(saved, name):
    """The file is read as it is loaded, without building the model each time; twice the whole of it."""
    path, digest = saved / name, json.loads((saved / "config.json").read_text())["digests"][name]
    places = random.Random(0).sample(range(8 * path.stat().st_size), 100)
    for place in places:
        flip(path, place)
        with pytest.raises(UserError) as caught:
            load_params(path, digest=digest) if name == FILES[0] else check_digest(path, digest)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
        flip(path, place)
    for place in places[:1]:
        flip(path, place)
        with pytest.raises(UserError, match=name):
            clip_jax.load(saved)


def test_a_directory_without_digests_loads_and_says_so_at_debug(saved, caplog):
    config = json.loads((saved / "config.json").read_text())
    del config["digests"]
    (saved / "config.json").write_text(json.dumps(config))
    with caplog.at_level(logging.DEBUG, "clip_jax"):
        clip_jax.load(saved)
    assert "has no digest" in caplog.text
    assert all(record.levelno == logging.DEBUG for record in caplog.records if record.name.startswith("clip_jax"))


def test_weights_of_another_run_are_noticed(saved, tiny, tiny_variables, tokenizer, tmp_path):
    clip_jax.save(tmp_path / "half", tiny, tiny_variables, tokenizer, dtype="float16")
    shutil.copy(tmp_path / "half" / FILES[0], saved / FILES[0])
    with pytest.raises(UserError, match="not the file that was saved"):
        clip_jax.load(saved)


@pytest.mark.parametrize(
    "value",
    [5, [], {}, "ab", {"weights.safetensors": 5}, {"../x": "0" * 64}, {"weights.safetensors": "G" * 64}, {"a": {}}],
)
def test_what_is_no_digest_is_refused_by_the_fields_name(value):
    with pytest.raises(UserError, match=r"^digests\b"):
        read_digests(value, "digests", FILES)
    assert read_digests(None, "digests", FILES) == {}
