import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from tests.support.toy_run import prints
from train_jax.fingerprint import fingerprints
from train_jax.sharding import make_mesh

DTYPES = ["float32", "bfloat16", "float16", "int32", "uint8", "int8", "bool", "complex64"]


def of(x):
    return fingerprints({"x": jnp.asarray(x)})["x"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 4, 5)])
def test_every_shape_and_dtype_has_one(shape, dtype):
    x = jnp.asarray(np.random.default_rng(0).integers(0, 2, shape), dtype)
    assert of(x) == of(x)
    assert 0 <= of(x).value < 2**32


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.uint8])
def test_every_flipped_bit_shows(dtype):
    rng = np.random.default_rng(1)
    x = rng.integers(0, 256, 64 * np.dtype(dtype).itemsize).astype(np.uint8).view(dtype)
    seen = {of(x).value}
    bits = 8 * x.nbytes
    for bit in rng.choice(bits, 100, replace=False):
        raw = x.copy().view(np.uint8)
        raw[bit // 8] ^= 1 << (bit % 8)
        seen.add(of(raw.view(dtype)).value)
    assert len(seen) == 101


def test_order_matters():
    x = np.zeros((16, 256), np.float32)
    x[0, 0], x[3, 128] = 1.0, 2.0  # powers of two, far apart: a plain weighted sum would miss this swap
    swapped = x.copy()
    swapped[0, 0], swapped[3, 128] = 2.0, 1.0
    values = [of(y).value for y in (x, swapped, x.T, np.roll(x, 1, 0), np.roll(x, 1, 1), x[::-1])]
    assert len(set(values)) == len(values)
    assert of(np.zeros(3)).value != of(np.zeros(4)).value
    assert of(np.float32(0.0)).value != of(np.float32(-0.0)).value


@pytest.mark.parametrize("spec", [P(), P("data"), P(None, "data"), P("model", "data")])
def test_devices_do_not_matter(spec):
    x = jax.random.normal(jax.random.key(0), (16, 8))
    placed = jax.device_put(x, NamedSharding(make_mesh(8, model=2), spec))
    assert of(placed) == of(x)


def test_not_finite_is_noticed():
    assert of(np.ones(3)).finite
    assert of(np.arange(3)).finite
    assert not of(np.array([1, np.nan])).finite
    assert not of(np.array([[np.inf]])).finite


def test_keys_have_one():
    assert prints({"k": jax.random.key(0)}) != prints({"k": jax.random.key(1)})
