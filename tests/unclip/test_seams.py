"""The stages of a cascade follow from each other, or are refused: by their sizes, at both ends of a run's life."""

import json
import shutil

import pytest

from clip_jax.errors import UserError
from unclip_jax import pipeline
from unclip_jax.models.movq import MoVQConfig
from unclip_jax.models.unet import Level
from unclip_jax.presets import preset
from unclip_jax.seams import Drawn, cascade_with, check_cascade, check_seams, starting_from

DECODER = Drawn("decoder", 16, 3)


@pytest.mark.parametrize(
    ("upsampler", "message"),
    [
        (Drawn("upsampler_0", 64, 3, 32), "upsampler_0: it starts from pictures of 32 pixels, but decoder draws 16"),
        (Drawn("upsampler_0", 40, 3), "upsampler_0: its 40 pixels are not 2 times or more, in whole numbers, the 16"),
        (Drawn("upsampler_0", 16, 3), "upsampler_0: its 16 pixels"),
        (Drawn("upsampler_0", 8, 3), "upsampler_0: its 8 pixels"),
        (Drawn("upsampler_0", 32, 1, 16), "upsampler_0: its pictures have 1 channels, those of decoder 3"),
    ],
)
def test_an_upsampler_starts_from_what_is_drawn_before_it(upsampler, message):
    with pytest.raises(UserError, match=message):
        check_seams([DECODER, upsampler])


def test_what_follows_passes():
    check_seams([DECODER, Drawn("upsampler_0", 64, 3, 16), Drawn("upsampler_1", 128, 3)])
    decoder, upsampler = preset("tiny-decoder").model, preset("tiny-upsampler")
    check_cascade(decoder, None, [upsampler])
    movq = MoVQConfig(levels=(Level(32, 1), Level(32, 1)))  # 16 becomes 32
    with pytest.raises(UserError, match=r"upsampler_0: its 32 pixels .* the 32 that movq draws"):
        check_cascade(decoder, movq, [upsampler])


@pytest.mark.parametrize("size", [0, 12, 32, 64])
def test_a_size_that_cannot_be_started_from(size):
    with pytest.raises(UserError, match=f"low_res.size is {size}: give a size that image_size 32"):
        starting_from(preset("tiny-upsampler"), size)


def test_only_an_upsampler_starts_from_pictures():
    with pytest.raises(UserError, match="low_res is None: this network is no upsampler"):
        starting_from(preset("tiny-decoder"), 8)


def test_neighbours_of_a_run_directory(tiny_run, tmp_path):
    own = {"upsampler_1": Drawn("upsampler_1", 64, 3, 32)}
    assert cascade_with(tiny_run, own) == [[DECODER, Drawn("upsampler_0", 32, 3), own["upsampler_1"]]]
    assert cascade_with(tmp_path, own) == [[], [], [own["upsampler_1"]]]
    (tmp_path / "decoder").mkdir()
    (tmp_path / "decoder" / "config.json").write_text("[1]")
    with pytest.raises(UserError, match=r"config.json does not describe a stage"):
        cascade_with(tmp_path, own)


def test_load_refuses_an_upsampler_of_another_system(tiny_run, tiny_system, tmp_path):
    """The size is in the config of what is trained now; older configs without it load, as that of `tiny_system`."""
    assert tiny_system.unclip.upsamplers[0].model.low_res.size is None
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    file = run / "upsampler_0" / "config.json"
    stage = starting_from(tiny_system.unclip.upsamplers[0], 16)
    pipeline.save_stage(file.parent, stage, tiny_system.params["upsampler_0"])
    assert json.loads(file.read_text())["model"]["low_res"]["size"] == 16
    assert pipeline.load_stage(file.parent)[0] == stage
    pipeline.save_stage(file.parent, starting_from(stage, 8), tiny_system.params["upsampler_0"])
    with pytest.raises(UserError, match="upsampler_0: it starts from pictures of 8 pixels, but decoder draws 16"):
        pipeline.load(run)
