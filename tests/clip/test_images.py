import io

import jax
import numpy as np
import pytest
from PIL import Image

from clip_jax import PreprocessConfig, UserError
from clip_jax.images import Preprocess, normalise, resize_and_crop

CONFIG = PreprocessConfig()


def picture(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def torchvision_crop(image, size):
    """torchvision's `Resize(size)` and `CenterCrop(size)`, written out."""
    w, h = image.size
    new_w, new_h = (size, int(size * h / w)) if w <= h else (int(size * w / h), size)
    image = image.resize((new_w, new_h), Image.Resampling.BICUBIC)
    top, left = round((new_h - size) / 2.0), round((new_w - size) / 2.0)
    return np.asarray(image.crop((left, top, left + size, top + size)))


@pytest.mark.parametrize("seed", range(40))
def test_pixels_are_torchvisions(seed):
    rng = np.random.default_rng(seed)
    height, width = rng.integers(20, 120, 2)
    image = Image.fromarray(picture(height, width, seed))
    np.testing.assert_array_equal(np.asarray(resize_and_crop(image, 32, CONFIG)), torchvision_crop(image, 32))


@pytest.mark.parametrize("excess", [1, 3, 5, 7, 11, 15])
def test_crops_with_an_odd_excess_round_to_even(excess):
    image = picture(32, 32 + excess)
    left = round(excess / 2)
    crop = np.asarray(resize_and_crop(Image.fromarray(image), 32, CONFIG))
    np.testing.assert_array_equal(crop, image[:, left : left + 32])


def test_squash_ignores_the_aspect():
    image = Image.fromarray(picture(40, 90))
    squash = np.asarray(resize_and_crop(image, 32, PreprocessConfig(resize="squash")))
    np.testing.assert_array_equal(squash, np.asarray(image.resize((32, 32), Image.Resampling.BICUBIC)))


def test_values_are_normalised_as_published():
    image = picture(32, 32)
    expected = (image / 255 - np.array(CONFIG.mean)) / np.array(CONFIG.std)
    np.testing.assert_allclose(Preprocess(CONFIG, 32)(image)[0], expected, atol=1e-6)


def test_the_device_does_the_same():
    images = np.stack([picture(32, 32, seed) for seed in range(3)])
    on_host = Preprocess(CONFIG, 32)(images)
    on_device = jax.jit(normalise, static_argnums=1)
    np.testing.assert_allclose(on_device(images, CONFIG), on_host, atol=1e-6)
    np.testing.assert_allclose(on_device(images / np.float32(127.5) - 1, CONFIG), on_host, atol=2e-6)


def test_every_source_gives_the_same(tmp_path):
    array = picture(40, 50)
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "png")
    (tmp_path / "a.png").write_bytes(buffer.getvalue())
    preprocess = Preprocess(CONFIG, 32)
    rows = preprocess([array, Image.fromarray(array), buffer.getvalue(), tmp_path / "a.png", str(tmp_path / "a.png")])
    assert rows.shape == (5, 32, 32, 3)
    assert rows.dtype == np.float32
    assert (rows == rows[0]).all()


def test_what_is_no_picture_is_refused(tmp_path):
    preprocess = Preprocess(CONFIG, 32)
    (tmp_path / "a.png").write_text("hello")
    for source, word in [
        (tmp_path / "none.png", r"none\.png"),
        (tmp_path / "a.png", "cannot identify"),
        (b"", "cannot"),
        (np.zeros((8, 8)), "float64"),
    ]:
        with pytest.raises(UserError, match=word):
            preprocess(source)
