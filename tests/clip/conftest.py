import jax
import numpy as np
import pytest

import clip_jax

CAPTIONS = [
    "a small red circle in the top left",
    "a large blue star in the bottom right",
    "in the top right there is a small green square",
    "a small red circle in the top left",
]


@pytest.fixture(scope="session")
def captions():
    return list(CAPTIONS)


@pytest.fixture(scope="session")
def tokenizer():
    return clip_jax.train_bpe(CAPTIONS, 640, context_length=24)


@pytest.fixture(scope="session")
def tiny():
    return clip_jax.preset("tiny")


@pytest.fixture(scope="session")
def tiny_variables(tiny):
    return jax.jit(lambda key: clip_jax.init(tiny, key))(jax.random.key(0))


@pytest.fixture(scope="session")
def images(tiny):
    size = tiny.vision.image_size
    return np.random.default_rng(0).integers(0, 256, (4, size, size, 3), np.uint8)
