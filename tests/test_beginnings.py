"""How the runs of `train.py` begin, whatever the preset. Nothing is trained here; `tests/train/test_begin.py` does."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clip_jax.config import PreprocessConfig
from clip_jax.images import Preprocess
from tests.support.recipes import check, options
from train_jax.begin import Begin
from train_jax.cli import choose
from train_jax.data import batches
from train_jax.errors import UserError
from train_recipes import engine
from train_recipes.engine import FIXED, Plan, check_begin, stage_directory, train_stage
from train_recipes.pictures import Pictures, Seen
from train_recipes.presets import PRESETS


def trained(run, *stages, step=4):
    """A run directory in which the stages have a checkpoint, as far as their names tell."""
    for stage in stages:
        (run / "train" / stage / "checkpoints" / str(step)).mkdir(parents=True)
    return run


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_can_be_begun_and_extended(name):
    rows = {name: ("", PRESETS[name].options)}
    _, config = choose(rows, [name, "--begin-from", "there", "--extend"], prog="train.py")
    assert (config.begin_from, config.extend) == (Path("there"), True)
    _, config = choose(rows, [name], prog="train.py")
    assert (config.begin_from, config.extend) == (None, False)


def test_the_stages_of_the_other_run_are_looked_for_at_once(tmp_path):
    other = trained(tmp_path / "other", "clip", "prior")
    check_begin(Begin(begin_from=other), tmp_path / "run", ["clip", "prior"])
    check_begin(Begin(begin_from=other / "train" / "prior"), tmp_path / "run", ["prior"])
    check_begin(Begin(), tmp_path / "run", ["decoder"])
    trained(tmp_path / "run", "decoder")  # which goes on, whatever the other run has
    check_begin(Begin(begin_from=other), tmp_path / "run", ["clip", "decoder"])
    with pytest.raises(UserError, match="other holds no checkpoints of the upsampler; name a run that trained it"):
        check_begin(Begin(begin_from=other), tmp_path / "run", ["clip", "upsampler"])
    with pytest.raises(UserError, match="nowhere is not a directory"):
        check_begin(Begin(begin_from=tmp_path / "nowhere"), tmp_path / "run", ["clip"])
    with pytest.raises(UserError, match="is the run itself"):
        check_begin(Begin(begin_from=other), other, ["clip"])


def test_where_nothing_is_there_is_nothing_to_extend(tmp_path):
    with pytest.raises(UserError, match=r"extend: .*run holds no run of clip, prior to go on with"):
        check_begin(Begin(extend=True), tmp_path / "run", ["clip", "prior"])
    trained(tmp_path / "run", "clip")  # interrupted before its prior
    check_begin(Begin(extend=True), tmp_path / "run", ["clip", "prior"])


def test_a_recipe_refuses_before_anything_is_done(tmp_path):
    config = options("tiny", run=tmp_path / "run", begin_from=trained(tmp_path / "other", "clip"))
    with pytest.raises(UserError, match="no checkpoints of the prior"):
        check("tiny", config)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_clip_is_not_trained_on_under_its_prior(tmp_path):
    run = trained(tmp_path / "run", "clip", "prior", step=8)
    config = options("tiny", run=run, extend=True)
    check("tiny", config)
    longer = dataclasses.replace(config, clip=dataclasses.replace(config.clip, num_steps=9))
    with pytest.raises(
        UserError, match=r"clip\.num_steps: .*a prior trained against its CLIP of 8 steps; .*--begin-from"
    ):
        check("tiny", longer)
    check("tiny", dataclasses.replace(config, prior=dataclasses.replace(config.prior, num_steps=9)))


@pytest.mark.parametrize(
    ("begin", "begin_from"), [(Begin(), None), (Begin(begin_from=Path("o"), extend=True), "o/train/x")]
)
def test_a_stage_begins_as_its_config_says(begin, begin_from, monkeypatch):
    runs = []
    monkeypatch.setattr(engine, "fit", runs.append)
    run = options("tiny", run=Path("run"), begin_from=begin.begin_from, extend=begin.extend)
    plan = Plan(None, {"width": 8}, lambda state: None)
    train_stage("x", run.training("prior"), plan, lambda step: {}, run, data={})
    (run,) = runs
    assert run.begin_from == (begin_from and Path(begin_from))
    assert (run.extend, run.fixed) == (begin.extend, FIXED)
    assert stage_directory(Path("run"), "x") == Path(run.directory)


# Damaged pictures


@pytest.fixture
def pictures(tmp_path):
    """Eight pictures, the fourth of which is cut off."""
    paths = [tmp_path / f"{i}.png" for i in range(8)]
    for i, path in enumerate(paths):
        Image.effect_noise((40, 30), 60 + i).convert("RGB").save(path)
    paths[3].write_bytes(paths[3].read_bytes()[:200])
    return paths


@pytest.mark.parametrize("size", [None, 16])
def test_a_damaged_picture_is_named_and_replaced(pictures, size, caplog):
    tokens = np.arange(8, dtype=np.int32)[:, None]
    source = Pictures(pictures, tokens, Seen(size, Preprocess(PreprocessConfig(), 16)))
    batch = batches(source, batch_size=8, seed=0)(0)
    assert int(batch["bad"].sum()) == 1
    assert sorted(batch["tokens"][:, 0].tolist()) == [0, 1, 2, 4, 4, 5, 6, 7]  # the caption goes with its picture
    (line,) = [record.getMessage() for record in caplog.records]
    assert str(pictures[3]) in line


@pytest.mark.parametrize(
    ("name", "more"), [("tiny-captions", {"clip": "x"}), ("tiny-resnet-bert", {"vocab": Path("v")})]
)
def test_a_share_that_is_none_is_refused(name, more, tmp_path):
    data = dataclasses.replace(options(name).data, source="captions.csv", max_damaged=1.5)
    with pytest.raises(UserError, match=r"data\.max_damaged: 1\.5 is not between 0 and 1"):
        check(name, options(name, data=data, run=tmp_path / "run", **more))
