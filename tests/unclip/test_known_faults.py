"""Faults found by reading DALLE2-pytorch (its last version, 680dfc4) and by its users, one test for each.

Numbers are those of the list they were collected in. Where another test says the same already, it is named here
and not repeated:

 2. the bound weighs 1000 times too little: `test_stage.test_learned_variance_adds_the_bound`
 4. guidance extrapolates the learned variance: `test_guidance.test_variance_is_that_of_the_conditional_branch`
 5. queries scaled twice, logits q·k/d: `test_unet.TestFormulas.test_attention`, against the formula written out
 6. self-conditioning on the raw output: `test_stage.test_in_training_a_coin_per_sample_says_who_is_given_an_estimate`
15. conditional dropout that drops nothing: `test_tasks.test_conditions_are_dropped_as_in_the_paper`

And of a small notebook after the same paper: one coin for the whole batch,
`test_conditioning.test_dropped_as_often_as_asked_and_independently`; the claim that a prior is not needed,
`test_evaluate.test_controls_take_the_embedding_they_name`, the control that measures it.

`mutants.py` puts each of these faults into the code and sees its test fail.
"""

import ast
import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import unclip_jax
from clip_jax.errors import UserError
from tests.support.jaxprs import equations
from unclip_jax import pipeline, tasks
from unclip_jax import stage as stages
from unclip_jax.conditioning import Cond
from unclip_jax.degrade import DegradeConfig, box_reduce, degrade
from unclip_jax.diffusion.losses import CappedV, add_noise, noised
from unclip_jax.diffusion.predict import PREDICTIONS, Denoised, per_sample
from unclip_jax.diffusion.samplers import DDIM, DDPM, SAMPLERS, Step, ddim, sample, sample_keys
from unclip_jax.diffusion.schedule import GRIDS, Uniform, cosine
from unclip_jax.models.prior import PriorConfig
from unclip_jax.models.unet import Context, ImageCond, Level, TextCond, UNet, UNetConfig, enlarge
from unclip_jax.presets import PRESETS
from unclip_jax.stage import Sampling, Stage

B, D, L, C = 4, 6, 3, 5
SCHEDULE = cosine(1000)
KEYS = sample_keys(jax.random.key(0), jnp.arange(B))


