"""A run directory with a whole system of the tiny presets, with random weights."""

import jax
import numpy as np
import pytest

import clip_jax
import shapes_world
from clip_jax.weights.native import flatten, unflatten
from unclip_jax import pipeline, priors
from unclip_jax.presets import preset

STAGES = {
    "prior": "tiny-prior",
    "decoder": "tiny-decoder",
    "upsampler_0": "tiny-upsampler",
    "ar_prior": "tiny-ar-prior",
    "one_step_prior": "tiny-one-step-prior",
}


def every_caption():
    """The captions of all combinations of labels, by all templates."""
    templates = range(len(shapes_world.TEMPLATES))
    return [shapes_world.caption(labels, i) for labels in shapes_world.ALL_COMBINATIONS for i in templates]


def random_params(init, seed):
    """Random variables with the shapes of `init(key)`, which is only traced; none is zero, as some initial ones are."""
    rng = np.random.default_rng(seed)
    specs = flatten(jax.eval_shape(init, jax.random.key(0)))
    around_one = ("scale", "embed_std")
    return unflatten(
        {
            name: (name.endswith(around_one) + 0.1 * rng.standard_normal(spec.shape)).astype(np.float32)
            for name, spec in specs.items()
        }
    )


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory):
    """A run directory as `train.py tiny` writes it, with random weights, and with priors of the other kinds."""
    directory = tmp_path_factory.mktemp("tiny-run")
    config = clip_jax.preset("tiny")
    tokenizer = clip_jax.train_bpe(every_caption(), config.text.vocab_size, context_length=config.text.context_length)
    variables = random_params(lambda key: clip_jax.init(config, key), seed=0)
    clip_jax.save(directory / "clip", config, variables, tokenizer)
    for seed, (name, row) in enumerate(STAGES.items(), 1):
        stage = preset(row)
        params = random_params(lambda key, stage=stage: priors.init(stage, key), seed)
        pipeline.save_stage(directory / name, stage, params)
    return directory
