import math

import jax
import pytest

import clip_jax
from clip_jax.presets import PRESETS


@pytest.mark.parametrize("name", PRESETS)
def test_number_of_parameters(name):
    config, published, _ = PRESETS[name]
    shapes = jax.eval_shape(lambda key: clip_jax.init(config, key), jax.random.key(0))
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
    assert count == published if published else count < 1.2e6
