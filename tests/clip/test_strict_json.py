import pytest

import clip_jax
from clip_jax.errors import UserError
from clip_jax.weights.strict_json import parse


def test_one_value_per_name():
    assert parse('{"a": {"b": 1}, "c": [{"b": 2}, {"b": 3}]}') == {"a": {"b": 1}, "c": [{"b": 2}, {"b": 3}]}
    with pytest.raises(ValueError, match="'b' stands in it twice"):
        parse('{"a": {"b": 1, "c": 2, "b": 1}}')
    with pytest.raises(ValueError, match="nested too deeply"):
        parse('{"a":' * 100_000)


def test_a_config_that_says_two_things_is_refused(tiny, tiny_variables, tokenizer, tmp_path):
    clip_jax.save(tmp_path, tiny, tiny_variables, tokenizer)
    text = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(text.replace("{", '{"embed_dim": 7,', 1))
    with pytest.raises(UserError, match="config.json.*'embed_dim' stands in it twice"):
        clip_jax.load(tmp_path)
