import dataclasses
import json

import pytest

from clip_jax import CLIPConfig, PreprocessConfig, TextConfig, UserError, ViTConfig
from clip_jax.presets import PRESETS, preset

VIT = {"width": 32, "layers": 1, "heads": 2, "image_size": 32, "patch_size": 8}
TEXT = {"width": 32, "layers": 1, "heads": 2, "vocab_size": 600, "context_length": 8}


@pytest.mark.parametrize("name", PRESETS)
def test_survives_json(name):
    config = PRESETS[name].config
    assert CLIPConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ViTConfig(**VIT | {"patch_size": 7}), ["image_size 32", "patch_size 7"]),
        (lambda: ViTConfig(**VIT | {"heads": 5}), ["heads 5", "width 32"]),
        (lambda: ViTConfig(**VIT | {"layers": 0}), ["layers", "0"]),
        (lambda: ViTConfig(**VIT | {"activation": "relu6"}), ["relu6", "quick_gelu"]),
        (lambda: TextConfig(**TEXT | {"eos_id": 600}), ["eos_id 600", "vocab_size 600"]),
        (lambda: PreprocessConfig(resize="stretch"), ["stretch", "squash"]),
        (lambda: PreprocessConfig(std=(1.0, 0.0, 1.0)), ["std"]),
        (lambda: ViTConfig(**VIT | {"ln_eps": 1e9}), ["ln_eps", "up to 1"]),
        (lambda: PreprocessConfig(std=(1.0, 1e9, 1.0)), ["std", "1000"]),
        (lambda: PreprocessConfig(mean=(0.0, -1e300, 0.0)), ["mean", "1000"]),
        (lambda: preset("ViT-B/31"), ["ViT-B/31", "ViT-B/32"]),
    ],
)
def test_refuses_in_one_line_with_the_values(make, words):
    with pytest.raises(UserError) as error:
        make()
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in words)


def _without(data, *path):
    data = json.loads(json.dumps(data))
    node = data
    for name in path[:-1]:
        node = node[name]
    del node[path[-1]]
    return data


def test_a_dict_must_hold_exactly_the_fields(tiny):
    data = tiny.to_dict()
    for broken, word in [
        (_without(data, "vision", "width"), "width"),
        (_without(data, "vision", "type"), "vision.type"),
        (_without(data, "embed_dim"), "embed_dim"),
        (data | {"depth": 3}, "depth"),
        (data | {"text": data["text"] | {"type": "LSTM"}}, "LSTM"),
    ]:
        with pytest.raises(UserError, match=word):
            CLIPConfig.from_dict(broken)


def test_frozen(tiny):
    with pytest.raises(dataclasses.FrozenInstanceError):
        tiny.embed_dim = 3


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"vision": [1]}, "vision"),
        ({"text": "x"}, "text"),
        ({"text": {"type": ["TextConfig"]}}, r"text\.type"),
        ({"preprocess": [1]}, "preprocess is"),
        ({"preprocess": {"mean": 3}}, r"PreprocessConfig\.mean"),
        ({"embed_dim": 10**25}, "embed_dim"),
    ],
)
def test_a_config_of_other_shapes_is_refused(tiny, change, word):
    with pytest.raises(UserError, match=word):
        CLIPConfig.from_dict(tiny.to_dict() | change)


@pytest.mark.parametrize("change", [{"layers": 10**7}, {"width": 2**40}, {"image_size": 2**14, "patch_size": 1}])
def test_sizes_that_would_take_all_memory_are_refused(tiny, change):
    data = tiny.to_dict()
    with pytest.raises(UserError, match=r"at most"):
        CLIPConfig.from_dict(data | {"vision": data["vision"] | change})
