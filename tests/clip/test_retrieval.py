import numpy as np
import pytest

from clip_jax import UserError
from clip_jax.uses.retrieval import both_directions, nearest, recall


def unit(rng, n, d=8):
    x = rng.standard_normal((n, d)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.mark.parametrize("chunk", [3, 7, 100])
def test_pieces_change_nothing(chunk):
    rng = np.random.default_rng(0)
    queries, candidates = unit(rng, 10), unit(rng, 23)
    candidates[11] = candidates[2]  # of equal ones the first is first
    similarity = queries @ candidates.T
    order = np.argsort(-similarity, axis=1, kind="stable")[:, :6]
    found = nearest(queries, candidates, 6, chunk=chunk)
    np.testing.assert_allclose(found.similarity, np.take_along_axis(similarity, order, 1), atol=1e-6)
    np.testing.assert_array_equal(found.indices, order)
    assert nearest(queries, candidates[:4], 10).indices.shape == (10, 4)


def test_recall_counts_any_relevant_candidate():
    candidates = unit(np.random.default_rng(0), 20)
    assert recall(candidates, candidates, np.arange(20), ks=(1, 5)) == {1: 1.0, 5: 1.0}
    relevant = [[0]] * 10 + [[i, 3] for i in range(10, 20)]  # of the first ten only query 0 finds candidate 0 first
    found = recall(candidates, candidates, relevant, ks=(1, 20))
    assert found[1] == pytest.approx(0.55)
    assert found[20] == 1


def test_both_directions_of_five_captions_each():
    images = unit(np.random.default_rng(0), 6)
    image_of_text = np.array([5, 0, 0, 1, 2, 2, 3, 3, 5])  # image 4 has none
    found = both_directions(images, images[image_of_text], image_of_text, ks=(1,))
    assert found == {"text_to_image": {1: 1.0}, "image_to_text": {1: 1.0}}
    wrong = images[image_of_text].copy()
    wrong[4] = images[4]  # a caption that looks like the image without captions
    found = both_directions(images, wrong, image_of_text, ks=(1,))
    assert found["text_to_image"][1] == pytest.approx(8 / 9)
    assert found["image_to_text"][1] == 1


def test_what_cannot_be_compared_is_refused():
    x = np.ones((2, 3), np.float32)
    for queries, candidates in ((x, x[:, :2]), (x[:0], x), (x, x[:0])):
        with pytest.raises(UserError, match="cannot compare"):
            nearest(queries, candidates)
    with pytest.raises(UserError, match="2 queries, but relevant candidates for 1"):
        recall(x, x, [[0]])
