"""Which files of a directory are read, and what a directory is that holds no CLIP."""

import json
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import clip_jax
from clip_jax import UserError
from clip_jax.weights.find import weights_file
from clip_jax.weights.hub import is_hub_name
from tests.support.checkpoints import CONFIG, huggingface, random_variables, same_weights


def sharded(folder, shard, index):
    """The weights of a directory in two shards, with their index."""
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    where = {}
    for i, names in enumerate((list(state)[::2], list(state)[1::2]), 1):
        save_file({name: state[name] for name in names}, folder / shard.format(i))
        where |= dict.fromkeys(names, shard.format(i))
    (folder / index).write_text(json.dumps({"weight_map": where}))


@pytest.mark.parametrize(
    ("shard", "index"),
    [
        ("model-0000{}-of-00002.safetensors", "model.safetensors.index.json"),
        ("model.fp16-0000{}-of-00002.safetensors", "model.safetensors.index.fp16.json"),
        ("model-0000{}-of-00002.fp16.safetensors", "model.safetensors.fp16.index.json"),
    ],
)
def test_all_shards_are_read_of_variants_as_well(tmp_path, shard, index):
    sharded(huggingface(tmp_path), shard, index)
    same_weights(clip_jax.load(tmp_path))


def test_the_only_variant_or_the_plain_one(tmp_path):
    huggingface(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "model.fp16.safetensors")
    (tmp_path / "pytorch_model.fp16.bin").write_bytes(b"not read")
    same_weights(clip_jax.load(tmp_path))
    (tmp_path / "model.non_ema.safetensors").write_bytes(b"not read")
    with pytest.raises(UserError, match=r"2 variants .*fp16.*non_ema"):
        clip_jax.load(tmp_path)
    (tmp_path / "model.fp16.safetensors").rename(tmp_path / "model.safetensors")
    same_weights(clip_jax.load(tmp_path))


def test_shards_need_their_index(tmp_path):
    sharded(huggingface(tmp_path), "model-0000{}-of-00002.safetensors", "model.safetensors.index.json")
    (tmp_path / "model.safetensors.index.json").unlink()
    with pytest.raises(UserError, match=r"shards .* without their index"):
        clip_jax.load(tmp_path)


def test_names_are_looked_for_in_their_order(tmp_path):
    for name in ("a.safetensors", "b.bin", "b.safetensors", "b.safetensors.index.json"):
        (tmp_path / name).touch()
    assert weights_file(tmp_path, ("b.safetensors", "b.bin")).name == "b.safetensors.index.json"
    assert weights_file(tmp_path, ("b.bin", "a.safetensors")).name == "b.bin"
    assert weights_file(tmp_path, ("c.bin",)) is None


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (["modules.json", "0_CLIPModel/config.json"], ["sentence-transformers", "0_CLIPModel"]),
        (["adapter_config.json", "adapter_model.safetensors"], ["LoRA", "merge"]),
        (["model_index.json"], ["pipeline"]),
        (["model.onnx"], ["model.onnx", "ONNX"]),
        (["tf_model.h5", "config.json"], ["tf_model.h5", "HDF5"]),
        (["llama.gguf"], ["GGUF"]),
        (["saved_model.pb"], ["SavedModel"]),
        (["clip/config.json", "prior/config.json"], ["clip, prior"]),
        ([], ["holds no CLIP", "no config.json and no weights"]),
    ],
)
def test_what_a_directory_is_when_it_is_no_clip(tmp_path, files, words):
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('{"model_type": "clip"}' if name.endswith(".json") else "")
    with pytest.raises(UserError) as error:
        clip_jax.load(tmp_path)
    assert all(word in str(error.value) for word in words), error.value
    assert "\n" not in str(error.value)


def test_a_mistyped_path_is_told_as_one(tmp_path, monkeypatch):
    """It looks like a name on the hub, which is not reached, or cannot be asked."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for installed in (True, False):
        if not installed:
            monkeypatch.setitem(sys.modules, "huggingface_hub", None)
        with pytest.raises(UserError, match=f"there is no file or directory runs/shapes in {tmp_path}"):
            clip_jax.load("runs/shapes")
    assert is_hub_name("openai/clip-vit-base-patch32")
    assert not any(map(is_hub_name, ("./shapes", "../shapes", "~/shapes", "a/b/c", "runs/", "shapes")))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", np.float16])
def test_exported_in_half_precision(tmp_path, dtype):
    variables = random_variables()
    clip_jax.export(tmp_path, CONFIG, variables, dtype=dtype)
    stored = load_file(tmp_path / "model.safetensors")["text_projection.weight"]
    assert stored.dtype.itemsize == 2
    assert json.loads((tmp_path / "config.json").read_text())["torch_dtype"] == stored.dtype.name
    found = clip_jax.load(tmp_path).variables["params"]["text"]["text_projection"]
    np.testing.assert_array_equal(found, variables["params"]["text"]["text_projection"].astype(stored.dtype))


def test_what_does_not_fit_the_stored_dtype_is_refused(tmp_path):
    variables = random_variables()
    variables["params"]["text"]["text_projection"][0, 0] = 1e6
    for options, word in (({"dtype": "float16"}, r"text_projection\.weight"), ({"dtype": "int8"}, "float16")):
        with pytest.raises(UserError, match=word):
            clip_jax.export(tmp_path / "new", CONFIG, variables, **options)
    assert not (tmp_path / "new").exists()
