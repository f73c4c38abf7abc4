import numpy as np
import pytest

from unclip_jax.evaluation.frechet import features, frechet_distance


def gaussian(seed, n, mean, deviations):
    """Points whose mean and covariance are exactly those given: whitened, then scaled."""
    z = np.random.default_rng(seed).normal(size=(n, len(deviations)))
    z -= z.mean(0)
    z = z @ np.linalg.inv(np.linalg.cholesky(np.cov(z, rowvar=False))).T
    return mean + z * deviations


def test_equals_the_closed_form_of_axis_aligned_gaussians():
    """|m₁ − m₂|² + Σ (s₁ − s₂)²."""
    m_1, s_1 = np.array([0.0, 1.0, 2.0]), np.array([1.0, 0.5, 3.0])
    m_2, s_2 = np.array([1.0, -1.0, 2.0]), np.array([2.0, 0.5, 0.1])
    expected = np.square(m_1 - m_2).sum() + np.square(s_1 - s_2).sum()
    assert frechet_distance(gaussian(0, 50, m_1, s_1), gaussian(1, 80, m_2, s_2)) == pytest.approx(expected, rel=1e-9)


def test_is_the_same_in_turned_axes():
    turn = np.linalg.qr(np.random.default_rng(2).normal(size=(3, 3)))[0]
    first, second = gaussian(0, 50, 0.0, np.array([1.0, 2.0, 3.0])), gaussian(1, 50, 1.0, np.array([3.0, 0.2, 1.0]))
    assert frechet_distance(first @ turn, second @ turn) == pytest.approx(frechet_distance(first, second), rel=1e-9)


def test_a_set_has_no_distance_to_itself_even_where_it_is_flat():
    """Fewer points than features: a singular covariance."""
    points = np.random.default_rng(3).normal(size=(5, 12))
    assert frechet_distance(points, points) == pytest.approx(0, abs=1e-6)


def test_two_samples_of_one_law_come_closer_as_they_grow():
    rng = np.random.default_rng(4)
    small, large = (frechet_distance(*rng.normal(size=(2, n, 8))) for n in (30, 3000))
    assert large < small / 10


def test_one_vector_has_no_covariance():
    with pytest.raises(ValueError, match="1 and 3 feature vectors have no covariance"):
        frechet_distance(np.zeros((1, 4)), np.zeros((3, 4)))


def test_features_are_those_of_each_block(tiny_system):
    config = tiny_system.unclip.clip
    images = np.random.default_rng(5).integers(0, 256, (3, *[config.vision.image_size] * 2, 3), np.uint8)
    found = np.asarray(features(config, tiny_system.params["clip"], images))
    assert found.shape == (3, config.vision.layers * config.vision.width)
    alone = np.asarray(features(config, tiny_system.params["clip"], images[1:2]))
    np.testing.assert_allclose(found[1:2], alone, atol=1e-5)
