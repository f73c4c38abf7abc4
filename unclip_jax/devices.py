"""Pictures that are computed together, split over the devices of this machine."""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec


class Devices:
    """As many of the local devices as divide `batch_size`; with one of them nothing is moved."""

    def __init__(self, batch_size: int):
        devices = jax.local_devices()
        self.mesh = Mesh(np.array(devices[: math.gcd(batch_size, len(devices))]), ("batch",))

    def everywhere(self, tree: Any) -> Any:
        """A pytree of arrays, parameters say, on every device."""
        return self._put(tree, PartitionSpec())

    def split(self, tree: Any) -> Any:
        """A pytree of arrays [batch_size, ...], each device holding its share of the rows."""
        return self._put(tree, PartitionSpec("batch"))

    def _put(self, tree: Any, spec: PartitionSpec) -> Any:
        return tree if self.mesh.size == 1 else jax.device_put(tree, NamedSharding(self.mesh, spec))
