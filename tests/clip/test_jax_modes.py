"""JAX settings of a user's program: no implicit promotion of dtypes or ranks, float64, NaN and Inf as errors."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import clip_jax
from clip_jax import (
    BertConfig,
    CLIPConfig,
    EVA02Config,
    PlainResNetConfig,
    ResNetConfig,
    TextConfig,
    ViTConfig,
)
from clip_jax.uses.probe import fit_probe
from clip_jax.uses.retrieval import nearest, recall
from clip_jax.uses.zero_shot import accuracy, top_k

pytestmark = pytest.mark.slow  # every tower is traced under every setting

TEXT = TextConfig(vocab_size=40, context_length=6, width=16, layers=1, heads=2)
SIGLIP = TextConfig(vocab_size=40, context_length=6, width=16, layers=1, heads=2, attention="full", pool="last")
BERT = BertConfig(vocab_size=40, context_length=6, width=16, layers=1, heads=2, max_positions=12)
VIT = {"image_size": 16, "patch_size": 8, "width": 16, "layers": 1, "heads": 2}
TOWERS = {
    "vit": (ViTConfig(**VIT), TEXT),
    "vit, sinusoids, scanned": (
        ViTConfig(**VIT, positions="sinusoidal", scan_layers=True),
        TextConfig(vocab_size=40, context_length=6, width=16, layers=2, heads=2, attention="text", scan_layers=True),
    ),
    "vit with a stem": (ViTConfig(**VIT, stem=(8, 16)), TEXT),
    "siglip": (ViTConfig(**VIT, pool="map"), SIGLIP),
    "eva": (EVA02Config(**VIT), TEXT),
    "resnet": (ResNetConfig(image_size=32, layers=(1, 1, 1, 1), width=8, heads=2), BERT),
    "plain resnet": (PlainResNetConfig(image_size=32, layers=(1, 1, 1, 1), width=8), BERT),
}
MODES = {
    "strict dtypes": lambda: jax.numpy_dtype_promotion("strict"),
    "no rank promotion": lambda: jax.numpy_rank_promotion("raise"),
    "float64": lambda: jax.enable_x64(True),
    "all of them": lambda: every_mode(),
}


@contextlib.contextmanager
def every_mode():
    """Strict promotion has something to refuse only where float64 and int64 come up."""
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"), jax.enable_x64(True):
        yield


def config(name):
    vision, text = TOWERS[name]
    bias = -10.0 if name == "siglip" else None
    return CLIPConfig(embed_dim=16, vision=vision, text=text, logit_bias_init=bias)


def batch(config, rows=4):
    size = config.vision.image_size
    tokens = np.arange(rows * 6, dtype=np.int32).reshape(rows, 6) % 40
    return {"image": np.zeros((rows, size, size, 3), np.uint8), "tokens": tokens}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", TOWERS)
def test_training_is_traced_in_float32(name, mode):
    model = config(name)
    drops = 0.0 if "resnet" in name else 0.25
    task = clip_jax.CLIPTask(model, patch_drop_prob=drops, token_drop_prob=0.25 if model.text is TEXT else 0.0)

    def step(key):
        params, state = task.init(key)
        return jax.value_and_grad(lambda p: task.loss(p, state, batch(model), key, train=True), has_aux=True)(params)

    with MODES[mode]():
        found = jax.eval_shape(step, jax.random.key(0))
    dtypes = {leaf.dtype.name for leaf in jax.tree.leaves(found)}
    assert dtypes == {"float32"}


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", TOWERS)
def test_towers_are_traced_in_their_dtype(name, mode, dtype):
    model = config(name)

    def run(key):
        variables = clip_jax.init(model, key)
        given = batch(model)
        images, clip = jnp.asarray(given["image"], jnp.float32), clip_jax.CLIP(model, dtype)
        text = clip.apply(variables, given["tokens"], hidden_states=True, method="encode_text")
        return clip.apply(variables, images, hidden_states=True, method="image_states"), text.embed, text.encodings

    with MODES[mode]():
        found = jax.eval_shape(run, jax.random.key(0))
    assert found[1].dtype == dtype
    assert {leaf.dtype.name for leaf in jax.tree.leaves(found)} <= {"float32", "bfloat16"}


@contextlib.contextmanager
def not_finite_is_an_error():
    with jax.debug_nans(True), jax.debug_infs(True):
        yield


@pytest.mark.parametrize("mode", [*MODES.values(), not_finite_is_an_error], ids=[*MODES, "NaN and Inf"])
def test_losses_and_what_uses_features_give_the_same(mode):
    rng = np.random.default_rng(0)
    a, b = (np.asarray(clip_jax.unit_norm(rng.normal(size=(8, 4)).astype(np.float32))) for _ in range(2))
    labels = np.arange(8) % 2

    def everything():
        probe = fit_probe(a, labels, max_iterations=20)
        losses = [
            clip_jax.clip_loss(a, b, jnp.float32(2))[0],
            clip_jax.clip_loss(a, b, 2.0, clip_jax.same_rows(labels[:, None]))[0],
            clip_jax.sigmoid_loss(a, b, 2.0, jnp.float32(-1))[0],
            clip_jax.distillation_loss(a, b, 2.0, b, a, 3.0)[0],
        ]
        assert {loss.dtype.name for loss in losses} == {"float32"}
        found = nearest(a, b, 3, chunk=3), recall(a, b, labels, (1, 2), chunk=3), top_k(a, b, 2)
        return losses, found, accuracy(a, b, labels, (1, 2)), probe.logits(a), probe.accuracy(a, labels)

    expected = everything()
    with mode():
        found = everything()
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), found, expected)