def gaussian(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


PRIOR = Stage(
    model=PriorConfig(D, C, L, width=16, layers=1, heads=2),
    prediction="x0",
    sampling=Sampling(DDIM(), num_steps=3, guidance_scale=3.0, clip=None),
)
TEXT = Cond(
    text_embed=gaussian(0, B, D),
    text_encodings=gaussian(1, B, L, C),
    text_mask=np.arange(L) < np.array([[1], [2], [3], [2]]),
)
PIXELS = UNetConfig(
    image_size=8,
    levels=(Level(8, 1, attention=True), Level(8, 1, attention=True)),
    head_width=4,
    groups=4,
    time_width=8,
    image=ImageCond(D, tokens=3),
    text=TextCond(C),
    context_width=D,  # as wide as the image embedding: see fault 12
)


class Said:
    """A network that says what a function says, and remembers what it was given."""

    def __init__(self, monkeypatch, say):
        self.say, self.seen = say, []
        monkeypatch.setattr(stages, "network", lambda stage: self)

    def apply(self, variables, *inputs, train=False, rngs=None, method=None):
        if method == "encode_prefix":  # a prior reads its caption once; here it reads it again at every call
            return inputs[0]
        self.seen.append(inputs)
        return self.say(*inputs)


def test_1_the_unconditional_prior_still_sees_the_noised_embedding(fill):
    """`forward_with_cond_scale` replaced x_t by the null embedding too, so guidance made things worse (#285).

    Training must not drop it either: the prior's task drops the text alone, and has no rate for the image.
    """
    params, network = fill(PRIOR), stages.network(PRIOR)
    x_t, t = gaussian(2, B, D), jnp.full(B, 500)
    say = jax.jit(lambda x_t, cond: network.apply(params, x_t, t, cond))
    null = TEXT.null()
    assert (np.abs(say(x_t, null) - say(x_t + 1.0, null)).max(axis=1) > 1e-3).all()
    other = jax.tree.map(lambda a: a[::-1], TEXT).null()
    np.testing.assert_allclose(say(x_t, null), say(x_t, other), atol=1e-6)  # and nothing of the caption
    assert [f.name for f in dataclasses.fields(tasks.PriorTask) if "drop" in f.name] == ["drop_text"]


@pytest.mark.slow
def test_3_the_bound_is_that_of_the_estimate_whatever_is_predicted(monkeypatch):
    """`p_losses` read the output as noise for models of x0 and v, and so bounded the error of another picture."""
    model = dataclasses.replace(PIXELS, learned_variance=True)
    x0, x0_hat = np.tanh(gaussian(3, B, 8, 8, 3)), 0.5 * np.tanh(gaussian(4, B, 8, 8, 3))
    bits = {}
    for name, prediction in PREDICTIONS.items():

        def say(x_t, t, cond, prediction=prediction):
            alpha, sigma = (per_sample(f(t), x_t) for f in (SCHEDULE.alpha, SCHEDULE.sigma))
            output = prediction.target(x0_hat, (x_t - alpha * x0_hat) / sigma, alpha, sigma)
            return jnp.concatenate([output, jnp.zeros_like(output)], axis=-1)

        Said(monkeypatch, say)
        stage = Stage(model, Sampling(DDPM("learned")), prediction=name)
        _, metrics = jax.jit(lambda key, stage=stage: stages.loss(stage, {}, x0, Cond(), key))(jax.random.key(0))
        bits[name] = float(metrics["bound_bits"])
    assert bits["x0"] > 1e-3
    assert bits["eps"] == pytest.approx(bits["x0"], rel=1e-2)
    assert bits["v"] == pytest.approx(bits["x0"], rel=1e-2)


def test_6_the_network_is_trained_on_the_inputs_it_is_sampled_with(monkeypatch):
    """Not on inputs of another kind: times of another range or type, pictures of another scale."""
    stage = Stage(dataclasses.replace(PIXELS, text=None), Sampling(DDIM(), num_steps=2), prediction="v")
    said = Said(monkeypatch, lambda x_t, t, cond: 0.1 * x_t)
    cond = Cond(image_embed=gaussian(5, B, D))
    x0 = gaussian(6, B, 8, 8, 3)
    stages.loss(stage, {}, x0, cond, jax.random.key(0))
    stages.run(stage, {}, cond, KEYS)
    trained, *sampled = ([(a.shape, a.dtype) for a in jax.tree.leaves(seen)] for seen in said.seen)
    assert sampled
    assert all(seen == trained for seen in sampled)


def test_7_embeddings_of_the_caller_are_left_alone(fill):
    """`image_embed *= scale` wrote into the batch: cached embeddings were scaled again in every epoch."""
    params = fill(PRIOR)
    embed = gaussian(7, B, D)
    embed.setflags(write=False)
    before = embed.copy()
    first, second = (np.asarray(tasks.standardise(PRIOR, params, embed)) for _ in range(2))
    np.testing.assert_array_equal(embed, before)
    np.testing.assert_array_equal(first, second)
    assert np.abs(first - embed).max() > 1e-2  # it did scale


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m"])
def test_8_embeddings_are_not_clipped_to_the_range_of_pictures(monkeypatch, sampler):
    """x0 was clamped to ±1, though embeddings of unit variance lie outside as often as not."""
    Said(monkeypatch, lambda x_t, t, cond: jnp.full_like(x_t, 3.0))
    stage = dataclasses.replace(PRIOR, sampling=dataclasses.replace(PRIOR.sampling, sampler=SAMPLERS[sampler]))
    np.testing.assert_allclose(stages.run(stage, {}, TEXT, KEYS), 3.0, rtol=1e-5)
    diffusion = {name: row.stage for name, row in PRESETS.items() if isinstance(row.stage, Stage)}
    priors = {name: stage for name, stage in diffusion.items() if isinstance(stage.model, PriorConfig)}
    assert priors
    for name, stage in priors.items():
        assert stage.sampling.threshold is None, name
        assert stage.sampling.clip is None or stage.sampling.clip >= 5, name


class TestFault9:
    """DDIM ended at ᾱ_0 and never at clean data, mixed up neighbouring times, and was random unless told not to be."""

    x0 = np.tanh(gaussian(8, B, 3))

    @pytest.mark.parametrize("grid", GRIDS)
    def test_every_grid_ends_at_clean_data(self, grid):
        times = GRIDS[grid](SCHEDULE, 27)
        got = sample(lambda x_t, t: Denoised(jnp.asarray(self.x0)), SCHEDULE, times, ddim(), gaussian(9, B, 3), KEYS)
        np.testing.assert_allclose(got, self.x0, atol=1e-6)

    def test_the_even_grid_starts_at_pure_noise(self):
        for num_steps in (2, 15, 64, 250):
            assert GRIDS["uniform"](SCHEDULE, num_steps)[0] == 999

    def test_every_step_lands_on_the_noise_of_its_own_time(self):
        """Told the truth, x_s is what the forward process makes of the same x0 and eps at s: no index is one off."""
        eps = gaussian(10, B, 3)
        for t, s in ((999, 936), (500, 499), (17, 1), (1, 0), (0, -1)):
            x_t = add_noise(SCHEDULE, self.x0, jnp.full(B, t), eps)
            step = Step(jnp.int32(t), jnp.int32(s), KEYS)
            x_s, *_ = ddim().step(lambda x, t: Denoised(jnp.asarray(self.x0)), SCHEDULE, x_t, (), step)
            np.testing.assert_allclose(x_s, add_noise(SCHEDULE, self.x0, jnp.full(B, s), eps), atol=2e-4)

    def test_ddim_is_deterministic_unless_told_otherwise(self):
        def draw(sampler, keys):
            denoise = lambda x_t, t: Denoised(0.5 * jnp.tanh(x_t))  # noqa: E731
            return sample(denoise, SCHEDULE, GRIDS["uniform"](SCHEDULE, 4), sampler, gaussian(9, B, 3), keys)

        for sampler in (SAMPLERS["ddim"](), ddim()):  # by its name, and as a function
            np.testing.assert_array_equal(draw(sampler, KEYS), draw(sampler, KEYS[::-1]))


def test_10_resizing_does_not_alias():
    """Every resize was to the nearest pixel: stripes became areas of one of their colours, and upsampling noisy."""
    stripes = np.broadcast_to(np.where(np.arange(16) % 2, 1.0, -1.0)[:, None, None], (1, 16, 16, 3))
    np.testing.assert_allclose(box_reduce(stripes.astype(np.float32), 8), 0.0, atol=1e-6)
    ramp = np.broadcast_to(np.linspace(-1, 1, 8, dtype=np.float32)[:, None, None], (1, 8, 8, 3))
    inner = np.asarray(enlarge(jnp.asarray(ramp), (32, 32)))[0, 8:-8, 0, 0]
    np.testing.assert_allclose(np.diff(inner), np.full(15, 2 / 7 / 4), rtol=0.05)  # no stairs


def test_11_chance_is_drawn_on_the_device_for_each_sample():
    """`random.random()` decided once per batch; in a compiled program it would decide once and for all."""
    clean = np.tanh(gaussian(11, 64, 6, 6, 3))
    noise, blur = DegradeConfig(blur_prob=0.0), DegradeConfig(noise_std=0.0)
    spoil = jax.jit(lambda key: [degrade(jnp.asarray(clean), key, config) - clean for config in (noise, blur)])
    first, second = spoil(jax.random.key(0)), spoil(jax.random.key(1))
    assert spoil._cache_size() == 1
    amounts = np.asarray(first[0]).std(axis=(1, 2, 3))
    assert amounts.max() > 5 * amounts.min()
    assert not np.allclose(amounts, np.asarray(second[0]).std(axis=(1, 2, 3)), rtol=0.2)
    blurred, others = ((np.abs(x[1]).max(axis=(1, 2, 3)) > 1e-6) for x in (first, second))
    assert 16 < blurred.sum() < 48
    assert (blurred != others).any()
    # And nothing of the package draws from a generator of Python or numpy while a program is traced.
    for path in Path(unclip_jax.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names] + [getattr(node, "module", None)]
                assert "random" not in names, path
            drawn = isinstance(node, ast.Attribute) and node.attr == "random" and isinstance(node.value, ast.Name)
            outside_programs = path.name in ("judging.py", "shapes.py", "scores.py")  # they draw renders and resamples
            assert outside_programs or not (drawn and node.value.id == "np"), path


def test_12_an_embedding_as_wide_as_the_tokens_still_becomes_tokens(fill):
    """The layer that makes tokens of z_i was left out when the widths were equal, and z_i had no axis of tokens."""
    assert PIXELS.image.embed_dim == PIXELS.context_width
    cond = TEXT.replace(image_embed=gaussian(12, B, D)).with_keep(B)
    params = fill(lambda key: Context(PIXELS).init(key, cond))
    _, tokens, mask = Context(PIXELS).apply(params, cond)
    assert tokens.shape == (B, 3 + L, D)
    assert mask[:, :3].all()
    assert np.abs(np.asarray(tokens[:, 0] - tokens[:, 1])).max() > 1e-3  # each token is its own


@pytest.mark.slow
def test_13_the_caption_is_read_at_every_attention(fill):
    """Text reached the middle block alone, which made for weak captions: here each attention learns from the tokens."""
    cond = TEXT.replace(image_embed=gaussian(12, B, D))
    x_t, t = gaussian(13, B, 8, 8, 3), jnp.full(B, 400)
    params = fill(lambda key: UNet(PIXELS).init(key, x_t, t, cond)["params"])

    @jax.jit
    @jax.grad
    def gradient(text_kernels):
        mine = params | {name: params[name] | {"add_v_proj": k} for name, k in text_kernels.items()}
        return jnp.square(UNet(PIXELS).apply({"params": mine}, x_t, t, cond)).sum()

    attentions = sorted(name for name in params if "attention" in name)
    assert attentions == sorted(
        ["middle_attention"]
        + [f"down_{i}_attention_0" for i in (0, 1)]
        + [f"up_{i}_attention_{j}" for i in (0, 1) for j in (0, 1)]
    )
    for name, grad in gradient({name: params[name]["add_v_proj"] for name in attentions}).items():
        assert np.abs(grad["kernel"]).max() > 0, name


class TestFault14:
    def test_the_mask_is_of_tokens_and_not_of_zeros(self, fill):
        """A hidden state that happens to be zero was taken for padding."""
        params = fill(PRIOR)
        zeros = TEXT.replace(text_encodings=np.zeros((B, L, C), np.float32))
        say = jax.jit(lambda cond: stages.network(PRIOR).apply(params, gaussian(2, B, D), jnp.zeros(B, int), cond))
        read, unread = say(zeros), say(zeros.replace(text_mask=np.arange(L)[None] < np.ones((B, 1))))
        longer = np.asarray(TEXT.text_mask).sum(axis=1) > 1
        changed = np.abs(np.asarray(read) - unread).max(axis=1)
        assert (changed[longer] > 1e-4).all()

    def test_pictures_may_have_another_size_than_clips(self, tiny_system):
        """An assertion tied them together."""
        unclip = tiny_system.unclip
        assert unclip.decoder.model.image_size != unclip.clip.vision.image_size

    def test_a_part_of_the_batch_is_the_same_part_of_the_pictures(self, fill):
        """`sample_batch_size` failed on a field that was not there; keys per sample make parts and whole agree."""
        params = fill(PRIOR)
        draw = jax.jit(lambda cond, keys: stages.run(PRIOR, params, cond, keys))
        whole = np.asarray(draw(TEXT, KEYS))
        parts = [draw(jax.tree.map(lambda a, i=i: a[i : i + 2], TEXT), KEYS[i : i + 2]) for i in (0, 2)]
        np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-5)


