"""The one attention against a plain reference in float64: masks, gradients, dtypes, and what cuDNN is asked to do."""

import inspect
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import clip_jax
from clip_jax import UserError
from clip_jax.towers import attention
from clip_jax.towers.attention import KVCache, attend, cudnn_lacks, join_heads, split_heads

B, Q, S, N, K = 2, 5, 7, 3, 12


def reference(q, k, v, mask):
    """One query of one head at a time."""
    mask = np.broadcast_to(mask, (B, N, q.shape[1], k.shape[1]))
    out = np.zeros(q.shape)
    for b, i, n in itertools.product(range(B), range(q.shape[1]), range(N)):
        logits = np.array([q[b, i, n] @ k[b, s, n] / np.sqrt(q.shape[-1]) for s in range(k.shape[1])])
        if mask[b, n, i].any():
            logits = np.where(mask[b, n, i], logits, -np.inf)
        else:
            logits[:] = 0
        weights = np.exp(logits - logits.max())
        out[b, i, n] = (weights / weights.sum()) @ v[b, :, n]
    return out


def arrays(dtype=jnp.float32, queries=Q):
    keys = jax.random.split(jax.random.key(0), 3)
    return [jax.random.normal(key, (B, n, N, K), dtype) for key, n in zip(keys, (queries, S, S), strict=True)]


CAUSAL = np.tril(np.ones((S, S), bool))
PADDING = (np.arange(S) < np.array([[4], [7]]))[:, None, None]
NOTHING = np.arange(Q)[:, None] * np.ones(S) != 2  # the third row sees nothing
MASKS = {
    "none": (None, Q),
    "causal and padding": (CAUSAL & PADDING, S),
    "a row without any": (NOTHING, Q),
    "per head": (np.random.default_rng(0).random((B, N, Q, S)) < 0.6, Q),
}


@pytest.mark.parametrize("name", MASKS)
def test_it_is_the_reference(name):
    mask, queries = MASKS[name]
    given = arrays(queries=queries)
    exact = reference(*(np.asarray(x, np.float64) for x in given), True if mask is None else mask)
    np.testing.assert_allclose(attend(*given, mask), exact, atol=1e-5)


def test_so_is_its_gradient():
    """Against differences of the reference, in three directions."""
    q, k, v = arrays(queries=S)
    mask = CAUSAL & PADDING
    gradient = jax.jit(jax.grad(lambda x: jnp.square(attend(*x, mask)).sum()))((q, k, v))
    rng, exact = np.random.default_rng(1), [np.asarray(x, np.float64) for x in (q, k, v)]
    for which in range(3):
        step = rng.normal(size=exact[which].shape)
        ends = [
            np.square(reference(*(x + sign * 1e-5 * step * (i == which) for i, x in enumerate(exact)), mask)).sum()
            for sign in (1, -1)
        ]
        slope = (ends[0] - ends[1]) / 2e-5
        assert float((gradient[which] * step).sum()) == pytest.approx(slope, rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_the_softmax_of_half_precision_is_float32(dtype):
    """In bfloat16 a sum over 4096 equal keys would stop at 256 of them; in float32 their mean is exact."""
    q, k = jnp.zeros((1, 1, 1, 8), dtype), jnp.zeros((1, 4096, 1, 8), dtype)
    v = jnp.ones((1, 4096, 1, 8), dtype)
    out = attend(q, k, v)
    assert out.dtype == dtype
    np.testing.assert_array_equal(out.astype(jnp.float32), 1)


def test_a_cache_is_what_it_was_given():
    q, k, v = arrays(queries=S)
    cache = KVCache(jnp.zeros_like(k), jnp.zeros_like(v))
    cache = cache.update(k[:, :4], v[:, :4], 0).update(k[:, 4:], v[:, 4:], jnp.int32(4))
    np.testing.assert_array_equal(cache.keys, k)
    np.testing.assert_array_equal(cache.attend(q, CAUSAL), attend(q, k, v, CAUSAL))
    np.testing.assert_array_equal(split_heads(join_heads(q), N), q)


class Device:
    """A GPU as JAX describes it."""

    platform, compute_capability = "gpu", "9.0"

    class client:
        platform_version = "cuda 12090"


@pytest.mark.parametrize(
    ("change", "lack"),
    [
        ({}, ""),
        ({"mask": True}, ""),
        ({"dtype": jnp.float32}, "bfloat16 and float16, and not float32"),
        ({"channels": 12}, "multiple of 8 channels"),
        ({"channels": 136}, "up to 128"),
        ({"mask": True, "queries": 5}, "even numbers"),
        ({"queries": 5}, ""),
        ({"capability": "7.5"}, "compute capability"),
        ({"platform": "cpu"}, "NVIDIA GPU, and not cpu"),
    ],
)
def test_cudnn_is_chosen_where_it_can(monkeypatch, change, lack):
    device, called = Device(), []
    device.platform = change.get("platform", "gpu")
    device.compute_capability = change.get("capability", "9.0")
    monkeypatch.setattr(jax, "devices", lambda: [device])
    monkeypatch.setattr(
        jax.nn, "dot_product_attention", lambda q, k, v, **options: called.append(options["implementation"]) or q
    )
    q = jnp.zeros((1, change.get("queries", 4), 2, change.get("channels", 64)), change.get("dtype", jnp.bfloat16))
    mask = jnp.ones((q.shape[1], q.shape[1]), bool) if change.get("mask") else None
    assert (lack in cudnn_lacks(q, q, mask)) if lack else not cudnn_lacks(q, q, mask)
    attend(q, q, q, mask)
    assert called == ([] if lack else ["cudnn"])
    attend(q, q, q, mask, implementation="xla")
    assert called == ([] if lack else ["cudnn"])
    if lack:
        with pytest.raises(UserError, match=lack):
            attend(q, q, q, mask, implementation="cudnn")


def test_the_choice_is_of_the_module_and_in_no_config(tiny, tiny_variables, monkeypatch):
    seen = []
    real = attention.attend
    for name in ("layers", "attention"):
        module = __import__(f"clip_jax.towers.{name}", fromlist=["attend"])
        monkeypatch.setattr(module, "attend", lambda *a, **k: seen.append(k["implementation"]) or real(*a, **k))
    model = clip_jax.CLIP(tiny, implementation="xla")
    size = tiny.vision.image_size
    jax.eval_shape(model.apply, tiny_variables, jnp.zeros((1, size, size, 3)), jnp.zeros((1, 8), jnp.int32))
    assert seen == ["xla"] * (tiny.vision.layers + tiny.text.layers)
    assert "implementation" not in str(tiny.to_dict())
    with pytest.raises(UserError, match="choose xla or cudnn"):
        inspect.unwrap(attend)(*arrays(), implementation="flash")  # beneath the annotations that CI checks
