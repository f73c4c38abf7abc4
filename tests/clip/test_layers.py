import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax.config import TransformerConfig
from clip_jax.towers.attention import empty_caches
from clip_jax.towers.layers import (
    ACTIVATIONS,
    Attention,
    LayerNorm,
    Transformer,
    scaled_init,
    stack_layers,
    torch_init,
    unstack_layers,
)

CONFIG = TransformerConfig(width=32, layers=3, heads=4)


@pytest.fixture(scope="module")
def stack():
    x = jax.random.normal(jax.random.key(0), (2, 5, 32))
    module = Transformer(CONFIG, scaled_init(CONFIG))
    return x, module, jax.jit(module.init)(jax.random.key(1), x)["params"]


def test_activations_are_the_published_functions():
    x = np.linspace(-4, 4, 101)
    erf = np.array([0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in x])
    tanh = 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    for name, expected in [("gelu", erf), ("gelu_tanh", tanh), ("quick_gelu", x / (1 + np.exp(-1.702 * x)))]:
        np.testing.assert_allclose(ACTIVATIONS[name](jnp.asarray(x, jnp.float32)), expected, atol=2e-6)


def test_layer_norm_is_linens_and_keeps_its_digits_far_from_zero():
    x = 1000 + jax.random.normal(jax.random.key(0), (4, 64))
    module = LayerNorm(1e-5)
    y = module.apply(module.init(jax.random.key(0), x), x)
    exact = np.asarray(x, np.float64)
    exact = (exact - exact.mean(-1, keepdims=True)) / np.sqrt(exact.var(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(y, exact, atol=3e-4)
    assert module.apply({"params": {"scale": jnp.ones(64), "bias": jnp.zeros(64)}}, x.astype(jnp.bfloat16)).dtype == (
        jnp.bfloat16
    )


def test_attention_is_linens():
    x = jax.random.normal(jax.random.key(0), (2, 5, 32))
    mask = jnp.tril(jnp.ones((5, 5), bool))
    ours = Attention(CONFIG, torch_init(CONFIG))
    params = ours.init(jax.random.key(1), x)["params"]
    q, k, v = jnp.split(params["in_proj"]["kernel"], 3, axis=1)
    heads = {"kernel": None, "bias": jnp.zeros((4, 8))}
    theirs = {n: heads | {"kernel": w.reshape(32, 4, 8)} for n, w in (("query", q), ("key", k), ("value", v))}
    theirs["out"] = {"kernel": params["out_proj"]["kernel"].reshape(4, 8, 32), "bias": jnp.zeros(32)}
    expected = nn.MultiHeadDotProductAttention(num_heads=4).apply({"params": theirs}, x, x, mask=mask)
    np.testing.assert_allclose(ours.apply({"params": params}, x, mask), expected, atol=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("remat", [False, True])
def test_scan_is_the_loop(stack, remat):
    x, module, params = stack
    scanned = Transformer(dataclasses.replace(CONFIG, scan_layers=True, remat=remat), scaled_init(CONFIG))
    shapes = jax.eval_shape(scanned.init, jax.random.key(0), x)["params"]
    stacked = stack_layers(params)
    assert jax.tree.map(jnp.shape, stacked) == jax.tree.map(lambda s: s.shape, shapes)

    def gradient(module, params):
        return jax.jit(jax.grad(lambda p: jnp.square(module.apply({"params": p}, x)).sum()))(params)

    outputs = [jax.jit(m.apply)({"params": p}, x) for m, p in ((scanned, stacked), (module, params))]
    np.testing.assert_allclose(*outputs, atol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
        unstack_layers(gradient(scanned, stacked)),
        gradient(module, params),
    )


@pytest.mark.slow
@pytest.mark.parametrize("scan_layers", [False, True])
def test_read_piece_by_piece_is_read_at_once(stack, scan_layers):
    """Three tokens and then one by one, at places that are data of the program."""
    x, module, params = stack
    if scan_layers:
        module = Transformer(dataclasses.replace(CONFIG, scan_layers=True), scaled_init(CONFIG))
        params = stack_layers(params)
    whole = jax.jit(module.apply)({"params": params}, x, jnp.tril(jnp.ones((5, 5), bool)))

    @jax.jit
    def read(tokens, caches, start):
        mask = jnp.arange(5) <= start + jnp.arange(tokens.shape[1])[:, None]
        return module.apply({"params": params}, tokens, caches, mask, start, method="decode")

    caches, pieces = empty_caches(module.config, 2, 5), []
    for start, stop in ((0, 3), (3, 4), (4, 5)):
        states, caches = read(x[:, start:stop], caches, start)
        pieces.append(states)
    np.testing.assert_allclose(np.concatenate(pieces, axis=1), whole, atol=1e-5)


def test_stacking_is_undone(stack):
    _, _, params = stack
    jax.tree.map(np.testing.assert_array_equal, unstack_layers(stack_layers(params)), params)


@pytest.mark.slow
def test_initialisation_is_openais():
    config = TransformerConfig(width=128, layers=2, heads=2)
    x = jnp.zeros((1, 2, 128))
    text = jax.jit(Transformer(config, scaled_init(config)).init)(jax.random.key(0), x)["params"]["resblocks_1"]
    for std, kernel in [
        (128**-0.5, text["attn"]["in_proj"]["kernel"]),
        (128**-0.5 * 4**-0.5, text["attn"]["out_proj"]["kernel"]),
        (256**-0.5, text["mlp"]["c_fc"]["kernel"]),
        (128**-0.5 * 4**-0.5, text["mlp"]["c_proj"]["kernel"]),
    ]:
        assert float(kernel.std()) == pytest.approx(std, rel=0.03)
    vision = jax.jit(Transformer(config, torch_init(config)).init)(jax.random.key(0), x)["params"]["resblocks_1"]
    for bound, leaf in [
        (math.sqrt(6 / (4 * 128)), vision["attn"]["in_proj"]["kernel"]),
        (128**-0.5, vision["attn"]["out_proj"]["kernel"]),
        (128**-0.5, vision["mlp"]["c_fc"]["kernel"]),
        (128**-0.5, vision["mlp"]["c_fc"]["bias"]),
        (512**-0.5, vision["mlp"]["c_proj"]["kernel"]),
        (512**-0.5, text["mlp"]["c_proj"]["bias"]),
    ]:
        assert 0.9 * bound < float(jnp.abs(leaf).max()) <= bound
    assert not vision["attn"]["in_proj"]["bias"].any()
