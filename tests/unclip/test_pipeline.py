import dataclasses
import json
import shutil
from collections import Counter
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import clip_jax
from clip_jax.errors import UserError
from tests.support.jaxprs import equations, scans
from train_recipes.presets import PRESETS
from train_recipes.unclip import fitted
from unclip_jax import pipeline
from unclip_jax import stage as stages
from unclip_jax.conditioning import Cond
from unclip_jax.diffusion.samplers import Heun, fold_in_each, sample_keys
from unclip_jax.diffusion.schedule import Karras
from unclip_jax.models.unet import ImageCond, TextCond
from unclip_jax.pipeline import (
    Guidance,
    UnCLIP,
    decode,
    encode_text,
    generate,
    generate_jit,
    load,
    load_stage,
    sample_prior,
    save_stage,
    with_sampling,
)
from unclip_jax.presets import preset
from unclip_jax.tasks import similarity, to_uint8

B = 3
PROMPTS = ["a small red circle in the top left", "in the bottom right: a large blue star", "a square"]
KEYS = sample_keys(jax.random.key(0), jnp.arange(B))
GUIDANCE = Guidance(prior=jnp.float32(1.0), decoder=jnp.float32(preset("tiny-decoder").sampling.guidance_scale))


@pytest.fixture(scope="module")
def draw(tiny_system):
    """`draw(prompts, keys, guidance)` -> Generation; every test uses this one compiled program."""

    def run(prompts=PROMPTS, keys=KEYS, guidance=GUIDANCE):
        return generate_jit(
            tiny_system.unclip, tiny_system.params, tiny_system.tokenize(prompts), keys, guidance=guidance
        )

    return run


@pytest.fixture(scope="module")
def generated(draw):
    return jax.tree.map(np.asarray, draw())


@pytest.fixture(scope="module")
def text(tiny_system):
    return encode_text(tiny_system.unclip, tiny_system.params, tiny_system.tokenize(PROMPTS))


OTHER_PRIORS = {"ar_prior": "tiny-ar-prior", "one_step_prior": "tiny-one-step-prior"}


class TestOneProgram:
    def test_one_scan_per_stage_and_no_call_to_the_host(self, tiny_system):
        unclip, params, tokenize = tiny_system
        traced = jax.make_jaxpr(generate, static_argnums=0)(unclip, params, tokenize(PROMPTS), KEYS, guidance=GUIDANCE)
        found = list(equations(traced.jaxpr))
        steps = [stage.sampling.num_steps for stage in (unclip.prior, unclip.decoder, *unclip.upsamplers)]
        assert len(steps) == 3
        assert scans(found) == steps
        names = Counter(eqn.primitive.name for eqn in found)
        assert not [name for name in names if "callback" in name or "feed" in name or name == "while"]
        assert names["dot_general"] > 10  # the walk did go inside

    @pytest.mark.parametrize(("name", "steps"), [("ar_prior", [5]), ("one_step_prior", [])])
    def test_it_is_one_program_with_any_prior(self, tiny_run, name, steps):
        unclip, params, tokenize = load(tiny_run, prior=name)
        traced = jax.make_jaxpr(generate, static_argnums=0)(unclip, params, tokenize(PROMPTS), KEYS, guidance=GUIDANCE)
        assert scans(equations(traced.jaxpr)) == [*steps, 4, 4]
        assert [out.shape for out in traced.out_avals[-2:]] == [(B, 16), (B, 32, 32, 3)]

    def test_both_branches_of_guidance_are_one_batch(self, tiny_system, text):
        """A convolution of the decoder sees twice the batch, and there is not one more convolution than without it."""
        unclip, params, _ = tiny_system
        cond = Cond(text_encodings=text.encodings, text_mask=text.mask, image_embed=text.embed)

        def convolutions(scale):
            sampling = dataclasses.replace(unclip.decoder.sampling, guidance_scale=scale)
            stage = dataclasses.replace(unclip.decoder, sampling=sampling)
            traced = jax.make_jaxpr(lambda p, c: stages.run(stage, p, c, KEYS))(params["decoder"], cond)
            found = equations(traced.jaxpr)
            return [e.outvars[0].aval.shape[0] for e in found if e.primitive.name == "conv_general_dilated"]

        guided, plain = convolutions(2.0), convolutions(None)
        assert set(guided) == {2 * B}
        assert set(plain) == {B}
        assert len(guided) == len(plain)

    def test_prompts_keys_and_guidance_are_data(self, tiny_system, draw, generated):
        before = pipeline._generate_jit._cache_size()
        others = [
            draw(prompts=["a large yellow triangle in the top right", "", "x " * 10]),
            draw(keys=sample_keys(jax.random.key(99), jnp.arange(7, 7 + B))),
            draw(guidance=Guidance(prior=jnp.float32(3.0), decoder=jnp.float32(1.0))),
        ]
        assert pipeline._generate_jit._cache_size() == before
        for other in others:
            assert np.isfinite(other.images).all()
            changed = np.abs(np.asarray(other.images) - generated.images).max(axis=(1, 2, 3))
            assert (changed > 1e-3).all()

    def test_shapes_and_ranges(self, tiny_system, generated):
        unclip = tiny_system.unclip
        size = unclip.upsamplers[-1].model.image_size
        assert generated.images.shape == (B, size, size, 3)
        assert generated.image_embed.shape == (B, unclip.clip.embed_dim)
        assert generated.text.embed.shape == (B, unclip.clip.embed_dim)
        assert generated.images.dtype == np.float32
        assert np.abs(generated.images).max() <= 1


