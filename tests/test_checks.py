"""A mistake in any stage of a recipe is told before the first step, and before anything is written."""

import dataclasses

import jax
import numpy as np
import pytest

import clip_jax
from tests.support.captions import write_captions
from tests.support.idx import write_idx
from tests.support.recipes import check, options
from tests.support.tiny import tiny_run
from train_jax.errors import UserError
from train_recipes import unclip
from train_recipes.data import CaptionData, FashionData
from train_recipes.draw import drawn_examples, drawn_indices
from train_recipes.presets import PRIOR
from unclip_jax.presets import preset

untrained_run = tiny_run  # a fixture: a run directory with random weights


def changed(config, path, value):
    """The config with the field at a dotted path replaced."""
    name, _, rest = path.partition(".")
    return dataclasses.replace(config, **{name: changed(getattr(config, name), rest, value) if rest else value})


def refused(name, config, message, tmp_path):
    with pytest.raises(UserError, match=message) as told:
        check(name, config)
    assert "\n" not in str(told.value)
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "data").exists()


CASCADE = [
    ("factor", 4, r"upsampler_0: it starts from pictures of 8 pixels, but decoder draws 16.*factor is 4"),
    ("factor", 3, "factor: 3 does not divide 32, the size of upsampler_0.model tiny-captions-upsampler"),
    ("factor", 64, "factor: 64 does not divide 32"),
    (
        "decoder.batch_size",
        12,
        r"decoder.batch_size: 12 examples cannot be divided over 8 device\(s\); use a multiple of 8",
    ),
    ("decoder.optim.accum", 2, r"decoder.batch_size: 8 .* over 8 device\(s\) x 2 microbatches; use a multiple of 16"),
    ("upsampler_0.batch_size", 16, "upsampler_0.batch_size: 16 is more than the 9 examples there are"),
    ("upsampler_0.optim.warmup_steps", 9, "upsampler_0.optim.warmup_steps: 9 is more than the run's 4 steps"),
    ("upsampler_0.num_steps", 0, "upsampler_0.num_steps: 0 is less than 1"),
    ("upsampler_0.model", "nope", "upsampler_0.model: there is no stage 'nope'"),
    (
        "upsampler_0.model",
        "tiny-captions-decoder",
        "upsampler_0.model: tiny-captions-decoder is a decoder, not an upsampler",
    ),
    ("decoder.model", "tiny-captions-prior", "decoder.model: tiny-captions-prior is a prior, not a decoder"),
    ("decoder.model", "tiny-upsampler", "decoder.model: tiny-upsampler is an upsampler, not a decoder"),
    ("prior.model", "tiny-ar-prior", "prior.model: tiny-ar-prior is another kind of prior than prior"),
    ("seed", -1, "seed: -1 is not between 0"),
    ("clip", "nowhere", "clip: there is no nowhere"),
]


@pytest.mark.parametrize(("path", "value", "message"), CASCADE)
def test_a_cascade_on_captions_is_checked_whole(untrained_run, tmp_path, path, value, message):
    table, _, _ = write_captions(tmp_path / "pictures")
    config = options(
        "tiny-captions", run=tmp_path / "run", clip=str(untrained_run / "clip"), data=CaptionData(str(table))
    )
    refused("tiny-captions", changed(config, path, value), message, tmp_path)


def test_a_clip_with_one_tower_is_refused_before_it_is_copied(untrained_run, tmp_path):
    table, _, _ = write_captions(tmp_path / "pictures")
    clip = clip_jax.load(untrained_run / "clip")
    text = dataclasses.replace(clip.model.config, vision=None)
    params = {"text": clip.variables["params"]["text"]}
    clip_jax.save(tmp_path / "text", text, {"params": params}, clip.tokenize)
    config = options("tiny-captions", run=tmp_path / "run", clip=str(tmp_path / "text"), data=CaptionData(str(table)))
    refused("tiny-captions", config, "clip: .*text has one tower; unCLIP needs both", tmp_path)


@pytest.mark.parametrize("stage", ["decoder", "upsampler_0"])
def test_a_stage_alone_fits_what_lies_in_its_run_directory(untrained_run, tmp_path, stage):
    """The run has a decoder of 16 and an upsampler from 16 to 32 pixels."""
    table, _, _ = write_captions(tmp_path / "pictures")
    config = options(
        f"small-{stage}",
        model={"decoder": "small-decoder", "upsampler_0": "tiny-upsampler_1"}[stage],
        batch_size=8,
        run=untrained_run,
        data=CaptionData(str(table)),
        factor=2,
    )
    message = {
        "decoder": "upsampler_0: its 32 pixels are not 2 times or more, in whole numbers, the 64 that decoder draws",
        "upsampler_0": "upsampler_0: it starts from pictures of 32 pixels, but decoder draws 16",
    }[stage]
    refused(f"small-{stage}", config, message, tmp_path)


