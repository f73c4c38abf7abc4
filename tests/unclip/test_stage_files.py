import dataclasses
import json
import random
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import clip_jax
from clip_jax.errors import UserError
from clip_jax.weights.digest import file_digest
from clip_jax.weights.native import load_params
from unclip_jax import pipeline
from unclip_jax.diffusion.losses import P2, CappedV, MinSNR, Simple, TruncatedSNR
from unclip_jax.diffusion.samplers import DDIM
from unclip_jax.diffusion.schedule import Trailing
from unclip_jax.models.unet import ImageCond, LowRes, TextCond
from unclip_jax.pipeline import load, load_stage, save_stage
from unclip_jax.presets import preset
from unclip_jax.stage import Sampling
from unclip_jax.stage_files import read_stage
from unclip_jax.variables import flat

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

    @pytest.mark.slow
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


NUMBERS = {
    "a guidance scale of NaN": (("sampling", "guidance_scale"), "NaN", "sampling.guidance_scale is nan; give 0.0 to"),
    "an infinite one": (("sampling", "guidance_scale"), "Infinity", "sampling.guidance_scale is inf"),
    "a negative one": (("sampling", "guidance_scale"), "-1", "sampling.guidance_scale is -1.0"),
    "a scale in words": (("sampling", "guidance_scale"), '"2"', "sampling.guidance_scale"),
    "ten million times": (("num_timesteps",), "10000000", "num_timesteps is 10000000; give 1 to 100000"),
    "no times": (("num_timesteps",), "0", "num_timesteps is 0"),
    "true times": (("num_timesteps",), "true", "num_timesteps is True"),
    "times with a fraction": (("num_timesteps",), "1000.0", "num_timesteps"),
    "a number of 400 digits": (("weight", "cap"), "9" * 400, "cap"),
    "no number of steps": (("sampling", "num_steps"), "-3", "sampling.num_steps is -3"),
    "NaN as clip": (("sampling", "clip"), "NaN", "sampling.clip is nan"),
    "NaN as threshold": (("sampling", "threshold"), "NaN", "sampling.threshold is nan"),
    "NaN as level": (("sampling", "low_res_level"), "NaN", "sampling.low_res_level is nan"),
    "NaN as cap": (("weight", "cap"), "NaN", "weight.cap is nan"),
    "a huge picture": (("model", "image_size"), "1048576", "image_size is 1048576; give 1 to 4096"),
    "a huge width": (("model", "time_width"), "1000000000", "time_width is 1000000000"),
    "a million blocks": (("model", "levels"), '[{"width": 16, "blocks": 1000000}]', "level blocks is 1000000"),
    "a dropout of all": (("model", "dropout"), "1", "dropout is 1.0"),
    "an unknown dtype": (("model", "dtype"), '"float8"', "dtype is 'float8'; choose one of float32"),
    "groups of true": (("model", "groups"), "true", "groups is True"),
}


@pytest.mark.parametrize("case", NUMBERS)
def test_numbers_that_cannot_be_are_refused_by_the_fields_name(tiny_run, tmp_path, case):
    fields, value, message = NUMBERS[case]
    shutil.copytree(tiny_run / "decoder", tmp_path / "decoder")

    def change(config):
        for field in fields[:-1]:
            config = config[field]
        config[fields[-1]] = "@"

    edit(tmp_path / "decoder", change)
    path = tmp_path / "decoder" / "config.json"
    path.write_text(path.read_text().replace('"@"', value))
    with pytest.raises(UserError, match=message) as caught:
        load_stage(tmp_path / "decoder")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"num_timesteps": 1000, "num_timesteps": 10}', "num_timesteps.* stands twice in it"),
        ('{"model": {"width": 8, "width": 16}}', "width.* stands twice in it"),
        ("[" * 100_000, "does not describe a stage"),
    ],
)
def test_json_that_is_no_config_is_refused(tmp_path, text, message):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        load_stage(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "part", "changes", "message"),
    [
        ("tiny-prior", "model", {"scale": float("nan")}, "scale is nan"),
        ("tiny-prior", "model", {"layers": 10**6}, "layers is 1000000; give 1 to 256"),
        ("tiny-ar-prior", "model", {"buckets": 10**9}, "buckets is 1000000000"),
        ("tiny-ar-prior", "sampling", {"guidance_scale": float("inf")}, "sampling.guidance_scale is inf"),
        ("tiny-one-step-prior", None, {"contrastive_weight": float("inf")}, "contrastive_weight is inf"),
    ],
)
def test_so_are_those_of_priors(name, part, changes, message):
    stage = preset(name)

    def change():
        inner = changes if part is None else {part: dataclasses.replace(getattr(stage, part), **changes)}
        return dataclasses.replace(stage, **inner)

    with pytest.raises(UserError, match=message):
        change()


