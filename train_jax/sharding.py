"""Sharding: a mesh over the local devices, and rules that place every leaf of the train state on it.

Rules are a tuple of `(regex, PartitionSpec)`, searched in a leaf's path (`params/dense/kernel`,
`opt_state/1/mu/dense/kernel`). The first match wins; a leaf without a match is replicated on all devices. Models
contain no sharding annotations.
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
    """A mesh of local devices with the axes ("data", "model").

    Args:
        devices: number of devices; None: all local ones.
        model: size of the axis "model".

    Raises:
        UserError: there are fewer devices, `model` does not divide their number, or JAX runs in several processes.
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
    """A leaf's key path (of `jax.tree_util`) as text, "a/b/c"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def state_shardings(abstract: PyTree, mesh: Mesh, rules: Rules = ()) -> PyTree:
    """The sharding of every leaf.

    Args:
        abstract: tree of `jax.ShapeDtypeStruct`, from `jax.eval_shape`.
        mesh: the devices.
        rules: see the module.

    Returns:
        A tree of `NamedSharding` with the structure of `abstract`.

    Raises:
        UserError: a rule shards an axis that a leaf does not have, or whose size the mesh does not divide.
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
    """The sharding of a batch: its first axis is split over "data"."""
    return NamedSharding(mesh, PartitionSpec("data"))


def batch_size(batch: Batch, mesh: Mesh, accum: int = 1) -> int:
    """The number of examples of a batch, the first axis that all its arrays share.

    Raises:
        UserError: the arrays differ in their first axis, are not numeric, or cannot be divided over the devices and
            the `accum` microbatches.
    """
    if not batch:
        raise UserError("batch: it is empty")
    for name, value in batch.items():
        if np.asarray(value).dtype.kind not in "biufcV":  # V: bfloat16 and the other dtypes of ml_dtypes
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
