"""The seed programs: what they are trained on and with; `test_cli.py` runs them.

Nothing is trained here: `train_stage` is caught, and what it would have been given is looked at.
"""

import dataclasses
import json
import math
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import clip_jax
from clip_jax.encode import joined
from clip_jax.losses import clip_loss, same_rows
from clip_jax.presets import PRESETS
from clip_jax.uses.embed import image_features, text_features
from image_text.fashion_mnist import CAPTIONS
from tests.support.captions import write_captions
from tests.support.idx import write_idx
from tests.support.recipes import check, options, train
from tests.support.tiny import tiny_run
from train_jax.errors import UserError
from train_jax.state import TrainState
from train_recipes import clip as clip_recipe
from train_recipes import distill, unclip
from train_recipes.data import CaptionData, FashionData, captions_of
from train_recipes.draw import drawn_examples
from train_recipes.engine import architecture, digest
from train_recipes.pictures import Pictures, Seen
from train_recipes.presets import PRESETS as TRAINING
from train_recipes.presets import PRIOR, UPSAMPLER_1
from train_recipes.unclip import fitted
from unclip_jax import pipeline
from unclip_jax import presets as stage_presets
from unclip_jax.degrade import BSRConfig, DegradeConfig
from unclip_jax.stage_files import check_clip
from unclip_jax.tasks import PriorTask

untrained_run = tiny_run  # a fixture: a run directory with random weights


def shallow(name):
    """The preset with one layer in each transformer."""
    row = PRESETS[name]
    towers = {"text": dataclasses.replace(row.config.text, layers=1)}
    if hasattr(row.config.vision, "heads"):
        towers["vision"] = dataclasses.replace(row.config.vision, layers=1)
    return row._replace(config=dataclasses.replace(row.config, **towers))


def random_state(task):
    """A state with random parameters, without compiling how they are drawn."""
    rng = np.random.default_rng(0)
    abstract = jax.eval_shape(task.init, jax.random.key(0))
    params, model_state = jax.tree.map(lambda x: rng.normal(0, 0.1, x.shape).astype(np.float32), abstract)
    return TrainState(np.int32(0), params, params, (), model_state, np.int32(0))


@pytest.fixture
def caught(monkeypatch):
    """What was given to `train_stage`, which exports random weights in place of trained ones."""
    calls = []

    def train_stage(name, training, plan, batches, options, *, data):
        calls.append((plan, batches, {"run": options.run, "data": data}))
        state = random_state(plan.task)
        plan.export(state)
        return state

    for module in (clip_recipe, unclip, distill):
        monkeypatch.setattr(module, "train_stage", train_stage)
    return calls


# mini-fashion


def test_mini_fashion_to_the_letter():
    config = options("mini-fashion")
    clip, optim = clip_jax.preset(config.model), config.optim
    vision, text = clip.vision, clip.text
    assert (clip.embed_dim, vision.image_size, vision.channels, vision.patch_size) == (32, 28, 1, 14)
    assert (vision.width, vision.layers, vision.heads) == (9, 3, 3)
    assert (text.width, text.layers, text.heads, text.vocab_size, text.context_length) == (32, 4, 8, 256, 32)
    assert clip.logit_scale_init == math.log(1 / 0.07)
    assert (config.batch_size, config.num_steps * config.batch_size) == (128, 12 * 60_000)
    assert (optim.lr, optim.b1, optim.b2, optim.eps, optim.schedule) == (1e-3, 0.9, 0.999, 1e-8, "constant")
    assert (optim.warmup_steps, optim.weight_decay, optim.clip_norm, optim.ema_decay) == (0, 0, 0, 0)


def features(labels):
    """Random unit vectors, equal for equal captions on the side of the texts."""
    rng = np.random.default_rng(1)
    unit = [x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (rng.normal(size=(n, 8)) for n in (len(labels), 10))]
    return np.float32(unit[0]), np.float32(unit[1][labels])


@pytest.mark.slow
def test_ten_captions_in_a_batch_of_128_have_a_floor():
    """2.585 nats, whatever the model; and counting equal captions as right changes neither loss nor gradient."""
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.arange(128 * 50) % 10).reshape(50, 128)
    same = [same_rows(row[:, None]) for row in labels]
    floors = [float(np.log(matrix.sum(1)).mean()) for matrix in np.asarray(same)]
    assert np.mean(floors) == pytest.approx(2.585, abs=0.005)

    images, texts = features(labels[0])
    loss = jax.value_and_grad(lambda x, targets: clip_loss(x, texts, 1.0, targets)[0])
    (alone, gradient), (together, other) = loss(images, None), loss(images, same[0])
    assert float(alone) == pytest.approx(float(together), rel=1e-5)
    np.testing.assert_allclose(gradient, other, atol=1e-6)
    metrics = clip_loss(images, texts, 1.0, same[0])[1]
    assert float(metrics["loss_floor"]) == pytest.approx(floors[0], rel=1e-5)