class TestFault15:
    """Weights needed the very version that wrote them, and were loaded by another one as noise."""

    @pytest.fixture
    def folder(self, tiny_run, tmp_path):
        copied = tmp_path / "decoder"
        copied.mkdir()
        for path in (tiny_run / "decoder").iterdir():
            (copied / path.name).write_bytes(path.read_bytes())
        return copied

    def rewritten(self, folder, change):
        path = folder / "config.json"
        data = json.loads(path.read_text(encoding="utf-8"))
        change(data)
        path.write_text(json.dumps(data), encoding="utf-8")
        return folder

    def test_a_config_from_before_a_field_was_there_still_loads(self, folder, tiny_system):
        """As what it was: the defaults of later fields are what all networks did before there was a choice."""
        first = {"sampler", "num_steps", "guidance_scale", "clip"}  # of the first weights that shipped

        def older(data):
            sampling = {k: v for k, v in data["sampling"].items() if k in first} | {"sampler": "dpmpp_2m"}
            model = {k: v for k, v in data["model"].items() if k not in ("type", "image", "text", "low_res")}
            image, text = data["model"]["image"], data["model"]["text"]
            model |= {"image_embed_dim": image["embed_dim"], "text_width": text["width"], "low_res": False}
            data |= {"sampling": sampling, "model": model, "weight": "capped_v"}
            data.pop("x0_error")

        stage, params = pipeline.load_stage(self.rewritten(folder, older))
        assert stage == tiny_system.unclip.decoder
        sampling = stage.sampling
        assert (sampling.sampler.grid, sampling.threshold, sampling.low_res_level) == (Uniform(), None, 0.0)
        assert (stage.x0_error, stage.weight, stage.last_network) == (False, CappedV(5.0), False)
        jax.tree.map(np.testing.assert_array_equal, params, tiny_system.params["decoder"])

    @pytest.mark.parametrize("part", ["model", "sampling"])
    def test_a_config_from_a_later_version_is_refused(self, folder, part):
        """Rather than that the network is built without what the weights were trained with."""
        with pytest.raises(UserError, match=r"config.json does not describe a stage"):
            pipeline.load_stage(self.rewritten(folder, lambda data: data[part].update(rotary=True)))


def test_seed_4_captions_are_encoded_once(tiny_system):
    """They were doubled for guidance and then encoded, and once more for the decoder: four times the work."""
    unclip, params, tokenize = tiny_system
    prompts = ["a red star"] * 3
    assert unclip.candidates == 2
    assert unclip.decoder.sampling.guidance_scale is not None
    traced = jax.make_jaxpr(pipeline.generate, static_argnums=0)(
        unclip, params, tokenize(prompts), KEYS[:3], guidance=pipeline.Guidance(2.0, 3.0)
    )
    table = params["clip"]["text"]["token_embedding"]["embedding"].shape
    looked_up = [
        eqn.outvars[0].aval.shape
        for eqn in equations(traced.jaxpr)
        if eqn.primitive.name == "gather" and eqn.invars[0].aval.shape == table
    ]
    assert looked_up == [(3, unclip.clip.text.context_length, table[1])]


def test_seed_4_times_and_noise_differ_between_samples():
    """One coin for the whole batch: here each sample of a batch has its own time and its own noise."""
    at = noised(SCHEDULE, jnp.zeros((8, 5)), jax.random.key(0))
    assert len(set(np.asarray(at.t).tolist())) == 8
    assert len(np.unique(np.asarray(at.eps), axis=0)) == 8
