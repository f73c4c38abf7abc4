import jax.numpy as jnp
import numpy as np
import pytest

from unclip_jax.models.embeddings import TimestepMLP, timestep_embedding


def test_cosines_come_first_and_the_divisor_is_half():
    """guided-diffusion's form: the lowest frequency is 10000^(−(h−1)/h), not 1/10000."""
    t, half = np.array([0, 1, 17, 999]), 4
    angles = t[:, None] * 10_000.0 ** (-np.arange(half) / half)
    want = np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
    np.testing.assert_allclose(timestep_embedding(jnp.asarray(t), 8), want, atol=1e-4)


def test_every_time_looks_different():
    embedded = np.asarray(timestep_embedding(jnp.arange(1000), 32))
    assert embedded.dtype == np.float32
    distance = np.linalg.norm(np.diff(embedded, axis=0), axis=1)
    assert distance.min() > 0.5


def test_odd_width_is_refused():
    with pytest.raises(ValueError, match="width is 7"):
        timestep_embedding(jnp.arange(3), 7)


def test_mlp_is_linear_silu_linear(fill):
    mlp, t = TimestepMLP(8, 6), jnp.array([3, 500])
    params = fill(lambda key: mlp.init(key, t))["params"]
    h = np.asarray(timestep_embedding(t, 8)) @ params["linear_1"]["kernel"] + params["linear_1"]["bias"]
    h = h / (1 + np.exp(-h))
    want = h @ params["linear_2"]["kernel"] + params["linear_2"]["bias"]
    np.testing.assert_allclose(mlp.apply({"params": params}, t), want, atol=1e-5)
