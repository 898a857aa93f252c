"""Logistic regression of many classes at once: L-BFGS in the principal axes of the training rows.

The objective is the mean log-loss over rows, summed over classes, plus l2 / 2 times the squared weights; the bias is
free. Rotating the rows to their principal axes leaves the penalty as it is and makes the curvature nearly diagonal,
so that one eigendecomposition preconditions every class and every l2, and a few dozen iterations reach the optimum.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.linalg import eigh
from scipy.optimize import minimize

Link = Literal["sigmoid", "softmax"]

_MAX_ITERATIONS = 300
_GRADIENT_TOLERANCE = (
    1e-3  # in preconditioned units; a hundredth of it moves the optimum by 0.05 % and takes twice the time
)
_AXIS_FLOOR = 1e-3  # axes whose energy is below this share of the smallest l2 move a logit by about as little


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
        gram = (rows.T @ rows).astype(np.float64) / max(len(rows), 1)
        energies, vectors = eigh(gram, check_finite=False)
        keep = energies > max(floor, energies[-1] * 1e-7)  # below this float32 holds noise
        keep[-1] = True
        vectors = np.ascontiguousarray(vectors[:, keep][:, ::-1], dtype=np.float32)
        return cls(vectors, np.maximum(energies[keep][::-1], 1e-12))


@dataclass(frozen=True, slots=True, eq=False)
class Weights:
    """One solution: logits = rows @ weights + bias, (D, C) and (C,) float32."""

    weights: np.ndarray
    bias: np.ndarray

    def logits(self, rows: np.ndarray) -> np.ndarray:
        """Return the (N, C) float32 logits of (N, D) rows."""
        return np.asarray(rows @ self.weights + self.bias)


def logistic_path(
    rows: np.ndarray, targets: np.ndarray, l2s: Sequence[float], *, link: Link, row_weights: np.ndarray | None = None
) -> Iterator[Weights]:
    """Yield the solution of each l2; in descending order they are fastest, as each starts from the one before.

    Args:
        rows: (N, D) float32, columns of about zero mean and unit variance.
        targets: (N, C) bool; no column is constant. Under softmax every row has one class.
        l2s: penalties, > 0.
        row_weights: (N, C) float32 with mean about one; None for all one.
    """
    axes = Axes.of(rows, floor=_AXIS_FLOOR * min(l2s))
    loss = _Loss(rows @ axes.vectors, targets.astype(np.float32), link, row_weights)
    params = loss.start()
    for l2 in l2s:
        scale = loss.scale(axes.energies, l2)
        found = minimize(
            loss,
            (params / scale).ravel(),
            args=(scale, l2),
            jac=True,
            method="L-BFGS-B",
            options={
                "maxiter": _MAX_ITERATIONS,
                "maxfun": 2 * _MAX_ITERATIONS,
                "gtol": _GRADIENT_TOLERANCE,
                "ftol": 1e-10,
            },
        )
        params = found.x.reshape(scale.shape) * scale
        yield Weights(axes.vectors @ params[:-1].astype(np.float32), params[-1].astype(np.float32))


class _Loss:
    """The objective over parameters (K + 1, C): weights along the axes, and the bias as last row."""

    def __init__(self, rows: np.ndarray, targets: np.ndarray, link: Link, row_weights: np.ndarray | None) -> None:
        self._rows, self._targets, self._row_weights = rows, targets, row_weights
        self._loss_and_residual = _sigmoid_loss if link == "sigmoid" else _softmax_loss
        self._rate = np.clip(targets.mean(axis=0, dtype=np.float64), 1e-6, 1 - 1e-6)
        self._start = np.log(self._rate / (1 - self._rate)) if link == "sigmoid" else np.log(self._rate)

    def start(self) -> np.ndarray:
        """Return zero weights and the bias that gives each class its rate."""
        return np.concatenate([np.zeros((self._rows.shape[1], len(self._start))), self._start[None]])

    def scale(self, energies: np.ndarray, l2: float) -> np.ndarray:
        """Return the (K + 1, C) preconditioner: 1 / sqrt of the curvature at the start."""
        curvature = (self._rate * (1 - self._rate))[None, :]
        return np.concatenate([energies[:, None] * curvature + l2, curvature]) ** -0.5

    def __call__(self, flat: np.ndarray, scale: np.ndarray, l2: float) -> tuple[float, np.ndarray]:
        """Return value and gradient at `flat` * `scale`."""
        params = flat.reshape(scale.shape) * scale
        logits = self._rows @ params[:-1].astype(np.float32) + params[-1].astype(np.float32)
        losses, residual = self._loss_and_residual(logits, self._targets)
        if self._row_weights is not None:
            losses *= self._row_weights
            residual *= self._row_weights
        num_rows = len(logits)
        value = losses.sum(dtype=np.float64) / num_rows + 0.5 * l2 * np.square(params[:-1]).sum()
        gradient = np.empty_like(params)
        gradient[:-1] = self._rows.T @ residual / num_rows + l2 * params[:-1]
        gradient[-1] = residual.sum(axis=0, dtype=np.float64) / num_rows
        return value, (gradient * scale).ravel()


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
