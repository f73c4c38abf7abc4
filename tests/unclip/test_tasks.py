import dataclasses
import inspect
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import clip_jax
import shapes_world
from clip_jax.images import normalise
from train_jax.optim import OptimConfig, make_optimizer
from train_jax.sharding import make_mesh, state_shardings
from train_jax.state import init_state
from train_jax.step import make_train_step
from train_jax.task import Task
from unclip_jax import tasks
from unclip_jax.conditioning import Cond
from unclip_jax.degrade import DegradeConfig, box_reduce
from unclip_jax.models.ar_prior import measure
from unclip_jax.models.unet import Level, LowRes
from unclip_jax.presets import preset
from unclip_jax.tasks import (
    ARPriorTask,
    DecoderTask,
    OneStepPriorTask,
    PriorTask,
    UpsamplerTask,
    embedding_pairs,
    embedding_statistics,
    encode,
    similarity,
    to_signed,
    to_uint8,
)

B = 8
NAMES = ("prior", "decoder", "upsampler")


@pytest.fixture(scope="module")
def batch(tiny_system):
    examples = [shapes_world.example("train", i, resolution=32) for i in range(B)]
    images = np.stack([example.image for example in examples])
    return {"image": images, "tokens": tiny_system.tokenize([example.caption for example in examples])}


@pytest.fixture(scope="module")
def encoded(tiny_system, batch):
    config, params = tiny_system.unclip.clip, tiny_system.params["clip"]
    return jax.jit(lambda params: encode(config, params, batch["image"], batch["tokens"]))(params)


@pytest.fixture(scope="module")
def all_tasks(tiny_system, encoded):
    """The three tasks, on networks that are the tiny presets' or smaller still."""
    config, params = tiny_system.unclip.clip, tiny_system.params["clip"]
    prior, decoder, upsampler = (preset(f"tiny-{name}") for name in NAMES)
    small = dataclasses.replace(decoder.model, levels=(Level(16, 1, attention=True),), patch_size=4)
    statistics = (np.asarray(f(encoded.image_embed, axis=0)) for f in (np.mean, np.std))
    return {
        "prior": PriorTask(prior, config, params, *statistics),
        "decoder": DecoderTask(dataclasses.replace(decoder, model=small), config, params),
        "upsampler": UpsamplerTask(upsampler, low_res_size=16, crop_size=16),
    }


@pytest.fixture(scope="module", params=NAMES)
def task(request, all_tasks):
    return all_tasks[request.param]


@pytest.fixture(scope="module")
def start(fill):
    """`start(task)` -> (params, model_state) with random weights, all of which matter from the first step on."""

    def make(task):
        params = fill(task.stage)["params"]
        if isinstance(task, PriorTask):
            return params, {"statistics": {"embed_mean": task.embed_mean, "embed_std": task.embed_std}}
        return params, {}

    return make


class TestPictures:
    def test_every_level_survives(self):
        levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
        signed = to_signed(levels)
        assert (signed.min(), signed.max()) == (-1, 1)
        np.testing.assert_array_equal(to_uint8(signed), levels)

    def test_rounded_to_the_nearest_and_clipped(self):
        step = 2 / 255
        x = jnp.array([-7.0, -1 + 0.4 * step, -1 + 0.6 * step, 1 - 0.4 * step, 3.0])
        assert to_uint8(x).tolist() == [0, 0, 1, 255, 255]
        assert to_uint8(x).dtype == jnp.uint8


