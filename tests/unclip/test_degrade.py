import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unclip_jax.degrade import DegradeConfig, box_reduce, degrade, gaussian_blur, random_crops

KEY = jax.random.key(0)
PICTURES = np.random.default_rng(0).uniform(-1, 1, (3, 6, 8, 3)).astype(np.float32)
N = 1000


def naive_blur(image, sigma):
    """The 3×3 kernel as written down, over an image whose edges are repeated."""
    offsets = np.array([-1, 0, 1])
    kernel = np.exp(-(offsets[:, None] ** 2 + offsets[None, :] ** 2) / (2 * sigma**2))
    kernel /= kernel.sum()
    padded = np.pad(image, ((1, 1), (1, 1), (0, 0)), mode="edge")
    height, width = image.shape[:2]
    return sum(kernel[i, j] * padded[i : i + height, j : j + width] for i in range(3) for j in range(3))


def test_blur_is_the_gaussian_kernel_with_a_deviation_per_sample():
    sigma = np.array([0.3, 0.6, 2.0], np.float32)
    want = np.stack([naive_blur(image, s) for image, s in zip(PICTURES, sigma, strict=True)])
    np.testing.assert_allclose(gaussian_blur(PICTURES, sigma), want, atol=1e-6)


def test_blur_leaves_a_constant_and_the_mean():
    sigma = jnp.array([0.3, 0.6, 2.0])
    np.testing.assert_allclose(gaussian_blur(jnp.full((3, 4, 4, 3), 0.7), sigma), 0.7, atol=1e-6)
    blank = np.zeros((3, 5, 5, 1), np.float32)
    blank[:, 2, 2] = 1.0
    np.testing.assert_allclose(gaussian_blur(blank, sigma).sum(axis=(1, 2, 3)), 1.0, atol=1e-6)


def test_box_reduce_is_the_mean_of_boxes():
    reduced = box_reduce(PICTURES, 2)
    assert reduced.shape == (3, 3, 4, 3)
    np.testing.assert_allclose(reduced[1, 2, 3], PICTURES[1, 4:6, 6:8].mean(axis=(0, 1)), atol=1e-6)
    np.testing.assert_array_equal(box_reduce(PICTURES, 1), PICTURES)


SPOILT = np.broadcast_to(PICTURES[:1], (N, *PICTURES.shape[1:]))


@jax.jit
def _spoil(pictures, *numbers):
    blur_prob, low, high, noise_std = numbers  # as data: one program for all tests
    return degrade(pictures, KEY, DegradeConfig(blur_prob, (low, high), noise_std))


def spoil(pictures=SPOILT, config=DegradeConfig(), **changes):
    config = dataclasses.replace(config, **changes)
    return np.asarray(_spoil(pictures, config.blur_prob, *config.blur_sigma, config.noise_std))


def test_every_sample_is_spoilt_by_its_own_draw():
    for changes in ({}, {"blur_prob": 1.0, "noise_std": 0.0}):
        spoilt = spoil(**changes)
        assert len(np.unique(spoilt.reshape(N, -1), axis=0)) > 0.95 * N


def test_blurred_as_often_as_asked():
    untouched = (spoil(blur_prob=0.3, noise_std=0.0) == SPOILT).all(axis=(1, 2, 3))
    assert 1 - untouched.mean() == pytest.approx(0.3, abs=4 * 0.46 / np.sqrt(N))


def test_blur_is_drawn_from_its_range():
    """Read back from a single bright pixel, of which (1 + 2·exp(−1/2σ²))⁻² is left."""
    point = np.zeros_like(SPOILT)
    point[:, 3, 4] = 1.0
    left = spoil(point, blur_prob=1.0, noise_std=0.0)[:, 3, 4, 0]
    sigma = np.sqrt(-0.5 / np.log((left**-0.5 - 1) / 2))
    low, high = DegradeConfig().blur_sigma
    assert low - 1e-3 < sigma.min() < low + 0.01
    assert high - 0.01 < sigma.max() < high + 1e-3
    assert sigma.mean() == pytest.approx((low + high) / 2, abs=0.01)


def test_noise_is_drawn_up_to_its_largest():
    noise = spoil(blur_prob=0.0, noise_std=0.2) - SPOILT
    std = noise.std(axis=(1, 2, 3))  # of 144 values each
    assert std.min() < 0.02
    assert 0.17 < std.max() < 0.25
    assert std.mean() == pytest.approx(0.1, abs=0.01)
    assert abs(noise.mean()) < 0.005


def test_nothing_asked_is_nothing_done():
    np.testing.assert_array_equal(spoil(blur_prob=0.0, noise_std=0.0), SPOILT)


def test_crops_are_the_same_windows_of_every_picture():
    n, size = 200, 4  # pictures whose pixels hold their own place
    places = np.stack(np.meshgrid(np.arange(6), np.arange(8), indexing="ij"), axis=-1).astype(np.float32)
    rows = np.broadcast_to(places, (n, 6, 8, 2))
    first, second = random_crops((rows, 100 + rows[..., :1]), KEY, size)
    assert first.shape == (n, size, size, 2)
    np.testing.assert_array_equal(second, 100 + first[..., :1])
    tops, lefts = np.asarray(first[:, 0, 0, 0]), np.asarray(first[:, 0, 0, 1])
    assert set(tops) == {0, 1, 2}  # every window that fits, ends included
    assert set(lefts) == {0, 1, 2, 3, 4}
    np.testing.assert_array_equal(first[:, :, 0, 0] - tops[:, None], np.broadcast_to(np.arange(size), (n, size)))
    assert abs(np.corrcoef(tops, lefts)[0, 1]) < 0.3  # height and width are drawn apart


def test_a_crop_of_everything_is_everything():
    square = PICTURES[:, :, :6]
    np.testing.assert_array_equal(random_crops((square,), KEY, 6)[0], square)
