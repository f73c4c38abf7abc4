"""Published weights: every one where it belongs or none at all; and beside diffusers, the same numbers."""

import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax.errors import UserError
from tests.support import unclip_parity as parity
from tests.support.published import (
    DECODER,
    DIM,
    PRIOR,
    STAGES,
    UPSAMPLER,
    edit_json,
    edit_weights,
    write,
    write_eclipse,
    write_karlo,
)
from unclip_jax import OneStepStage, generate_jit, pipeline, sample_keys
from unclip_jax.variables import flat
from unclip_jax.weights.hub import fetch_pipeline

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def karlo(tmp_path_factory, fill):
    """(directory, variables of the text encoder, flat parameters of the stages)."""
    directory = tmp_path_factory.mktemp("karlo")
    return directory, *write_karlo(directory, fill)


@pytest.fixture(scope="module")
def loaded(karlo):
    return pipeline.load(karlo[0])


@pytest.fixture
def copy(karlo, tmp_path):
    return shutil.copytree(karlo[0], tmp_path / "copy")


def test_the_system_is_sampled_as_published(loaded):
    unclip = loaded.unclip
    assert (unclip.prior, unclip.decoder, unclip.upsamplers) == (PRIOR, DECODER, (UPSAMPLER,))
    assert unclip.candidates == 1
    assert unclip.movq is None


@pytest.mark.parametrize("name", STAGES)
def test_every_weight_arrives_unchanged(karlo, loaded, name):
    arrived = flat(loaded.params[name])
    assert arrived.keys() == karlo[2][name].keys()
    for path, array in karlo[2][name].items():
        if "null_text" not in path:
            np.testing.assert_array_equal(arrived[path], array)


def test_a_dropped_caption_is_the_empty_prompt(loaded):
    """As the text encoder sees it, wherever a network keeps it."""
    text = jax.jit(pipeline.encode_text, static_argnums=0)(loaded.unclip, loaded.params, loaded.tokenize([""]))
    for null in (loaded.params["prior"]["statistics"], loaded.params["decoder"]["statistics"]["context"]):
        np.testing.assert_allclose(null["null_text_encodings"], text.encodings[0, :2], atol=1e-6)
        np.testing.assert_allclose(null["null_text_embed"], text.embed[0], atol=1e-6)


@pytest.mark.slow
def test_in_half_precision_only_matrices_are_halved(karlo):
    unclip, params, _ = pipeline.load(karlo[0], dtype="bfloat16")
    assert {stage.model.dtype for stage in (unclip.prior, unclip.decoder, *unclip.upsamplers)} == {"bfloat16"}
    for path, leaf in ((path, leaf) for name in STAGES for path, leaf in flat(params[name]).items()):
        half = path.endswith("/kernel") and "time_embedding" not in path
        assert leaf.dtype == (jnp.bfloat16 if half else jnp.float32), path


def test_a_prior_alone_takes_the_place_of_another(karlo, loaded, fill, tmp_path):
    """ECLIPSE's has no time and draws CLIP's embeddings themselves in one step, whatever statistics lie in its file."""
    written = write_eclipse(tmp_path, fill)
    unclip, params, _ = pipeline.load(karlo[0], tmp_path)
    assert isinstance(unclip.prior, OneStepStage)
    assert unclip.decoder == loaded.unclip.decoder
    found = flat(params["prior"])
    assert not any("time_embedding" in name for name in found)
    np.testing.assert_array_equal(found["embed_mean"], np.zeros(DIM))
    np.testing.assert_array_equal(found["embed_std"], np.ones(DIM))
    for name in written.keys() - {"embed_mean", "embed_std"}:
        np.testing.assert_array_equal(found[name], written[name])


def remove(name):
    return lambda arrays: arrays.pop(name)


def reshape(name):
    return lambda arrays: arrays.update({name: arrays[name][:-1]})


def add(name):
    return lambda arrays: arrays.update({name: np.zeros(3, np.float32)})


def nan(name):
    return lambda arrays: arrays.update({name: arrays[name] * np.float32(np.nan)})


def swap(first, second):
    def change(directory):
        shutil.move(directory / first, directory / "between")
        shutil.move(directory / second, directory / first)
        shutil.move(directory / "between", directory / second)

    return change


def weights(part, change):
    return lambda directory: edit_weights(directory / part / WEIGHTS, change)


def config(part, **changes):
    return lambda directory: edit_json(directory / part / "config.json", **changes)


