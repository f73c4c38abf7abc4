"""The variables of a network: what is trained, what is measured, and the names of both in one file.

    variables = {"params": trained, "statistics": measured}

`statistics` is a variable collection of Flax. It holds what was measured and not learned: means and deviations of
embeddings, principal components and bucket ranges, the error of the estimates, what CLIP says of an empty caption. No
optimiser and no EMA sees it. As in Flax, a network that has none of it has no such collection.
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

# Files are older than the collection: in them the quantiser's values lie in a folder that has its name.
_IN_FILES = {"quantiser/": "statistics/"}


def measured(module: nn.Module, name: str, init: Callable[..., Array], shape: tuple[int, ...]) -> Array:
    """A value of the collection `statistics`, as `module.param` is one of `params`.

    Args:
        module: the one that owns it; called in its `setup` or `@nn.compact` method.
        name: of the value within the module.
        init: what it is before anything was measured: an initialiser, `(key, shape) -> Array`.
        shape: of the value.

    Returns:
        The value, float32 [*shape].
    """
    return module.variable(STATISTICS, name, lambda: init(module.make_rng(PARAMS), shape)).value


def flat(variables: Mapping[str, Any]) -> dict[str, Any]:
    """All collections as one flat dict, under the names that they have in `weights.safetensors`.

    Args:
        variables: collections, each a nested dict.

    Returns:
        `{"embed_mean": leaf, "transformer/resblocks_0/…": leaf, …}`, sorted.
    """
    leaves = {_in_file(name): leaf for tree in variables.values() for name, leaf in flatten(tree).items()}
    return dict(sorted(leaves.items()))


def nested(leaves: Mapping[str, Any], like: Mapping[str, Any]) -> Variables:
    """The inverse of `flat`: every leaf in the collection that has its name in `like`.

    Args:
        leaves: by their names in a file.
        like: collections with the structure that is wanted; their leaves are not looked at.

    Returns:
        Collections of the structure of `like`.
    """
    return {
        collection: unflatten({name: leaves[_in_file(name)] for name in flatten(tree)})
        for collection, tree in like.items()
    }


def _in_file(name: str) -> str:
    for ours, theirs in _IN_FILES.items():
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name
