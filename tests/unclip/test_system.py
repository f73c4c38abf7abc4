import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax.towers.text import TextFeatures
from unclip_jax import pipeline
from unclip_jax.diffusion.samplers import sample_keys
from unclip_jax.evaluation import system
from unclip_jax.evaluation.shapes import ask
from unclip_jax.evaluation.system import System
from unclip_jax.tasks import to_uint8


@pytest.mark.slow
def test_full_control_is_the_pipeline(tiny_system):
    """Prior and decoder, compiled apart and worked in chunks that do not divide the rows, are what `generate` draws."""
    pieces = System(tiny_system, chunk=4)
    tokens = ask(tiny_system.tokenize, "test", 6, 16).tokens
    keys = sample_keys(jax.random.key(3), jnp.arange(6))
    text = pieces.encode_text(tokens)
    predicted = pieces.predict(text, keys)
    drawn = pieces.draw(text, predicted, True, keys, "full")
    whole = pipeline.generate_jit(tiny_system.unclip, tiny_system.params, tokens, keys)
    np.testing.assert_allclose(predicted, whole.image_embed, atol=1e-4)
    np.testing.assert_allclose(drawn.astype(int), np.asarray(to_uint8(whole.images)).astype(int), atol=1)


def test_dropped_captions_are_dropped(tiny_system, monkeypatch):
    """Every row of every chunk, filled up or not; and the rows come back in order."""
    seen = []

    def draw(unclip, params, cond, keys):
        seen.append(cond)
        return jnp.broadcast_to(jnp.uint8(cond.image_embed)[:, None, None, :1], (len(cond.image_embed), 1, 1, 3))

    monkeypatch.setattr(system, "draw", draw)
    embeds = np.arange(10, dtype=np.float32).reshape(5, 2)
    text = TextFeatures(np.zeros((5, 2)), np.zeros((5, 3, 4)), np.ones((5, 3), bool))
    keys = sample_keys(jax.random.key(0), jnp.arange(5))
    for keep_text in (True, False):
        seen.clear()
        drawn = System(tiny_system, chunk=2).draw(text, embeds, keep_text, keys, "")
        np.testing.assert_array_equal(drawn[:, 0, 0, 0], embeds[:, 0])
        assert [cond.keep_text.tolist() for cond in seen] == [[keep_text] * 2] * 3
