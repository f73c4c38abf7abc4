import copy
import dataclasses
import json
import pickle
import subprocess
import sys

import jax
import numpy as np
import pytest

import clip_jax
from clip_jax import CLIP, Tokenizer, UserError
from clip_jax.images import Preprocess


@pytest.fixture
def directory(tiny, tiny_variables, tokenizer, tmp_path):
    clip_jax.save(tmp_path / "clip", CLIP(tiny), tiny_variables, tokenizer)
    return tmp_path / "clip"


@pytest.mark.slow
def test_loaded_is_what_was_saved(directory, tiny, tiny_variables, tokenizer, images, captions):
    model, variables, tokenize, preprocess = clip_jax.load(directory)
    assert model.config == tiny
    jax.tree.map(np.testing.assert_array_equal, variables, tiny_variables)
    np.testing.assert_array_equal(tokenize(captions), tokenizer(captions))
    out = model.apply(variables, preprocess(images), tokenize(captions))
    assert out.image_features.shape == (4, tiny.embed_dim)
    assert sorted(p.name for p in directory.iterdir()) == ["config.json", "tokenizer.json", "weights.safetensors"]


def test_half_precision_halves_the_file(directory, tiny, tiny_variables, tokenizer, tmp_path):
    clip_jax.save(tmp_path / "half", tiny, tiny_variables, tokenizer, dtype=np.float16)
    sizes = [(d / "weights.safetensors").stat().st_size for d in (directory, tmp_path / "half")]
    assert sizes[1] < 0.6 * sizes[0]
    variables = clip_jax.load(tmp_path / "half").variables
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(variables))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3), variables, tiny_variables)


def change(directory, **fields):
    data = json.loads((directory / "config.json").read_text())
    for path, value in fields.items():
        node, (*parents, name) = data, path.split("__")
        for parent in parents:
            node = node[parent]
        node[name] = value
    (directory / "config.json").write_text(json.dumps(data))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"embed_dim": 8}, ["visual/proj is [32, 16], not [32, 8]", "text/text_projection"]),
        ({"vision__layers": 3}, ["missing", "visual/transformer/resblocks_2"]),
        ({"text__layers": 1}, ["unused", "text/transformer/resblocks_1"]),
        ({"text__context_length": 20}, ["positional_embedding is [24, 32], not [20, 32]"]),
        ({"text__pad_id": 3}, ["pads with 0", "pad_id 3"]),
        ({"text__eos_id": 3}, ["eos_id 3"]),
        ({"text__depth": 3}, ["unknown fields ['depth']"]),
    ],
)
def test_a_config_of_another_model_is_refused(directory, fields, words):
    change(directory, **fields)
    with pytest.raises(UserError) as error:
        clip_jax.load(directory)
    assert all(word in str(error.value) for word in words)
    assert "\n" not in str(error.value)


def test_a_tokenizer_of_another_model_is_refused(tiny, tiny_variables, captions, tmp_path):
    longer = clip_jax.train_bpe(captions, 640, context_length=30)
    with pytest.raises(UserError, match="context_length 30, the model 24"):
        clip_jax.save(tmp_path / "clip", tiny, tiny_variables, longer)
    assert not list(tmp_path.iterdir())


def test_arguments_of_no_use_are_refused(directory):
    for source in (None, 3, [], b"x"):
        with pytest.raises(UserError, match="source is"):
            clip_jax.load(source)
    for options, words in (
        ({"config": 3}, "config= is 3"),
        ({"config": directory / "no.json"}, "no.json: there is no such file"),
        ({"part": "ema"}, "is one model: part='ema'"),
    ):
        with pytest.raises(UserError, match=words):
            clip_jax.load(directory, **options)
    with pytest.raises(UserError, match="there is no a"):
        clip_jax.load("a" * 5000)


def test_one_file_of_a_directory_stands_for_it(directory, captions):
    expected = clip_jax.load(directory)
    for name in ("weights.safetensors", "config.json"):
        found = clip_jax.load(directory / name)
        assert found.model.config == expected.model.config
        np.testing.assert_array_equal(found.tokenize(captions), expected.tokenize(captions))


def test_a_platform_that_is_not_here_is_named(directory, monkeypatch):
    def fail():
        raise AssertionError

    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    monkeypatch.setattr(jax, "devices", fail)
    with pytest.raises(UserError, match="JAX_PLATFORMS: no device of 'cuda'"):
        clip_jax.load(directory)


def test_what_is_no_clip_is_refused(directory, tmp_path):
    with pytest.raises(UserError, match="holds no CLIP"):
        clip_jax.load(tmp_path)
    for text, word in (("{", "not JSON"), ("[]", "not a CLIP config")):
        (directory / "config.json").write_text(text)
        with pytest.raises(UserError, match=word):
            clip_jax.load(directory)


def test_importing_pulls_in_no_training_machinery():
    heavy = "tensorflow", "tensorflow_datasets", "grain", "orbax", "torch", "transformers"
    code = f"import clip_jax, sys; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", np.float16])
def test_half_precision_is_kept_and_computed(directory, images, captions, dtype):
    """Matrices are kept in it and multiplied in it; norms, biases, scales and features of unit norm are float32."""
    whole, half = clip_jax.load(directory), clip_jax.load(directory, dtype=dtype)
    assert half.model.dtype == dtype
    for leaf in jax.tree.leaves(half.variables):
        assert leaf.dtype == (dtype if leaf.ndim > 1 else np.float32)
    image = half.model.apply(half.variables, half.preprocess(images), method="encode_image")
    assert image.dtype == dtype
    apply = [(c.model.apply)(c.variables, c.preprocess(images), c.tokenize(captions)) for c in (whole, half)]
    assert apply[1].image_features.dtype == apply[1].logit_scale.dtype == np.float32
    for name in ("image_features", "text_features"):
        assert (getattr(apply[0], name) * getattr(apply[1], name)).sum(-1).min() > 0.999


def test_what_a_dtype_cannot_hold_is_refused(tiny, tiny_variables, tokenizer, tmp_path):
    variables = jax.tree.map(np.array, tiny_variables)
    variables["params"]["visual"]["proj"][0, 0] = 1e6
    clip_jax.save(tmp_path, tiny, variables, tokenizer)
    clip_jax.load(tmp_path, dtype="bfloat16")
    with pytest.raises(UserError, match="visual/proj is not finite in float16"):
        clip_jax.load(tmp_path, dtype="float16")
    for dtype in ("int8", "half", 3):
        with pytest.raises(UserError, match="dtype is"):
            clip_jax.load(tmp_path, dtype=dtype)


def test_of_one_tower_the_other_half_says_what_is_missing(tiny, tiny_variables, tokenizer, tmp_path):
    for tower, inner, missing in (("vision", "visual", "text"), ("text", "text", "vision")):
        config = dataclasses.replace(tiny, **{missing: None})
        params = {"params": {inner: tiny_variables["params"][inner]}}
        clip_jax.save(tmp_path / tower, config, params, tokenizer)
        loaded = clip_jax.load(tmp_path / tower)
        assert isinstance(loaded.tokenize, Tokenizer)
        assert isinstance(loaded.preprocess, Preprocess)
        part = loaded.tokenize if missing == "text" else loaded.preprocess
        for use in (lambda: part(["a"]), lambda: part.one, lambda: part.vocab_size, lambda: part.save("x.json")):  # noqa: B023
            with pytest.raises(UserError, match=r"no (text|image) tower"):
                use()
        assert type(copy.deepcopy(part)) is type(pickle.loads(pickle.dumps(part))) is type(part)
