"""What drawing and editing are given: made into one batch, or refused in a line that names the argument."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax.errors import UserError
from unclip_jax import edit, inputs
from unclip_jax.diffusion.keys import sample_keys
from unclip_jax.edit import Latent
from unclip_jax.pipeline import Generation, Guidance, check_drawn, generate, generate_jit

KEYS = sample_keys(jax.random.key(0), range(4))
L = 24  # tokens of the tiny system
TOKENS = np.ones((1, L), np.int32)
PICTURE = np.zeros((1, 32, 32, 3), np.float32)
MASK = np.ones((32, 32), bool)
LATENT = Latent(np.zeros((1, 16), np.float32), np.zeros((1, 16, 16, 3), np.float32))


def shapes(name, system, *args, **kwargs):
    """Of the pictures that a function draws, without computing any."""
    unclip, params, _ = system
    return jax.eval_shape(lambda params: getattr(edit, name)(unclip, params, *args, **kwargs), params).images.shape


@pytest.mark.slow
def test_one_prompt_stands_for_all_keys(tiny_system):
    unclip, params, tokenize = tiny_system
    drawn = jax.eval_shape(lambda p: generate(unclip, p, tokenize(["a red star"]), KEYS), params)
    assert drawn.images.shape == (4, 32, 32, 3)
    np.testing.assert_array_equal(inputs.prompt_tokens(tokenize(["a"]), 4, unclip.clip.text), tokenize(["a"] * 4))


@pytest.mark.parametrize("odd", [-1, 10**6])
def test_ids_that_are_no_tokens_are_refused(tiny_system, odd):
    """Under ``jit`` the last row of the table would stand in for them."""
    unclip, params, tokenize = tiny_system
    tokens = np.array(tokenize(["a red star"]))
    tokens[0, 1] = odd
    with pytest.raises(UserError, match=f"tokens hold ids from .*{odd}"):
        generate_jit(unclip, params, tokens, KEYS)


def test_known_arrays_within_a_traced_program_are_checked_and_taken(tiny_system):
    unclip, params, _ = tiny_system
    picture, embed = jnp.zeros((1, 32, 32, 3)), jnp.zeros((1, 16))
    scale = Guidance(decoder=jnp.float32(2.0))
    tokens = jnp.asarray(TOKENS)
    drawn = jax.eval_shape(lambda p: generate(unclip, p, tokens, KEYS, image_embed=embed, guidance=scale), params)
    assert drawn.images.shape == (4, 32, 32, 3)
    assert shapes("inpaint", tiny_system, picture, MASK, tokens, KEYS, image_embed=embed) == (4, 32, 32, 3)
    nan = embed * jnp.nan
    with pytest.raises(UserError, match="image_embed has numbers that are NaN"):
        jax.eval_shape(lambda p: generate(unclip, p, tokens, KEYS, image_embed=nan), params)


TOGETHER = {
    "variations": (LATENT, KEYS),
    "decode": (LATENT, KEYS),
    "interpolate": (LATENT, LATENT, np.linspace(0, 1, 4), KEYS),
    "text_diff": (LATENT, TOKENS, TOKENS, 0.5, KEYS),
    "inpaint": (PICTURE, MASK, TOKENS, KEYS),
    "image_to_image": (PICTURE, TOKENS, KEYS),
}


@pytest.mark.parametrize("name", TOGETHER)
def test_one_of_a_thing_stands_for_all_pictures_of_an_edit(tiny_system, name):
    assert shapes(name, tiny_system, *TOGETHER[name]) == (4, 32, 32, 3)


def test_pictures_of_uint8_are_those_of_floats():
    levels = np.arange(256, dtype=np.uint8).repeat(12).reshape(1, 32, 32, 3)
    made = np.asarray(inputs.pictures(levels, (16, 32)))
    np.testing.assert_array_equal(np.round((made + 1) * 127.5), levels)
    assert made.min() == -1
    assert made.max() == 1


@pytest.mark.parametrize("shape", [(32, 32), (1, 32, 32), (3, 32, 32), (32, 32, 1), (1, 32, 32, 1), (3, 32, 32, 1)])
def test_masks_of_any_rank_mean_the_same(shape):
    half = np.arange(32)[:, None] < 16
    mask = np.broadcast_to(half, (*shape[: 1 if shape[0] < 32 else 0], 32, 32)).reshape(shape)
    want = np.broadcast_to(half[None, :, :, None], (3, 32, 32, 1))
    np.testing.assert_array_equal(inputs.free_pixels(mask, (3, 32, 32, 3)), want)


GENERATE = {
    "two prompts, four keys": (np.ones((2, L), np.int32), KEYS, {}, "tokens are of 2 prompts, keys are 4"),
    "no prompt": (np.ones((0, L), np.int32), KEYS, {}, "tokens are of no prompt"),
    "no keys": (TOKENS, KEYS[:0], {}, "keys are none; give one key per picture"),
    "one key": (TOKENS, jax.random.key(0), {}, "keys are one key; give one key per picture"),
    "a seed": (TOKENS, 0, {}, "keys are int"),
    "a row of tokens": (TOKENS[0], KEYS, {}, r"tokens are int32 \[24\]; give integers \[B, L\]"),
    "a string": ("a red star", KEYS, {}, "tokens are str; give integers"),
    "strings": (["a red star"], KEYS, {}, "tokens are list; give integers"),
    "floats": (TOKENS.astype(np.float32), KEYS, {}, "tokens are float32"),
    "another length": (np.ones((1, 77), np.int32), KEYS, {}, "reads 24 tokens"),
    "a wide embedding": (
        TOKENS,
        KEYS,
        {"image_embed": np.ones((4, 8), np.float32)},
        r"image_embed is float32 \[4, 8\]",
    ),
    "three embeddings": (TOKENS, KEYS, {"image_embed": np.ones((3, 16), np.float32)}, "image_embed is of 3 pictures"),
    "NaN": (
        TOKENS,
        KEYS,
        {"image_embed": np.full((1, 16), np.nan, np.float32)},
        "image_embed has numbers that are NaN",
    ),
    "a bare scale": (TOKENS, KEYS, {"guidance": 2.0}, "guidance is float; give unclip_jax.Guidance"),
    "a scale of NaN": (TOKENS, KEYS, {"guidance": Guidance(decoder=float("nan"))}, "guidance.decoder is nan"),
    "two scales": (TOKENS, KEYS, {"guidance": Guidance(prior=np.ones(2))}, r"guidance.prior is \[2\]; give a number"),
}


@pytest.mark.parametrize("case", GENERATE)
def test_what_generate_cannot_draw_is_refused(tiny_system, case):
    tokens, keys, more, message = GENERATE[case]
    for function in (generate, generate_jit):
        with pytest.raises(UserError, match=message) as caught:
            function(tiny_system.unclip, tiny_system.params, tokens, keys, **more)
        assert "\n" not in str(caught.value)


EDITS = {
    "pixels from 0 to 255": ("encode", (255 * np.ones_like(PICTURE),), {}, "images are from 255 to 255; give float in"),
    "NaN in a picture": ("encode", (np.nan * PICTURE,), {}, "images are from nan"),
    "a picture of int32": ("encode", (PICTURE.astype(np.int32),), {}, "images are int32; give float"),
    "a picture without a batch": (
        "encode",
        (PICTURE[0],),
        {},
        r"images are float32 \[32, 32, 3\]; give \[B, H, W, 3\]",
    ),
    "a grey picture": ("encode", (PICTURE[..., :1],), {}, r"images are float32 \[1, 32, 32, 1\]"),
    "a path": ("encode", ("a.png",), {}, "images are str"),
    "a wide picture": ("encode", (np.zeros((1, 32, 64, 3), np.float32),), {}, "images are of 32×64 pixels; give 16×16"),
    "no iterations": ("encode", (PICTURE,), {"iterations": 0}, "iterations is 0"),
    "a small picture": ("inpaint", (PICTURE[:, ::2, ::2], MASK, TOKENS, KEYS), {}, "of 16×16 pixels; give 32×32"),
    "two pictures": ("inpaint", (PICTURE.repeat(2, 0), MASK, TOKENS, KEYS), {}, "images are 2, keys are 4"),
    "a mask of levels": (
        "inpaint",
        (PICTURE, 255 * MASK.astype(np.uint8), TOKENS, KEYS),
        {},
        "mask is uint8; give bool",
    ),
    "a small mask": (
        "inpaint",
        (PICTURE, MASK[::2, ::2], TOKENS, KEYS),
        {},
        r"mask is \[16, 16\]; the pictures are 32",
    ),
    "no resamples": ("inpaint", (PICTURE, MASK, TOKENS, KEYS), {"resamples": 0}, "resamples is 0"),
    "a scale of infinity": (
        "inpaint",
        (PICTURE, MASK, TOKENS, KEYS),
        {"guidance_scale": np.inf},
        "guidance_scale is inf",
    ),
    "no strength": ("image_to_image", (PICTURE, TOKENS, KEYS), {"strength": 0.0}, "strength is 0.0"),
    "a strength of NaN": ("image_to_image", (PICTURE, TOKENS, KEYS), {"strength": np.nan}, "strength is nan"),
    "an array": ("variations", (LATENT.x_T, KEYS), {}, "latent is ndarray; give a Latent"),
    "another system's": (
        "variations",
        (Latent(np.ones((1, 8), np.float32), LATENT.x_T), KEYS),
        {},
        "latent.image_embed",
    ),
    "more eta": ("variations", (LATENT, KEYS), {"eta": 2.0}, "eta is 2.0; give 0.0 to 1.0"),
    "one key": ("variations", (LATENT, jax.random.key(0)), {}, "keys are one key"),
    "weights over 1": ("interpolate", (LATENT, LATENT, [0, 1, 2, 3], KEYS), {}, "weights is .*from 0 to 1"),
    "two weights": ("interpolate", (LATENT, LATENT, [0, 1], KEYS), {}, r"weights is \[2\]; give a number, or 4"),
    "strings": ("text_diff", (LATENT, "a", "b", 0.5, KEYS), {}, "tokens_from are str"),
    "a row of tokens": ("text_diff", (LATENT, TOKENS, TOKENS[0], 0.5, KEYS), {}, "tokens_to are int32"),
    "a negative strength": ("text_diff", (LATENT, TOKENS, TOKENS, -0.5, KEYS), {}, "strength is -0.5"),
}


@pytest.mark.parametrize("case", EDITS)
def test_what_an_edit_cannot_take_is_refused(tiny_system, case):
    name, args, kwargs, message = EDITS[case]
    with pytest.raises(UserError, match=message) as caught:
        getattr(edit, name)(tiny_system.unclip, tiny_system.params, *args, **kwargs)
    assert "\n" not in str(caught.value)


def test_pictures_of_nan_are_an_error_that_names_the_part_and_the_picture():
    good = Generation(None, np.ones((2, 4), np.float32), np.ones((2, 8, 8, 3), np.float32))
    check_drawn(good, ["first", "second"])
    images = good.images.copy()
    images[1, 3, 3, 0] = np.nan
    with pytest.raises(UserError, match="second: the decoder or an upsampler made numbers that are NaN"):
        check_drawn(good._replace(images=images), ["first", "second"])
    with pytest.raises(UserError, match="first: the prior"):
        check_drawn(good._replace(images=images, image_embed=np.inf * good.image_embed), ["first", "second"])
