"""The README's calls as a user's program, to check the types of the installed wheel with mypy; it is never run.

Run `mypy --python-executable VENV/bin/python tests/support/consumer.py` from a directory without the packages, so that
mypy reads those of the wheel (`py.typed`).
"""

import jax
import jax.numpy as jnp
import numpy as np

import clip_jax
import image_text
import unclip_jax


def features(directory: str) -> np.ndarray:
    """Embeddings [N, D] of the pictures in the folder photos/, by the CLIP in `directory`."""
    model, variables, _, preprocess = clip_jax.load(directory)
    source = image_text.open_source("photos/")
    images = preprocess([example["image"] for example in source])
    return np.asarray(model.apply(variables, images, method="encode_image"))


def pictures() -> np.ndarray:
    """Four generated pictures of one caption, uint8 [4, 64, 64, 3]."""
    unclip, params, tokenize = unclip_jax.load()
    keys = unclip_jax.sample_keys(jax.random.key(0), jnp.arange(4))
    drawn = unclip_jax.generate_jit(unclip, params, tokenize(["a small red circle in the top left"] * 4), keys)
    return np.asarray(unclip_jax.to_uint8(drawn.images))


version: str = clip_jax.__version__