SHAPES = [
    ("upsampler.optim.warmup_steps", 9, "upsampler.optim.warmup_steps: 9 is more than the run's 8 steps"),
    ("upsampler.batch_size", 128, "upsampler.batch_size: 128 is more than the 64 examples there are"),
    ("decoder.batch_size", 12, "decoder.batch_size: 12 examples cannot be divided"),
    ("upsampler.model", "tiny-upsampler_1", "upsampler_0: it starts from pictures of 32 pixels, but decoder draws 16"),
    ("decoder.model", "tiny-prior", "decoder.model: tiny-prior is a prior, not a decoder"),
    ("prior.model", "tiny-ar-prior", "prior.model: tiny-ar-prior is another kind of prior than prior"),
    ("clip.model", "nope", "clip.model: .*nope"),
    ("clip.model", "tiny_resnet_bert", "clip.model: tiny_resnet_bert is no CLIP of two towers whose tokens"),
    ("data.resolution", 64, "data.resolution: 64 is not 32"),
]


@pytest.mark.parametrize(("path", "value", "message"), SHAPES)
def test_the_shapes_are_checked_whole(tmp_path, path, value, message):
    data = dataclasses.replace(options("tiny").data, directory=tmp_path / "data")
    config = options("tiny", run=tmp_path / "run", data=data)
    refused("tiny", changed(config, path, value), message, tmp_path)


@pytest.mark.slow
def test_what_fits_passes(tmp_path):
    check("tiny", options("tiny", run=tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("rounds", (600, 300), "rounds: num_steps is 600; for a student give 1 to 500"),
        ("optim.warmup_steps", 9, "optim.warmup_steps: 9 is more than the run's 4 steps"),
        ("batch_size", 128, "batch_size: 128 is more than the 64 examples"),
        ("data.resolution", 64, "data.resolution: 64 is not 32"),
    ],
)
def test_a_distillation_is_checked_whole(untrained_run, tmp_path, path, value, message):
    data = dataclasses.replace(options("tiny-distill").data, directory=tmp_path / "data")
    config = options("tiny-distill", run=tmp_path / "run", teacher=untrained_run, data=data)
    refused("tiny-distill", changed(config, path, value), message, tmp_path)


def test_small_clips_are_checked_before_their_data_are_prepared(tmp_path):
    write_idx(tmp_path / "files")
    data = FashionData(tmp_path / "data", tmp_path / "files")
    config = options("mini-fashion", run=tmp_path / "run", data=data)
    refused("mini-fashion", config, "batch_size: 128 is more than the 24 examples", tmp_path)
    table, vocab, _ = write_captions(tmp_path / "pictures")
    config = options("tiny-resnet-bert", batch_size=16, run=tmp_path / "run", vocab=vocab, data=CaptionData(str(table)))
    refused("tiny-resnet-bert", config, "batch_size: 16 is more than the 9 examples", tmp_path)


@pytest.mark.parametrize("name", ["tiny-clip", "tiny-one-step-prior", "tiny-prior"])
def test_a_contrastive_loss_is_not_accumulated(untrained_run, tmp_path, name):
    """Microbatches would be other batches; a prior that is not contrastive may be split."""
    data = dataclasses.replace(options(name).data, directory=tmp_path / "data")
    optim = dataclasses.replace(options(name).optim, accum=2)
    run = tmp_path / "run" if name == "tiny-clip" else untrained_run
    config = options(name, batch_size=16, optim=optim, run=run, data=data)
    if name == "tiny-prior":
        check(name, config)
    else:
        refused(name, config, "^optim.accum: 2 microbatches would contrast fewer examples than a batch", tmp_path)


# statistics


def test_a_draw_is_of_the_whole_source():
    np.testing.assert_array_equal(drawn_indices(5, 5, seed=3), np.arange(5))
    np.testing.assert_array_equal(drawn_indices(5, 9, seed=3), np.arange(5))
    drawn = drawn_indices(1000, 100, seed=3)
    assert (np.diff(drawn) > 0).all()
    np.testing.assert_array_equal(drawn, drawn_indices(1000, 100, seed=3))
    assert not np.array_equal(drawn, drawn_indices(1000, 100, seed=4))
    assert 400 < drawn.mean() < 600


def test_statistics_of_a_sorted_table_are_those_of_all_of_it(untrained_run):
    """The first rows are one picture; the embeddings of all of them have a deviation that those do not."""
    clip = clip_jax.load(untrained_run / "clip")
    pictures = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), np.uint8)

    class Sorted:
        def __len__(self):
            return 200

        def __getitem__(self, index):
            stands_in = {"bad": np.int32(1)} if index % 7 == 3 else {}  # for one that is damaged
            return {"image": pictures[max(index - 180, 0)]} | stands_in

    config, params = clip.model.config, clip.variables["params"]
    drawn = drawn_examples(Sorted(), 100, seed=0)
    std = unclip.prior_task(PRIOR, preset("tiny-captions-prior"), config, params, drawn).embed_std
    embeds = np.asarray(jax.jit(lambda i: clip_jax.encode_images(config, params, i))(pictures))
    whole = np.concatenate([np.repeat(embeds[:1], 181, axis=0), embeds[1:]]).std(0)
    assert 0.5 < np.median(std / whole) < 2
