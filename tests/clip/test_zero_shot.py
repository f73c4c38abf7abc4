import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax import CLIP, unit_norm
from clip_jax.zero_shot import classifier_weights, retrieval_recall, top_k


def test_classifier_weights_are_the_mean_of_unit_prompts(tiny, tiny_variables, tokenizer):
    def encode(tokens):
        return CLIP(tiny).apply(tiny_variables, tokens, method="encode_text").embed

    weights = classifier_weights(encode, tokenizer, ["circle", "star"], ["a {}", "a red {}"])
    star = unit_norm(encode(tokenizer(["a star", "a red star"])))
    np.testing.assert_allclose(weights[1], unit_norm(star.mean(0)), atol=1e-6)
    assert weights.shape == (2, tiny.embed_dim)


def test_top_k_is_sorted():
    similarity, index = top_k(jnp.eye(3)[:1], jnp.array([[0.1, 0, 0], [0.9, 0, 0], [0.5, 0, 0]]), k=2)
    assert index.tolist() == [[1, 2]]
    np.testing.assert_allclose(similarity, [[0.9, 0.5]])


def test_recall_counts_any_relevant_candidate():
    candidates = unit_norm(jax.random.normal(jax.random.key(0), (20, 8)))
    relevant = np.eye(20, dtype=bool)
    assert retrieval_recall(candidates, candidates, relevant, ks=(1, 5)) == {1: 1.0, 5: 1.0}
    relevant[:10] = False
    relevant[:10, 0] = True  # only query 0 finds candidate 0 first
    recall = retrieval_recall(candidates, candidates, relevant, ks=(1, 20))
    assert recall[1] == pytest.approx(0.55)
    assert recall[20] == 1