class TestIndependence:
    def test_a_picture_does_not_depend_on_its_place_or_neighbours(self, draw, generated):
        """Bit for bit in the picture that is written, as long as the program (its batch size) is the same."""
        pictures = np.asarray(to_uint8(generated.images))
        order = [2, 0, 1]
        moved = to_uint8(draw([PROMPTS[i] for i in order], KEYS[jnp.array(order)]).images)
        np.testing.assert_array_equal(moved, pictures[order])
        others = draw([PROMPTS[0], "something else", "a square"], KEYS.at[1].set(jax.random.key(5)))
        np.testing.assert_array_equal(to_uint8(others.images)[jnp.array([0, 2])], pictures[[0, 2]])

    def test_the_same_prompt_with_other_keys_is_another_picture(self, draw):
        same = draw(prompts=[PROMPTS[0]] * B)
        for values in (same.image_embed, same.images):
            flat = np.asarray(values).reshape(B, -1)
            for i in range(B):
                assert np.abs(flat[i] - flat[i - 1]).max() > 1e-3
        np.testing.assert_array_equal(same.text.embed[0], same.text.embed[1])


class TestPrior:
    @pytest.mark.slow
    def test_a_given_embedding_skips_the_prior(self, tiny_system, generated):
        """Given the prior's own, the pictures are the same; the prior is not run at all."""
        unclip, params, tokenize = tiny_system
        given = (unclip, params, tokenize(PROMPTS), KEYS)
        again = generate_jit(*given, image_embed=generated.image_embed)
        np.testing.assert_array_equal(again.image_embed, generated.image_embed)
        np.testing.assert_allclose(again.images, generated.images, atol=1e-3)
        traced = jax.make_jaxpr(generate, static_argnums=0)(*given, image_embed=generated.image_embed)
        assert scans(equations(traced.jaxpr)) == [4, 4]

    @pytest.mark.slow
    def test_the_kept_draw_is_the_most_similar_one(self, tiny_system, text):
        unclip, params = dataclasses.replace(tiny_system.unclip, candidates=3), tiny_system.params
        kept = jax.jit(sample_prior, static_argnums=0)(unclip, params, text, KEYS)
        cond = Cond.of(text)
        run, network = jax.jit(stages.run, static_argnums=0), stages.network(unclip.prior)
        draws = np.stack(
            [
                network.apply(
                    params["prior"],
                    run(unclip.prior, params["prior"], cond, fold_in_each(KEYS, i)),
                    method="restore",
                )
                for i in range(3)
            ],
            axis=1,
        )
        closeness = np.asarray(similarity(draws, text.embed[:, None]))
        np.testing.assert_allclose(kept, draws[np.arange(B), closeness.argmax(axis=1)], atol=1e-4)
        assert (np.ptp(closeness, axis=1) > 1e-3).all()

    def test_one_candidate_is_taken_as_it_comes(self, tiny_system, text):
        unclip = dataclasses.replace(tiny_system.unclip, candidates=1)
        traced = jax.make_jaxpr(lambda p: sample_prior(unclip, p, text, KEYS))(tiny_system.params)
        assert traced.out_avals[0].shape == (B, unclip.clip.embed_dim)

    def test_embeddings_are_restored_to_clips_scale(self, tiny_system, text, monkeypatch):
        """Standardised zeros are the mean of the training embeddings."""
        monkeypatch.setattr(stages, "run", lambda stage, params, cond, keys, **_: jnp.zeros((cond.batch_size, 16)))
        kept = sample_prior(tiny_system.unclip, tiny_system.params, text, KEYS)
        mean = tiny_system.params["prior"]["statistics"]["embed_mean"]
        np.testing.assert_allclose(kept, np.broadcast_to(mean, (B, 16)), atol=1e-6)


