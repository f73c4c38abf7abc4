"""A model at another resolution: its positions are interpolated as the project of the weights does it."""

import dataclasses

import numpy as np
import pytest

import clip_jax
from clip_jax import CLIPConfig, EVA02Config, PreprocessConfig, ResNetConfig, TextConfig, UserError
from clip_jax.weights.resolution import at_resolution, bicubic, interpolated
from tests.support.checkpoints import CONFIG, huggingface, random_variables

LARGER = dataclasses.replace(CONFIG, vision=dataclasses.replace(CONFIG.vision, image_size=32))


def positions(loaded):
    return np.asarray(loaded.variables["params"]["visual"]["positional_embedding"])


@pytest.mark.slow
def test_by_image_size_or_by_another_config(tmp_path):
    huggingface(tmp_path)
    before = clip_jax.load(tmp_path)
    after = clip_jax.load(tmp_path, image_size=32)
    assert after.model.config.vision == dataclasses.replace(LARGER.vision, mlp_width=256)
    assert after.preprocess(np.zeros((40, 50, 3), np.uint8)).shape == (1, 32, 32, 3)
    np.testing.assert_array_equal(positions(after)[0], positions(before)[0])  # the class token has no place
    weights = bicubic(2, 4, antialias=False)
    grid = np.einsum("ai,bj,ijc->abc", weights, weights, positions(before)[1:].reshape(2, 2, -1))
    np.testing.assert_allclose(positions(after)[1:].reshape(4, 4, -1), grid, atol=1e-6)
    with pytest.warns(UserWarning, match="16 pixels, config= says 32"):
        np.testing.assert_array_equal(positions(clip_jax.load(tmp_path, config=LARGER)), positions(after))
    images = np.zeros((1, 32, 32, 3), np.float32)
    assert after.model.apply(after.variables, images, method="encode_image").shape == (1, 24)


def test_own_directories_as_well(tmp_path, tokenizer):
    config = clip_jax.preset("tiny")
    variables = random_variables(config)
    clip_jax.save(tmp_path, config, variables, tokenizer)
    size = 2 * config.vision.image_size
    loaded = clip_jax.load(tmp_path, image_size=size)
    assert loaded.model.config.vision.image_size == size
    assert clip_jax.load(tmp_path, image_size=config.vision.image_size).model.config == config


def test_open_clips_weights_get_open_clips_rule(tmp_path):
    clip_jax.export(tmp_path, CONFIG, random_variables(), layout="open_clip")
    weights = bicubic(2, 4, antialias=True)
    before = positions(clip_jax.load(tmp_path))[1:].reshape(2, 2, -1)
    after = positions(clip_jax.load(tmp_path, image_size=32))[1:].reshape(4, 4, -1)
    np.testing.assert_allclose(after, np.einsum("ai,bj,ijc->abc", weights, weights, before), atol=1e-6)


@pytest.mark.parametrize("antialias", [True, False])
def test_the_matrix(antialias):
    np.testing.assert_allclose(bicubic(7, 7, antialias=antialias), np.eye(7), atol=1e-12)
    for n, m in ((7, 10), (10, 7), (2, 5), (1, 3), (16, 4)):
        np.testing.assert_allclose(bicubic(n, m, antialias=antialias).sum(1), 1, atol=1e-12)
        matrix = bicubic(n, m, antialias=antialias)
        np.testing.assert_allclose(matrix, matrix[::-1, ::-1], atol=1e-12)
    # Half-way between two samples torch's kernel weighs them 0.59375 (a = -0.75), the antialiased one 0.5625 (-0.5).
    assert bicubic(3, 1, antialias=False)[0, 1] == 1
    assert bicubic(4, 2, antialias=False)[0, 0] + bicubic(4, 2, antialias=False)[0, 1] == pytest.approx(1.09375)


def test_eva_has_positions_of_its_own():
    vision = EVA02Config(image_size=16, patch_size=8, width=32, layers=1, heads=2)
    text = TextConfig(vocab_size=60, context_length=8, width=64, layers=1, heads=1, activation="gelu")
    before = CLIPConfig(embed_dim=8, vision=vision, text=text)
    after = at_resolution(before, 24)
    table = np.random.default_rng(0).normal(size=(1, 5, 32)).astype(np.float32)
    assert interpolated({"visual/pos_embed": table}, before, after, antialias=False)["visual/pos_embed"].shape == (
        1, 10, 32,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("change", "size", "words"),
    [
        ({}, 33, ["image_size 33", "patch_size 8"]),
        ({"vision": ResNetConfig(image_size=32, layers=(1, 1, 1, 1), width=8, heads=2)}, 64, ["ResNetConfig", "32"]),
        ({"vision": dataclasses.replace(CONFIG.vision, positions="sinusoidal")}, 32, ["cannot be interpolated"]),
        ({"preprocess": PreprocessConfig(resize_to=18)}, 32, ["resized to 18", "cropped to 16"]),
        ({"vision": None, "embed_dim": None}, 32, ["texts only"]),
    ],
)
def test_what_cannot_be_is_refused(change, size, words):
    with pytest.raises(UserError) as error:
        at_resolution(dataclasses.replace(CONFIG, **change), size)
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parity
@pytest.mark.parametrize("antialias", [True, False])
def test_torch_interpolates_alike(antialias):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    for n, m in ((7, 12), (14, 9), (2, 3), (16, 24), (5, 1)):
        grid = rng.normal(size=(n, n)).astype(np.float32)
        theirs = torch.nn.functional.interpolate(
            torch.from_numpy(grid)[None, None], size=(m, m), mode="bicubic", align_corners=False, antialias=antialias
        )
        weights = bicubic(n, m, antialias=antialias)
        np.testing.assert_allclose(weights @ grid @ weights.T, theirs[0, 0], atol=1e-5)
