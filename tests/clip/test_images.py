import contextlib
import io

import jax
import numpy as np
import pytest
from PIL import Image, ImageOps

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


def random_picture(rng, excess):
    """A noisy picture whose longer side, resized, exceeds 32 by `excess` pixels or so."""
    short = int(rng.integers(9, 80))
    long = max(short, -(-short * (32 + excess) // 32))
    shape = (short, long) if rng.random() < 0.5 else (long, short)
    return rng.integers(0, 256, (*shape, 3), np.uint8)


def test_two_hundred_pictures_do_not_differ_in_a_pixel():
    """Half of them with an odd excess, where the crop's offset has to be rounded, and not down."""
    rng = np.random.default_rng(0)
    pictures = [random_picture(rng, 2 * i + 1 if i % 2 else int(rng.integers(0, 99))) for i in range(100)]
    pictures += [rng.integers(0, 256, (*rng.integers(5, 150, 2), 3), np.uint8) for _ in range(100)]
    excesses = set()
    mean, std = np.float32(CONFIG.mean), np.float32(CONFIG.std)
    for array in pictures:
        expected = torchvision_crop(Image.fromarray(array), 32)
        found = resize_and_crop(Image.fromarray(array), 32, CONFIG)
        np.testing.assert_array_equal(np.asarray(found), expected)
        height, width = array.shape[:2]
        excesses.add(int(32 * max(height, width) / min(height, width)) - 32)
        values = np.stack([(expected[..., c] / np.float32(255) - mean[c]) / std[c] for c in range(3)], axis=-1)
        np.testing.assert_array_max_ulp(Preprocess(CONFIG, 32)(array)[0], values, maxulp=1)
    assert {excess % 4 for excess in excesses} == {0, 1, 2, 3}


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
        (b"", "0 bytes: cannot read"),
        (np.zeros((8, 8)), r"float64 \[8, 8\]; if it lies"),
        (np.zeros((8, 8, 2), np.uint8), "uint8"),
        (np.zeros((0, 8, 3), np.uint8), "uint8"),
        (np.zeros((8, 8, 3), np.uint16), "uint16"),
        (Image.new("F", (8, 8)), "mode F has no known range"),
        (Image.fromarray(np.full((8, 8), 70000, np.int32)), "mode I has no known range"),
        (Image.new("L", (1, 200_000)), "too long a strip"),
        (3, "not int"),
    ]:
        with pytest.raises(UserError, match=word):
            preprocess(source)


def encoded(image, kind="png", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(source):
    return Preprocess(CONFIG, 32).pixels(source)


def test_a_damaged_file_is_refused():
    rng = np.random.default_rng(0)
    whole = Image.fromarray(picture(40, 40))
    for kind in ("png", "jpeg", "gif"):
        data = encoded(whole, kind)
        for cut in (len(data) // 3, len(data) // 2):
            with pytest.raises(UserError, match="cannot read the picture"):
                pixels(data[:cut])
        for _ in range(20):  # any byte may be wrong: a picture or one line, and nothing else
            wrong = bytearray(data)
            wrong[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
            with contextlib.suppress(UserError):
                pixels(bytes(wrong))


def test_a_photo_is_turned_upright():
    image = Image.fromarray(picture(40, 32))
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        turned = Image.open(io.BytesIO(encoded(image, exif=exif)))
        expected = pixels(ImageOps.exif_transpose(turned))
        np.testing.assert_array_equal(pixels(encoded(image, exif=exif)), expected)
        np.testing.assert_array_equal(pixels(turned), expected)
    assert (expected != pixels(image)).any()


def test_transparency_shows_white():
    colour = picture(32, 32)
    alpha = np.random.default_rng(1).integers(0, 256, (32, 32, 1), np.uint8)
    alpha[:8], alpha[8:16] = 0, 255
    found = pixels(np.concatenate([colour, alpha], -1))
    expected = 255 + (colour.astype(float) - 255) * (alpha / 255)
    assert np.abs(found - expected).max() <= 1
    assert (found[:8] == 255).all()
    np.testing.assert_array_equal(found[8:16], colour[8:16])
    grey = Image.merge("LA", [Image.fromarray(colour[..., 0]), Image.fromarray(alpha[..., 0])])
    np.testing.assert_array_equal(pixels(grey)[..., 0], found[..., 0])
    palette = Image.new("P", (32, 32), 0)
    palette.putpalette([10, 20, 30, 40, 50, 60])
    assert (pixels(encoded(palette, transparency=0)) == 255).all()
    assert (pixels(palette) == [10, 20, 30]).all()


def test_grey_is_three_equal_channels():
    grey = picture(40, 60)[..., 0]
    expected = np.asarray(Image.fromarray(grey).resize((48, 32), Image.Resampling.BICUBIC))[:, 8:40]
    image, wide = Image.fromarray(grey), grey.astype(np.uint16) * 257
    for source in (grey, grey[..., None], image, encoded(image), wide):
        np.testing.assert_array_equal(pixels(source), np.stack([expected] * 3, -1))


def test_sixteen_bits_are_scaled():
    wide = np.random.default_rng(0).integers(0, 65536, (32, 32), np.uint16)
    found = pixels(encoded(Image.fromarray(wide)))
    np.testing.assert_array_equal(found[..., 0], np.round(wide / 257).astype(np.uint8))
    np.testing.assert_array_equal(found, pixels(Image.fromarray(wide.astype(np.int32))))


def test_cmyk_becomes_rgb_last():
    cmyk = Image.fromarray(picture(50, 40)).convert("CMYK")
    resized = cmyk.resize((32, 40), Image.Resampling.BICUBIC).crop((0, 4, 32, 36)).convert("RGB")
    np.testing.assert_array_equal(pixels(cmyk), np.asarray(resized))


def test_bilevel_pictures_are_resampled_as_grey():
    bits = Image.fromarray(picture(64, 64)[..., 0]).convert("1")
    assert len(np.unique(pixels(bits))) > 2


def test_one_channel_for_a_grey_model():
    config = PreprocessConfig.__new__(PreprocessConfig)  # a config of one channel, whatever the check of it says
    for name, value in {"mean": (0.5,), "std": (0.5,), "resize": "shortest", "interpolation": "bicubic"}.items():
        object.__setattr__(config, name, value)
    grey = picture(32, 32)[..., 0]
    found = Preprocess(config, 32)([grey])
    np.testing.assert_allclose(found[0, ..., 0], grey / 127.5 - 1, atol=1e-6)
    assert Preprocess(config, 32)([]).shape == (0, 32, 32, 1)


def test_threads_change_nothing():
    pictures = [picture(30 + i, 40, i) for i in range(12)]
    preprocess = Preprocess(CONFIG, 32)
    np.testing.assert_array_equal(preprocess(pictures, threads=4), preprocess(pictures))
    with pytest.raises(UserError, match="nowhere"):
        preprocess([*pictures, "nowhere"], threads=4)


@pytest.mark.parity
def test_torch_normalises_alike():
    torch = pytest.importorskip("torch")
    image = picture(32, 32)
    tensor = torch.from_numpy(image).permute(2, 0, 1).float().div(255)
    mean, std = (torch.tensor(v)[:, None, None] for v in (CONFIG.mean, CONFIG.std))
    expected = tensor.sub(mean).div(std).permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(Preprocess(CONFIG, 32)(image)[0], expected)