def test_decoding_runs_every_upsampler_on_the_picture_before(tiny_system, text, monkeypatch):
    seen = []

    def run(stage, params, cond, keys, *, guidance_scale=None, decorate=None):
        seen.append((stage, params, cond, jax.random.key_data(keys), guidance_scale))
        return jnp.full((B, stage.model.image_size, stage.model.image_size, 3), len(seen), jnp.float32)

    monkeypatch.setattr(stages, "run", run)
    unclip = dataclasses.replace(tiny_system.unclip, upsamplers=(preset("tiny-upsampler"), preset("shapes-upsampler")))
    params = tiny_system.params | {"upsampler_1": "the second's"}
    cond = Cond(text_encodings=text.encodings, text_mask=text.mask, image_embed=text.embed)
    images = decode(unclip, params, cond, KEYS, guidance_scale=3.0)
    assert images.shape == (B, 64, 64, 3)
    assert images[0, 0, 0, 0] == 3
    (decoder, first, second) = seen
    assert decoder[2] is cond
    assert decoder[4] == 3.0
    assert (first[2].low_res == 1).all()
    assert (second[2].low_res == 2).all()
    assert first[2].text_encodings is None
    assert second[1] == "the second's"
    assert len(np.unique(np.concatenate([decoder[3], first[3], second[3]]), axis=0)) == 3 * B


