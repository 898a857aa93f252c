"""Logistic regression of many classes at once: L-BFGS in the principal axes of the training rows.

The objective is the mean log-loss over rows, summed over classes, plus l2 / 2 times the squared weights; the bias is
free. Rotating the rows to their principal axes leaves the penalty as it is and makes the curvature nearly diagonal,
so that one eigendecomposition preconditions every class and every l2, and a dozen or two iterations are enough.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.linalg import eigh

from talstack.heads.lbfgs import minimise_columns

Link = Literal["sigmoid", "softmax"]

TOLERANCE = (
    1e-3  # largest entry of the preconditioned gradient: the objective is then within 0.1 % or so of its optimum
)
_MAX_ITERATIONS = 300
_SMALLEST_CURVATURE = 1e-6


@dataclass(frozen=True, slots=True, eq=False)
class Axes:
    """The principal axes of some rows.

    Attributes:
        vectors: (D, K) float32, orthonormal columns.
        energies: (K,) float64, mean square of the rows along each axis, descending.
    """

    vectors: np.ndarray
    energies: np.ndarray

    @classmethod
    def of(cls, rows: np.ndarray, *, floor: float) -> "Axes":
        """Return the axes of the (N, D) float32 rows whose energy exceeds `floor`; at least one."""
        few = len(rows) < rows.shape[1]  # then the rows' own products are the smaller matrix with the same energies
        gram = (rows @ rows.T if few else rows.T @ rows).astype(np.float64) / len(rows)
        energies, vectors = eigh(gram, check_finite=False)
        keep = energies > max(floor, energies[-1] * 1e-7, 1e-12)  # below this float32 holds noise
        keep[-1] = True
        energies, vectors = np.maximum(energies[keep][::-1], 1e-12), vectors[:, keep][:, ::-1].astype(np.float32)
        if few:
            vectors = rows.T @ vectors / np.sqrt(energies * len(rows)).astype(np.float32)
        return cls(np.ascontiguousarray(vectors), energies)


@dataclass(frozen=True, slots=True, eq=False)
class Weights:
    """One solution: logits = rows @ weights + bias, (D, C) and (C,) float32."""

    weights: np.ndarray
    bias: np.ndarray

    def logits(self, rows: np.ndarray) -> np.ndarray:
        """Return the (N, C) float32 logits of (N, D) rows."""
        return np.asarray(rows @ self.weights + self.bias)


def logistic_path(
    rows: np.ndarray,
    targets: np.ndarray,
    l2s: Sequence[float],
    *,
    link: Link,
    row_weights: np.ndarray | None = None,
    start: Weights | None = None,
    tolerance: float = TOLERANCE,
) -> Iterator[Weights]:
    """Yield the solution of each l2; in descending order they are fastest, as each starts from the one before.

    Args:
        rows: (N, K) float32, columns about uncorrelated and of zero mean, such as rows along their `Axes`.
        targets: (N, C) bool; no column is constant. Under softmax every row has one class.
        l2s: penalties, > 0.
        row_weights: (N, C) float32 with mean about one; None for all one.
        start: where the first solution is sought from; None for zero.
    """
    loss = _Loss(rows, targets.astype(np.float32), link, row_weights)
    params = loss.zero() if start is None else np.concatenate([start.weights, start.bias[None]]).astype(np.float64)
    for l2 in l2s:
        params = loss.minimise(params, l2, tolerance)
        yield Weights(params[:-1].astype(np.float32), params[-1].astype(np.float32))


class _Loss:
    """The objective over parameters (K + 1, C): weights along the axes, and the bias as last row."""

    def __init__(self, rows: np.ndarray, targets: np.ndarray, link: Link, row_weights: np.ndarray | None) -> None:
        self._rows, self._targets, self._row_weights, self._link = rows, targets, row_weights, link
        self._energies = np.square(rows).mean(axis=0, dtype=np.float64)

    def zero(self) -> np.ndarray:
        """Return zero weights and the bias that gives each class its rate."""
        rate = np.clip(self._targets.mean(axis=0, dtype=np.float64), 1e-6, 1 - 1e-6)
        bias = np.log(rate / (1 - rate)) if self._link == "sigmoid" else np.log(rate)
        return np.concatenate([np.zeros((self._rows.shape[1], len(bias))), bias[None]])

    def minimise(self, params: np.ndarray, l2: float, tolerance: float) -> np.ndarray:
        """Return the minimiser for one l2, sought from `params`, (K + 1, C)."""
        scale = self._scale(params, l2)
        if self._link == "sigmoid":  # every class is a problem of its own

            def scaled(tried: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
                values, gradient = self._evaluate(tried * scale[:, columns], l2, columns)
                return values, gradient * scale[:, columns]

            found = minimise_columns(scaled, params / scale, tolerance=tolerance, max_iterations=_MAX_ITERATIONS)
        else:  # the classes are one problem

            def joint(tried: np.ndarray, _: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
                values, gradient = self._evaluate(tried.reshape(scale.shape) * scale, l2, slice(None))
                return values.sum(keepdims=True), (gradient * scale).reshape(-1, 1)

            flat = (params / scale).reshape(-1, 1)
            found = minimise_columns(joint, flat, tolerance=tolerance, max_iterations=_MAX_ITERATIONS)
        return np.asarray(found.reshape(scale.shape) * scale)

    def _scale(self, params: np.ndarray, l2: float) -> np.ndarray:
        """Return the (K + 1, C) preconditioner: 1 / sqrt of about the curvature at `params`."""
        logits = self._logits(params)
        _, residual = _LOSSES[self._link](logits, self._targets)
        probs = residual + self._targets
        curvature = np.maximum((probs * (1 - probs)).mean(axis=0, dtype=np.float64), _SMALLEST_CURVATURE)[None]
        return np.concatenate([self._energies[:, None] * curvature + l2, curvature]) ** -0.5

    def _logits(self, params: np.ndarray) -> np.ndarray:
        return np.asarray(self._rows @ params[:-1].astype(np.float32) + params[-1].astype(np.float32))

    def _evaluate(self, params: np.ndarray, l2: float, columns: np.ndarray | slice) -> tuple[np.ndarray, np.ndarray]:
        """Return values (P,) and gradient (K + 1, P) of some classes at their parameters, (K + 1, P)."""
        losses, residual = _LOSSES[self._link](self._logits(params), self._targets[:, columns])
        if self._row_weights is not None:
            losses *= self._row_weights[:, columns]
            residual *= self._row_weights[:, columns]
        num_rows = len(losses)
        values = losses.sum(axis=0, dtype=np.float64) / num_rows + 0.5 * l2 * np.square(params[:-1]).sum(axis=0)
        gradient = np.empty_like(params)
        gradient[:-1] = self._rows.T @ residual / num_rows + l2 * params[:-1]
        gradient[-1] = residual.sum(axis=0, dtype=np.float64) / num_rows
        return values, gradient


def _sigmoid_loss(logits: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return log-loss and probability minus target, (N, C) each."""
    tail = np.exp(-np.abs(logits))
    losses = np.log1p(tail) + np.maximum(logits, 0.0) - targets * logits
    probs = np.where(logits >= 0, 1.0, tail) / (1.0 + tail)
    return losses, probs - targets


def _softmax_loss(logits: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    shifted = logits - logits.max(axis=1, keepdims=True)
    powers = np.exp(shifted)
    total = powers.sum(axis=1, keepdims=True)
    return targets * (np.log(total) - shifted), powers / total - targets


_LOSSES = {"sigmoid": _sigmoid_loss, "softmax": _softmax_loss}
