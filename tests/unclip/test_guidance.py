import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unclip_jax.conditioning import Cond
from unclip_jax.diffusion.guidance import classifier_free, clip_x0, dynamic_threshold, inpaint
from unclip_jax.diffusion.predict import PREDICTIONS, Denoised, denoiser, per_sample
from unclip_jax.diffusion.schedule import cosine

B, SHAPE = 5, (5, 4, 4, 3)
T = jnp.array([0, 10, 300, 700, 950])
COND = Cond(image_embed=jax.random.normal(jax.random.key(9), (B, 3)))
X_T = jax.random.normal(jax.random.key(1), SHAPE)
SCHEDULE = cosine(1000)


def network(x_t, t, cond):
    """Some function of everything it is given, that differs when a condition is dropped."""
    keep = (cond.keep_image & cond.keep_text).astype(jnp.float32)
    pull = (keep[:, None] * cond.image_embed + 0.1 * (1 - keep[:, None]))[:, None, None, :]
    return jnp.sin(2 * x_t + pull) + per_sample(t / 1000.0, x_t)


def conditional(cond):
    """A denoiser with a variance, both different in the two branches."""

    def denoise(x_t, t):
        x0 = network(x_t, t, cond)
        return Denoised(x0, jnp.tanh(x0))

    return denoise


def reading(name):
    """The network bound to a condition and read as `name`."""
    return lambda cond: denoiser(lambda x_t, t: network(x_t, t, cond), SCHEDULE, name)


def branches():
    return conditional(COND.with_keep(B))(X_T, T), conditional(COND.null())(X_T, T)


def test_scale_one_is_off():
    got = classifier_free(1.0)(conditional)(COND)(X_T, T)
    np.testing.assert_allclose(got.x0, branches()[0].x0, atol=1e-6)


def test_scale_zero_is_unconditional():
    got = classifier_free(0.0)(conditional)(COND)(X_T, T)
    np.testing.assert_array_equal(got.x0, branches()[1].x0)


def test_scale_per_sample():
    scales = jnp.array([0.0, 1.0, 2.0, 4.0, 8.0])
    together = classifier_free(scales)(conditional)(COND)(X_T, T).x0
    for i, scale in enumerate(scales):
        alone = classifier_free(float(scale))(conditional)(COND)(X_T, T).x0[i]
        np.testing.assert_array_equal(together[i], alone)
    c, u = branches()
    np.testing.assert_allclose(together, u.x0 + per_sample(scales, X_T) * (c.x0 - u.x0), rtol=1e-5, atol=1e-6)


def test_scale_may_be_traced():
    guided = jax.jit(lambda scale: classifier_free(scale)(conditional)(COND)(X_T, T).x0)
    np.testing.assert_allclose(guided(3.0), classifier_free(3.0)(conditional)(COND)(X_T, T).x0, atol=1e-6)
    guided(5.0)
    assert guided._cache_size() == 1


@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("name", PREDICTIONS)
def test_guiding_x0_is_guiding_the_output(name, scale):
    """Before clipping. Each parametrisation is linear in the others at a fixed x_t."""
    x0 = classifier_free(scale)(reading(name))(COND)(X_T, T).x0
    c, u = network(X_T, T, COND.with_keep(B)), network(X_T, T, COND.null())
    alpha, sigma = (per_sample(f(T), X_T) for f in (SCHEDULE.alpha, SCHEDULE.sigma))
    want = PREDICTIONS[name].to_x0(u + scale * (c - u), X_T, alpha, sigma)
    np.testing.assert_allclose(x0 * alpha, want * alpha, atol=1e-5)


def test_guiding_x0_is_not_guiding_the_output_after_clipping():
    outside = clip_x0(-1, 1)(classifier_free(3.0)(reading("eps"))(COND))(X_T, T).x0
    inside = classifier_free(3.0)(lambda cond: clip_x0(-1, 1)(reading("eps")(cond)))(COND)(X_T, T).x0
    assert jnp.abs(outside).max() <= 1 < jnp.abs(inside).max()