class TestEncoding:
    def test_is_what_clip_says(self, tiny_system, batch, encoded):
        clip, variables = clip_jax.CLIP(tiny_system.unclip.clip), {"params": tiny_system.params["clip"]}
        out = clip.apply(variables, normalise(batch["image"], clip.config.preprocess), batch["tokens"])
        for embed, features in ((encoded.image_embed, out.image_features), (encoded.text_embed, out.text_features)):
            np.testing.assert_allclose(clip_jax.unit_norm(embed), features, atol=1e-5)
        assert encoded.text_encodings.shape == (B, 24, 32)
        ends = np.asarray(encoded.text_mask).sum(axis=1) - 1
        assert (batch["tokens"][np.arange(B), ends] == tiny_system.tokenize.eot_id).all()

    def test_statistics_are_those_of_the_embeddings(self, tiny_system, batch, encoded):
        config, params = tiny_system.unclip.clip, tiny_system.params["clip"]
        mean, std = embedding_statistics(config, params, batch["image"], batch_size=4)
        np.testing.assert_allclose(mean, np.mean(encoded.image_embed, axis=0), atol=1e-5)
        np.testing.assert_allclose(std, np.std(encoded.image_embed, axis=0), atol=1e-5)
        # The rows that fill no batch count as well.
        mean, std = embedding_statistics(config, params, batch["image"][:7], batch_size=4)
        np.testing.assert_allclose(mean, np.mean(encoded.image_embed[:7], axis=0), atol=1e-5)
        np.testing.assert_allclose(std, np.std(encoded.image_embed[:7], axis=0), atol=1e-5)

    def test_a_dimension_that_never_moves_keeps_a_deviation_to_divide_by(self, tiny_system, batch, encoded, caplog):
        config, params = tiny_system.unclip.clip, tiny_system.params["clip"]
        embedding_statistics(config, params, batch["image"], batch_size=4)
        assert not caplog.records
        same = np.repeat(batch["image"][:1], 7, axis=0)
        mean, std = embedding_statistics(config, params, same, batch_size=4)
        np.testing.assert_allclose(mean, encoded.image_embed[0], atol=1e-5)
        np.testing.assert_array_equal(std, np.full(16, 1e-3, np.float32))
        (warning,) = caplog.messages
        assert "in 16 of 16 dimensions over 7 pictures: their deviation is set to 0.001" in warning

    def test_pairs_are_the_embeddings_of_pictures_and_captions(self, tiny_system, batch, encoded):
        config, params = tiny_system.unclip.clip, tiny_system.params["clip"]
        # Seven: a whole batch of four, and the rest.
        pairs = embedding_pairs(config, params, batch["image"][:7], batch["tokens"][:7], batch_size=4)
        for embeds, want in zip(pairs, (encoded.image_embed, encoded.text_embed), strict=True):
            np.testing.assert_allclose(embeds, want[:7], atol=1e-5)

    def test_what_a_batch_says_of_itself_is_not_computed_again(self, tiny_system, batch, encoded):
        """A cache of features conditions as the towers do, without pictures or tokens; a part of the text is none."""
        config, params = tiny_system.unclip.clip, tiny_system.params["clip"]
        text = {name: getattr(encoded, name) for name in tasks.TEXT_FIELDS}
        cached = {"image_embed": encoded.image_embed, **text}
        for given in (cached, {**cached, "image": None, "tokens": None}):
            found = tasks.condition(config, {}, given)
            jax.tree.map(np.testing.assert_array_equal, found, encoded)
        halves = {**batch, "image_embed": encoded.image_embed}, {**batch, **text}
        for half in halves:
            found = jax.jit(lambda params, half=half: tasks.condition(config, params, half))(params)
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, encoded)
        stored = jax.tree.map(lambda a: np.asarray(a, np.float16), cached) | {"text_mask": encoded.text_mask}
        assert tasks.condition(config, {}, stored).image_embed.dtype == jnp.float32
        with pytest.raises(clip_jax.UserError, match="the batch has text_embed and not text_encodings, text_mask"):
            tasks.condition(config, params, {**batch, "text_embed": encoded.text_embed})

    def test_similarity_is_the_cosine(self):
        a, b = np.random.default_rng(0).normal(size=(2, 4, 3, 16)).astype(np.float32)
        cosine = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
        np.testing.assert_allclose(similarity(7 * a, 0.1 * b), cosine, atol=1e-6)