class TestFiles:
    @pytest.mark.parametrize(
        "name", ["tiny-prior", "tiny-decoder", "tiny-upsampler", "tiny-ar-prior", "tiny-one-step-prior"]
    )
    def test_what_is_loaded_is_what_was_saved(self, fill, tmp_path, name):
        params = fill(preset(name))
        save_stage(tmp_path, preset(name), params)
        stage, loaded = load_stage(tmp_path)
        assert stage == preset(name)
        assert hash(stage) == hash(preset(name))
        assert jax.tree.structure(loaded) == jax.tree.structure(params)
        jax.tree.map(np.testing.assert_array_equal, loaded, params)

    def test_a_system_is_its_folders(self, tiny_system, tiny_run):
        assert tiny_system.unclip == UnCLIP(
            clip_jax.preset("tiny"), preset("tiny-prior"), preset("tiny-decoder"), (preset("tiny-upsampler"),)
        )
        assert hash(tiny_system.unclip) == hash(load(tiny_run).unclip)
        assert set(tiny_system.params) == {"clip", "prior", "decoder", "upsampler_0"}
        for name in ("prior", "decoder", "upsampler_0"):
            jax.tree.map(np.testing.assert_array_equal, tiny_system.params[name], load_stage(tiny_run / name)[1])

    def test_without_a_directory_the_shipped_weights_are_taken(self, tiny_system, tiny_run, monkeypatch):
        monkeypatch.setattr(pipeline, "SHIPPED", tiny_run)
        assert load().unclip == tiny_system.unclip

    def test_the_shipped_weights_are_those_of_the_presets(self):
        """What `train.py shapes-long` writes, in 8 MB at most; CI draws with them."""
        long = PRESETS["shapes-long"].options
        loaded, clip = load(), clip_jax.preset(long.clip.model)
        trainings = (long.prior, long.decoder, long.upsampler)
        prior, decoder, upsampler = (fitted(preset(training.model), clip) for training in trainings)
        assert loaded.unclip == UnCLIP(clip, prior, decoder, (upsampler,))
        assert sum(path.stat().st_size for path in pipeline.SHIPPED.rglob("*") if path.is_file()) <= 8e6
        keys = jax.eval_shape(lambda: KEYS[:1])
        drawn = jax.eval_shape(
            lambda params, keys: generate(loaded.unclip, params, loaded.tokenize(PROMPTS[:1]), keys),
            loaded.params,
            keys,
        )
        assert drawn.images.shape == (1, 64, 64, 3)

    def test_half_precision_is_only_a_way_to_store(self, tiny_system, tmp_path):
        params = tiny_system.params["prior"]
        save_stage(tmp_path, tiny_system.unclip.prior, params, dtype=jnp.float16)
        stage, loaded = load_stage(tmp_path)
        assert stage == tiny_system.unclip.prior
        for leaf, stored in zip(*map(jax.tree.leaves, (params, loaded)), strict=True):
            assert stored.dtype == jnp.float32
            np.testing.assert_allclose(stored, leaf, atol=1e-3, rtol=1e-3)

    def test_the_config_is_plain_json(self, tiny_run):
        config = json.loads((tiny_run / "decoder" / "config.json").read_text())
        assert config["model"]["levels"][1] == {"width": 32, "blocks": 1, "attention": True}
        assert config["sampling"]["sampler"] == {"type": "DPMpp2M", "grid": {"type": "Uniform"}}
        assert config["weight"] == {"type": "CappedV", "cap": 5.0}

    def test_the_config_says_the_kind_and_one_without_is_of_diffusion(self, tiny_run, tmp_path):
        kinds = {n: json.loads((tiny_run / n / "config.json").read_text())["kind"] for n in ("prior", *OTHER_PRIORS)}
        assert kinds == {
            "prior": "diffusion",
            "ar_prior": "autoregressive prior",
            "one_step_prior": "one-step prior",
        }
        shutil.copytree(tiny_run / "prior", tmp_path / "old")
        edit(tmp_path / "old" / "config.json", lambda config: config.pop("kind"))
        assert load_stage(tmp_path / "old")[0] == preset("tiny-prior")

    @pytest.mark.parametrize("name", OTHER_PRIORS)
    def test_another_prior_takes_the_place_of_the_first(self, tiny_run, tiny_system, name):
        other = load(tiny_run, prior=name)
        assert other.unclip == dataclasses.replace(tiny_system.unclip, prior=preset(OTHER_PRIORS[name]))
        jax.tree.map(np.testing.assert_array_equal, other.params["prior"], load_stage(tiny_run / name)[1])

    def test_a_published_system_has_no_other_prior(self, tmp_path):
        (tmp_path / "model_index.json").write_text('{"_class_name": "UnCLIPPipeline"}')
        with pytest.raises(UserError, match="which has one prior; give another"):
            load(tmp_path, prior="ar_prior")

    def test_the_decoders_sampling_alone_is_changed(self, tiny_system):
        changed = with_sampling(tiny_system, sampler="heun", num_steps=3)
        sampling = changed.unclip.decoder.sampling
        assert (sampling.sampler, sampling.sampler.name, sampling.num_steps) == (Heun(grid=Karras()), "heun", 3)
        assert dataclasses.replace(changed.unclip, decoder=tiny_system.unclip.decoder) == tiny_system.unclip
        assert with_sampling(tiny_system) == tiny_system

    def test_guidance_is_refused_where_there_is_none(self, tiny_system):
        unguided = with_sampling(tiny_system, guidance_scale=None)
        with pytest.raises(UserError, match="drawn without guidance"):
            with_sampling(unguided, guidance_scale=2.0)

    def test_a_system_without_upsampler_is_one(self, tiny_run, tmp_path):
        shutil.copytree(tiny_run, tmp_path / "run", ignore=shutil.ignore_patterns("upsampler_0"))
        assert load(tmp_path / "run").unclip.upsamplers == ()


