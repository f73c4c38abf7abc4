"""Where arrays lie: a mesh over the local devices and rules that place each leaf on it.

Rules are data: a tuple of `(regex, PartitionSpec)`, matched against a leaf's path (`params/dense/kernel`,
`opt_state/1/mu/dense/kernel`); the first that matches wins and no match means a copy on every device. The models know
nothing of any of this.
"""

import re
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from train_jax.errors import UserError
from train_jax.task import Batch, PyTree

__all__ = ["Rules", "batch_sharding", "batch_size", "leaf_path", "make_mesh", "state_shardings"]

Rules = Sequence[tuple[str, PartitionSpec]]


def make_mesh(devices: int | None = None, *, model: int = 1) -> Mesh:
    """A mesh of `devices` local devices (None: all of them) with axes ("data", "model"), `model` devices on the latter.

    Raises:
        UserError: more devices than there are, or `model` does not divide them.
    """
    if jax.process_count() > 1:
        raise UserError("devices: several processes are not supported yet; start one")
    local = jax.local_devices()
    count = len(local) if devices is None else devices
    if not 1 <= count <= len(local):
        raise UserError(f"devices: {count} asked for, {len(local)} {local[0].platform} device(s) are here")
    if count % model:
        raise UserError(f"devices: {count} cannot be split into model groups of {model}")
    # Auto: the compiler propagates shardings. make_mesh's default, Explicit, makes linen refuse sharded weights.
    return Mesh(np.asarray(local[:count]).reshape(-1, model), ("data", "model"), axis_types=(AxisType.Auto,) * 2)


def leaf_path(path) -> str:
    """A leaf's key path as `a/b/c`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def state_shardings(abstract: PyTree, mesh: Mesh, rules: Rules = ()) -> PyTree:
    """The sharding of every leaf of an abstract tree (as `jax.eval_shape` gives it).

    Raises:
        UserError: a rule asks for an axis that a leaf does not have or that the mesh does not divide.
    """

    def place(path, leaf) -> NamedSharding:
        name = leaf_path(path)
        spec = next((spec for pattern, spec in rules if re.search(pattern, name)), PartitionSpec())
        sharding = NamedSharding(mesh, spec)
        try:
            sharding.shard_shape(leaf.shape)
        except (ValueError, IndexError):  # does not divide; has no such axis
            raise UserError(f"{name}: shape {leaf.shape} cannot be laid out as {spec} on {dict(mesh.shape)}") from None
        return sharding

    return jax.tree_util.tree_map_with_path(place, abstract)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Batches are split over "data" along their first axis."""
    return NamedSharding(mesh, PartitionSpec("data"))


def batch_size(batch: Batch, mesh: Mesh, accum: int = 1) -> int:
    """Leading axis shared by every array of the batch.

    Raises:
        UserError: arrays disagree, are not numbers, or cannot be split over the devices and microbatches.
    """
    if not batch:
        raise UserError("batch: it is empty")
    for name, value in batch.items():
        if np.asarray(value).dtype.kind not in "biufcV":  # V: bfloat16 and its kin
            raise UserError(f"batch[{name!r}]: {np.asarray(value).dtype} cannot go to a device; drop it or encode it")
    sizes = {name: np.shape(value)[0] if np.ndim(value) else 0 for name, value in batch.items()}
    size = min(sizes.values())
    if size != max(sizes.values()) or size == 0:
        raise UserError(f"batch: its arrays differ in their first axis or lack one: {sizes}")
    devices = mesh.shape["data"]
    if size % (devices * accum):
        parts = f"{devices} device(s)" + (f" x {accum} microbatches" if accum > 1 else "")
        raise UserError(f"batch: {size} examples cannot be divided over {parts}; use a multiple of {devices * accum}")
    return size
