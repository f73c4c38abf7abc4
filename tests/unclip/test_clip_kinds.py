"""CLIPs of other kinds under unCLIP, trained, sampled and edited with: batch norms, grey pictures, SigLIP's."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import clip_jax
from clip_jax.encode import joined
from clip_jax.images import normalise
from clip_jax.tokenizer import WordPieceTokenizer
from tests.support.tiny import random_params
from unclip_jax import edit, pipeline, priors
from unclip_jax.presets import preset
from unclip_jax.tasks import DecoderTask, PriorTask, blank_statistics, encode

TINY = clip_jax.preset("tiny")
MODIFIED = clip_jax.ResNetConfig(image_size=32, layers=(1, 1, 1, 1), width=8, heads=4)
SIGLIP = dataclasses.replace(
    TINY,
    vision=dataclasses.replace(TINY.vision, pool="map", ln_pre=False),
    text=dataclasses.replace(TINY.text, attention="full", pool="last", projection_bias=True),
    embed_dim=32,
    logit_bias_init=-10.0,
)
KINDS = {
    "ResNet+BERT": clip_jax.preset("tiny_resnet_bert"),
    "RN50's family": dataclasses.replace(TINY, vision=MODIFIED),
    "SigLIP": SIGLIP,
    "grey": clip_jax.preset("mini_fashion"),
}
with_kinds = pytest.mark.parametrize("config", KINDS.values(), ids=KINDS)
compiled = [
    pytest.param(KINDS[name], id=name, marks=[] if name == "ResNet+BERT" else pytest.mark.slow) for name in KINDS
]


def variables_of(config):
    variables = random_params(lambda key: clip_jax.init(config, key), seed=0)
    if "batch_stats" in variables:
        variables["batch_stats"] = jax.tree.map(lambda leaf: np.abs(leaf) + 0.5, variables["batch_stats"])
    return variables


def fitted(name, clip):
    """A tiny stage with the widths of a CLIP."""
    stage = preset(name)
    return dataclasses.replace(stage, model=stage.model.fitted(clip))


def pictures(config, count=3, channels=None):
    size = config.vision.image_size
    shape = (count, size, size, channels or config.vision.channels)
    return np.random.default_rng(1).integers(0, 256, shape, np.uint8)


@pytest.mark.slow
@with_kinds
def test_every_stage_is_trained_on_it(config):
    """And its running statistics travel in the state of the model, as they came."""
    tree = jax.eval_shape(lambda key: joined(clip_jax.init(config, key)), jax.random.key(0))
    size, text = config.vision.image_size, (3, config.text.context_length)
    batch = {
        "image": jax.ShapeDtypeStruct((3, size, size, config.vision.channels), np.uint8),
        "tokens": jax.ShapeDtypeStruct(text, np.int32),
    }
    own = {"image": jax.ShapeDtypeStruct((3, 16, 16, 3), np.uint8), "clip_image": batch["image"]}

    def losses(tree, batch, own, key):
        prior = PriorTask(fitted("tiny-prior", config), config, tree, *blank_statistics(config))
        decoder = DecoderTask(fitted("tiny-decoder", config), config, tree)
        for task, seen in ((prior, batch), (decoder, batch | own)):
            params, model_state = task.init(key)
            value, (_, carried) = task.loss(params, {**model_state, **task.frozen}, seen, key, train=True)
            assert value.shape == ()
            assert jax.tree.structure(carried["clip"]) == jax.tree.structure(tree)
        return carried

    jax.eval_shape(losses, tree, batch, own, jax.random.key(0))


@pytest.mark.parametrize("config", compiled)
def test_it_sees_and_reads_as_it_does_by_itself(config):
    variables, model = variables_of(config), clip_jax.CLIP(config)
    tree, images = joined(variables), pictures(config)
    tokens = np.ones((3, config.text.context_length), np.int32)
    unclip = pipeline.UnCLIP(config, None, preset("tiny-decoder"))

    @jax.jit
    def both(variables, tree, images):
        seen = model.apply(variables, normalise(images, config.preprocess), method="encode_image")
        read = model.apply(variables, tokens, method="encode_text")
        cond = encode(config, tree, images, tokens)
        signed = jnp.broadcast_to(images.astype(jnp.float32) / 127.5 - 1, (*images.shape[:3], 3))  # as they are drawn
        own = pipeline.encode_text(unclip, {"clip": tree}, tokens)
        edited = edit.embed_images(unclip, {"clip": tree}, signed)
        return seen, (cond.image_embed, edited), read.encodings, (cond.text_encodings, own.encodings)

    for want, found in zip(*[iter(both(variables, tree, images))] * 2, strict=True):
        for one in found:
            np.testing.assert_allclose(one, want, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_a_run_directory_over_batch_norms_is_a_system(tmp_path):
    config = KINDS["ResNet+BERT"]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "circle"]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
    tokenize = WordPieceTokenizer.from_vocabulary(tmp_path / "vocab.txt", context_length=config.text.context_length)
    config = dataclasses.replace(config, text=dataclasses.replace(config.text, vocab_size=len(words), pad_id=0))
    clip_jax.save(tmp_path / "clip", config, variables_of(config), tokenize)
    for name in ("prior", "decoder"):
        stage = fitted(f"tiny-{name}", config)
        params = random_params(lambda key, stage=stage: priors.init(stage, key), 1)
        pipeline.save_stage(tmp_path / name, stage, params, clip=tmp_path / "clip")
    loaded = pipeline.load(tmp_path)
    assert "batch_stats" in loaded.params["clip"]
    keys = jax.random.split(jax.random.key(0), 1)
    images = pipeline.generate_jit(loaded.unclip, loaded.params, loaded.tokenize(["a red circle"]), keys).images
    assert np.isfinite(images).all()