@pytest.mark.slow
def test_mini_fashion_sees_every_garment_with_its_caption(caught, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(PRESETS, "mini_fashion", shallow("mini_fashion"))
    splits = write_idx(tmp_path / "files")
    data = FashionData(tmp_path / "data", tmp_path / "files")
    config = options("mini-fashion", batch_size=8, run=tmp_path / "run", data=data)
    check("mini-fashion", config)
    train("mini-fashion", config)

    ((_, batches, rest),) = caught
    clip = clip_jax.load(tmp_path / "run" / "clip")
    garments = splits["train"]
    seen = set()
    for step in range(3):
        batch = batches(step)
        assert batch["image"].shape == (8, 28, 28, 1)
        assert batch["tokens"].shape == (8, 32)
        for image, tokens in zip(batch["image"], batch["tokens"], strict=True):
            (index,) = np.flatnonzero((garments.images == image[..., 0]).all((1, 2)))
            assert clip.tokenize.decode(tokens) == CAPTIONS[garments.labels[index]]
            seen.add(index)
    assert seen == set(range(24))  # an epoch
    assert rest["data"] == {"examples": 24}

    # What is printed is what one finds with the weights that were written.
    found = accuracy(clip, splits)
    out = capsys.readouterr().out
    assert f"zero-shot accuracy {100 * found:.2f} % of 20 images, 10 captions" in out
    # 20 images, all ten classes twice: batches of 8 at random, so the floor lies between no pair and four in each.
    floor = float(out.split("its floor of ")[1].split(";")[0])
    assert 0 < floor < math.log(2)


def accuracy(clip, splits):
    images = image_features(clip, list(splits["test"].images[..., None]))
    cosines = images @ text_features(clip, CAPTIONS).T
    return float((cosines.argmax(1) == splits["test"].labels).mean())


# resnet50-bert


def test_resnet50_bert_is_the_preset_with_its_faults_mended():
    config = options("resnet50-bert")
    assert (config.batch_size, config.optim.lr, config.learned_temperature) == (32, 1e-4, False)
    assert config.optim.warmup_steps > 0
    assert config.optim.ema_decay == 0


def test_pictures_and_captions_belong_together(caught, tmp_path):
    table, vocab, captions = write_captions(tmp_path)
    name = "tiny-resnet-bert"
    data = CaptionData(str(table))
    config = options(name, run=tmp_path / "run", vocab=vocab, data=data, learned_temperature=True)
    check(name, config)
    train(name, config)

    ((_, batches, rest),) = caught
    clip = clip_jax.load(tmp_path / "run" / "clip")
    assert "batch_stats" in clip.variables
    assert "logit_scale" in clip.variables["params"]
    assert clip.model.config.text.vocab_size == clip.tokenize.vocab_size == len(vocab.read_text().splitlines())
    colours = [np.asarray(Image.open(tmp_path / f"{i}.png"))[0, 0] for i in range(len(captions))]
    batch = batches(0)
    assert batch["image"].shape == (8, 32, 32, 3)
    for image, tokens in zip(batch["image"], batch["tokens"], strict=True):
        (index,) = np.flatnonzero((np.array(colours) == image[0, 0]).all(1))
        assert clip.tokenize.decode(tokens) == captions[index]
    assert rest["data"]["examples"] == len(captions)


def test_classes_become_captions(tmp_path):
    for name in ("red_box", "blue_box"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / name / "a.png")
    from image_text.source import open_source

    found = captions_of(open_source(str(tmp_path)), str(tmp_path))
    assert found == ["a photo of a blue box.", "a photo of a red box."]


def test_other_captions_are_another_run(caught, tmp_path):
    """The order of the examples depends on them, so a run cannot go on with others."""
    name, identities = "tiny-resnet-bert", []
    for kind in ("red", "crimson"):
        table, vocab, _ = write_captions(Path(tmp_path / kind), red=kind)
        data = CaptionData(str(table))
        train(name, options(name, run=tmp_path / "run", vocab=vocab, data=data))
        identities.append(caught[-1][2]["data"])
    assert identities[0] != identities[1]


# unclip


def test_training_is_the_papers_table():
    """Ramesh et al. 2022, Table 3: steps, batch, rate, β2, ε, weight decay and average of each stage."""
    rows = {name: options(f"dalle2-{name}") for name in ("prior", "decoder", "upsampler_0", "upsampler_1")}
    optims = [row.optim for row in rows.values()]
    assert [row.num_steps for row in rows.values()] == [600_000, 800_000, 1_000_000, 1_000_000]
    assert [row.batch_size for row in rows.values()] == [4096, 2048, 1024, 512]
    assert [optim.lr for optim in optims] == [1.1e-4, 1.2e-4, 1.2e-4, 1.0e-4]
    assert [optim.b1 for optim in optims] == [0.9] * 4
    assert [optim.b2 for optim in optims] == [0.96, 0.999, 0.999, 0.999]
    assert [optim.eps for optim in optims] == [1e-6, 1e-8, 1e-8, 1e-8]
    assert [optim.weight_decay for optim in optims] == [6e-2, 0, 0, 0]
    assert [optim.ema_decay for optim in optims] == [0.9999] * 4
    assert {optim.kind for optim in optims} == {"adamw"}
    for row in TRAINING.values():
        for part in row.stages:
            assert stage_presets.preset(row.options.training(part.name).model)


def captions_config(directory, run, **fields):
    """(the tiny cascade on 9 pictures of one colour each, their captions)"""
    table, _, captions = write_captions(directory / "pictures")
    data = CaptionData(str(table))
    return options("tiny-captions", run=directory / "run", clip=str(run / "clip"), data=data, **fields), captions


@pytest.mark.slow
def test_every_stage_of_unclip_gets_its_pictures_with_their_captions(caught, monkeypatch, untrained_run, tmp_path):
    """Pictures of the stage's own size, and of CLIP's where it is asked; the run directory is a whole system."""
    monkeypatch.setattr(unclip, "draw_sheet", lambda run, prompts: f"{run.name} {prompts}")
    config, captions = captions_config(tmp_path, untrained_run)
    for _ in range(2):  # the second time the CLIP is there already
        check("tiny-captions", config)
        train("tiny-captions", config)
    loaded = pipeline.load(tmp_path / "run")
    for name in ("prior", "decoder", "upsampler_0"):
        saved = json.loads((tmp_path / "run" / name / "config.json").read_text())
        assert ("clip_digests" in saved) == (name != "upsampler_0")
    assert [stage.model.image_size for stage in (loaded.unclip.decoder, *loaded.unclip.upsamplers)] == [16, 32]
    wanted = {"prior": {"image": 32}, "decoder": {"image": 16, "clip_image": 32}, "upsampler_0": {"image": 32}}
    assert len(caught) == 6
    for (plan, batches, rest), (name, sizes) in zip(caught, wanted.items(), strict=False):
        assert rest["run"] == tmp_path / "run"
        batch = batches(0)
        assert {key: value.shape for key, value in batch.items() if key != "tokens"} == {
            key: (8, size, size, 3) for key, size in sizes.items()
        }
        for image, tokens in zip(batch["image"], batch["tokens"], strict=True):
            colour = int(image.mean((0, 1)).argmax())
            (caption,) = {caption for caption in captions if (loaded.tokenize([caption])[0] == tokens).all()}
            assert caption == captions[colour]
        assert plan.model == architecture(plan.task.stage), name
    upsampler = caught[2][0].task
    assert (upsampler.low_res_size, upsampler.crop_size, upsampler.degrade) == (16, 16, DegradeConfig())
    assert loaded.unclip.upsamplers[0].model.low_res.size == caught[2][2]["data"]["low_res_size"] == 16
    second = unclip.upsampler_task(UPSAMPLER_1, upsampler.stage, None, None, None)
    assert second.degrade == BSRConfig()


def test_a_stage_says_which_clip_it_was_trained_against(caught, untrained_run, tmp_path):
    """Beside another one of the same widths it is refused; an upsampler sees none."""
    config, _ = captions_config(tmp_path, untrained_run)
    over = {"run": config.run, "clip": config.clip, "data": config.data, "factor": 2}
    train("small-decoder", options("small-decoder", **vars(config.decoder), **over))
    train("small-upsampler_0", options("small-upsampler_0", **vars(config.upsampler_0), **over))
    clip, run = clip_jax.load(untrained_run / "clip"), config.run
    against = [rest["data"].get("clip") for _, _, rest in caught]  # FIXED: a run that finds another does not go on
    assert against == [digest(run / "clip"), None]
    other = jax.tree.map(lambda a: np.asarray(a) + 1, clip.variables)
    clip_jax.save(run / "clip", clip.model, other, clip.tokenize)
    check_clip(run / "upsampler_0", run / "clip")
    with pytest.raises(clip_jax.UserError, match="decoder was trained with another CLIP than the one in"):
        check_clip(run / "decoder", run / "clip")


def test_a_stage_takes_the_widths_of_its_clip():
    clip = clip_jax.preset("ViT-B/32")
    prior, decoder, upsampler = (
        fitted(stage_presets.preset(f"small-{name}"), clip).model for name in ("prior", "decoder", "upsampler-256")
    )
    assert (prior.embed_dim, prior.text_width, prior.context_length) == (512, 512, 77)
    assert (decoder.image.embed_dim, decoder.text.width) == (512, 512)
    assert upsampler == stage_presets.preset("small-upsampler-256").model
    narrow = fitted(stage_presets.preset("dalle2-ar-prior"), clip_jax.preset("tiny")).model
    assert (narrow.embed_dim, narrow.components) == (16, 16)  # there are no more components than dimensions


def test_another_clip_is_not_mixed_in(caught, untrained_run, tmp_path):
    """The stages of a run directory belong to one CLIP; one without it, or without pictures, is refused at once."""
    config, _ = captions_config(tmp_path, untrained_run)
    unclip.the_clip(config)
    clip = clip_jax.load(untrained_run / "clip")
    other = jax.tree.map(lambda a: np.asarray(a) + 1, clip.variables)
    clip_jax.save(tmp_path / "other", clip.model, other, clip.tokenize)
    with pytest.raises(UserError, match="is not the CLIP in"):
        unclip.the_clip(dataclasses.replace(config, clip=str(tmp_path / "other")))
    with pytest.raises(UserError, match="clip: none was given, and there is none in"):
        check("tiny-captions", dataclasses.replace(config, clip="", run=tmp_path / "empty"))
    with pytest.raises(UserError, match=r"data.source: none was given"):
        check("tiny-captions", dataclasses.replace(config, data=CaptionData()))


@pytest.mark.slow
def test_a_finished_prior_knows_its_error(untrained_run, tmp_path):
    """As the analytic variance needs it: measured on the training pictures, at every time."""
    config, captions = captions_config(tmp_path, untrained_run)
    clip = clip_jax.load(config.clip)
    stage = dataclasses.replace(stage_presets.preset("tiny-prior"), x0_error=True)
    pictures = [tmp_path / "pictures" / f"{i}.png" for i in range(9)]
    source = Pictures(pictures, clip.tokenize(captions), Seen(None, clip.preprocess))
    examples = drawn_examples(source, 8, seed=0)
    task = unclip.prior_task(PRIOR, stage, clip.model.config, joined(clip.variables), examples)
    assert isinstance(task, PriorTask)
    state = random_state(task)
    variables = {"params": state.params, **state.model_state}
    error = np.asarray(unclip.with_x0_error(task, variables, examples)["statistics"]["x0_error"])
    assert error.shape == (1000,)
    assert (error > 0).all()
    assert not np.allclose(error, 1.0)


# distillation


@pytest.mark.slow
@pytest.mark.parametrize("model", ["decoder", "upsampler_0"])
def test_each_round_is_taught_by_the_student_of_the_one_before(caught, monkeypatch, untrained_run, tmp_path, model):
    """What comes out is a whole system with the last student in it; both networks of a round can be traced."""
    monkeypatch.setattr(distill, "draw_sheet", lambda run, prompts: run)
    preset = options("tiny-distill")
    config = dataclasses.replace(
        preset,
        model=model,
        teacher=untrained_run,
        run=tmp_path / "run",
        rounds=(4, 2),
        data=dataclasses.replace(preset.data, directory=tmp_path / "data", train_examples=16),
    )
    check("tiny-distill", config)
    train("tiny-distill", config)
    teacher, student = pipeline.load(untrained_run), pipeline.load(tmp_path / "run")
    original = teacher.unclip.decoder if model == "decoder" else teacher.unclip.upsamplers[0]
    first, second = (plan.task for plan, _, _ in caught)
    assert (first.teacher, second.teacher) == (original, first.student)
    assert (first.num_steps, second.num_steps) == (4, 2)
    jax.tree.map(np.testing.assert_array_equal, first.teacher_variables, teacher.params[model])
    jax.tree.map(np.testing.assert_array_equal, second.teacher_variables["params"], random_state(first).params)
    last = student.unclip.decoder if model == "decoder" else student.unclip.upsamplers[0]
    assert last == second.student
    for other in {"clip", "prior", "decoder", "upsampler_0"} - {model}:
        jax.tree.map(np.testing.assert_array_equal, student.params[other], teacher.params[other])
    batch = caught[1][1](0)
    for task in (first, second):
        state = jax.eval_shape(task.init, jax.random.key(0))
        loss, _ = jax.eval_shape(
            lambda params, model_state, task=task: task.loss(
                params, {**model_state, **task.frozen}, batch, jax.random.key(0), train=True
            ),
            *state,
        )
        assert loss.shape == ()
    with pytest.raises(UserError, match="the teacher's own directory"):
        check("tiny-distill", dataclasses.replace(config, run=untrained_run))
