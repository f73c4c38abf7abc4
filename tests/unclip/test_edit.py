"""Each edit by its identity: what it must leave alone, and where its ends lie. The networks are tiny and random."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unclip_jax import edit, pipeline
from unclip_jax import stage as stages
from unclip_jax.diffusion.samplers import ddpm, fold_in_each, resampled, sample_keys
from unclip_jax.edit import Latent, slerp

KEYS = sample_keys(jax.random.key(0), jnp.arange(3))
SIZE = 32  # of the tiny system's pictures


def gaussian(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


PICTURES = np.tanh(gaussian(1, 3, SIZE, SIZE, 3))
LATENT = Latent(gaussian(2, 3, 16), gaussian(3, 3, 16, 16, 3))


@pytest.fixture(scope="module")
def system(tiny_system):
    """(`do("name", ...)`, an edit of the tiny system compiled; unclip; params; tokens of three prompts)."""
    unclip, params, tokenize = tiny_system
    compiled = {}

    def do(name, *args, **static):
        plain = {key: value for key, value in static.items() if not hasattr(value, "shape")}
        arrays = {key: value for key, value in static.items() if key not in plain}
        run = compiled.setdefault((name, *plain.items()), jax.jit(partial(getattr(edit, name), unclip, **plain)))
        return jax.tree.map(np.asarray, run(params, *args, **arrays))

    return do, unclip, params, tokenize(["a red star", "a blue square", "a green circle"])


class TestSlerp:
    A, B = gaussian(0, 4, 8), 3 * gaussian(1, 4, 8)

    def test_ends_are_exact(self):
        np.testing.assert_array_equal(slerp(self.A, self.B, np.zeros((4, 1))), self.A)
        np.testing.assert_array_equal(slerp(self.A, self.B, np.ones((4, 1))), self.B)

    @pytest.mark.parametrize("weight", [0.25, 0.5, 0.9])
    def test_the_angle_is_divided_and_the_length_interpolated(self, weight):
        between = np.asarray(slerp(self.A, self.B, jnp.full((4, 1), weight)))

        def angle(a, b):
            return np.arccos((a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1))

        np.testing.assert_allclose(angle(self.A, between), weight * angle(self.A, self.B), rtol=1e-4)
        lengths = [np.linalg.norm(a, axis=-1) for a in (self.A, between, self.B)]
        np.testing.assert_allclose(lengths[1], (1 - weight) * lengths[0] + weight * lengths[2], rtol=1e-5)

    def test_between_equal_directions_nothing_turns(self):
        np.testing.assert_allclose(slerp(self.A, 2 * self.A, jnp.full((4, 1), 0.5)), 1.5 * self.A, rtol=1e-5)


@pytest.mark.slow
def test_a_picture_of_the_decoder_is_inverted_to_its_noise(system):
    """There and back: what the decoder drew from a pair (z_i, x_T) is drawn again from what was found in it."""
    _, unclip, params, _ = system
    sampling = dataclasses.replace(unclip.decoder.sampling, num_steps=60, clip=None)
    # Read as v, even what a random network says leaves a picture without noise as it is; a trained one does anyway.
    decoder = dataclasses.replace(unclip.decoder, sampling=sampling, prediction="v")
    bare = dataclasses.replace(unclip, upsamplers=(), decoder=decoder)
    decode, encode = (jax.jit(f, static_argnums=0) for f in (edit.decode, partial(edit.encode, iterations=10)))
    drawn = decode(bare, params, LATENT, KEYS).images
    # The embedding of what was drawn is another than the one it was drawn from: the inversion is told to keep it.
    found = encode(bare, params, drawn, image_embed=LATENT.image_embed)
    np.testing.assert_array_equal(found.image_embed, LATENT.image_embed)
    again = decode(bare, params, found, KEYS).images
    spread = np.std(np.asarray(drawn))
    assert np.sqrt(np.square(again - drawn).mean()) < 0.02 * spread
    other = decode(bare, params, LATENT._replace(x_T=LATENT.x_T[::-1]), KEYS).images
    assert np.sqrt(np.square(other - drawn).mean()) > 0.1 * spread


@pytest.mark.slow
def test_encoding_sees_what_clip_sees(system):
    do, unclip, params, _ = system
    np.testing.assert_allclose(
        do("encode", PICTURES).image_embed, edit.embed_images(unclip, params, PICTURES), rtol=1e-4, atol=1e-5
    )


class TestVariations:
    @pytest.mark.slow
    def test_without_noise_they_are_the_picture_itself(self, system):
        do, *_ = system
        one = jax.tree.map(lambda a: a[:1], LATENT)
        want = do("decode", LATENT, KEYS).images
        got = do("variations", one, KEYS[:1], eta=0.0)
        np.testing.assert_allclose(got.images, want[:1], atol=5e-5)
        np.testing.assert_array_equal(got.image_embed, one.image_embed)

    @pytest.mark.slow
    def test_each_key_gives_another_of_the_same_meaning(self, system):
        do, *_ = system
        got = do("variations", jax.tree.map(lambda a: a[:1], LATENT), KEYS)
        assert all(np.abs(got.images[i] - got.images[j]).max() > 1e-2 for i, j in ((0, 1), (0, 2), (1, 2)))
        np.testing.assert_array_equal(got.image_embed, np.tile(LATENT.image_embed[:1], (3, 1)))


@pytest.mark.slow
def test_interpolation_ends_at_its_pictures(system):
    do, *_ = system
    first, second = (jax.tree.map(lambda a, i=i: a[i : i + 1], LATENT) for i in (0, 1))
    keys = KEYS[jnp.array([0, 1, 2])]
    got = do("interpolate", first, second, jnp.array([0.0, 1.0, 0.5]), keys)
    ends = jax.tree.map(lambda a: a[np.array([0, 1])], LATENT)
    want = do("decode", ends, keys[:2]).images
    np.testing.assert_array_equal(got.image_embed[:2], ends.image_embed)
    np.testing.assert_allclose(got.images[:2], want, atol=5e-5)
    assert np.abs(got.images[2] - want).max() > 1e-3


@pytest.mark.slow
def test_text_diff_of_no_strength_changes_nothing_and_of_full_strength_forgets_the_picture(system):
    do, unclip, params, tokens = system
    strength = jnp.array([0.0, 0.4, 1.0])
    got = do("text_diff", LATENT, tokens[:1], tokens[1:2], strength, KEYS)
    np.testing.assert_array_equal(got.image_embed[0], LATENT.image_embed[0])
    np.testing.assert_allclose(got.images[0], do("decode", LATENT, KEYS).images[0], atol=5e-5)
    before, after = (edit.encode_text(unclip, params, tokens[i : i + 1]).embed[0] for i in (0, 1))
    change = np.asarray(edit.unit_norm(edit.unit_norm(after) - edit.unit_norm(before)))
    unit = got.image_embed / np.linalg.norm(got.image_embed, axis=-1, keepdims=True)
    np.testing.assert_allclose(unit[2], change, atol=1e-5)
    closeness = unit @ change
    assert closeness[1] > (LATENT.image_embed[1] @ change) / np.linalg.norm(LATENT.image_embed[1])
    # Its length stays: only the direction is edited.
    np.testing.assert_allclose(
        np.linalg.norm(got.image_embed, axis=1), np.linalg.norm(LATENT.image_embed, axis=1), rtol=1e-5
    )


class TestInpaint:
    def mask(self, fill):
        return np.full((3, SIZE, SIZE, 1), fill)

    @pytest.mark.slow
    def test_known_pixels_are_untouched(self, system):
        do, _, _, tokens = system
        mask = self.mask(False)
        mask[:, 3:17, 5:20] = True
        got = do("inpaint", PICTURES, mask, tokens, KEYS).images
        known = np.broadcast_to(~mask, got.shape)
        np.testing.assert_array_equal(got[known], PICTURES[known])
        assert np.abs(got - PICTURES)[np.broadcast_to(mask, got.shape)].mean() > 0.01

    @pytest.mark.slow
    def test_nothing_to_draw_leaves_the_picture(self, system):
        do, _, _, tokens = system
        np.testing.assert_array_equal(do("inpaint", PICTURES, self.mask(False), tokens, KEYS).images, PICTURES)

    @pytest.mark.slow
    def test_with_everything_free_it_is_sampling(self, system):
        do, unclip, params, tokens = system
        embed = LATENT.image_embed
        got = do("inpaint", PICTURES, self.mask(True), tokens, KEYS, resamples=1, image_embed=embed)
        text = edit.encode_text(unclip, params, tokens)
        cond = edit.Cond(text_encodings=text.encodings, text_mask=text.mask, image_embed=embed)
        keys, sampler = fold_in_each(KEYS, 0), resampled(ddpm(), 1)
        small = stages.run(unclip.decoder, params["decoder"], cond, keys, sampler=sampler)
        np.testing.assert_allclose(got.images, edit.upsample(unclip, params, small, KEYS), atol=1e-4)


@pytest.mark.slow
def test_redrawing_from_the_top_is_sampling_and_from_lower_keeps_more(system):
    do, unclip, params, tokens = system
    embed = LATENT.image_embed
    redraw = partial(do, "image_to_image", PICTURES, tokens, KEYS, image_embed=embed)
    text = edit.encode_text(unclip, params, tokens)
    cond = edit.Cond(text_encodings=text.encodings, text_mask=text.mask, image_embed=embed)
    want = pipeline.decode(unclip, params, cond, KEYS)
    np.testing.assert_allclose(redraw(strength=1.0).images, want, atol=1e-2)
    assert np.abs(redraw(strength=0.5).images - want).max() > 1e-2


@pytest.mark.parametrize("strength", [0.0, 1.5])
def test_a_share_of_the_steps_is_between_none_and_all(system, strength):
    _, unclip, params, tokens = system
    with pytest.raises(ValueError, match="strength"):
        edit.image_to_image(unclip, params, PICTURES, tokens, KEYS, strength=strength)
