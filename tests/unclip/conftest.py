"""The tiny system with made-up weights, shared by all tests here."""

import pytest

from tests.support.tiny import random_params, tiny_run
from unclip_jax import pipeline, priors

__all__ = ["tiny_run"]


@pytest.fixture(scope="session")
def tiny_system(tiny_run):
    """The system of `tiny_run`, loaded."""
    return pipeline.load(tiny_run)


@pytest.fixture(scope="session")
def fill():
    """`fill(stage)` or `fill(init)` -> random parameters."""

    def make(what, seed=0):
        init = what if callable(what) else lambda key: priors.init(what, key)
        return random_params(init, seed)

    return make