REFUSALS = {
    "a key is missing": (weights("prior", remove("norm_out.weight")), ["prior", "missing: norm_out.weight"]),
    "a key is left over": (weights("decoder", add("extra.weight")), ["decoder", "unused: extra.weight"]),
    "a wrong shape": (
        weights("text_proj", reshape("embedding_proj.bias")),
        ["text_proj", "embedding_proj.bias is [63]"],
    ),
    "not a number": (
        weights("super_res_last", nan("conv_in.weight")),
        ["super_res_last", "not finite: conv_in.weight"],
    ),
    "parts swapped": (swap("decoder", "super_res_first"), ["decoder", "UNet2DModel", "UNet2DConditionModel"]),
    "a part is gone": (lambda d: shutil.rmtree(d / "text_proj"), ["text_proj", "model_index.json"]),
    "no weights": (lambda d: (d / "prior" / WEIGHTS).unlink(), ["prior", "no weights"]),
    "another width": (config("prior", embedding_dim=24), ["prior", "CLIP", "null_text_embed"]),
    "another projection": (
        config("text_proj", cross_attention_dim=32),
        ["text_proj", "cross_attention_dim", "decoder"],
    ),
    "another activation": (config("decoder", act_fn="gelu"), ["decoder", "act_fn", "'silu'"]),
    "an unknown option": (config("prior", rotary=True), ["prior", "rotary", "True"]),
    "attention": (config("super_res_first", add_attention=True), ["super_res_first", "add_attention"]),
    "another last network": (config("super_res_last", layers_per_block=2), ["super_res_last", "super_res_first"]),
    "another schedule": (
        lambda d: edit_json(d / "prior_scheduler" / "scheduler_config.json", beta_schedule="sigmoid"),
        ["prior_scheduler", "beta_schedule", "sigmoid"],
    ),
    "another pipeline": (
        lambda d: write(d / "model_index.json", {"_class_name": "StableDiffusionPipeline"}),
        ["StableDiffusionPipeline", "UnCLIPPipeline"],
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_does_not_fit_is_refused_in_one_line(copy, name):
    spoil, words = REFUSALS[name]
    spoil(copy)
    with pytest.raises(UserError) as refused:
        pipeline.load(copy)
    assert "\n" not in str(refused.value)
    for word in words:
        assert word in str(refused.value)


def test_a_decoder_without_its_encoders_says_what_else_to_give(copy):
    edit_json(copy / "model_index.json", _class_name="KandinskyV22Pipeline")
    (copy / "unet").mkdir()
    with pytest.raises(UserError, match="no text_encoder: give the directory"):
        pipeline.load(copy)


def test_one_directory_of_ours_is_whole(tiny_run, karlo):
    with pytest.raises(UserError, match="whole"):
        pipeline.load(tiny_run, karlo[0])


def test_a_name_on_the_hub_is_fetched_with_its_folders(copy, monkeypatch):
    """Torch's own files only for the parts that have no others; a path is never taken for a name."""
    asked = []

    def snapshot_download(name, *, allow_patterns, ignore_patterns):
        asked.append((name, allow_patterns))
        return str(copy)

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=snapshot_download))
    (copy / "decoder" / WEIGHTS).unlink()
    assert fetch_pipeline("owner/karlo") == copy
    (first, patterns), second = asked
    assert first == "owner/karlo"
    assert not any(pattern.endswith(".bin") for pattern in patterns)
    assert second == ("owner/karlo", ["decoder/*.bin"])
    with pytest.raises(UserError, match="not a directory"):
        pipeline.load(Path("owner/karlo"))
    assert len(asked) == 2


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_draws_pictures(karlo, dtype):
    unclip, params, tokenize = pipeline.load(karlo[0], dtype=dtype)
    made = generate_jit(unclip, params, tokenize(["a red circle"] * 2), sample_keys(jax.random.key(0), jnp.arange(2)))
    assert made.images.shape == (2, 16, 16, 3)
    assert made.images.dtype == jnp.float32
    assert np.abs(made.images).max() <= 1
    assert np.abs(made.images[0] - made.images[1]).max() > 0.01


@pytest.mark.parity
@pytest.mark.slow
@pytest.mark.parametrize("case", parity.NETWORKS, ids=lambda case: f"{case.family} {case.size}")
def test_networks(case):
    pytest.importorskip("diffusers")
    for found in case.run():
        assert found.max_abs <= parity.MAX_ABS, found


@pytest.mark.parity
@pytest.mark.slow
@pytest.mark.parametrize("case", parity.PICTURES, ids=lambda case: f"{case.family} {case.size}")
def test_pictures(case):
    pytest.importorskip("diffusers")
    for found in case.run():
        assert found.max_abs <= (parity.MAX_PIXEL if found.what == "pictures" else parity.MAX_ABS), found
