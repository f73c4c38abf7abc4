import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from clip_jax import CLIP, CLIPConfig, CLIPTask, PlainResNetConfig, ResNetConfig, TextConfig, UserError, init
from clip_jax.towers.resnet import BatchNorm

TEXT = TextConfig(vocab_size=600, context_length=8, width=16, layers=1, heads=2)
CONFIG = CLIPConfig(embed_dim=8, vision=ResNetConfig(image_size=32, layers=(1, 1, 1, 1), width=4, heads=2), text=TEXT)
PLAIN = dataclasses.replace(CONFIG, vision=PlainResNetConfig(image_size=32, layers=(1, 1, 1, 1), width=4))


def batch(seed=0, size=8):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, 500, (size, 8)).astype(np.int32)
    tokens[:, -1] = 599
    return {"image": rng.integers(0, 256, (size, 32, 32, 3), np.uint8), "tokens": tokens}


def test_batch_norm_normalises_the_batch_and_remembers_it():
    x = 3 + 2 * jax.random.normal(jax.random.key(0), (16, 5, 5, 4))
    module = BatchNorm(1e-5)
    variables = module.init(jax.random.key(1), x, train=False)
    y, changed = module.apply(variables, x, train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(y.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(y.std((0, 1, 2)), 1, atol=1e-4)
    exact = np.asarray(x, np.float64).reshape(-1, 4)
    np.testing.assert_allclose(changed["batch_stats"]["mean"], 0.1 * exact.mean(0), rtol=1e-5)
    np.testing.assert_allclose(changed["batch_stats"]["var"], 0.9 + 0.1 * exact.var(0, ddof=1), rtol=1e-5)

    stats = {"params": variables["params"], "batch_stats": {"mean": exact.mean(0), "var": exact.var(0)}}
    np.testing.assert_allclose(module.apply(stats, x, train=False), y, atol=1e-5)
    assert module.apply(variables, x.astype(jnp.bfloat16), train=False).dtype == jnp.bfloat16


@pytest.mark.parity
def test_batch_norm_is_torchs():
    torch = pytest.importorskip("torch")
    theirs = torch.nn.BatchNorm2d(4)
    module, x = BatchNorm(1e-5), np.random.default_rng(0).normal(2, 3, (6, 3, 3, 4)).astype(np.float32)
    variables = module.init(jax.random.key(0), x, train=False)
    for _ in range(3):
        expected = theirs(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).detach().numpy().transpose(0, 2, 3, 1)
        y, changed = module.apply(variables, x, train=True, mutable=["batch_stats"])
        variables = {**variables, **changed}
        np.testing.assert_allclose(y, expected, atol=2e-6)
        x = x[:, ::-1] + 1
    np.testing.assert_allclose(variables["batch_stats"]["mean"], theirs.running_mean, rtol=1e-5)
    np.testing.assert_allclose(variables["batch_stats"]["var"], theirs.running_var, rtol=1e-5)


@pytest.mark.parametrize("config", [CONFIG, PLAIN], ids=["modified", "plain"])
@pytest.mark.slow
def test_statistics_are_trained_and_then_used(config):
    task = CLIPTask(config)
    params, model_state = jax.jit(task.init)(jax.random.key(0))
    loss = jax.jit(task.loss, static_argnames="train")
    data = batch()
    first, (_, changed) = loss(params, model_state, data, jax.random.key(1), train=True)
    assert jax.tree.structure(changed) == jax.tree.structure(model_state)
    moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), changed, model_state)
    assert all(jax.tree.leaves(moved))
    second, (_, same) = loss(params, changed, data, jax.random.key(1), train=False)
    jax.tree.map(np.testing.assert_array_equal, same, changed)
    assert float(first) != float(second)


@pytest.mark.slow
def test_a_sharded_batch_has_the_statistics_of_the_whole():
    task, data = CLIPTask(CONFIG), batch(size=16)
    params, model_state = jax.jit(task.init)(jax.random.key(0))
    step = jax.jit(jax.value_and_grad(task.loss, has_aux=True), static_argnames="train")
    mesh = Mesh(np.asarray(jax.devices()), ("data",))
    everywhere, split = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))
    results = []
    for whole, parts in ((jax.devices()[0], jax.devices()[0]), (everywhere, split)):
        arguments = jax.device_put((params, model_state), whole)
        results.append(step(*arguments, jax.device_put(data, parts), jax.random.key(1), train=True))
    ((one, (_, state)), grads), ((many, (_, sharded_state)), sharded_grads) = results
    assert float(one) == pytest.approx(float(many), rel=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), state, sharded_state)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4), grads, sharded_grads)


@pytest.mark.slow
def test_learns_a_batch_by_heart():
    task, data = CLIPTask(PLAIN), batch()
    params, model_state = jax.jit(task.init)(jax.random.key(0))
    tx = optax.adam(3e-3)
    opt_state = tx.init(params)

    @jax.jit
    def step(params, model_state, opt_state):
        gradient = jax.value_and_grad(task.loss, has_aux=True)
        (_, (metrics, model_state)), grads = gradient(params, model_state, data, jax.random.key(1), train=True)
        updates, opt_state = tx.update(grads, opt_state)
        return optax.apply_updates(params, updates), model_state, opt_state, metrics

    for _ in range(40):
        params, model_state, opt_state, metrics = step(params, model_state, opt_state)
    assert float(metrics["accuracy"]) > 0.9


def test_what_a_resnet_has_not_is_refused():
    with pytest.raises(UserError, match="no patches"):
        CLIPTask(CONFIG, patch_drop_prob=0.5)
    variables = jax.eval_shape(lambda key: init(CONFIG, key), jax.random.key(0))
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    with pytest.raises(UserError, match="no patches"):
        jax.eval_shape(
            lambda v, x: CLIP(CONFIG).apply(v, x, jnp.zeros((1, 2), int), method="encode_image"), variables, images
        )
    with pytest.raises(UserError, match="multiple of 32"):
        ResNetConfig(image_size=40, layers=(1, 1, 1, 1), width=4, heads=2)
    with pytest.raises(UserError, match="it must be 4 integers"):
        PlainResNetConfig(layers=(1, 1, 1))
