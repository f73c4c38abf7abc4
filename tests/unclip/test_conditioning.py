import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unclip_jax.conditioning import Cond, concatenate, drop, with_empty_captions

B = 4


@pytest.fixture
def cond():
    return Cond(
        text_embed=jnp.arange(B * 2.0).reshape(B, 2),
        text_encodings=jnp.ones((B, 3, 2)),
        text_mask=jnp.ones((B, 3), bool),
        image_embed=jnp.zeros((B, 2)),
        low_res=jnp.full((B, 2, 2, 3), 0.5),
    )


def test_keep_is_spelled_out_once(cond):
    full = cond.with_keep(B)
    assert full.keep_text.tolist() == full.keep_image.tolist() == [True] * B
    some = cond.replace(keep_text=jnp.array([True, False, True, False]))
    assert some.with_keep(B).keep_text.tolist() == [True, False, True, False]
    assert some.with_keep(B).keep_image.tolist() == [True] * B


def test_null_drops_text_and_image_and_nothing_else(cond):
    null = cond.null()
    assert not null.keep_text.any()
    assert not null.keep_image.any()
    for name in ("text_embed", "text_encodings", "text_mask", "image_embed", "low_res"):
        np.testing.assert_array_equal(getattr(null, name), getattr(cond, name))


def test_null_of_what_is_partly_dropped(cond):
    assert not cond.replace(keep_text=jnp.array([True, False, True, False])).null().keep_text.any()


def test_repeat_keeps_samples_together(cond):
    assert cond.repeat(3).text_embed[:, 0].tolist() == [0, 0, 0, 2, 2, 2, 4, 4, 4, 6, 6, 6]
    assert cond.repeat(3).batch_size == 3 * B


def test_concatenate_is_first_then_second(cond):
    both = concatenate(cond.with_keep(B), cond.null())
    assert both.keep_text.tolist() == [True] * B + [False] * B
    np.testing.assert_array_equal(both.text_embed[:B], both.text_embed[B:])


def test_absent_fields_stay_absent():
    cond = Cond(low_res=jnp.zeros((2, 4, 4, 3)))
    assert cond.batch_size == 2
    assert cond.null().text_embed is None
    assert concatenate(cond, cond).image_embed is None


def test_an_empty_condition_has_no_batch():
    with pytest.raises(ValueError, match="at least one field"):
        Cond().null()


def test_travels_through_jit(cond):
    same = jax.jit(lambda c: c.null())(cond)
    assert isinstance(same, Cond)
    assert not same.keep_image.any()


def test_dropped_as_often_as_asked_and_independently():
    n = 20_000
    dropped = drop(Cond(image_embed=jnp.zeros((n, 1))), jax.random.key(0), text=0.5, image=0.1)
    text, image = ~np.asarray(dropped.keep_text), ~np.asarray(dropped.keep_image)
    assert text.mean() == pytest.approx(0.5, abs=0.02)
    assert image.mean() == pytest.approx(0.1, abs=0.01)
    assert (text & image).mean() == pytest.approx(0.05, abs=0.01)  # no common coin
    assert np.mean(text[1:] & text[:-1]) == pytest.approx(0.25, abs=0.02)  # nor between neighbours
    assert np.mean(image[1:] & image[:-1]) == pytest.approx(0.01, abs=0.005)


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_never_and_always_are_exact(cond, rate):
    dropped = drop(cond, jax.random.key(0), text=rate, image=1 - rate)
    assert (np.asarray(dropped.keep_text) == (rate == 0)).all()
    assert (np.asarray(dropped.keep_image) == (rate == 1)).all()


def test_what_was_dropped_before_stays_dropped(cond):
    kept = jnp.array([True, False, True, False])
    again = drop(cond.replace(keep_text=kept), jax.random.key(0), text=0.0, image=0.0)
    assert again.keep_text.tolist() == kept.tolist()


@pytest.mark.parametrize("length", [1, 2, 5])
def test_dropped_captions_become_the_empty_one(length):
    """Also in a batch whose captions are shorter than the empty one; the others stay as they are."""
    cond = Cond(
        text_embed=jnp.ones((2, 3)),
        text_encodings=jnp.ones((2, length, 4)),
        text_mask=jnp.ones((2, length), bool),
        keep_text=jnp.array([True, False]),
    )
    full = with_empty_captions(cond, jnp.full((2, 4), 7.0), jnp.full(3, 5.0))
    np.testing.assert_array_equal(full.text_embed, [[1, 1, 1], [5, 5, 5]])
    np.testing.assert_array_equal(full.text_encodings[0, :length], cond.text_encodings[0])
    np.testing.assert_array_equal(full.text_mask[0].sum(), length)
    np.testing.assert_array_equal(full.text_encodings[1, :2], 7)
    np.testing.assert_array_equal(full.text_mask[1], np.arange(max(length, 2)) < 2)
    assert full.keep_text.all()
