import dataclasses
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from clip_jax.errors import UserError
from unclip_jax.degrade import (
    BSRConfig,
    DegradeConfig,
    add_level,
    blur,
    box_reduce,
    degrade,
    gaussian_blur,
    jpeg,
    lose_resolution,
    random_crops,
)

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
    reduced = box_reduce(PICTURES, 3)
    assert reduced.shape == (3, 3, 4, 3)
    np.testing.assert_allclose(reduced[1, 2, 3], PICTURES[1, 4:6, 6:8].mean(axis=(0, 1)), atol=1e-6)
    np.testing.assert_array_equal(box_reduce(PICTURES, 6), PICTURES)
    for height in (4, 12):
        with pytest.raises(UserError, match=rf"6×8 pixels cannot be reduced to {height}"):
            box_reduce(PICTURES, height)


SPOILT = np.broadcast_to(PICTURES[:1], (N, *PICTURES.shape[1:]))


_degrade = jax.jit(degrade, static_argnums=2)


def spoil(pictures=SPOILT, **changes):
    return np.asarray(_degrade(pictures, KEY, dataclasses.replace(DegradeConfig(), **changes)))


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


class TestBSR:
    def test_blur_is_the_gaussian_of_any_orientation(self):
        """On a point it is the density at each pixel: normalised, centred, with the covariance that was asked for."""
        point = np.zeros((3, 15, 15, 1), np.float32)
        point[:, 7, 7] = 1.0
        sigma, angle = np.array([[1.0, 1.0], [1.6, 0.8], [1.6, 0.8]]), np.array([0.3, 0.0, np.pi / 4])
        blurred = np.asarray(blur(point, jnp.asarray(sigma), jnp.asarray(angle), radius=7))[..., 0]
        y, x = np.meshgrid(np.arange(15) - 7, np.arange(15) - 7, indexing="ij")
        np.testing.assert_allclose(blurred.sum((1, 2)), 1.0, rtol=1e-5)
        xx, xy, yy = ((blurred * m).sum((1, 2)) for m in (x * x, x * y, y * y))
        mean, half = (2.56 + 0.64) / 2, (2.56 - 0.64) / 2
        np.testing.assert_allclose(xx, [1.0, 2.56, mean], atol=0.03)
        np.testing.assert_allclose(yy, [1.0, 0.64, mean], atol=0.03)
        np.testing.assert_allclose(xy, [0.0, 0.0, half], atol=0.03)

    @pytest.mark.slow
    @pytest.mark.parametrize("method", ["linear", "cubic"])
    def test_resolution_is_lost_as_by_resizing_there_and_back(self, method):
        """As `jax.image.resize` does with sizes that are known beforehand; each sample by its own."""
        pictures = np.random.default_rng(1).uniform(-1, 1, (3, 16, 16, 3)).astype(np.float32)
        sizes = (16, 12, 7)
        got = lose_resolution(pictures, jnp.array([n / 16 for n in sizes]), jnp.full(3, method == "cubic"))
        for n, picture, reduced in zip(sizes, pictures, got, strict=True):
            there = jax.image.resize(picture, (n, n, 3), method)
            np.testing.assert_allclose(reduced, jax.image.resize(there, (16, 16, 3), method), atol=2e-5)

    @pytest.mark.slow
    def test_jpeg_is_pillows(self):
        """But for coefficients that lie half-way between two steps, which libjpeg's integers may round otherwise."""
        rng = np.random.default_rng(2)
        smooth = np.repeat(np.repeat(rng.uniform(0, 255, (4, 5, 5, 3)), 4, axis=1), 4, axis=2)
        pictures = (
            np.clip(smooth + rng.normal(0, 8, smooth.shape), 0, 255).round().astype(np.uint8)
        )  # 20: no whole blocks
        qualities = (10, 35, 75, 95)
        got = np.asarray(jpeg(pictures / np.float32(127.5) - 1, jnp.asarray(qualities, jnp.float32)))
        for quality, picture, compressed in zip(qualities, pictures, got, strict=True):
            file = io.BytesIO()
            Image.fromarray(picture).save(file, "JPEG", quality=quality, subsampling=0)
            want = np.asarray(Image.open(file)).astype(np.float64)
            error = np.abs((compressed + 1) * 127.5 - want)
            assert error.mean() < 1.0
            assert np.abs(want - picture).mean() > 2 * error.mean()

    @pytest.mark.slow
    def test_each_sample_is_spoilt_by_its_own_draw_in_one_program(self):
        pictures = np.broadcast_to(np.random.default_rng(3).uniform(-1, 1, (16, 16, 3)), (32, 16, 16, 3))
        spoil = jax.jit(lambda key, config: degrade(jnp.float32(pictures), key, config), static_argnums=1)
        spoilt = np.asarray(spoil(KEY, BSRConfig()))
        assert spoilt.shape == pictures.shape
        assert np.isfinite(spoilt).all()
        change = np.abs(spoilt - pictures).mean(axis=(1, 2, 3))
        assert len(np.unique(change.round(6))) >= 31
        assert change.max() > 3 * change.min()
        other = np.asarray(spoil(jax.random.key(1), BSRConfig()))
        assert (np.abs(other - spoilt).max(axis=(1, 2, 3)) > 1e-3).sum() >= 31
        np.testing.assert_array_equal(spoil(KEY, BSRConfig(prob=0.0)), np.float32(pictures))


def test_level_is_the_deviation_of_the_noise():
    """And the variance of what had unit variance stays: level 0 leaves the picture, level 1 nothing of it."""
    noise = np.random.default_rng(4).normal(size=PICTURES.shape).astype(np.float32)
    got = add_level(PICTURES, jnp.array([0.0, 0.6, 1.0]), noise)
    np.testing.assert_array_equal(got[0], PICTURES[0])
    np.testing.assert_allclose(got[1], 0.8 * PICTURES[1] + 0.6 * noise[1], atol=1e-6)
    np.testing.assert_array_equal(got[2], noise[2])


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
