"""Logistic regression for many classes that share one set of features: w_c = shared + deviation_c.

Minimises the log-loss summed over rows and classes + shared_l2 / 2 |shared|^2 + class_l2 / 2 sum_c |deviation_c|^2
(biases almost free). Few positives move a class only a little away from what all classes have in common. The
problem is convex; L-BFGS solves it in the principal axes of the features, scaled by the expected curvature, which
leaves the penalty as it is and cuts the iterations to about a quarter.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit

BIAS_L2 = 1e-3


@dataclass(frozen=True, slots=True)
class Penalty:
    """Squared-weight penalties of the shared weights and of each class's deviation from them."""

    shared: float
    deviation: float


@dataclass(frozen=True, slots=True, eq=False)
class ClassWeights:
    """A solution: logit of class c = features[c] @ weights[c] + bias[c].

    Attributes:
        weights: (C, F) float32.
        bias: (C,) float32.
    """

    weights: np.ndarray
    bias: np.ndarray

    def probs(self, features: np.ndarray) -> np.ndarray:
        """Return the (N, C) float32 probabilities of (C, N, F) features."""
        logits = np.matmul(features, self.weights[:, :, None])[..., 0] + self.bias[:, None]
        return expit(logits).T.astype(np.float32)


def fit_path(
    features: np.ndarray,
    targets: np.ndarray,
    penalties: Sequence[Penalty],
    *,
    max_iterations: int = 200,
    tolerance: float = 1e-5,
) -> Iterator[ClassWeights]:
    """Yield the solution for each penalty; each starts from the one before.

    Args:
        features: (C, N, F) float32, about zero mean and unit variance.
        targets: (C, N) bool or float.
        tolerance: largest gradient entry of the mean loss at which to stop.
    """
    problem = _Problem(features, targets)
    for penalty in penalties:
        yield problem.solve(penalty, max_iterations=max_iterations, tolerance=tolerance)


class _Problem:
    """The rotated problem; `params` holds shared weights in row 0, then one deviation per class, bias last."""

    def __init__(self, features: np.ndarray, targets: np.ndarray) -> None:
        num_classes, self.num_rows, num_features = features.shape
        gram = np.matmul(features.transpose(0, 2, 1), features).astype(np.float64).sum(axis=0)
        energies, axes = np.linalg.eigh(gram / (num_classes * self.num_rows))
        self.energies = np.concatenate([np.maximum(energies, 0.0), [1.0]])
        self.axes = axes.astype(np.float32)
        self.features = np.matmul(features, self.axes)
        self.transposed = self.features.transpose(0, 2, 1)
        self.targets = targets.astype(np.float32)
        rate = (self.targets.sum(axis=1, dtype=np.float64) + 0.5) / (self.num_rows + 1.0)
        self.curvature = self.num_rows * rate * (1.0 - rate)
        self.params = np.zeros((num_classes + 1, num_features + 1))
        self.params[1:, -1] = np.log(rate / (1.0 - rate))

    def solve(self, penalty: Penalty, *, max_iterations: int, tolerance: float) -> ClassWeights:
        l2 = np.full((len(self.params), len(self.energies)), penalty.deviation)
        l2[0], l2[:, -1] = penalty.shared, BIAS_L2
        curvature = np.concatenate([[self.curvature.sum()], self.curvature])
        scale = 1.0 / np.sqrt(curvature[:, None] * self.energies[None, :] + l2)
        result = minimize(
            self._loss,
            (self.params / scale).ravel(),
            args=(scale, l2),
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": max_iterations, "maxcor": 20, "ftol": 1e-9, "gtol": tolerance},
        )
        self.params = result.x.reshape(scale.shape) * scale
        weights = self.params[0] + self.params[1:]
        return ClassWeights((weights[:, :-1] @ self.axes.T).astype(np.float32), weights[:, -1].astype(np.float32))

    def _loss(self, flat: np.ndarray, scale: np.ndarray, l2: np.ndarray) -> tuple[float, np.ndarray]:
        params = flat.reshape(scale.shape) * scale
        weights = (params[0] + params[1:]).astype(np.float32)
        logits = np.matmul(self.features, weights[:, :-1, None])[..., 0] + weights[:, -1:]
        loss = float((np.logaddexp(0.0, logits) - self.targets * logits).sum(dtype=np.float64))
        residual = expit(logits) - self.targets
        by_class = np.empty((len(residual), scale.shape[1]))
        by_class[:, :-1] = np.matmul(self.transposed, residual[:, :, None])[..., 0]
        by_class[:, -1] = residual.sum(axis=1, dtype=np.float64)
        gradient = np.concatenate([by_class.sum(axis=0, keepdims=True), by_class]) + l2 * params
        value = loss + 0.5 * float((l2 * params**2).sum())
        return value / self.num_rows, (gradient * scale).ravel() / self.num_rows
