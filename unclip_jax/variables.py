"""The variables of a network: trained parameters, measured statistics, and their names in `weights.safetensors`.

    variables = {"params": trained, "statistics": measured}

`statistics` is a variable collection of Flax for values that are measured and not learned: means and standard
deviations of embeddings, principal components and bucket ranges, the error of the estimates of x0, CLIP's features of
the empty caption. No optimiser and no EMA sees it. As in Flax, a network without such values has no such collection.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
from jaxtyping import Array

from clip_jax.weights.native import flatten, unflatten

Variables = dict[str, Any]
"""`{"params": tree, "statistics": tree}`, as `Module.init` returns it and `Module.apply` takes it."""

PARAMS, STATISTICS = "params", "statistics"

# Prefix of a variable -> its prefix in files, where the quantiser's values have the name "statistics".
_IN_FILES = {"quantiser/": "statistics/"}


def measured(module: nn.Module, name: str, init: Callable[..., Array], shape: tuple[int, ...]) -> Array:
    """Declares a value of the collection `statistics`, as `module.param` declares one of `params`.

    Args:
        module: the module that owns the value; to be called in its `setup` or `@nn.compact` method.
        name: name of the value within the module.
        init: initialiser `(key, shape) -> Array`, for the value before anything is measured.
        shape: shape of the value.

    Returns:
        The value, float32 [*shape].
    """
    return module.variable(STATISTICS, name, lambda: init(module.make_rng(PARAMS), shape)).value


def flat(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Flattens all collections into one dict, with the names of `weights.safetensors`.

    Args:
        variables: collections, each a nested dict.

    Returns:
        `{"embed_mean": leaf, "transformer/resblocks_0/…": leaf, …}`, sorted.
    """
    leaves = {_in_file(name): leaf for tree in variables.values() for name, leaf in flatten(tree).items()}
    return dict(sorted(leaves.items()))


def nested(leaves: Mapping[str, Any], like: Mapping[str, Any]) -> Variables:
    """The inverse of `flat`: puts every leaf into the collection that has its name in `like`.

    Args:
        leaves: arrays by their names in a file.
        like: collections of the structure of the result; their leaves are not read.

    Returns:
        Collections of the structure of `like`.

    Raises:
        KeyError: a leaf of `like` is missing.
    """
    return {
        collection: unflatten({name: leaves[_in_file(name)] for name in flatten(tree)})
        for collection, tree in like.items()
    }


def _in_file(name: str) -> str:
    """The name of a variable in `weights.safetensors`."""
    for ours, theirs in _IN_FILES.items():
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name
