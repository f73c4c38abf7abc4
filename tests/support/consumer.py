"""The README's calls, as a program of someone who installed the wheel: checked by mypy, never run.

`mypy --python-executable VENV/bin/python tests/support/consumer.py`, from a directory without the packages, sees the
types that the wheel brings (`py.typed`).
"""

import jax
import jax.numpy as jnp
import numpy as np

import clip_jax
import image_text
import unclip_jax


def features(directory: str) -> np.ndarray:
    """Embeddings of the pictures of a folder, [N, D]."""
    model, variables, _, preprocess = clip_jax.load(directory)
    source = image_text.open_source("photos/")
    images = preprocess([example["image"] for example in source])
    return np.asarray(model.apply(variables, images, method="encode_image"))


def pictures() -> np.ndarray:
    """Four pictures of a caption, uint8 [4, 64, 64, 3]."""
    unclip, params, tokenize = unclip_jax.load()
    keys = unclip_jax.sample_keys(jax.random.key(0), jnp.arange(4))
    drawn = unclip_jax.generate_jit(unclip, params, tokenize(["a small red circle in the top left"] * 4), keys)
    return np.asarray(unclip_jax.to_uint8(drawn.images))


version: str = clip_jax.__version__
