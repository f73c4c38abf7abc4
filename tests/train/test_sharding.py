import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from train_jax.errors import UserError
from train_jax.sharding import batch_sharding, batch_size, make_mesh, state_shardings


def test_mesh_covers_the_devices():
    assert dict(make_mesh().shape) == {"data": 8, "model": 1}
    assert dict(make_mesh(1).shape) == {"data": 1, "model": 1}
    assert dict(make_mesh(8, model=2).shape) == {"data": 4, "model": 2}


@pytest.mark.parametrize(("devices", "model"), [(9, 1), (0, 1), (-1, 1), (8, 3)])
def test_mesh_that_cannot_be_is_refused(devices, model):
    with pytest.raises(UserError, match=f"devices: {devices} "):
        make_mesh(devices, model=model)


def test_first_rule_that_matches_wins():
    tree = {"a": {"kernel": jnp.zeros((8, 4))}, "b": {"kernel": jnp.zeros((4, 4)), "bias": jnp.zeros(4)}}
    rules = ((r"^a/kernel", P("data")), (r"kernel$", P(None, "model")))
    shardings = state_shardings(tree, make_mesh(4, model=2), rules)
    assert jax.tree.map(lambda s: s.spec, shardings) == {
        "a": {"kernel": P("data")},
        "b": {"kernel": P(None, "model"), "bias": P()},
    }


@pytest.mark.parametrize("spec", [P("data"), P(None, None, "data")])
def test_rule_that_does_not_fit_names_the_leaf(spec):
    with pytest.raises(UserError, match="a/kernel"):
        state_shardings({"a": {"kernel": jnp.zeros((3, 4))}}, make_mesh(4), ((r"kernel", spec),))


def test_batch_is_split_over_data():
    mesh = make_mesh(4, model=2)
    x = jax.device_put(np.zeros((8, 3)), batch_sharding(mesh))
    assert x.sharding.shard_shape(x.shape) == (4, 3)


def test_batch_size_divides():
    batch = {"x": np.zeros((32, 3)), "label": np.zeros(32, np.int32)}
    assert batch_size(batch, make_mesh(8), accum=4) == 32


@pytest.mark.parametrize(
    ("batch", "accum", "message"),
    [
        ({"x": np.zeros((30, 2))}, 1, r"30 examples cannot be divided over 8 device\(s\); use a multiple of 8"),
        ({"x": np.zeros((24, 2))}, 2, r"24 .* 8 device\(s\) x 2 microbatches; use a multiple of 16"),
        ({"x": np.zeros((8, 2)), "y": np.zeros(16)}, 1, r"\{'x': 8, 'y': 16\}"),
        ({"x": np.zeros(8), "y": np.float32(1)}, 1, "lack one"),
        ({"x": np.zeros((0, 2))}, 1, "lack one"),
        ({"caption": np.array(["a"] * 8)}, 1, "'caption'.*cannot go to a device"),
        ({}, 1, "empty"),
    ],
)
def test_batch_that_cannot_be_is_refused(batch, accum, message):
    with pytest.raises(UserError, match=message):
        batch_size(batch, make_mesh(8), accum)
