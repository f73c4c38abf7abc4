"""What only some image towers have; `test_model.py` holds the whole against the goldens."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from clip_jax.config import CLIPConfig
from clip_jax.errors import UserError
from clip_jax.presets import preset
from clip_jax.towers.vit import ConvStem, VisionTransformer

TINY = dataclasses.replace(preset("tiny").vision, stem=(6, 10))


@pytest.mark.slow
def test_a_stem_takes_the_place_of_the_pixels():
    images = jax.random.normal(jax.random.key(0), (2, 32, 32, 3))
    tower = VisionTransformer(TINY, 16)
    variables = tower.init(jax.random.key(1), images)
    shapes = jax.tree.map(jnp.shape, variables["params"])
    assert shapes["stem"]["conv_0"]["kernel"] == (3, 3, 3, 6)
    assert shapes["stem"]["conv_1"]["kernel"] == (3, 3, 6, 10)
    assert shapes["conv1"]["kernel"] == (2, 2, 10, 32)  # patches of 8 pixels are 2 × 2 behind a stride of 4
    assert tower.apply(variables, images).embed.shape == (2, 16)


@pytest.mark.slow
def test_a_stem_moves_with_the_picture():
    """Stride 4: a picture moved by four pixels has the same features one place further."""
    images = jax.random.normal(jax.random.key(0), (1, 32, 32, 3))
    stem = ConvStem(TINY)
    variables = stem.init(jax.random.key(1), images)
    before, after = (stem.apply(variables, x) for x in (images, jnp.roll(images, 4, axis=1)))
    assert jnp.abs(before[:, 1:-1] - after[:, 2:]).max() < 1e-5
    assert jnp.abs(before - after).max() > 0.1


def test_a_stem_survives_the_config_file():
    config = dataclasses.replace(preset("tiny"), vision=TINY)
    assert CLIPConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("stem", "words"), [((6, 6, 6, 6), "patch_size 8 is not divisible by 16"), ((6, 0), "at least 1"), ((2.5,), "2.5")]
)
def test_a_stem_that_does_not_fit_is_refused(stem, words):
    with pytest.raises(UserError, match=words):
        dataclasses.replace(TINY, stem=stem)
