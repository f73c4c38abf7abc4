"""A CLIP carried as one tree of weights gives what `CLIP.apply` gives, with batch norms and without."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import clip_jax
from clip_jax import encode
from clip_jax.images import normalise
from clip_jax.weights.native import flatten, unflatten


def made_up(config):
    """Random variables of a config; running variances are positive."""
    rng = np.random.default_rng(0)
    shapes = flatten(jax.eval_shape(lambda key: clip_jax.init(config, key), jax.random.key(0)))
    return unflatten({name: rng.uniform(0.1, 0.5, leaf.shape).astype(np.float32) for name, leaf in shapes.items()})


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny", "tiny_resnet_bert"])
def test_one_tree_is_the_model(name):
    config = clip_jax.preset(name)
    variables, model = made_up(config), clip_jax.CLIP(config)
    tree = encode.joined(variables)
    assert ("batch_stats" in tree) == (name == "tiny_resnet_bert")
    jax.tree.map(np.testing.assert_array_equal, encode.variables_of(tree), variables)
    size = config.vision.image_size
    images = np.random.default_rng(1).integers(0, 256, (2, size, size, 3), np.uint8)
    want = model.apply(variables, normalise(images, config.preprocess), method="encode_image")
    np.testing.assert_array_equal(clip_jax.encode_images(config, tree, images), want)
    signed = jnp.asarray(images, jnp.float32) / 127.5 - 1
    np.testing.assert_allclose(clip_jax.encode_images(config, tree, signed), want, rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(encode.image_states(config, tree, images).embed, want)
    tokens = np.ones((2, config.text.context_length), np.int32)
    for found, text in zip(
        clip_jax.encode_texts(config, tree, tokens),
        model.apply(variables, tokens, method="encode_text"),
        strict=True,
    ):
        np.testing.assert_array_equal(found, text)


@pytest.mark.slow
def test_a_grey_clip_sees_rgb_as_its_preprocess_does():
    config = clip_jax.preset("mini_fashion")
    rgb = np.random.default_rng(0).integers(0, 256, (3, 28, 28, 3), np.uint8)
    grey = np.stack([np.asarray(Image.fromarray(picture).convert("L"))[..., None] for picture in rgb])
    np.testing.assert_array_equal(encode.luma(rgb), grey)
    signed = encode.luma(rgb.astype(np.float32) / 127.5 - 1)
    np.testing.assert_allclose((signed + 1) * 127.5, grey, atol=0.51)
    tree = encode.joined(made_up(config))
    np.testing.assert_array_equal(clip_jax.encode_images(config, tree, rgb), clip_jax.encode_images(config, tree, grey))
