import json
import random
import shutil

import jax
import numpy as np
import pytest

import clip_jax
from clip_jax.errors import UserError
from clip_jax.weights.digest import file_digest
from clip_jax.weights.native import load_params
from unclip_jax import pipeline
from unclip_jax.pipeline import load, load_stage, save_stage
from unclip_jax.presets import preset

WEIGHTS = "weights.safetensors"


def read(directory):
    return json.loads((directory / "config.json").read_text())


def edit(directory, change):
    config = read(directory)
    change(config)
    (directory / "config.json").write_text(json.dumps(config))


def flip(path, bit):
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


@pytest.fixture
def run(tiny_run, tmp_path):
    """A run directory whose prior and decoder know their CLIP."""
    shutil.copytree(tiny_run, tmp_path / "run")
    for name in ("prior", "decoder"):
        save_stage(tmp_path / "run" / name, *load_stage(tiny_run / name), clip=tmp_path / "run" / "clip")
    return tmp_path / "run"


class TestDigests:
    def test_they_are_of_the_weights_and_of_the_clip(self, run):
        files = (WEIGHTS, "tokenizer.json")
        for name in ("prior", "decoder"):
            config = read(run / name)
            assert config["digests"] == {WEIGHTS: file_digest(run / name / WEIGHTS)}
            assert config["clip_digests"] == {file: file_digest(run / "clip" / file) for file in files}
        assert "clip_digests" not in read(run / "upsampler_0")
        assert load(run).unclip.prior == preset("tiny-prior")

    def test_a_flipped_bit_of_a_stage_is_noticed(self, run):
        path, digest = run / "prior" / WEIGHTS, read(run / "prior")["digests"][WEIGHTS]
        for place in random.Random(1).sample(range(8 * path.stat().st_size), 100):
            flip(path, place)
            with pytest.raises(UserError, match=WEIGHTS):
                load_params(path, digest=digest)
            flip(path, place)
        flip(path, 8 * path.stat().st_size - 8)
        with pytest.raises(UserError, match="not the file that was saved") as caught:
            load_stage(run / "prior")
        assert str(path) in str(caught.value)

    @pytest.mark.parametrize("folder", ["clip", "prior", "decoder", "upsampler_0"])
    def test_a_flipped_bit_of_the_shipped_weights_is_noticed(self, tmp_path, folder):
        shutil.copytree(pipeline.SHIPPED / folder, tmp_path / folder)
        flip(tmp_path / folder / WEIGHTS, 8 * 100_000 + 3)
        with pytest.raises(UserError, match=f"{folder}/{WEIGHTS} is not the file"):
            clip_jax.load(tmp_path / folder) if folder == "clip" else load_stage(tmp_path / folder)

    @pytest.mark.parametrize("folder", ["prior", "decoder"])
    def test_another_clip_of_the_same_widths_is_refused(self, run, folder, tmp_path):
        clip = clip_jax.load(run / "clip")
        other = jax.tree.map(lambda leaf: leaf + np.float32(0.1), clip.variables)
        clip_jax.save(tmp_path / "other", clip.model, other, clip.tokenize)
        if folder == "decoder":
            edit(run / "prior", lambda config: config.pop("clip_digests"))
        shutil.rmtree(run / "clip")
        shutil.move(tmp_path / "other", run / "clip")
        with pytest.raises(UserError, match="trained with another CLIP") as caught:
            load(run)
        assert str(run / folder) in str(caught.value)
        assert str(run / "clip") in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_without_them_a_run_still_loads(self, run, caplog):
        for name in ("clip", "prior", "decoder", "upsampler_0"):
            edit(run / name, lambda config: [config.pop(field, None) for field in ("digests", "clip_digests")])
        with caplog.at_level("DEBUG", "unclip_jax"):
            load(run)
        assert "does not say which CLIP" in caplog.text

    def test_a_clip_that_is_not_there_is_refused_before_anything_is_written(self, run, tmp_path):
        with pytest.raises(UserError, match="nowhere"):
            save_stage(tmp_path / "new", *load_stage(run / "prior"), clip=tmp_path / "nowhere")
        assert not (tmp_path / "new").exists()