class TestTask:
    def test_has_the_protocols_shape(self, task):
        for name in ("init", "loss"):
            assert (
                list(inspect.signature(getattr(task, name)).parameters)
                == list(inspect.signature(getattr(Task, name)).parameters)[1:]
            )

    def test_init_makes_the_stages_variables_and_clip_is_not_among_them(self, task, start):
        params, model_state = jax.eval_shape(task.init, jax.random.key(0))
        shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), (params, model_state))
        assert shapes == jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), start(task))
        assert task.frozen.keys() == (set() if isinstance(task, UpsamplerTask) else {"clip"})

    def test_the_priors_statistics_are_model_state_and_no_parameters(self, all_tasks, monkeypatch):
        fresh = {"params": {"query": 2.0}, "statistics": {"embed_mean": 0.0, "embed_std": 1.0, "x0_error": 3.0}}
        monkeypatch.setattr(tasks.stages, "init", lambda stage, key: fresh)
        params, model_state = all_tasks["prior"].init(jax.random.key(0))
        statistics = model_state["statistics"]
        np.testing.assert_array_equal(statistics["embed_mean"], all_tasks["prior"].embed_mean)
        np.testing.assert_array_equal(statistics["embed_std"], all_tasks["prior"].embed_std)
        assert statistics["x0_error"] == 3.0
        assert params == {"query": 2.0}

    @pytest.mark.parametrize("name", ["prior", pytest.param("decoder", marks=pytest.mark.slow)])
    def test_clip_is_frozen(self, all_tasks, batch, start, name):
        """No gradient reaches it, it is returned as it came, and the stage itself does get gradients."""
        task = all_tasks[name]
        params, model_state = with_frozen(task, start)
        loss = jax.jit(jax.value_and_grad(task.loss, argnums=(0, 1), has_aux=True), static_argnames="train")
        (value, (metrics, returned)), grads = loss(params, model_state, batch, jax.random.key(0), train=True)
        assert np.isfinite(value)
        assert all(np.ndim(metric) == 0 for metric in metrics.values())
        jax.tree.map(np.testing.assert_array_equal, returned, model_state)
        assert not any(leaf.any() for leaf in jax.tree.leaves(grads[1]["clip"]))
        still = {
            jax.tree_util.keystr(path, simple=True, separator="/")
            for path, leaf in jax.tree_util.tree_leaves_with_path(grads[0])
            if not leaf.any()
        }
        still = {path for path in still if "null" not in path}  # a null embedding moves only if some sample was dropped
        assert still == set()


def with_frozen(task, start):
    """(params, model_state) as `loss` is given them."""
    params, model_state = start(task)
    return params, {**model_state, **task.frozen}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["prior", "decoder"])
def test_the_loss_is_the_same_with_features_of_a_cache(all_tasks, start, batch, encoded, name):
    task = all_tasks[name]
    cached = {"image_embed": encoded.image_embed, **{field: getattr(encoded, field) for field in tasks.TEXT_FIELDS}}
    loss = jax.jit(task.loss, static_argnames="train")
    given = (*with_frozen(task, start), batch, jax.random.key(0))
    plain = float(loss(*given, train=True)[0])
    assert float(loss(*given[:2], {**batch, **cached}, given[3], train=True)[0]) == pytest.approx(plain, rel=1e-4)
    assert float(loss(*given, train=True)[0]) == plain


class Spied:
    """What a task hands to `stages.loss`, for a made-up encoding of ``n`` samples."""

    def __init__(self, monkeypatch, n, dim=16):
        self.embeds = np.random.default_rng(0).normal(size=(n, dim)).astype(np.float32)
        monkeypatch.setattr(tasks, "condition", lambda *_: Cond(image_embed=self.embeds, text_embed=self.embeds))
        monkeypatch.setattr(tasks.stages, "loss", self.loss)

    def loss(self, stage, variables, x0, cond, key, *, train):
        self.x0, self.cond, self.key, self.train = x0, cond, key, train
        return jnp.zeros(()), {}


N = 4000


@pytest.mark.parametrize(("name", "text", "image"), [("prior", 0.1, 0.0), ("decoder", 0.5, 0.1)])
def test_conditions_are_dropped_as_in_the_paper(all_tasks, start, monkeypatch, name, text, image):
    spy, (params, model_state) = Spied(monkeypatch, N), with_frozen(all_tasks[name], start)
    big = {"image": np.zeros((N, 16, 16, 3), np.uint8), "tokens": np.zeros((N, 2), np.int32)}

    all_tasks[name].loss(params, model_state, big, jax.random.key(0), train=True)
    no_text, no_image = ~np.asarray(spy.cond.keep_text), ~np.asarray(spy.cond.keep_image)
    assert no_text.mean() == pytest.approx(text, abs=0.03)
    assert no_image.mean() == pytest.approx(image, abs=0.02)
    assert (no_text & no_image).mean() == pytest.approx(text * image, abs=0.02)
    first = spy.cond.keep_text
    all_tasks[name].loss(params, model_state, big, jax.random.key(1), train=True)
    assert (np.asarray(first) != spy.cond.keep_text).any()

    all_tasks[name].loss(params, model_state, big, jax.random.key(0), train=False)
    assert spy.cond.keep_text is None
    assert spy.cond.keep_image is None
    assert spy.train is False