def edit(path, change):
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def text_in(path, content):
    path.write_text(content)


STAGE_FAULTS = {
    "no config": (lambda d: (d / "config.json").unlink(), "no config.json"),
    "no weights": (lambda d: (d / "weights.safetensors").unlink(), "cannot read weights"),
    "cut weights": (lambda d: truncate(d / "weights.safetensors"), "cannot read weights"),
    "pointer": (lambda d: text_in(d / "weights.safetensors", "version https://git-lfs..."), "git lfs pull"),
    "empty config": (lambda d: text_in(d / "config.json", ""), "does not describe a stage"),
    "cut config": (lambda d: text_in(d / "config.json", '{"model": {'), "does not describe a stage"),
    "a list": (lambda d: text_in(d / "config.json", "[1, 2]"), "does not describe a stage"),
    "null": (lambda d: text_in(d / "config.json", "null"), "does not describe a stage"),
    "binary": (lambda d: (d / "config.json").write_bytes(b"\xff\xfe\x00"), "does not describe a stage"),
    "a folder": (lambda d: ((d / "config.json").unlink(), (d / "config.json").mkdir()), "config.json"),
    "unknown kind": (lambda d: edit(d / "config.json", lambda c: c.update(kind="GAN")), "there are diffusion, auto"),
    "other kind": (lambda d: edit(d / "config.json", lambda c: c.update(kind="one-step prior")), "not describe"),
    "unknown field": (lambda d: edit(d / "config.json", lambda c: c.update(colour=1)), "colour"),
    "missing field": (lambda d: edit(d / "config.json", lambda c: c.pop("sampling")), "sampling"),
    "unknown model field": (lambda d: edit(d / "config.json", lambda c: c["model"].update(wings=2)), "not describe"),
    "wrong type": (lambda d: edit(d / "config.json", lambda c: c.update(num_timesteps="many")), "num_timesteps"),
    "not a float": (lambda d: edit(d / "config.json", lambda c: c["sampling"].update(clip="x")), "not describe"),
    "unknown row": (lambda d: edit(d / "config.json", lambda c: c.update(prediction="score")), "choose one of x0"),
    "other size": (lambda d: edit(d / "config.json", lambda c: c["model"].update(time_width=8)), "does not fit"),
    "levels": (lambda d: edit(d / "config.json", lambda c: c["model"].update(levels=[])), "not describe"),
    "groups": (lambda d: edit(d / "config.json", lambda c: c["model"].update(groups=0)), "not describe"),
    "patches": (lambda d: edit(d / "config.json", lambda c: c["model"].update(patch_size=-1)), "not describe"),
}


@pytest.mark.parametrize("fault", STAGE_FAULTS)
def test_damaged_stage_is_refused_in_one_line(tiny_run, tmp_path, fault):
    damage, message = STAGE_FAULTS[fault]
    shutil.copytree(tiny_run / "upsampler_0", tmp_path / "upsampler_0")
    damage(tmp_path / "upsampler_0")
    with pytest.raises(UserError, match=message) as caught:
        load_stage(tmp_path / "upsampler_0")
    assert "\n" not in str(caught.value)
    assert "upsampler_0" in str(caught.value)


def swap(run, first, second):
    (run / first).rename(run / "aside")
    (run / second).rename(run / first)
    (run / "aside").rename(run / second)


