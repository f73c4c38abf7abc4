import dataclasses
import math

import jax
import pytest

import clip_jax
from clip_jax.config import TransformerConfig
from clip_jax.presets import PRESETS


def scanned(config):
    """The same model with one traced block per tower: the same numbers in a fraction of the time."""
    towers = {
        name: dataclasses.replace(tower, scan_layers=True)
        for name in ("vision", "text")
        if isinstance(tower := getattr(config, name), TransformerConfig)
    }
    return dataclasses.replace(config, **towers)


def count(config):
    params = jax.eval_shape(lambda key: clip_jax.init(config, key), jax.random.key(0))["params"]
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


# One of each family by default: tracing them all takes half a minute.
OF_EACH_FAMILY = ("tiny", "ViT-B/32", "RN50", "EVA02-B-16", "chinese-clip-rn50", "siglip-base-patch16-224")


@pytest.mark.parametrize(
    "name", [name if name in OF_EACH_FAMILY else pytest.param(name, marks=pytest.mark.slow) for name in PRESETS]
)
def test_number_of_parameters(name):
    config, published, source, nearest = PRESETS[name]
    assert source
    if published is None:
        assert count(config) < 1.2e6
    else:
        assert round(count(scanned(config)) / nearest) * nearest == published


@pytest.mark.parametrize("name", ["ViT-B/32", "EVA02-B-16", "chinese-clip-rn50", "siglip-base-patch16-224"])
def test_scanning_changes_no_number(name):
    config = PRESETS[name].config
    assert count(scanned(config)) == count(config)


@pytest.mark.parametrize("name", PRESETS)
def test_what_belongs_to_the_weights(name):
    """The traps of loading: each family was trained with its own activation, norm, normalisation and padding."""
    config = PRESETS[name].config
    vision, text, mean = config.vision, config.text, config.preprocess.mean
    if name.startswith("siglip"):
        assert (vision.activation, text.activation, vision.ln_eps, text.ln_eps) == ("gelu_tanh",) * 2 + (1e-6,) * 2
        assert (vision.pool, text.pool, text.attention) == ("map", "last", "full")
        assert (mean, config.preprocess.resize) == ((0.5,) * 3, "squash")
        assert (text.pad_id, text.tokenizer) == ((0, "siglip2") if "siglip2" in name else (1, "siglip"))
    elif name.startswith("chinese-clip"):
        assert (text.activation, text.ln_eps, text.pool, text.context_length) == ("gelu", 1e-12, "cls", 52)
        assert getattr(vision, "activation", "quick_gelu") == "quick_gelu"
        assert config.preprocess.resize == "squash"
    elif name.startswith("EVA02"):
        assert (vision.ln_eps, text.ln_eps, text.activation) == (1e-6, 1e-5, "gelu")
    elif ":" in name:
        assert vision.activation == text.activation == "gelu"
        assert mean == (
            (0.5,) * 3 if name == "ViT-L-14:laion2b_s32b_b82k" else PRESETS["ViT-B/32"].config.preprocess.mean
        )
    elif name.startswith(("RN", "ViT")):
        assert text.activation == "quick_gelu"
        assert config.preprocess.resize == "shortest"
    elif name in ("sd1", "sdxl/text_encoder", "flux"):
        assert (text.pad_id, text.activation, config.embed_dim) == (49407, "quick_gelu", None)
    elif name in ("sd2", "sdxl/text_encoder_2"):
        assert (text.pad_id, text.activation) == (0, "gelu")
