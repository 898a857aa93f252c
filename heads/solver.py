"""Logistic regression of many classes at once: L-BFGS in the principal axes of the training rows.

The objective is the mean log-loss over rows, summed over classes, plus l2 / 2 times the squared weights; the bias is
free. Rotating the rows to their principal axes leaves the penalty as it is and makes the curvature nearly diagonal,
so that one eigendecomposition preconditions every class and every l2, and a dozen or two iterations are enough.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from scipy.linalg import eigh
from scipy.special import expit, softmax

from talstack.heads.lbfgs import minimise_columns

Link = Literal["sigmoid", "softmax"]

TOLERANCE = (
    1e-3  # largest entry of the preconditioned gradient: the objective is then within 0.1 % or so of its optimum
)
_MAX_ITERATIONS = 300
_SMALLEST_CURVATURE = 1e-6
_BLOCK_ROWS = 2048


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
    def of(
        cls, rows: np.ndarray, *, floor: float, scale: np.ndarray | None = None, gram: np.ndarray | None = None
    ) -> "Axes":
        """Return the axes of the (N, D) float32 rows whose energy exceeds `floor`; at least one.

        Args:
            scale: (D,) float32, what the columns are multiplied by before.
            gram: `mean_products(rows)`, where it is known.
        """
        few = len(rows) < rows.shape[1]  # then the rows' own products are the smaller matrix with the same energies
        if few and scale is not None:
            rows = rows * scale
        if few:
            gram = rows @ rows.T / np.float32(len(rows))
        else:
            gram = mean_products(rows) if gram is None else gram.copy()
            if scale is not None:
                gram *= np.outer(scale, scale)
        # float32 and divide and conquer, for speed: most of the time goes here where rows are few, and axes need not be
        # exact to precondition (docs/decisions, 16)
        energies, vectors = eigh(gram, driver="evd", overwrite_a=True, check_finite=False)
        keep = energies > max(floor, energies[-1] * 1e-6, 1e-12)  # below this float32 holds noise
        keep[-1] = True
        energies, vectors = np.maximum(energies[keep][::-1], 1e-12), vectors[:, keep][:, ::-1]
        if few:
            vectors = rows.T @ vectors / np.sqrt(energies * len(rows)).astype(np.float32)
        return cls(np.ascontiguousarray(vectors), energies)

    def leading(self, most: int, *, floor: float = 0.0) -> "Axes":
        """Return the axes of most energy, so many at most, of those with an energy above `floor`; at least one."""
        count = min(most, max(1, int((self.energies > floor).sum())))
        return Axes(np.ascontiguousarray(self.vectors[:, :count]), self.energies[:count])


def mean_products(rows: np.ndarray) -> np.ndarray:
    """Return the mean product of every two columns of (N, D) rows, (D, D)."""
    return rows.T @ rows / np.float32(len(rows))


@dataclass(frozen=True, slots=True, eq=False)
class Weights:
    """One solution: logits = rows @ weights + bias, (D, C) and (C,) float32."""

    weights: np.ndarray
    bias: np.ndarray

    def logits(self, rows: np.ndarray) -> np.ndarray:
        """Return the (N, C) float32 logits of (N, D) rows."""
        return np.asarray(rows @ self.weights + self.bias)


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Some of the rows of a regression, as slices of arrays that are shared with other selections.

    Attributes:
        rows: (N, K) float32, columns about uncorrelated and of zero mean, such as rows along their `Axes`; any (N, D)
            where the axes are given.
        targets: (N, C) bool. Under softmax every row has one class.
        row_weights: (N, C) float32 with mean about one; None for all one.
        parts: which rows count.
        axes: solutions are sought along these: for a dozen passes over the rows that is cheaper than to rotate them.
    """

    rows: np.ndarray
    targets: np.ndarray
    row_weights: np.ndarray | None
    parts: tuple[slice, ...]
    axes: Axes | None = None

    @classmethod
    def all_of(
        cls, rows: np.ndarray, targets: np.ndarray, row_weights: np.ndarray | None = None, axes: Axes | None = None
    ) -> "Rows":
        """Return all the rows."""
        return cls(rows, targets, row_weights, (slice(0, len(rows)),), axes)

    def only(self, parts: Sequence[slice]) -> "Rows":
        """Return the rows of these slices."""
        return replace(self, parts=tuple(parts))

    @property
    def width(self) -> int:
        """How many weights a solution has per class."""
        return self.rows.shape[1] if self.axes is None else self.axes.vectors.shape[1]

    def energies(self) -> np.ndarray:
        """Return the mean square of the rows along each axis, (K,) float64."""
        if self.axes is not None:
            return self.axes.energies
        squared = sum(np.einsum("ij,ij->j", self.rows[part], self.rows[part]) for part in self.blocks())
        return np.asarray(squared, dtype=np.float64) / self.num_rows

    def by_column(self, weights: np.ndarray) -> np.ndarray:
        """Return weights along the axes, (K, P), as those of the rows' columns."""
        return weights if self.axes is None else self.axes.vectors @ weights

    def by_axis(self, gradient: np.ndarray) -> np.ndarray:
        """Return a gradient for the rows' columns as one along the axes, (K, P)."""
        return gradient if self.axes is None else self.axes.vectors.T @ gradient

    @property
    def num_rows(self) -> int:
        """How many count."""
        return sum(part.stop - part.start for part in self.parts)

    @property
    def num_positives(self) -> np.ndarray:
        """How many of them each class has, (C,) int64."""
        return np.asarray(sum(self.targets[part].sum(axis=0) for part in self.parts))

    def blocks(self) -> Iterator[slice]:
        """Yield slices of a size whose logits stay in the cache of a core."""
        for part in self.parts:
            for start in range(part.start, part.stop, _BLOCK_ROWS):
                yield slice(start, min(start + _BLOCK_ROWS, part.stop))


