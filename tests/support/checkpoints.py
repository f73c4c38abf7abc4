"""A small CLIP with random weights, and its checkpoints in published formats, for tests of loading."""

import json

import jax
import numpy as np

import clip_jax
from clip_jax import CLIPConfig, TextConfig, ViTConfig
from clip_jax.weights.formats import FORMATS
from clip_jax.weights.rules import export as to_format
from clip_jax.weights.rules import flat_variables

SIZES = {"width": 64, "layers": 2, "heads": 1}
CONFIG = CLIPConfig(
    embed_dim=24,
    vision=ViTConfig(image_size=16, patch_size=8, **SIZES),
    text=TextConfig(vocab_size=60, context_length=8, **SIZES),
)


def random_variables(config=CONFIG, seed=0):
    """Variables of the config, float32, random in every leaf."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda key: clip_jax.init(config, key), jax.random.key(0))
    return jax.tree.map(lambda leaf: rng.normal(0, 0.2, leaf.shape).astype(np.float32), shapes)


def state_of(layout, config=CONFIG, seed=0):
    """The random variables as a state dict of the format `layout`: name -> array."""
    return to_format(flat_variables(random_variables(config, seed)), FORMATS[layout].rules(config))


def huggingface(folder, config=CONFIG, **edits):
    """Writes a directory in the layout of transformers, with its JSON files changed by `edited(folder, **edits)`."""
    clip_jax.export(folder, config, random_variables(config))
    return edited(folder, **edits)


def edited(folder, *, preprocessor=None, outer=None, **towers):
    """Edits the JSON files of a directory in the layout of transformers; a value of None removes the field.

    `outer` updates config.json itself, `text_config={…}` and `vision_config={…}` the towers in it, and `preprocessor`
    updates preprocessor_config.json.
    """

    def update(data, changes):
        for name, value in changes.items():
            if value is None:
                data.pop(name, None)
            else:
                data[name] = value

    path = folder / "config.json"
    data = json.loads(path.read_text())
    update(data, outer or {})
    for name, changes in towers.items():
        update(data[name], changes)
    path.write_text(json.dumps(data))
    if preprocessor is not None:
        path = folder / "preprocessor_config.json"
        data = json.loads(path.read_text())
        update(data, preprocessor)
        path.write_text(json.dumps(data))
    return folder


def same_weights(loaded, config=CONFIG, seed=0):
    """Raises unless the variables are those of `random_variables`."""
    found, expected = flat_variables(loaded.variables), flat_variables(random_variables(config, seed))
    assert found.keys() == expected.keys()
    for name, leaf in found.items():
        np.testing.assert_array_equal(leaf, expected[name])
