import numpy as np
import pytest
from scipy.optimize import minimize

from clip_jax import UserError
from clip_jax.uses.probe import best_c, few_shot, fit_probe


def data(n=120, d=6, k=4, seed=0):
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((k, d))
    labels = rng.integers(0, k, n)
    return (centres[labels] + rng.standard_normal((n, d)) + 3).astype(np.float32), labels


def objective(flat, features, labels, C, k):
    """The one of the module, and its gradient, in float64."""
    n, d = features.shape
    weights, bias = flat[: d * k].reshape(d, k), flat[d * k :]
    logits = features @ weights + bias
    logits -= logits.max(1, keepdims=True)
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    error = np.exp(log_p)
    error[np.arange(n), labels] -= 1
    gradient = np.concatenate([(C * features.T @ error + weights).ravel(), C * error.sum(0)])
    return -C * log_p[np.arange(n), labels].sum() + (weights**2).sum() / 2, gradient


@pytest.mark.slow
@pytest.mark.parametrize("C", [0.01, 0.316, 10.0])
def test_it_is_the_minimum(C):
    features, labels = data()
    probe = fit_probe(features, labels, C=C)
    exact = minimize(
        objective, np.zeros(6 * 4 + 4), (features.astype(np.float64), labels, C, 4), jac=True, method="BFGS",
        options={"gtol": 1e-9, "maxiter": 5000},
    ).x  # fmt: skip
    np.testing.assert_allclose(probe.weights, exact[:24].reshape(6, 4), atol=2e-3 * np.abs(exact).max())
    found = np.concatenate([np.ravel(probe.weights), probe.bias]).astype(np.float64)
    args = features.astype(np.float64), labels, C, 4
    assert objective(found, *args)[0] <= objective(exact, *args)[0] * (1 + 1e-5)


@pytest.mark.parity
def test_scikit_learn_agrees():
    linear_model = pytest.importorskip("sklearn.linear_model")
    features, labels = data(300, 12, 5)
    theirs = linear_model.LogisticRegression(C=0.316, max_iter=1000, tol=1e-8).fit(features.astype(float), labels)
    ours = fit_probe(features, labels)
    np.testing.assert_allclose(ours.weights, theirs.coef_.T, atol=2e-3)
    assert ours.accuracy(features, labels) == pytest.approx(theirs.score(features, labels), abs=0.004)


@pytest.mark.slow
def test_separable_classes_are_separated():
    labels = np.arange(30) % 3
    features = np.eye(3, dtype=np.float32)[labels]
    probe = fit_probe(features, labels, num_classes=5)
    assert probe.accuracy(features, labels) == 1
    assert probe.logits(features).shape == (30, 5)


def test_bad_input_is_refused():
    features, labels = data(10)
    for given, words in [
        ((features, labels[:5]), "features"),
        ((features, labels.astype(float)), "integers from 0"),
        ((features, labels - 9), "integers from 0"),
        ((features * np.float32(np.nan), labels), "not finite"),
    ]:
        with pytest.raises(UserError, match=words):
            fit_probe(*given)
    with pytest.raises(UserError, match="C is 0"):
        fit_probe(features, labels, C=0)
    with pytest.raises(UserError, match="num_classes is 1"):
        fit_probe(features, labels, num_classes=1)


@pytest.mark.parametrize("best", [1e-6, 3e-3, 0.316, 1e6])
def test_the_search_finds_the_peak(best):
    asked = []

    def score(c):
        asked.append(c)
        return -abs(np.log10(c / best))

    assert abs(np.log10(best_c(score) / best)) <= 1 / 16 + 1e-9
    assert len(asked) == len(set(asked)) <= 7 + 8


def test_few_shots_of_each_class():
    labels = np.array([0] * 10 + [2] * 7 + [5] * 3)
    picked = few_shot(labels, 3, seed=1)
    assert np.unique(labels[picked], return_counts=True)[1].tolist() == [3, 3, 3]
    assert (np.diff(picked) > 0).all()
    assert few_shot(labels, 3, seed=1).tolist() == picked.tolist() != few_shot(labels, 3, seed=2).tolist()
    with pytest.raises(UserError, match="class 5 has 3 examples"):
        few_shot(labels, 4)