def logistic_path(
    rows: Rows,
    l2s: Iterable[float],
    *,
    link: Link,
    columns: np.ndarray | None = None,
    start: Weights | None = None,
    tolerance: float = TOLERANCE,
) -> Iterator[Weights]:
    """Yield the solution of each l2; in descending order they are fastest, as each starts from the one before.

    Args:
        rows: what is learned from.
        l2s: penalties, > 0.
        columns: (P,) int, the classes to be learned, of which none is constant; None for all.
        start: where the first solution is sought from; None for zero.
    """
    loss = _Loss(rows, np.arange(rows.targets.shape[1]) if columns is None else columns, link)
    params = loss.zero() if start is None else np.concatenate([start.weights, start.bias[None]]).astype(np.float64)
    for l2 in l2s:
        params = loss.minimise(params, l2, tolerance)
        yield Weights(params[:-1].astype(np.float32), params[-1].astype(np.float32))


class _Loss:
    """The objective over parameters (K + 1, P): weights along the axes, and the bias as last row."""

    def __init__(self, rows: Rows, columns: np.ndarray, link: Link) -> None:
        self._rows, self._columns, self._link = rows, columns, link
        self._num_rows, self._energies = rows.num_rows, rows.energies()

    def zero(self) -> np.ndarray:
        """Return zero weights and the bias that gives each class its rate."""
        rate = np.clip(self._rows.num_positives[self._columns] / self._num_rows, 1e-6, 1 - 1e-6)
        bias = np.log(rate / (1 - rate)) if self._link == "sigmoid" else np.log(rate)
        return np.concatenate([np.zeros((self._rows.width, len(bias))), bias[None]])

    def minimise(self, params: np.ndarray, l2: float, tolerance: float) -> np.ndarray:
        """Return the minimiser for one l2, sought from `params`, (K + 1, P)."""
        scale = self._scale(params, l2)
        if self._link == "sigmoid":  # every class is a problem of its own

            def scaled(tried: np.ndarray, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
                values, gradient = self._evaluate(tried * scale[:, chosen], l2, self._columns[chosen])
                return values, gradient * scale[:, chosen]

            found = minimise_columns(scaled, params / scale, tolerance=tolerance, max_iterations=_MAX_ITERATIONS)
        else:  # the classes are one problem

            def joint(tried: np.ndarray, _: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
                values, gradient = self._evaluate(tried.reshape(scale.shape) * scale, l2, self._columns)
                return values.sum(keepdims=True), (gradient * scale).reshape(-1, 1)

            flat = (params / scale).reshape(-1, 1)
            found = minimise_columns(joint, flat, tolerance=tolerance, max_iterations=_MAX_ITERATIONS)
        return np.asarray(found.reshape(scale.shape) * scale)

    def _scale(self, params: np.ndarray, l2: float) -> np.ndarray:
        """Return the (K + 1, P) preconditioner: 1 / sqrt of about the curvature at `params`."""
        single, curvature = params.astype(np.float32), np.zeros(params.shape[1])
        across = self._rows.by_column(single[:-1])
        for part in self._rows.blocks():
            probs = PROBS[self._link](self._rows.rows[part] @ across + single[-1])
            curvature += (probs * (1 - probs)).sum(axis=0, dtype=np.float64)
        curvature = np.maximum(curvature / self._num_rows, _SMALLEST_CURVATURE)[None]
        return np.concatenate([self._energies[:, None] * curvature + l2, curvature]) ** -0.5

    def _evaluate(self, params: np.ndarray, l2: float, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return values (P,) and gradient (K + 1, P) of some classes at their parameters, (K + 1, P)."""
        single = params.astype(np.float32)
        values, bias = np.zeros(params.shape[1]), np.zeros(params.shape[1])
        across = self._rows.by_column(single[:-1])
        weights = np.zeros_like(across)
        for part in self._rows.blocks():
            rows = self._rows.rows[part]
            losses, residual = LOSSES[self._link](rows @ across + single[-1], self._rows.targets[part][:, columns])
            if self._rows.row_weights is not None:
                losses *= self._rows.row_weights[part][:, columns]
                residual *= self._rows.row_weights[part][:, columns]
            values += losses.sum(axis=0, dtype=np.float64)
            bias += residual.sum(axis=0, dtype=np.float64)
            weights += rows.T @ residual
        values = values / self._num_rows + 0.5 * l2 * np.square(params[:-1]).sum(axis=0)
        weights = self._rows.by_axis(weights)
        return values, np.concatenate([weights / self._num_rows + l2 * params[:-1], bias[None] / self._num_rows])


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


def _softmax_probs(logits: np.ndarray) -> np.ndarray:
    return softmax(logits, axis=1) if logits.shape[1] else logits  # over no class at all it is an error in scipy


LOSSES = {"sigmoid": _sigmoid_loss, "softmax": _softmax_loss}
PROBS = {"sigmoid": expit, "softmax": _softmax_probs}
