"""Logistic regression of many classes at once: L-BFGS in the principal axes of the training rows.

The objective is the mean log-loss over rows, summed over classes, plus l2 / 2 times the squared weights; the bias is
free. Rotating the rows to their principal axes leaves the penalty as it is and makes the curvature nearly diagonal,
so that one eigendecomposition preconditions every class and every l2, and a dozen or two iterations are enough. Rows
that are looked at a few times only are not rotated: there the leading axes precondition, and nothing is left out.
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
_OVERSAMPLING, _POWER_ITERATIONS = 32, 2


@dataclass(frozen=True, slots=True, eq=False)
class Axes:
    """The principal axes of some rows.

    Attributes:
        vectors: (D, K) float32, orthonormal columns.
        energies: (K,) float64, mean square of the rows along each axis, descending.
        rest: mean square of the rows along a direction across all of them, on average.
    """

    vectors: np.ndarray
    energies: np.ndarray
    rest: float = 0.0

    @classmethod
    def of(
        cls,
        rows: np.ndarray,
        *,
        floor: float,
        scale: np.ndarray | None = None,
        gram: np.ndarray | None = None,
        most: int | None = None,
    ) -> "Axes":
        """Return the axes of the (N, D) float32 rows whose energy exceeds `floor`; at least one.

        Args:
            scale: (D,) float32, what the columns are multiplied by before.
            gram: `mean_products(rows)`, where it is known.
            most: so many of most energy; where they are few among many columns they are not quite exact.
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
        total, width = float(np.trace(gram)), rows.shape[1]
        energies, vectors = _eigen(gram, most)
        keep = energies > max(floor, energies[0] * 1e-6, 1e-12)  # below this float32 holds noise
        keep[0] = True
        keep[len(keep) if most is None else most :] = False
        energies, vectors = np.maximum(energies[keep], 1e-12), vectors[:, keep]
        if few:
            vectors = rows.T @ vectors / np.sqrt(energies * len(rows)).astype(np.float32)
        rest = max(0.0, total - float(energies.sum())) / max(1, width - len(energies))
        return cls(np.ascontiguousarray(vectors), energies, rest)

    def leading(self, most: int, *, floor: float = 0.0) -> "Axes":
        """Return the axes of most energy, so many at most, of those with an energy above `floor`; at least one."""
        count = min(most, max(1, int((self.energies > floor).sum())))
        left, num_rest = float(self.energies[count:].sum()), self.vectors.shape[0] - len(self.energies)
        rest = (left + self.rest * num_rest) / max(1, num_rest + len(self.energies) - count)
        return Axes(np.ascontiguousarray(self.vectors[:, :count]), self.energies[:count], rest)