RUN_FAULTS = {
    "nothing": (shutil.rmtree, "is not a directory"),
    "a file": (lambda run: (shutil.rmtree(run), run.touch()), "is not a directory"),
    "no clip": (lambda run: shutil.rmtree(run / "clip"), "clip holds no CLIP"),
    "no prior": (lambda run: shutil.rmtree(run / "prior"), "prior holds no trained stage"),
    "no other prior": (lambda run: shutil.rmtree(run / "ar_prior"), "ar_prior holds no trained stage"),
    "no decoder": (lambda run: shutil.rmtree(run / "decoder"), "decoder holds no trained stage"),
    "swapped": (lambda run: swap(run, "prior", "decoder"), "prior holds another kind of network"),
}


@pytest.mark.parametrize("fault", RUN_FAULTS)
def test_incomplete_run_is_refused_in_one_line(tiny_run, tmp_path, fault):
    spoil, message = RUN_FAULTS[fault]
    shutil.copytree(tiny_run, tmp_path / "run")
    spoil(tmp_path / "run")
    with pytest.raises(UserError, match=message) as caught:
        load(tmp_path / "run", prior="ar_prior" if fault == "no other prior" else "prior")
    assert "\n" not in str(caught.value)


def changed(name, **changes):
    stage = preset(name)
    return dataclasses.replace(stage, model=dataclasses.replace(stage.model, **changes))


SEAMS = {
    "prior of another CLIP": ({"prior": changed("tiny-prior", embed_dim=8)}, "prior: embed_dim is 8.* has 16"),
    "prior of other text": ({"prior": changed("tiny-prior", text_width=8)}, "prior: text_width is 8.* has 32"),
    "prior of longer text": ({"prior": changed("tiny-prior", context_length=77)}, "context_length is 77.* has 24"),
    "AR prior of another CLIP": ({"prior": changed("tiny-ar-prior", embed_dim=8)}, "prior: embed_dim is 8.* has 16"),
    "AR prior as decoder": ({"decoder": preset("tiny-ar-prior")}, "decoder holds another kind"),
    "decoder of another CLIP": (
        {"decoder": changed("tiny-decoder", image=ImageCond(8))},
        "decoder: image.embed_dim is 8.* has 16",
    ),
    "decoder of other text": (
        {"decoder": changed("tiny-decoder", text=TextCond(8))},
        "decoder: text.width is 8.* has 32",
    ),
    "decoder without text": ({"decoder": changed("tiny-decoder", text=None)}, "decoder: text is None"),
    "decoder without picture": ({"decoder": changed("tiny-decoder", image=None)}, "decoder: image is None"),
    "decoder as prior": ({"prior": preset("tiny-decoder")}, "prior holds another kind"),
    "prior as decoder": ({"decoder": preset("tiny-prior")}, "decoder holds another kind"),
    "upsampler as decoder": ({"decoder": preset("tiny-upsampler")}, "decoder holds another kind"),
    "prior as upsampler": ({"upsampler_0": preset("tiny-prior")}, "upsampler_0 holds another kind"),
    "decoder as upsampler": ({"upsampler_0": preset("tiny-decoder")}, "upsampler_0 holds another kind"),
}


@pytest.mark.parametrize("seam", SEAMS)
def test_parts_that_do_not_fit_are_refused_in_one_line(tiny_run, monkeypatch, seam):
    """Each sound on its own; the weights, which have been read by then, play no part."""
    changes, message = SEAMS[seam]
    parts = {"prior": preset("tiny-prior"), "decoder": preset("tiny-decoder"), "upsampler_0": preset("tiny-upsampler")}
    loaded_clip = SimpleNamespace(model=clip_jax.CLIP(clip_jax.preset("tiny")), variables={"params": {}}, tokenize=None)
    monkeypatch.setattr(clip_jax, "load", lambda directory: loaded_clip)
    monkeypatch.setattr(pipeline, "load_stage", lambda directory: ((parts | changes)[directory.name], {}))
    with pytest.raises(UserError, match=message) as caught:
        load(tiny_run)
    assert "\n" not in str(caught.value)
    monkeypatch.setattr(pipeline, "load_stage", lambda directory: (parts[directory.name], {}))
    assert load(tiny_run).unclip.prior == preset("tiny-prior")
