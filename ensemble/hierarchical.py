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
    features: np.ndarray | Sequence[np.ndarray],
    targets: np.ndarray,
    penalties: Sequence[Penalty],
    *,
    row_weights: np.ndarray | None = None,
    max_iterations: int = 200,
    tolerance: float = 1e-5,
) -> Iterator[ClassWeights]:
    """Yield the solution for each penalty; each starts from the one before.

    Args:
        features: (C, N, F) float32, about zero mean and unit variance; or those of each class's rows that have a
            weight alone, C times (n, F).
        targets: (C, N) bool or float.
        row_weights: (C, N) how much each row counts for each class; None for 1. Rows with 0 cost nothing.
        tolerance: largest gradient entry of the mean loss at which to stop.
    """
    problem = _Problem(features, targets, row_weights)
    for penalty in penalties:
        yield problem.solve(penalty, max_iterations=max_iterations, tolerance=tolerance)


class _Problem:
    """The rotated problem; `params` holds shared weights in row 0, then one deviation per class, bias last."""

    def __init__(
        self, features: np.ndarray | Sequence[np.ndarray], targets: np.ndarray, row_weights: np.ndarray | None
    ) -> None:
        num_classes, self.num_rows = targets.shape
        kept = np.ones(targets.shape, dtype=bool) if row_weights is None else row_weights > 0
        self.row_weights = None if row_weights is None else row_weights[kept]
        self.parts = np.cumsum([0, *kept.sum(axis=1)])
        parts = list(features)
        if isinstance(features, np.ndarray):
            parts = [features[c][kept[c]] for c in range(num_classes)]
        num_features = parts[0].shape[1]
        gram = sum(part.T @ self._weighted(part, c) for c, part in enumerate(parts))
        energies, axes = np.linalg.eigh(np.asarray(gram, dtype=np.float64) / (num_classes * self.num_rows))
        self.energies = np.concatenate([np.maximum(energies, 0.0), [1.0]])
        self.axes = axes.astype(np.float32)
        self.features = [part @ self.axes for part in parts]  # row by row of the class, classes apart
        self.targets = targets[kept].astype(np.float32)
        positives = targets.astype(bool) if row_weights is None else np.where(targets, row_weights, 0.0)
        rate = (positives.sum(axis=1, dtype=np.float64) + 0.5) / (self.num_rows + 1.0)
        self.curvature = self.num_rows * rate * (1.0 - rate)
        self.params = np.zeros((num_classes + 1, num_features + 1))
        self.params[1:, -1] = np.log(rate / (1.0 - rate))

    def _weighted(self, part: np.ndarray, number: int) -> np.ndarray:
        """Return the rows of one class times their weights."""
        if self.row_weights is None:
            return part
        return part * self.row_weights[self.parts[number] : self.parts[number + 1], None]

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
        logits = np.concatenate([
            part @ own[:-1] + own[-1] for part, own in zip(self.features, weights, strict=True)
        ])  # fmt: skip
        # float32 operations that processors have wide instructions for, which logaddexp and expit are not
        tail = np.exp(-np.abs(logits))
        losses = np.log(1.0 + tail) + np.maximum(logits, 0.0) - self.targets * logits
        residual = np.where(logits >= 0, 1.0, tail) / (1.0 + tail) - self.targets
        if self.row_weights is not None:
            losses *= self.row_weights
            residual *= self.row_weights
        by_class = np.empty((len(weights), scale.shape[1]))
        for number, part in enumerate(self.features):
            own = residual[self.parts[number] : self.parts[number + 1]]
            by_class[number, :-1], by_class[number, -1] = own @ part, own.sum(dtype=np.float64)
        gradient = np.concatenate([by_class.sum(axis=0, keepdims=True), by_class]) + l2 * params
        value = float(losses.sum(dtype=np.float64)) + 0.5 * float((l2 * params**2).sum())
        return value / self.num_rows, (gradient * scale).ravel() / self.num_rows
