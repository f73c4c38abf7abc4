"""Towers that were trained alone: read under their own names, and a task that starts from them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from clip_jax import UserError, preset
from clip_jax.task import StartedTask
from clip_jax.weights.rules import expected, export, renamed
from clip_jax.weights.towers import TOWERS, load_tower

CONFIG = preset("tiny_resnet_bert")
SHAPES = {name: leaf.shape for name, leaf in expected(CONFIG).items()}


def published(tower, prefix=""):
    """(our flat variables, the same as torchvision or Hugging Face name them)."""
    _, table, projection, _ = TOWERS[tower]
    rng = np.random.default_rng(0)
    ours = {
        name: rng.standard_normal(shape).astype(np.float32)
        for name, shape in SHAPES.items()
        if f"{tower}/" in name and f"{tower}/{projection}" not in name
    }
    return ours, export(ours, renamed(table, ours=f"{tower}/", theirs=prefix))


def assert_same(found, ours):
    assert found.keys() == ours.keys()
    for name, array in ours.items():
        np.testing.assert_array_equal(found[name], array)


def test_torchvisions_resnet(tmp_path):
    ours, theirs = published("visual")
    assert {"conv1.weight", "bn1.running_var", "layer2.0.downsample.0.weight", "layer4.0.conv3.weight"} <= theirs.keys()
    classifier = {"fc.weight": np.zeros((10, 128), np.float32), "bn1.num_batches_tracked": np.zeros((), np.int64)}
    save_file(theirs | classifier, tmp_path / "resnet.safetensors")
    assert_same(load_tower(tmp_path / "resnet.safetensors", CONFIG, "visual"), ours)


@pytest.mark.parametrize("prefix", ["", "bert.", "module.model.bert."])
def test_bert_as_released(tmp_path, prefix):
    """With TensorFlow's names for the norms, and the heads of its pre-training."""
    ours, theirs = published("text", prefix)
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): array
        for name, array in theirs.items()
    }
    assert f"{prefix}encoder.layer.1.output.LayerNorm.gamma" in old
    save_file(old | {"cls.predictions.bias": np.zeros(640, np.float32)}, tmp_path / "bert.safetensors")
    assert_same(load_tower(tmp_path / "bert.safetensors", CONFIG, "text"), ours)


def test_what_does_not_fit_is_refused(tmp_path):
    _, theirs = published("text")
    del theirs["pooler.dense.bias"]
    theirs["embeddings.word_embeddings.weight"] = np.zeros((30522, 16), np.float32)
    save_file(theirs, tmp_path / "bert.safetensors")
    with pytest.raises(UserError, match=r"missing: pooler\.dense\.bias; wrong shape: .*\[30522, 16\], not \[640, 16\]"):
        load_tower(tmp_path / "bert.safetensors", CONFIG, "text")
    with pytest.raises(UserError, match="could start a BertConfig, the model has a TextConfig"):
        load_tower(tmp_path / "bert.safetensors", preset("tiny"), "text")
    with pytest.raises(UserError, match="cannot read weights from"):
        load_tower(tmp_path / "nothing", CONFIG, "visual")


def test_a_task_starts_from_what_is_given_and_draws_the_rest():
    class Drawn:
        def init(self, key):
            params = {"text": {"a": jax.random.normal(key, (3,)), "b": jnp.zeros(2)}}
            return params, {"batch_stats": {"visual": {"mean": jnp.zeros(2)}}}

    given = {"text/b": np.float32([1, 2]), "batch_stats/visual/mean": np.float32([3, 4])}
    params, model_state = jax.jit(StartedTask(Drawn(), given).init)(jax.random.key(0))
    drawn, _ = Drawn().init(jax.random.key(0))
    np.testing.assert_array_equal(params["text"]["a"], drawn["text"]["a"])
    np.testing.assert_array_equal(params["text"]["b"], [1, 2])
    np.testing.assert_array_equal(model_state["batch_stats"]["visual"]["mean"], [3, 4])