class TestOlderLayout:
    """Files from before there were collections: the statistics lie among the parameters."""

    @pytest.mark.parametrize("name", ["tiny-prior", "tiny-ar-prior", "tiny-one-step-prior", "tiny-upsampler"])
    def test_names_in_the_file_are_what_they_were(self, fill, tmp_path, name):
        save_stage(tmp_path, preset(name), fill(preset(name)))
        names = set(load_file(tmp_path / WEIGHTS))
        assert not any(name.startswith(("params/", "quantiser/")) for name in names)
        measured = {
            "tiny-prior": {"embed_mean", "embed_std"},
            "tiny-ar-prior": {f"statistics/{n}" for n in ("mean", "components", "variances", "offset", "scale")},
            "tiny-one-step-prior": {"embed_mean", "embed_std"},
            "tiny-upsampler": set(),
        }[name]
        assert measured <= names

    @pytest.mark.parametrize("folder", ["prior", "decoder", "upsampler_0"])
    def test_the_shipped_weights_load_bit_for_bit(self, folder):
        """They were written so, and nothing of their files was touched since."""
        _, variables = load_stage(pipeline.SHIPPED / folder)
        stored = load_file(pipeline.SHIPPED / folder / WEIGHTS)
        found = flat(variables)
        assert found.keys() == stored.keys()
        for name, array in stored.items():
            np.testing.assert_array_equal(found[name], array.astype(np.float32))
        assert ("statistics" in variables) == (folder == "prior")

    def test_all_that_is_measured_of_a_prior_is_read_into_its_collection(self, fill, tmp_path):
        """An older file of a prior with everything: statistics, an empty caption, the error of its estimates."""
        stage = dataclasses.replace(preset("tiny-prior"), x0_error=True)
        stage = dataclasses.replace(stage, model=dataclasses.replace(stage.model, empty_caption=True))
        save_stage(tmp_path, stage, fill(stage))
        _, variables = load_stage(tmp_path)
        assert variables["statistics"].keys() == {
            "embed_mean",
            "embed_std",
            "null_text_encodings",
            "null_text_embed",
            "x0_error",
        }
        assert not variables["statistics"].keys() & variables["params"].keys()


class TestOlderConfigs:
    """Names in the place of types, and one flat list of fields."""

    def read(self, tiny_run, tmp_path, folder, **fields):
        shutil.copytree(tiny_run / folder, tmp_path / folder)
        edit(tmp_path / folder, lambda config: config.update(fields))
        return read_stage(tmp_path / folder)

    @pytest.mark.parametrize("folder", ["prior", "decoder", "upsampler_0"])
    def test_the_shipped_ones_are_read_and_written_anew(self, tmp_path, folder):
        stage, variables = load_stage(pipeline.SHIPPED / folder)
        assert "type" not in read(pipeline.SHIPPED / folder)["model"]
        save_stage(tmp_path, stage, variables)
        assert read(tmp_path)["model"]["type"] == type(stage.model).__name__
        assert read_stage(tmp_path) == stage

    @pytest.mark.parametrize(
        ("weight", "cap", "want"),
        [
            ("simple", 5.0, Simple()),
            ("min_snr", 3.0, MinSNR(3.0)),
            ("capped_v", 100.0, CappedV(100.0)),
            ("p2", 1.0, P2(1.0)),
            ("truncated_snr", 5.0, TruncatedSNR()),
        ],
    )
    def test_a_weight_and_its_cap(self, tiny_run, tmp_path, weight, cap, want):
        assert self.read(tiny_run, tmp_path, "decoder", weight=weight, weight_cap=cap).weight == want

    def test_a_sampler_and_its_grid(self, tiny_run, tmp_path):
        sampling = {"sampler": "ddim", "num_steps": 4, "guidance_scale": None, "clip": 1.0, "grid": "trailing"}
        stage = self.read(tiny_run, tmp_path, "decoder", sampling=sampling)
        assert stage.sampling == Sampling(DDIM(grid=Trailing()), 4)

    def test_conditions_of_a_network(self, tiny_run, tmp_path):
        older = {"image_size": 32, "levels": [{"width": 16, "blocks": 1}], "groups": 8}
        decoder = {"image_embed_dim": 5, "image_tokens": 3, "text_width": 6, "text_embed_dim": 7, "empty_caption": True}
        got = self.read(tiny_run, tmp_path, "decoder", model=older | decoder).model
        assert (got.image, got.text) == (ImageCond(5, tokens=3), TextCond(6, embed_dim=7, empty_caption=True))
        assert got.low_res is None
        upsampler = {"low_res": True, "low_res_size": 16, "low_res_level": True, "image_embed_dim": None}
        got = self.read(tiny_run, tmp_path, "upsampler_0", model=older | upsampler).model
        assert (got.image, got.text, got.low_res) == (None, None, LowRes(16, level=True))

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"sampling": {"sampler": "plms"}}, "sampling.sampler is 'plms'; choose one of ddpm"),
            ({"weight": "none"}, "weight is 'none'; choose one of simple"),
            ({"weight": {"type": "Least"}}, "type is 'Least'; choose one of Simple"),
            ({"weight": {"type": "CappedV", "gamma": 1.0}}, "gamma"),
            ({"model": {"type": "UNetConfig", "image_size": 8, "wings": 2}}, "wings"),
        ],
    )
    def test_what_nobody_knows_is_refused_by_name(self, tiny_run, tmp_path, fields, message):
        with pytest.raises(UserError, match=message):
            self.read(tiny_run, tmp_path, "decoder", **fields)
