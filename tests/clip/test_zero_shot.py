from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax import CLIP, LoadedCLIP, UserError, unit_norm
from clip_jax.images import Preprocess
from clip_jax.uses.embed import image_features, text_features
from clip_jax.uses.zero_shot import accuracy, classifier_weights, classify, prompts, scale_and_bias, top_k


@pytest.fixture(scope="module")
def clip(tiny, tiny_variables, tokenizer):
    return LoadedCLIP(CLIP(tiny), tiny_variables, tokenizer, Preprocess(tiny.preprocess, tiny.vision.image_size))


@pytest.mark.slow
def test_features_do_not_depend_on_the_batches(clip, images, captions):
    expected = unit_norm(clip.model.apply(clip.variables, clip.preprocess(images), method="encode_image"))
    done = []
    found = image_features(clip, iter(list(images)), batch_size=3, progress=done.append)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert done == [3, 1]
    expected = unit_norm(clip.model.apply(clip.variables, clip.tokenize(captions), method="encode_text").embed)
    np.testing.assert_allclose(text_features(clip, captions, batch_size=3), expected, atol=1e-5)
    assert len(text_features(clip, [])) == 0


@pytest.mark.slow
def test_classifier_weights_are_the_mean_of_unit_prompts(clip, tiny):
    encode = partial(text_features, clip)
    weights = classifier_weights(encode, ["circle", ["star", "asterisk"]], ["a {}", "a red {}"])
    circle, star = (
        encode(["a circle", "a red circle"]),
        encode(["a star", "a red star", "a asterisk", "a red asterisk"]),
    )
    np.testing.assert_allclose(weights[0], unit_norm(jnp.asarray(circle.mean(0))), atol=1e-5)
    np.testing.assert_allclose(weights[1], unit_norm(jnp.asarray(star.mean(0))), atol=1e-5)
    assert weights.shape == (2, tiny.embed_dim)


def test_a_name_with_braces_is_a_name():
    assert prompts(["{x}", "100 {}%"], ["a {}"]) == [["a {x}"], ["a 100 {}%"]]


def test_bad_classes_and_templates_are_refused():
    for classes, templates, words in [
        ([], ["{}"], "at least one class"),
        (["a"], [], "one template"),
        (["a"], ["a photo"], "has no {}"),
        (["a", " "], ["{}"], "class 1 has no name"),
        (["a", []], ["{}"], "class 1 has no name"),
    ]:
        with pytest.raises(UserError, match=words):
            prompts(classes, templates)


@pytest.mark.slow
def test_classify_gives_the_probabilities_of_the_model(clip, tiny, images):
    classes = ["circle", "star", "square"]
    found = classify(clip, list(images), classes, ["a {}"], k=5)
    out = clip.model.apply(clip.variables, clip.preprocess(images), clip.tokenize([f"a {name}" for name in classes]))
    logits = np.exp(out.logit_scale) * out.image_features @ out.text_features.T
    expected = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    assert found.indices.shape == (4, 3)
    np.testing.assert_allclose(np.take_along_axis(expected, found.indices, 1), found.probability, rtol=1e-3)
    assert (np.diff(found.probability) <= 0).all()


def test_with_a_bias_each_class_is_judged_for_itself(clip, images):
    biased = clip._replace(variables={"params": {**clip.variables["params"], "logit_bias": jnp.float32(-3)}})
    assert scale_and_bias(biased)[1] == -3
    found = classify(biased, list(images), ["circle", "star"])
    assert not np.isclose(found.probability.sum(-1), 1).any()


def test_top_k_is_sorted():
    similarity, index = top_k(jnp.eye(3)[:1], jnp.array([[0.1, 0, 0], [0.9, 0, 0], [0.5, 0, 0]]), k=2)
    assert index.tolist() == [[1, 2]]
    np.testing.assert_allclose(similarity, [[0.9, 0.5]])


def test_accuracy_counts():
    weights = np.eye(3, dtype=np.float32)
    features = weights[[0, 1, 2, 0]] + np.float32([0, 0.1, 0])
    assert accuracy(features, weights, np.array([0, 1, 2, 1]), (1, 2)) == {1: 0.75, 2: 1.0}
