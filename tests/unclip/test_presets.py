import dataclasses
import functools

import jax
import pytest

import clip_jax
from clip_jax.errors import UserError
from unclip_jax import stage as stages
from unclip_jax.presets import PRESETS, preset
from unclip_jax.stage import Sampling

FAMILIES = sorted({name.rsplit("-", 1)[0] for name in PRESETS})


@functools.cache
def parameters(name):
    return jax.eval_shape(lambda key: stages.init(PRESETS[name].stage, key), jax.random.key(0))


@pytest.mark.parametrize("name", PRESETS)
def test_every_row_is_a_network(name):
    """Its parameters can be made and it maps a noised sample to an output of the sample's shape."""
    stage, params = preset(name), parameters(name)
    x_t = jax.ShapeDtypeStruct((2, *stage.sample_shape), "float32")
    t = jax.ShapeDtypeStruct((2,), "int32")
    out = jax.eval_shape(stages.network(stage).apply, {"params": params}, x_t, t, stages.blank_cond(stage, 2))
    assert out.shape == x_t.shape
    assert PRESETS[name].source


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_fits_its_clip_and_itself(family):
    clip = clip_jax.preset(family)
    prior, decoder, upsampler = (preset(f"{family}-{part}").model for part in ("prior", "decoder", "upsampler"))
    assert (prior.embed_dim, decoder.image_embed_dim) == (clip.embed_dim, clip.embed_dim)
    assert (prior.text_width, decoder.text_width) == (clip.text.width, clip.text.width)
    assert prior.context_length == clip.text.context_length
    assert upsampler.low_res
    assert upsampler.image_size == 2 * decoder.image_size == clip.vision.image_size


def test_the_shapes_system_fits_the_repository():
    """All four networks in float16: the shipped weights may take 8 MB."""
    clip = jax.eval_shape(lambda key: clip_jax.init(clip_jax.preset("shapes"), key), jax.random.key(0))
    trees = [clip, *(parameters(f"shapes-{part}") for part in ("prior", "decoder", "upsampler"))]
    assert 2 * sum(leaf.size for leaf in jax.tree.leaves(trees)) < 8e6


def test_unknown_name_lists_the_others():
    with pytest.raises(UserError, match=r"no stage 'shape-prior'.*shapes-prior"):
        preset("shape-prior")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prediction": "score"}, "prediction is 'score'; choose one of x0, eps, v"),
        ({"schedule": "quadratic"}, "schedule is 'quadratic'; choose one of cosine, linear"),
        ({"weight": "none"}, "weight is 'none'; choose one of simple"),
        ({"sampling": Sampling("plms")}, "sampling.sampler is 'plms'; choose one of ddpm"),
        ({"sampling": Sampling("ddim", num_steps=0)}, "sampling.num_steps is 0; give 1 to 1000"),
        ({"sampling": Sampling("ddim", num_steps=1001)}, "sampling.num_steps is 1001; give 1 to 1000"),
        ({"sampling": Sampling(threshold=0.0)}, "sampling.threshold is 0.0; give a percentile"),
        ({"weight": "p2"}, "weight_cap is 5.0; as the exponent of weight 'p2' give 0 to 2"),
        ({"num_timesteps": 3}, "sampling.num_steps is 4; give 1 to 3"),
    ],
)
def test_stage_that_cannot_be_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(preset("tiny-decoder"), **changes)