def _eigen(gram: np.ndarray, most: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Return (K,) eigenvalues, descending, and (D, K) vectors of a (D, D) matrix, which is used up.

    In float32, since axes need not be exact to precondition (docs/decisions, 16): all of them by divide and conquer, or
    a small share by subspace iteration (Halko et al. 2011).
    """
    wanted = len(gram) if most is None else most + _OVERSAMPLING
    if 2 * wanted <= len(gram):
        basis = np.random.default_rng(0).standard_normal((len(gram), wanted), dtype=np.float32)
        for _ in range(_POWER_ITERATIONS):
            basis = np.linalg.qr(gram @ basis)[0]
        energies, vectors = eigh(basis.T @ (gram @ basis), driver="evd", overwrite_a=True, check_finite=False)
        vectors = basis @ vectors
    else:
        energies, vectors = eigh(gram, driver="evd", overwrite_a=True, check_finite=False)
    return energies[::-1], vectors[:, ::-1]


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
        rows: (N, D) float32, columns about uncorrelated and of zero mean, such as rows along their `Axes`; any where
            the axes are given.
        targets: (N, C) bool. Under softmax every row has one class.
        row_weights: (N, C) float32 with mean about one; None for all one.
        parts: which rows count.
        axes: of the rows, scaled, where they are not along them: for a dozen passes over the rows it is cheaper to
            let these precondition than to rotate the rows.
        scale: (D,) float32, what the columns are multiplied by; None for nothing.
    """

    rows: np.ndarray
    targets: np.ndarray
    row_weights: np.ndarray | None
    parts: tuple[slice, ...]
    axes: Axes | None = None
    scale: np.ndarray | None = None

    @classmethod
    def all_of(
        cls,
        rows: np.ndarray,
        targets: np.ndarray,
        row_weights: np.ndarray | None = None,
        axes: Axes | None = None,
        scale: np.ndarray | None = None,
    ) -> "Rows":
        """Return all the rows."""
        return cls(rows, targets, row_weights, (slice(0, len(rows)),), axes, scale)

    def only(self, parts: Sequence[slice]) -> "Rows":
        """Return the rows of these slices."""
        return replace(self, parts=tuple(parts))

    def energies(self) -> np.ndarray:
        """Return the mean square of each column, (D,) float64."""
        squared = sum(np.einsum("ij,ij->j", self.rows[part], self.rows[part]) for part in self.blocks())
        return np.asarray(squared, dtype=np.float64) / self.num_rows

    def scaled(self, weights: np.ndarray) -> np.ndarray:
        """Return weights of the scaled columns, (D, P), as those of the columns; a gradient the other way round."""
        return weights if self.scale is None else weights * self.scale[:, None]

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


@dataclass(frozen=True, slots=True, eq=False)
class _Preconditioner:
    """A symmetric matrix per class, about the inverse square root of the curvature.

    Attributes:
        columns: (D, P), or (1, P) where the axes are given and this is what counts across them.
        bias: (P,), the same for the bias.
        axes: (D, K) float32; None where the columns themselves are the axes.
        along: (K, P), along the axes.
    """

    columns: np.ndarray
    bias: np.ndarray
    axes: np.ndarray | None = None
    along: np.ndarray | None = None

    def only(self, chosen: np.ndarray) -> "_Preconditioner":
        """Return that of some classes."""
        along = None if self.along is None else self.along[:, chosen]
        return _Preconditioner(self.columns[:, chosen], self.bias[chosen], self.axes, along)

    def inverse(self) -> "_Preconditioner":
        """Return what undoes it."""
        return _Preconditioner(
            1 / self.columns, 1 / self.bias, self.axes, None if self.along is None else 1 / self.along
        )

    def __call__(self, params: np.ndarray) -> np.ndarray:
        """Return the (D + 1, P) parameters or gradient, multiplied; the bias is the last row."""
        out = np.concatenate([params[:-1] * self.columns, params[-1:] * self.bias])
        if self.axes is not None and self.along is not None:
            single = params[:-1].astype(np.float32)
            out[:-1] += self.axes @ ((self.along - self.columns).astype(np.float32) * (self.axes.T @ single))
        return out


class _Loss:
    """The objective over parameters (D + 1, P): weights of the scaled columns, and the bias as last row."""

    def __init__(self, rows: Rows, columns: np.ndarray, link: Link) -> None:
        self._rows, self._columns, self._link = rows, columns, link
        self._num_rows = rows.num_rows
        self._energies = rows.energies() if rows.axes is None else rows.axes.energies

    def zero(self) -> np.ndarray:
        """Return zero weights and the bias that gives each class its rate."""
        rate = np.clip(self._rows.num_positives[self._columns] / self._num_rows, 1e-6, 1 - 1e-6)
        bias = np.log(rate / (1 - rate)) if self._link == "sigmoid" else np.log(rate)
        return np.concatenate([np.zeros((self._rows.rows.shape[1], len(bias))), bias[None]])

    def minimise(self, params: np.ndarray, l2: float, tolerance: float) -> np.ndarray:
        """Return the minimiser for one l2, sought from `params`, (D + 1, P)."""
        scale = self._preconditioner(params, l2)
        start, shape = scale.inverse()(params), params.shape
        if self._link == "sigmoid":  # every class is a problem of its own

            def scaled(tried: np.ndarray, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
                own = scale.only(chosen)
                values, gradient = self._evaluate(own(tried), l2, self._columns[chosen])
                return values, own(gradient)

            found = minimise_columns(scaled, start, tolerance=tolerance, max_iterations=_MAX_ITERATIONS)
        else:  # the classes are one problem

            def joint(tried: np.ndarray, _: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
                values, gradient = self._evaluate(scale(tried.reshape(shape)), l2, self._columns)
                return values.sum(keepdims=True), scale(gradient).reshape(-1, 1)

            flat = start.reshape(-1, 1)
            found = minimise_columns(joint, flat, tolerance=tolerance, max_iterations=_MAX_ITERATIONS)
        return scale(found.reshape(shape))

    def _preconditioner(self, params: np.ndarray, l2: float) -> _Preconditioner:
        """Return the inverse square root of about the curvature at `params`, (D + 1, P)."""
        single, curvature = params.astype(np.float32), np.zeros(params.shape[1])
        weights = self._rows.scaled(single[:-1])
        for part in self._rows.blocks():
            probs = PROBS[self._link](self._rows.rows[part] @ weights + single[-1])
            curvature += (probs * (1 - probs)).sum(axis=0, dtype=np.float64)
        curvature = np.maximum(curvature / self._num_rows, _SMALLEST_CURVATURE)
        along, bias, axes = (self._energies[:, None] * curvature + l2) ** -0.5, curvature**-0.5, self._rows.axes
        if axes is None:
            return _Preconditioner(along, bias)
        return _Preconditioner((axes.rest * curvature[None] + l2) ** -0.5, bias, axes.vectors, along)

    def _evaluate(self, params: np.ndarray, l2: float, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return values (P,) and gradient (D + 1, P) of some classes at their parameters, (D + 1, P)."""
        single = params.astype(np.float32)
        values, bias = np.zeros(params.shape[1]), np.zeros(params.shape[1])
        weights = self._rows.scaled(single[:-1])
        gradient = np.zeros_like(weights)
        for part in self._rows.blocks():
            rows = self._rows.rows[part]
            losses, residual = LOSSES[self._link](rows @ weights + single[-1], self._rows.targets[part][:, columns])
            if self._rows.row_weights is not None:
                losses *= self._rows.row_weights[part][:, columns]
                residual *= self._rows.row_weights[part][:, columns]
            values += losses.sum(axis=0, dtype=np.float64)
            bias += residual.sum(axis=0, dtype=np.float64)
            gradient += rows.T @ residual
        values = values / self._num_rows + 0.5 * l2 * np.square(params[:-1]).sum(axis=0)
        gradient = self._rows.scaled(gradient) / self._num_rows + l2 * params[:-1]
        return values, np.concatenate([gradient, bias[None] / self._num_rows])


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
