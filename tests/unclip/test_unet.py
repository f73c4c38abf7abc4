"""Shapes, formulas and conditioning of the U-Net; the formulas are written out once more in numpy, slowly."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax.errors import UserError
from tests.support.jaxprs import equations
from unclip_jax.conditioning import Cond
from unclip_jax.models.unet import (
    ContextAttention,
    GroupNorm,
    ImageCond,
    Level,
    LowRes,
    ResBlock,
    TextCond,
    UNet,
    UNetConfig,
    average_pool,
    coordinates,
    depth_to_space,
    enlarge,
    nearest_double,
    space_to_depth,
)

B, L = 2, 4
CONFIG = UNetConfig(
    image_size=8,
    levels=(Level(8, 1), Level(16, 1, attention=True)),
    head_width=8,
    groups=4,
    time_width=12,
    image=ImageCond(5, tokens=2),
    text=TextCond(6),
    context_width=7,
)
PLAIN = UNetConfig(image_size=8, levels=(Level(8, 1),), groups=4, time_width=12)
T = jnp.array([10, 800])


def gaussian(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


X_T = gaussian(0, B, 8, 8, 3)


def cond_for(config, batch=B):
    cond = Cond(keep_text=np.ones(batch, bool), keep_image=np.ones(batch, bool))
    if config.image:
        cond = cond.replace(image_embed=gaussian(1, batch, config.image.embed_dim))
    if config.text:
        mask = np.arange(L) < np.array([[3], [2]])[:batch]
        cond = cond.replace(text_encodings=gaussian(2, batch, L, config.text.width), text_mask=mask)
    if config.low_res:
        cond = cond.replace(low_res=gaussian(3, batch, config.image_size // 2, config.image_size // 2, config.channels))
    return cond


def init_of(config):
    """key -> variables"""
    x_t = jnp.zeros((B, config.image_size, config.image_size, config.channels))
    return lambda key: UNet(config).init(key, x_t, T, cond_for(config))


class TestRearrangements:
    def test_space_to_depth_and_back(self):
        x = gaussian(0, 2, 6, 12, 3)
        for factor in (1, 2, 3):
            deep = space_to_depth(x, factor)
            assert deep.shape == (2, 6 // factor, 12 // factor, 3 * factor**2)
            np.testing.assert_array_equal(depth_to_space(deep, factor), x)

    def test_a_patch_becomes_the_channels_of_its_place(self):
        x = gaussian(0, 1, 4, 6, 3)
        np.testing.assert_array_equal(space_to_depth(x, 2)[0, 1, 2], x[0, 2:4, 4:6].reshape(-1))

    def test_coordinates_say_where_a_cell_is(self):
        grid = np.asarray(coordinates(3, 5))
        assert grid.shape == (3, 5, 10)
        np.testing.assert_allclose(grid[2, 0, :2], [1.0, -1.0])
        np.testing.assert_allclose(grid[1, 2], [0, 0, 0, 0, 1, 1, 0, 0, 1, 1], atol=1e-6)
        np.testing.assert_allclose(grid[..., 3], np.tile(np.sin(np.pi * np.linspace(-1, 1, 5)), (3, 1)), atol=1e-6)

    def test_pool_undoes_doubling(self):
        x = gaussian(0, 2, 3, 5, 4)
        doubled = nearest_double(x)
        assert doubled.shape == (2, 6, 10, 4)
        np.testing.assert_array_equal(doubled, x.repeat(2, axis=1).repeat(2, axis=2))
        np.testing.assert_allclose(average_pool(doubled), x, atol=1e-6)
        np.testing.assert_allclose(average_pool(x[:, :2, :4])[1, 0, 1], x[1, :2, 2:4].mean(axis=(0, 1)), atol=1e-6)

    def test_enlarge_is_bicubic_and_leaves_what_has_the_size(self):
        x = gaussian(0, 1, 4, 4, 3)
        assert enlarge(x, (4, 4)) is x
        assert enlarge(x, (8, 8)).shape == (1, 8, 8, 3)
        np.testing.assert_allclose(enlarge(np.full((1, 4, 4, 3), 0.3, np.float32), (8, 8)), 0.3, atol=1e-6)
        ramp = np.broadcast_to(np.arange(8.0, dtype=np.float32)[:, None, None], (8, 8, 1))[None]
        inner = np.asarray(enlarge(ramp, (16, 16)))[0, 4:-4, 8, 0]
        np.testing.assert_allclose(inner, (np.arange(16)[4:-4] + 0.5) / 2 - 0.5, atol=1e-5)


def naive_group_norm(x, params, groups):
    b, c = x.shape[0], x.shape[-1]
    grouped = x.reshape(b, -1, groups, c // groups).astype(np.float64)
    mean, var = grouped.mean(axis=(1, 3), keepdims=True), grouped.var(axis=(1, 3), keepdims=True)
    return ((grouped - mean) / np.sqrt(var + 1e-5)).reshape(x.shape) * params["scale"] + params["bias"]


def naive_conv(x, params):
    """3×3, zero padding."""
    h, w = x.shape[1:3]
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    places = ((i, j) for i in range(3) for j in range(3))
    return sum(padded[:, i : i + h, j : j + w] @ params["kernel"][i, j] for i, j in places) + params["bias"]


def dense(x, params):
    return x @ params["kernel"] + params["bias"]


def silu(x):
    return x / (1 + np.exp(-x))


class TestFormulas:
    def test_group_norm(self, fill):
        x = 5 + 0.1 * gaussian(0, 2, 4, 4, 8)
        module = GroupNorm(4)
        params = fill(lambda key: module.init(key, x))["params"]
        want = naive_group_norm(x, params["norm"], 4)
        np.testing.assert_allclose(module.apply({"params": params}, x), want, atol=1e-4)

    def test_group_norm_keeps_its_digits_far_from_zero(self):
        """E[x²] − E[x]² in float32 has nothing left here."""
        x = 1000 + 0.1 * gaussian(0, 1, 8, 8, 4)
        out = GroupNorm(1).init_with_output(jax.random.key(0), x)[0]
        assert np.std(out) == pytest.approx(1.0, rel=0.02)

    @pytest.mark.parametrize("resample", ["none", "down", "up"])
    @pytest.mark.parametrize("scale_shift", [True, False])
    def test_residual_block(self, fill, scale_shift, resample):
        """GroupNorm, SiLU, resample, conv, time, GroupNorm, SiLU, conv, and a skip that is resampled as well."""
        config = dataclasses.replace(PLAIN, scale_shift=scale_shift)
        module, x, time = ResBlock(config, 12, resample), gaussian(0, 2, 4, 4, 8), gaussian(1, 2, 12)
        params = fill(lambda key: module.init(key, x, time, False))["params"]

        size = {"none": lambda y: y, "down": average_pool, "up": nearest_double}[resample]
        h = np.asarray(size(silu(naive_group_norm(x, params["norm1"]["norm"], 4)).astype(np.float32)))
        h = naive_conv(h, params["conv1"])
        modulation = dense(silu(time), params["time_emb_proj"])[:, None, None, :]
        norm2 = params["norm2"]["norm"]
        if scale_shift:
            scale, shift = modulation[..., :12], modulation[..., 12:]
            h = naive_group_norm(h, norm2, 4) * (1 + scale) + shift
        else:
            h = naive_group_norm(h + modulation, norm2, 4)
        h = naive_conv(silu(h), params["conv2"])
        want = dense(np.asarray(size(x)), params["conv_shortcut"]) + h
        np.testing.assert_allclose(module.apply({"params": params}, x, time, False), want, atol=2e-4)

    @pytest.mark.parametrize("with_context", [True, False])
    def test_attention(self, fill, with_context):
        """Each head of each pixel: one softmax over the visible context tokens and all pixels."""
        c, k, heads = 16, 8, 2
        x = gaussian(0, B, 2, 3, c)
        context, mask = gaussian(1, B, 4, 7), np.array([[1, 1, 0, 1], [0, 1, 0, 0]], bool)
        given = (x, context, mask) if with_context else (x, None, None)
        module = ContextAttention(CONFIG)
        params = fill(lambda key: module.init(key, *given))["params"]

        h = naive_group_norm(x, params["group_norm"]["norm"], 4).reshape(B, 6, c)
        want = np.array(x, np.float64)
        for b in range(B):
            query, key, value = (dense(h[b], params[name]) for name in ("to_q", "to_k", "to_v"))
            if with_context:
                key = np.concatenate([dense(context[b], params["add_k_proj"])[mask[b]], key])
                value = np.concatenate([dense(context[b], params["add_v_proj"])[mask[b]], value])
            out = np.zeros((6, c))
            for n in range(heads):
                part = slice(n * k, (n + 1) * k)
                weights = np.exp(query[:, part] @ key[:, part].T / np.sqrt(k))
                out[:, part] = weights / weights.sum(axis=1, keepdims=True) @ value[:, part]
            want[b] += dense(out, params["to_out"]).reshape(2, 3, c)
        np.testing.assert_allclose(module.apply({"params": params}, *given), want, atol=1e-4)


class TestShapes:
    @pytest.mark.parametrize(
        "changes",
        [
            {},
            {"patch_size": 4, "levels": (Level(8, 1, attention=True),)},
            pytest.param({"patch_size": 2, "learned_variance": True}, marks=pytest.mark.slow),
            pytest.param({"learned_variance": True}, marks=pytest.mark.slow),
            pytest.param({"levels": (Level(8, 2), Level(8, 1), Level(24, 3, attention=True))}, marks=pytest.mark.slow),
            pytest.param({"levels": (Level(16, 1, attention=True), Level(8, 1))}, marks=pytest.mark.slow),
            pytest.param({"image": None}, marks=pytest.mark.slow),
            pytest.param({"text": None}, marks=pytest.mark.slow),
            {"image": None, "text": None},
            pytest.param({"low_res": LowRes()}, marks=pytest.mark.slow),
            {"low_res": LowRes(), "scale_shift": False, "patch_size": 2},
            {"channels": 1, "image_size": 24, "low_res": LowRes()},
        ],
        ids=str,
    )
    def test_output_is_as_large_as_the_input(self, changes):
        config = dataclasses.replace(CONFIG, **changes)
        cond = cond_for(config)
        params = jax.eval_shape(init_of(config), jax.random.key(0))
        for height, width in ((config.image_size,) * 2, (16, 24)):
            x_t = jax.ShapeDtypeStruct((B, height, width, config.channels), jnp.float32)
            out = jax.eval_shape(UNet(config).apply, params, x_t, T, cond)
            assert out.shape == (B, height, width, config.channels * (2 if config.learned_variance else 1))
            assert out.dtype == jnp.float32

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"image_size": 9}, "image_size 9 is not divisible by 2"),
            ({"image_size": 8, "patch_size": 3}, "image_size 8 is not divisible by 6"),
            ({"groups": 3}, "level width 8 is not divisible by groups 3"),
            ({"head_width": 6}, "level width 16 is not divisible by head_width 6"),
            ({"levels": ()}, "levels is empty"),
            ({"patch_size": 0}, "patch_size is 0; give 1 to 4096"),
            ({"groups": -4}, "groups is -4"),
        ],
    )
    def test_config_that_cannot_be_is_refused(self, changes, message):
        with pytest.raises(UserError, match=message):
            dataclasses.replace(CONFIG, **changes)

    @pytest.mark.slow
    def test_a_fresh_network_says_nothing(self):
        """Zero at initialisation: the output, and what every block and attention adds to its skip."""
        variables = jax.jit(init_of(CONFIG))(jax.random.key(0))
        zero = {
            jax.tree_util.keystr(path, simple=True, separator="/")
            for path, leaf in jax.tree_util.tree_leaves_with_path(variables["params"])
            if leaf.ndim > 1 and not leaf.any()
        }
        blocks = [name for name in variables["params"] if "block" in name or "sample" in name]
        attentions = [name for name in variables["params"] if "attention" in name]
        assert zero == {
            "conv_out/kernel",
            *(f"{name}/conv2/kernel" for name in blocks),
            *(f"{name}/to_out/kernel" for name in attentions),
        }
        assert len(blocks) == 10  # one per level down, two up, two in the middle, one each to go down and up
        assert len(attentions) == 4
        assert not np.any(variables["params"]["conv_out"]["bias"])


@pytest.fixture(scope="module")
def params(fill):
    return fill(init_of(CONFIG))["params"]


@pytest.fixture(scope="module")
def apply(params):
    """`apply(**changes of the condition)` -> output, one compiled program for all tests of the decoder."""
    compiled = jax.jit(lambda x_t, t, cond: UNet(CONFIG).apply({"params": params}, x_t, t, cond))

    def run(x_t=X_T, t=T, **changes):
        return np.asarray(compiled(x_t, t, cond_for(CONFIG).replace(**changes)))

    return run


NONE, ALL = np.zeros(B, bool), np.ones(B, bool)
OTHER = {
    "image_embed": gaussian(11, B, 5),
    "text_encodings": gaussian(12, B, L, 6),
    "text_mask": np.array([[1, 0, 0, 0], [1, 1, 1, 1]], bool),
}
KEEPS = {"image_embed": "keep_image", "text_encodings": "keep_text", "text_mask": "keep_text"}


def moved(a, b):
    return np.abs(a - b).max(axis=(1, 2, 3)) > 1e-4


class TestConditioning:
    @pytest.mark.parametrize("name", OTHER)
    def test_what_is_kept_is_read(self, apply, name):
        assert moved(apply(**{name: OTHER[name]}), apply()).all()

    @pytest.mark.parametrize("name", OTHER)
    def test_what_is_dropped_leaves_no_trace(self, apply, name):
        dropped = {KEEPS[name]: NONE}
        np.testing.assert_array_equal(apply(**dropped, **{name: OTHER[name]}), apply(**dropped))
        assert moved(apply(**dropped), apply()).all()

    @pytest.mark.parametrize("name", OTHER)
    def test_dropping_one_keeps_the_other(self, apply, name):
        others = {"keep_text", "keep_image"} - {KEEPS[name]}
        dropped = dict.fromkeys(others, NONE)
        assert moved(apply(**dropped, **{name: OTHER[name]}), apply(**dropped)).all()

    def test_dropped_per_sample(self, apply):
        mixed = apply(keep_text=np.array([True, False]), keep_image=np.array([False, True]))
        np.testing.assert_array_equal(mixed[0], apply(keep_image=NONE)[0])
        np.testing.assert_array_equal(mixed[1], apply(keep_text=NONE)[1])

    def test_without_anything_time_and_picture_are_still_read(self, apply):
        null = {"keep_text": NONE, "keep_image": NONE}
        assert moved(apply(gaussian(20, B, 8, 8, 3), **null), apply(**null)).all()
        assert moved(apply(t=jnp.array([500, 500]), **null), apply(**null)).all()

    def test_padding_is_never_read(self, apply):
        cond = cond_for(CONFIG)
        garbage = np.where(cond.text_mask[..., None], cond.text_encodings, 1e3 * gaussian(5, B, L, 6))
        np.testing.assert_array_equal(apply(text_encodings=garbage), apply())

    def test_more_padding_changes_nothing(self, apply):
        cond = cond_for(CONFIG)
        longer = np.concatenate([cond.text_encodings, gaussian(6, B, 3, 6)], axis=1)
        mask = np.concatenate([cond.text_mask, np.zeros((B, 3), bool)], axis=1)
        np.testing.assert_allclose(apply(text_encodings=longer, text_mask=mask), apply(), atol=1e-4)

    def test_text_is_a_set_of_tokens(self, apply):
        """The U-Net adds no positions of its own: the text tower has put them into the encodings."""
        cond, order = cond_for(CONFIG), [2, 0, 3, 1]
        shuffled = apply(text_encodings=cond.text_encodings[:, order], text_mask=cond.text_mask[:, order])
        np.testing.assert_allclose(shuffled, apply(), atol=1e-4)

    def test_a_sample_does_not_depend_on_its_batch(self, apply):
        cond = cond_for(CONFIG)
        names = ("image_embed", "text_encodings", "text_mask")
        swapped = apply(X_T[::-1], T[::-1], **{name: getattr(cond, name)[::-1] for name in names})
        np.testing.assert_allclose(swapped[::-1], apply(), atol=1e-5)  # a row's place may decide its rounding


class TestUpsampler:
    CONFIG = dataclasses.replace(PLAIN, image_size=16, patch_size=2, low_res=LowRes(), scale_shift=False)

    @pytest.fixture(scope="class")
    def upsample(self, fill):
        params = fill(init_of(self.CONFIG))["params"]
        compiled = jax.jit(lambda x_t, t, cond: UNet(self.CONFIG).apply({"params": params}, x_t, t, cond))
        return lambda x_t, low_res: np.asarray(compiled(x_t, T, Cond(low_res=low_res)))

    @pytest.mark.slow
    def test_reads_the_small_picture_enlarged(self, upsample):
        x_t, low_res = gaussian(0, B, 16, 16, 3), gaussian(1, B, 8, 8, 3)
        small = upsample(x_t, low_res)
        np.testing.assert_allclose(upsample(x_t, enlarge(low_res, (16, 16))), small, atol=1e-4)
        assert moved(upsample(x_t, gaussian(2, B, 8, 8, 3)), small).all()
        assert moved(upsample(gaussian(3, B, 16, 16, 3), low_res), small).all()

    def test_the_small_picture_is_told_from_the_noise(self, upsample):
        """They lie on channels of their own: swapping them is seen."""
        x_t, enlarged = gaussian(0, B, 16, 16, 3), gaussian(1, B, 16, 16, 3)
        assert moved(upsample(enlarged, x_t), upsample(x_t, enlarged)).all()

    @pytest.mark.slow
    def test_works_on_crops_and_on_larger_pictures(self, upsample):
        for height, width in ((8, 8), (32, 24)):
            out = upsample(gaussian(0, B, height, width, 3), gaussian(1, B, height // 2, width // 2, 3))
            assert out.shape == (B, height, width, 3)
            assert np.isfinite(out).all()


@pytest.mark.slow
def test_computing_blocks_again_changes_nothing(fill):
    """Same parameters, same output and gradient, dropout too; the blocks are marked to be computed again."""
    config = dataclasses.replace(CONFIG, dropout=0.3)
    again = dataclasses.replace(config, remat=True)
    params = fill(init_of(config))["params"]
    assert jax.tree.structure(jax.eval_shape(init_of(again), jax.random.key(0))["params"]) == jax.tree.structure(params)

    def value(config, params):
        rngs = {"dropout": jax.random.key(1)}
        out = UNet(config).apply({"params": params}, X_T, T, cond_for(config), train=True, rngs=rngs)
        return jnp.square(out).sum()

    (one, gradient), (other, same) = (
        jax.jit(jax.value_and_grad(lambda p, c=c: value(c, p)))(params) for c in (config, again)
    )
    assert float(one) == pytest.approx(float(other), rel=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), gradient, same)
    names = [eqn.primitive.name for eqn in equations(jax.make_jaxpr(lambda p: value(again, p))(params).jaxpr)]
    assert sum("remat" in name or "checkpoint" in name for name in names) >= 10


@pytest.mark.slow
def test_dropout_is_drawn_in_training_only(fill):
    config = dataclasses.replace(PLAIN, dropout=0.5)
    params = fill(init_of(config))

    @jax.jit
    def train(key):
        return UNet(config).apply(params, X_T, T, Cond(), train=True, rngs={"dropout": key})

    first, second = train(jax.random.key(0)), train(jax.random.key(1))
    assert moved(first, second).all()
    np.testing.assert_array_equal(first, train(jax.random.key(0)))
    quiet, plain = (UNet(c).apply(params, X_T, T, Cond()) for c in (config, PLAIN))
    np.testing.assert_array_equal(quiet, plain)