@pytest.mark.parametrize("scale", [0.0, 1.0, 7.0])
def test_variance_is_that_of_the_conditional_branch(scale):
    got = classifier_free(scale)(conditional)(COND)(X_T, T)
    np.testing.assert_array_equal(got.var_frac, branches()[0].var_frac)


def test_no_variance_stays_none():
    got = classifier_free(2.0)(lambda cond: lambda x_t, t: Denoised(network(x_t, t, cond)))(COND)(X_T, T)
    assert got.var_frac is None


def test_what_is_already_dropped_stays_dropped():
    """A sample whose condition is absent is not guided: both branches are the same."""
    keep = jnp.array([True, False, True, False, True])
    got = classifier_free(5.0)(conditional)(COND.replace(keep_image=keep))(X_T, T).x0
    c, u = branches()
    np.testing.assert_allclose(got[~keep], u.x0[~keep], atol=1e-6)
    assert not np.allclose(got[keep], u.x0[keep], atol=1e-3)
    assert not np.allclose(got[keep], c.x0[keep], atol=1e-3)


def test_one_network_call_of_twice_the_batch():
    """And the condition is bound once, however often the network is called."""
    bound, sizes = [], []

    def counting(cond):
        bound.append(cond.batch_size)

        def denoise(x_t, t):
            sizes.append((x_t.shape[0], t.shape[0]))
            return conditional(cond)(x_t, t)

        return denoise

    denoise = classifier_free(2.0)(counting)(COND)
    denoise(X_T, T)
    denoise(X_T, T)
    assert bound == [2 * B]
    assert sizes == [(2 * B, 2 * B)] * 2


def wide(x_t, t):
    """Estimates far outside [−1, 1], by a different amount per sample."""
    return Denoised(x_t * per_sample(jnp.array([0.1, 0.5, 1.0, 3.0, 10.0]), x_t), x_t)


def test_clip_leaves_the_inside_alone():
    got = clip_x0(-1.0, 1.0)(wide)(X_T, T)
    raw = wide(X_T, T).x0
    assert got.x0.min() == -1
    assert got.x0.max() == 1
    inside = jnp.abs(raw) <= 1
    np.testing.assert_array_equal(got.x0[inside], raw[inside])
    np.testing.assert_array_equal(got.var_frac, X_T)  # the variance is no estimate of x0


def test_dynamic_threshold_scales_each_sample_by_its_own_percentile():
    raw = np.asarray(wide(X_T, T).x0)
    got = dynamic_threshold(90.0)(wide)(X_T, T)
    for sample, thresholded in zip(raw, np.asarray(got.x0), strict=True):
        limit = max(1.0, np.percentile(np.abs(sample), 90.0))
        np.testing.assert_allclose(thresholded, np.clip(sample, -limit, limit) / limit, rtol=1e-5, atol=1e-6)
    assert np.abs(got.x0).max() <= 1
    np.testing.assert_array_equal(got.var_frac, X_T)


def test_dynamic_threshold_leaves_what_is_in_range():
    small = jnp.array([[0.3, -0.9, 0.5]])
    got = dynamic_threshold(50.0)(lambda x_t, t: Denoised(x_t))(small, jnp.zeros(1, int))
    np.testing.assert_array_equal(got.x0, small)


def test_dynamic_threshold_of_everything_is_the_maximum():
    got, raw = dynamic_threshold(100.0)(wide)(X_T, T).x0[-1], wide(X_T, T).x0[-1]
    np.testing.assert_allclose(got, raw / jnp.abs(raw).max(), rtol=1e-5)


def test_what_is_known_is_the_estimate():
    known, mask = jnp.full(SHAPE, 0.25), jnp.arange(4)[None, :, None, None] < 2
    denoise = conditional(COND.with_keep(B))
    got, plain = inpaint(known, mask)(denoise)(X_T, T), denoise(X_T, T)
    np.testing.assert_array_equal(got.x0[:, :2], plain.x0[:, :2])
    np.testing.assert_array_equal(got.x0[:, 2:], known[:, 2:])
    np.testing.assert_array_equal(got.var_frac, plain.var_frac)
