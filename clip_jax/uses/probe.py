"""Linear probes: logistic regression on frozen features (Radford et al. 2021 §3.2 and appendix A.3).

    minimise over W, b:   C · Σ_n CE(W x_n + b, y_n) + ½ ‖W‖²

to convergence with L-BFGS, in float32. This is the objective of scikit-learn's `LogisticRegression(C=C)`, which OpenAI
used; OpenAI's example for CIFAR-100 has C = 0.316 and features that are not normalised.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Num

from clip_jax.arrays import AnyArray, check_features, check_ks, check_labels
from clip_jax.errors import UserError

PUBLISHED_C = 0.316
MAX_ITERATIONS = 1000


class Probe(NamedTuple):
    """A linear classifier of features with K classes."""

    weights: Float[Array, "D K"]
    bias: Float[Array, " K"]

    def logits(self, features: Float[AnyArray, "N D"]) -> Float[Array, "N K"]:
        """The logits features @ weights + bias, in float32."""
        return jnp.asarray(features, jnp.float32) @ self.weights + self.bias[None]

    def accuracy(self, features: Float[AnyArray, "N D"], labels: Int[AnyArray, " N"]) -> float:
        """Share of the features whose likeliest class is their label, in [0, 1].

        Raises:
            UserError: If features are not finite, or labels are not one integer for each row.
        """
        features = check_features("features", features)
        labels = check_labels("labels", labels, len(features))
        return float((self.logits(features).argmax(-1) == jnp.asarray(labels)).mean())


def fit_probe(
    features: Float[AnyArray, "N D"],
    labels: Num[AnyArray, " _N"],
    *,
    C: float = PUBLISHED_C,
    num_classes: int | None = None,
    max_iterations: int = MAX_ITERATIONS,
    tolerance: float = 1e-6,
) -> Probe:
    """Fits a linear probe: the minimum of the objective at the top of this module.

    Args:
        features: [N, D].
        labels: the class of each row, integers from 0.
        C: inverse strength of the L2 penalty on W.
        num_classes: K; None: the largest label + 1.
        max_iterations: of L-BFGS.
        tolerance: L-BFGS stops when the largest component of the gradient of the objective / (C · N) is not above it.
            The default is about what float32 can reach.

    Raises:
        UserError: If labels are not integers from 0 to num_classes − 1, features are not finite, or C is not above 0.
    """
    features, labels = np.asarray(features, np.float32), np.asarray(labels)
    if features.ndim != 2 or labels.shape != features.shape[:1] or not len(labels):
        raise UserError(f"a probe needs features [N, D] and labels [N], got {features.shape} and {labels.shape}")
    if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0:
        raise UserError(f"labels must be integers from 0, got {labels.dtype} with minimum {labels.min()}")
    if not np.isfinite(features).all():
        raise UserError("some features are not finite: is a picture or a weight damaged?")
    if not C > 0:
        raise UserError(f"C is {C}: it must be above 0")
    classes = int(labels.max()) + 1 if num_classes is None else num_classes
    if labels.max() >= classes:
        raise UserError(f"there is a label {labels.max()}, but num_classes is {classes}")
    # Centred features make the problem far better conditioned; the solution is the same, with the mean in the bias.
    mean = features.mean(0)
    with jax.numpy_dtype_promotion("standard"):  # Optax's L-BFGS needs it where float64 is switched on
        weights, bias = _minimise(
            features - mean, labels.astype(np.int32), jnp.float32(C), classes, max_iterations, tolerance
        )
    return Probe(weights, bias - mean @ weights)


@partial(jax.jit, static_argnums=(3, 4))
def _minimise(
    features: Array, labels: Array, C: Array, classes: int, max_iterations: int, tolerance: Array
) -> tuple[Array, Array]:
    def objective(params: tuple[Array, Array]) -> Array:
        weights, bias = params
        logits = jnp.matmul(features, weights, precision="highest") + bias[None]
        errors = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return errors.mean() + (weights**2).sum() / (2 * C * len(labels))

    solver = optax.lbfgs(memory_size=10)
    value_and_grad = optax.value_and_grad_from_state(objective)

    def step(carry: tuple) -> tuple:
        params, state, i, _ = carry
        value, grad = value_and_grad(params, state=state)
        updates, state = solver.update(grad, state, params, value=value, grad=grad, value_fn=objective)
        params = optax.apply_updates(params, updates)
        largest = jnp.stack([jnp.abs(g).max() for g in optax.tree.get(state, "grad")]).max()
        return params, state, i + 1, largest

    def unfinished(carry: tuple) -> Array:
        _, _, i, largest = carry
        return (i < max_iterations) & (largest > tolerance)

    params = jnp.zeros((features.shape[1], classes), jnp.float32), jnp.zeros(classes, jnp.float32)
    return jax.lax.while_loop(
        unfinished, step, (params, solver.init(params), 0, jnp.float32(np.finfo(np.float32).max))
    )[0]


def best_c(score: Callable[[float], float], *, steps_per_decade: int = 8) -> float:
    """Hyperparameter search for C in [1e-6, 1e6], on a logarithmic grid (Radford et al. 2021, appendix A.3).

    Seven values come first, two decades apart; then the step is halved around the best one until it is the finest.

    Args:
        score: of a probe with this C, higher is better: the accuracy on held-out examples, for example.
        steps_per_decade: of the finest grid; 8 is the paper's 96 steps over 12 decades.

    Returns:
        The C with the best score of those that were tried.
    """
    scores: dict[int, float] = {}  # by position on the finest grid

    def score_at(position: int) -> float:
        if position not in scores:
            scores[position] = score(10 ** (position / steps_per_decade - 6))
        return scores[position]

    end, step = 12 * steps_per_decade, 2 * steps_per_decade
    best = max(range(0, end + 1, step), key=score_at)
    while step > 1:
        step //= 2
        best = max((p for p in (best, best - step, best + step) if 0 <= p <= end), key=score_at)
    return 10 ** (best / steps_per_decade - 6)


def few_shot(labels: Int[AnyArray, " N"], shots: int, seed: int = 0) -> Int[np.ndarray, " M"]:
    """Few-shot subset: indices of `shots` random examples of each class, in ascending order.

    Args:
        labels: integers [N].
        shots: examples per class.
        seed: of the random choice.

    Raises:
        UserError: If a class has fewer examples, or `shots` is not an integer of at least 1.
    """
    (shots,) = check_ks(shots, "shots")
    labels, rng = np.asarray(labels), np.random.default_rng(seed)
    picked = []
    for name, count in zip(*np.unique(labels, return_counts=True), strict=True):
        if count < shots:
            raise UserError(f"class {name} has {count} examples, fewer than {shots} shots")
        picked.append(rng.choice(np.flatnonzero(labels == name), shots, replace=False))
    return np.sort(np.concatenate(picked))
