"""A seed's numbers are the same whatever JAX is set to, and keys as people have them work or are refused in a line."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax.errors import UserError
from tests.support.jaxprs import structure
from unclip_jax import degrade
from unclip_jax import stage as stages
from unclip_jax.conditioning import Cond
from unclip_jax.diffusion import losses
from unclip_jax.diffusion.keys import fold_in_each, normal, sample_keys, seed_key, threefry
from unclip_jax.diffusion.samplers import SAMPLERS
from unclip_jax.pipeline import generate
from unclip_jax.presets import preset


def data(keys):
    return np.asarray(jax.random.key_data(keys))


WANT = data(sample_keys(jax.random.key(7, impl="threefry2x32"), np.arange(3)))

KEYS = {
    "typed": lambda: sample_keys(jax.random.key(7), jnp.arange(3)),
    "raw": lambda: sample_keys(jax.random.PRNGKey(7), jnp.arange(3)),
    "rbg": lambda: sample_keys(jax.random.key(7, impl="rbg"), jnp.arange(3)),
    "unsafe_rbg": lambda: sample_keys(jax.random.key(7, impl="unsafe_rbg"), jnp.arange(3)),
    "of a seed": lambda: sample_keys(seed_key(7), jnp.arange(3)),
    "a range": lambda: sample_keys(jax.random.key(7), range(3)),
    "a list": lambda: sample_keys(jax.random.key(7), [0, 1, 2]),
    "int64": lambda: sample_keys(jax.random.key(7), np.arange(3, dtype=np.int64)),
    "traced": lambda: jax.jit(sample_keys)(jax.random.key(7), jnp.arange(3)),
    "folded rbg": lambda: jax.vmap(lambda i: jax.random.fold_in(jax.random.key(7, impl="rbg"), i))(jnp.arange(3)),
}


@pytest.mark.parametrize("kind", KEYS)
def test_keys_of_a_seed_are_the_same_however_they_are_made(kind):
    np.testing.assert_array_equal(data(threefry(KEYS[kind]())), WANT)


@pytest.mark.parametrize("generator", ["rbg", "unsafe_rbg"])
def test_whatever_generator_is_the_default(generator):
    with jax.default_prng_impl(generator):
        np.testing.assert_array_equal(data(sample_keys(jax.random.key(7), jnp.arange(3))), WANT)
        np.testing.assert_array_equal(data(sample_keys(jax.random.PRNGKey(7), jnp.arange(3))), WANT)
        np.testing.assert_array_equal(data(seed_key(7)), data(jax.random.key(7, impl="threefry2x32")))


def test_no_index_and_no_key_is_none():
    assert sample_keys(jax.random.key(0), range(0)).shape == (0,)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sample_keys(jax.random.key(0), 2), r"indices is 2; .*jnp.arange"),
        (lambda: sample_keys(jax.random.key(0), np.arange(2.0)), "indices is float64"),
        (lambda: sample_keys(jax.random.key(0), [[0, 1]]), r"indices is int64 \[1, 2\]"),
        (lambda: sample_keys(jax.random.key(0), [-1]), "indices are from -1"),
        (lambda: sample_keys(jax.random.key(0), [2**32]), "give 0 to 4294967295"),
        (lambda: sample_keys(jax.random.split(jax.random.key(0), 2), [0]), r"key is \[2\] keys; give one"),
        (lambda: sample_keys(0, [0]), "keys are int; give"),
        (lambda: sample_keys(np.zeros(2), [0]), r"keys are float64 \[2\]"),
        (lambda: seed_key(-1), "seed is -1; give"),
        (lambda: seed_key(2**32), "seed is 4294967296; give"),
        (lambda: seed_key(0.5), "seed is 0.5; give"),
        (lambda: seed_key(True), "seed is True; give"),
    ],
)
def test_what_is_no_key_seed_or_index_is_refused(make, message):
    with pytest.raises(UserError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_a_setting_that_draws_other_numbers_is_refused():
    with jax.threefry_partitionable(False), pytest.raises(UserError, match="jax_threefry_partitionable is False"):
        normal(KEYS["typed"](), (2,))


MODES = {
    "64 bits": lambda: jax.enable_x64(True),
    "strict promotion": lambda: jax.numpy_dtype_promotion("strict"),
    "no rank promotion": lambda: jax.numpy_rank_promotion("raise"),
    "NaN are looked for": lambda: jax.debug_nans(True),
}


STAGE = preset("tiny-decoder")
X0 = np.linspace(-1, 1, 2 * 16 * 16 * 3, dtype=np.float32).reshape(2, 16, 16, 3)


def noise(_):
    return normal(fold_in_each(sample_keys(jax.random.key(3), jnp.arange(2)), 5), (4, 3))


def noise_of_training(_):
    """A noised batch, the bound of the variance and a degraded picture."""
    x0, schedule = jnp.asarray(X0), stages.noise_schedule(STAGE)
    at = losses.noised(schedule, x0, jax.random.key(2))
    bound = losses.variational_bound(x0, 0.5 * jnp.ones_like(x0), x0, at, schedule)
    return at, bound, degrade.degrade(x0, jax.random.key(1), degrade.DegradeConfig())


def pictures(system):
    keys = sample_keys(jax.random.key(3), jnp.arange(2))
    tokens = system.tokenize(["a red star", "a square"])
    return jax.jit(generate, static_argnums=0)(system.unclip, system.params, tokens, keys).images


def loss_and_gradient(system):
    encodings, embed = np.ones((2, 3, 32), np.float32), np.ones((2, 16), np.float32)
    cond = Cond(text_encodings=encodings, text_mask=np.ones((2, 3), bool), image_embed=embed)

    def loss(params):
        return stages.loss(STAGE, params, jnp.asarray(X0), cond, jax.random.key(1))[0]

    return jax.value_and_grad(loss)(system.params["decoder"])


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "NaN are looked for"])
@pytest.mark.parametrize("make", [pictures, pytest.param(loss_and_gradient, marks=pytest.mark.slow)])
def test_the_program_is_the_same_under_any_setting(tiny_system, mode, make):
    want = structure(jax.make_jaxpr(lambda: make(tiny_system))())
    with MODES[mode]():
        got = structure(jax.make_jaxpr(lambda: make(tiny_system))())
    types = {dtype for _, outs in got for _, dtype in outs}
    assert "float64" not in types
    assert "float32" in types
    if mode != "64 bits":  # there indices outside of our functions are int64
        assert got == want


SLOW = [pytest.param(make, marks=pytest.mark.slow) for make in (noise_of_training, pictures, loss_and_gradient)]


@pytest.mark.parametrize("make", [noise, *SLOW])
@pytest.mark.parametrize("mode", MODES)
def test_the_numbers_are_the_same_under_any_setting(tiny_system, mode, make):
    want = make(tiny_system)
    with MODES[mode]():
        got = make(tiny_system)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", SAMPLERS)
def test_no_sampler_raises_a_false_alarm(name):
    from unclip_jax.diffusion.predict import Denoised
    from unclip_jax.diffusion.samplers import sample
    from unclip_jax.diffusion.schedule import GRIDS, SCHEDULES

    x0, schedule = jnp.ones((2, 4)), SCHEDULES["cosine"](100)
    keys = sample_keys(jax.random.key(0), jnp.arange(2))
    perfect = lambda x, t: Denoised(x0, jnp.zeros_like(x0), jnp.zeros_like(x0))  # noqa: E731
    with jax.debug_nans(True):
        run = jax.jit(lambda x: sample(perfect, schedule, GRIDS["uniform"](schedule, 3), SAMPLERS[name](), x, keys))
        np.testing.assert_allclose(run(x0), x0, atol=1e-5)
