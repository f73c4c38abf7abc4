"""Data parallelism for sampling: splits a batch of pictures over the devices of this machine."""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec


class Devices:
    """A mesh over gcd(`batch_size`, number of local devices) devices; with a single device no array is moved."""

    def __init__(self, batch_size: int):
        devices = jax.local_devices()
        self.mesh = Mesh(np.array(devices[: math.gcd(batch_size, len(devices))]), ("batch",))

    def everywhere(self, tree: Any) -> Any:
        """Replicates a pytree of arrays (parameters, for example) on every device."""
        return self._put(tree, PartitionSpec())

    def split(self, tree: Any) -> Any:
        """Splits a pytree of arrays [batch_size, ...] along the first axis, a part to each device."""
        return self._put(tree, PartitionSpec("batch"))

    def _put(self, tree: Any, spec: PartitionSpec) -> Any:
        return tree if self.mesh.size == 1 else jax.device_put(tree, NamedSharding(self.mesh, spec))