def test_the_prior_learns_standardised_embeddings(all_tasks, start, batch, monkeypatch):
    spy, (params, model_state) = Spied(monkeypatch, B), with_frozen(all_tasks["prior"], start)
    all_tasks["prior"].loss(params, model_state, batch, jax.random.key(0), train=False)
    scale = all_tasks["prior"].stage.model.scale
    want = scale * (spy.embeds - all_tasks["prior"].embed_mean) / all_tasks["prior"].embed_std
    np.testing.assert_allclose(spy.x0, want, rtol=1e-5, atol=1e-5)


def test_the_decoder_learns_pictures_of_its_own_size(all_tasks, start, batch, monkeypatch):
    spy, (params, model_state) = Spied(monkeypatch, B), with_frozen(all_tasks["decoder"], start)
    all_tasks["decoder"].loss(params, model_state, batch, jax.random.key(0), train=True)
    np.testing.assert_allclose(spy.x0, box_reduce(to_signed(batch["image"]), batch["image"].shape[1] // 2), atol=1e-6)
    np.testing.assert_array_equal(spy.cond.image_embed, spy.embeds)


@pytest.mark.slow
def test_the_upsampler_sees_the_same_window_small_and_large(all_tasks, monkeypatch):
    """On a ramp, which bicubic enlargement restores, both pictures of a window are equal but for the outermost rim."""
    task = dataclasses.replace(all_tasks["upsampler"], degrade=DegradeConfig(blur_prob=0.0, noise_std=0.0))
    spy, n = Spied(monkeypatch, 1), 16
    rows, columns = np.meshgrid(np.arange(32), np.arange(32), indexing="ij")
    ramp = np.stack([8 * rows, 8 * columns, 4 * (rows + columns)], axis=-1).astype(np.uint8)
    ramps = {"image": np.broadcast_to(ramp, (n, *ramp.shape))}
    task.loss({}, {}, ramps, jax.random.key(0), train=True)
    x0, low_res = np.asarray(spy.x0), np.asarray(spy.cond.low_res)
    assert x0.shape == low_res.shape == (n, 16, 16, 3)
    inner = np.abs(x0[..., :2]) < 0.75
    np.testing.assert_allclose(low_res[..., :2][inner], x0[..., :2][inner], atol=0.01)
    assert len({tuple(corner) for corner in x0[:, 0, 0].tolist()}) > 10  # windows differ between samples
    assert spy.cond.text_embed is None


@pytest.mark.slow
def test_the_upsampler_is_trained_at_every_level_of_noise(all_tasks, batch, monkeypatch):
    """Each sample at its own, and the input is as noisy as the level says."""
    plain = dataclasses.replace(
        all_tasks["upsampler"], degrade=DegradeConfig(blur_prob=0.0, noise_std=0.0), crop_size=32
    )
    model = dataclasses.replace(plain.stage.model, low_res=LowRes(level=True))
    told = dataclasses.replace(plain, stage=dataclasses.replace(plain.stage, model=model))
    many = {"image": np.broadcast_to(batch["image"][:1], (64, 32, 32, 3))}
    _, clean = plain.example({}, many, jax.random.key(0), train=True)
    _, noisy = told.example({}, many, jax.random.key(0), train=True)
    assert clean.low_res_level is None
    level = np.asarray(noisy.low_res_level)
    assert level.min() < 0.1
    assert level.max() > 0.9
    noise = np.asarray(noisy.low_res) - np.sqrt(1 - level**2)[:, None, None, None] * np.asarray(clean.low_res)
    deviation = noise.std(axis=(1, 2, 3))  # of noise that was enlarged: in proportion to the level
    np.testing.assert_allclose(deviation / level, (deviation / level).mean(), rtol=0.3)


OPTIM = OptimConfig(lr=1e-2, eps=1e-3, warmup_steps=0, schedule="constant", ema_decay=0.9)


def stepper(task, start, devices):
    """(train step, state on its mesh) for one of the tasks."""
    mesh, tx = make_mesh(devices), make_optimizer(OPTIM, 100)
    started = SimpleNamespace(init=lambda key: start(task), frozen=task.frozen)
    init = partial(init_state, started, tx, jax.random.key(0))
    shardings = state_shardings(jax.eval_shape(init), mesh)
    step = make_train_step(task, tx, mesh, shardings, ema_decay=OPTIM.ema_decay)
    return step, jax.jit(init, out_shardings=shardings)()  # in a program: every leaf a buffer of its own, to be donated


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_learns_a_batch_and_runs_on_any_number_of_devices(all_tasks, start, batch, name):
    """One step on eight devices is one step on one; and some more steps make the loss fall."""
    task, key = all_tasks[name], jax.random.key(5)
    step, state = stepper(task, start, 1)
    state, metrics = step(state, batch, key)
    before = float(metrics["loss"])
    sharded_step, sharded = stepper(task, start, 8)
    sharded, sharded_metrics = sharded_step(sharded, batch, key)
    assert float(sharded_metrics["loss"]) == pytest.approx(before, rel=1e-5)
    assert float(sharded_metrics["grad_norm"]) == pytest.approx(float(metrics["grad_norm"]), rel=1e-4)
    for one, eight in zip(*map(jax.tree.leaves, (state.params, sharded.params)), strict=True):
        np.testing.assert_allclose(one, eight, atol=2e-5)

    for _ in range(25):
        state, metrics = step(state, batch, key)
    # The step number picks the noise: at step 0 again, the trained network meets what the untrained one met.
    _, metrics = step(state._replace(step=jnp.int32(0)), batch, key)
    assert float(metrics["loss"]) < 0.7 * before
    assert int(metrics["skipped"]) == 0


class TestOtherPriors:
    """CLIP says what it said of the batch: compiling it again would show nothing new."""

    @pytest.fixture(params=["ar", "one-step"])
    def other(self, request, tiny_system, encoded, fill, monkeypatch):
        """(task, its parameters, those that are measured)."""
        monkeypatch.setattr(tasks, "condition", lambda *_: encoded)
        clip = tiny_system.unclip.clip, tiny_system.params["clip"]
        image_embed, text_embed = np.asarray(encoded.image_embed), np.asarray(encoded.text_embed)
        stage = preset(f"tiny-{request.param}-prior")
        if request.param == "ar":
            statistics = measure(stage.model, image_embed, text_embed)
            task = ARPriorTask(stage, *clip, statistics, drop_text=0.5)
            return task, fill(stage)["params"], {"quantiser": statistics}
        statistics = {"embed_mean": image_embed.mean(0), "embed_std": image_embed.std(0)}
        return OneStepPriorTask(stage, *clip, *statistics.values()), fill(stage)["params"], statistics

    def test_statistics_are_model_state_and_clip_is_frozen(self, other, monkeypatch):
        task, params, statistics = other
        monkeypatch.setattr(tasks.priors, "init", lambda stage, key: {"params": params, "statistics": {}})
        got, model_state = task.init(jax.random.key(0))
        assert got is params
        assert model_state.keys() == {"statistics"}
        jax.tree.map(np.testing.assert_array_equal, model_state["statistics"], statistics)
        assert task.frozen == {"clip": task.clip_params}

    @pytest.mark.slow
    def test_all_that_is_read_is_trained(self, other, batch):
        task, params, statistics = other
        model_state = {"statistics": statistics, **task.frozen}

        @jax.jit
        def gradients(params, model_state):
            def loss(params, model_state):
                return task.loss(params, model_state, batch, jax.random.key(3), train=True)

            return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, model_state)

        (loss, (metrics, carried)), (grads, of_clip) = gradients(params, model_state)
        assert np.isfinite(loss)
        assert all(np.isfinite(value) for value in metrics.values())
        jax.tree.map(np.testing.assert_array_equal, carried, model_state)
        assert not any(np.any(leaf) for leaf in jax.tree.leaves(of_clip["clip"]))
        never = {"null_text_token", "null_text_embed"} if isinstance(task, OneStepPriorTask) else set()
        for name, grad in grads.items():
            moved = [bool(np.any(leaf)) for leaf in jax.tree.leaves(grad)]
            assert not any(moved) if name in never else all(moved), name

    def test_captions_are_dropped_while_training_alone(self, other, encoded, batch, monkeypatch):
        task, params, statistics = other
        seen = []

        def loss(stage, variables, x, cond, *_, **__):
            seen.append((x, cond))
            return jnp.zeros(()), {}

        for name in ("ar_loss", "one_step_loss"):
            monkeypatch.setattr(tasks.priors, name, loss)
        for train in (True, False):
            model_state = {"statistics": statistics, **task.frozen}
            task.loss(params, model_state, batch, jax.random.key(3), train=train)
        (_, trained), (embeds, evaluated) = seen
        assert evaluated.keep_text is None
        if isinstance(task, ARPriorTask):
            assert 0 < trained.keep_text.sum() < B
            np.testing.assert_array_equal(embeds, encoded.image_embed)
        else:
            np.testing.assert_allclose(embeds, (encoded.image_embed - task.embed_mean) / task.embed_std, atol=1e-4)
