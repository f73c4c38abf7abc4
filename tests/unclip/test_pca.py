import numpy as np
import pytest

from unclip_jax.pca import principal_components, project, reconstruct

SCALES = np.array([0.1, 5.0, 1.0, 0.0, 2.0])
DATA = np.random.default_rng(0).normal(size=(4000, 5)) * SCALES + np.arange(5)


def test_axes_come_by_decreasing_variance():
    pca = principal_components(DATA)
    np.testing.assert_allclose(pca.variances, sorted(SCALES**2, reverse=True), rtol=0.1, atol=1e-6)
    np.testing.assert_allclose(np.abs(pca.components).argmax(axis=1), [1, 4, 2, 0, 3])
    np.testing.assert_allclose(pca.components @ pca.components.T, np.eye(5), atol=1e-5)
    assert (np.asarray(pca.components).max(axis=1) >= np.abs(pca.components).max(axis=1)).all()
    np.testing.assert_allclose(pca.mean, DATA.mean(axis=0), rtol=1e-5)


def test_all_components_give_the_data_back():
    pca = principal_components(DATA)
    np.testing.assert_allclose(reconstruct(pca, project(pca, DATA)), DATA, atol=1e-4)
    np.testing.assert_allclose(project(pca, DATA).var(axis=0), pca.variances, rtol=1e-2, atol=1e-5)


def test_what_is_left_out_is_the_variance_of_the_rest():
    pca = principal_components(DATA, 2)
    error = np.square(reconstruct(pca, project(pca, DATA)) - DATA).sum(axis=1).mean()
    np.testing.assert_allclose(error, (np.sort(DATA.var(axis=0))[:3]).sum(), rtol=1e-2)


@pytest.mark.parametrize(("rows", "components"), [(1, 2), (10, 6), (10, 0)])
def test_what_cannot_be_is_refused(rows, components):
    with pytest.raises(ValueError, match="num_components"):
        principal_components(DATA[:rows], components)
