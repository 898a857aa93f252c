"""From stored features to principal components: the one pass over the wide matrix.

Nothing wide is ever held beside the stored float16 features but blocks of them and a sample of rows for the axes, so
250,000 segments of 2048 columns (1 GB) need little more than that. Everything is fitted on the rows given.
"""

from dataclasses import dataclass

import numpy as np

from talstack.heads.solver import Axes

_SMALLEST_STD = 1e-6  # columns that vary less are constant: they become zero instead of noise
_WIDE_CLIP = 6.0  # before components are taken only what would drown all else is cut
_BLOCK_ROWS = 4096  # rows in float32 at a time
_AXES_ROWS = 16_384  # rows, evenly spread, that the axes are found on: neighbouring segments say nearly the same
_WIDE = 512  # from this width on a few leading axes are cheaper to find by themselves than among all
_OVERSAMPLING, _POWER_ITERATIONS = 32, 4


@dataclass(frozen=True, slots=True, eq=False)
class Scaler:
    """Standardises columns: (rows - mean) / std, cut at `clip`."""

    mean: np.ndarray
    std: np.ndarray
    clip: float

    @classmethod
    def of(cls, rows: np.ndarray, clip: float, *, where: np.ndarray | None = None) -> "Scaler":
        """Return the scaler of these training rows, (N, D); of those at positions `where` if given."""
        num_rows = len(rows) if where is None else len(where)
        shift = rows[0 if where is None else where[0]].astype(np.float64)  # keeps the sum of squares exact
        total, squared = np.zeros(rows.shape[1]), np.zeros(rows.shape[1])
        for start in range(0, num_rows, _BLOCK_ROWS):
            part = slice(start, start + _BLOCK_ROWS)
            block = rows[part if where is None else where[part]] - shift.astype(np.float32)
            total += block.sum(axis=0, dtype=np.float64)
            squared += np.einsum("ij,ij->j", block, block)
        mean = total / num_rows
        std = np.sqrt(np.maximum(squared / num_rows - mean**2, 0.0))
        std = np.where(std > _SMALLEST_STD, std, np.inf)
        return cls((mean + shift).astype(np.float32), std.astype(np.float32), clip)

    def __call__(self, rows: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Return the standardised rows, (N, D) float32, in `out` if given; a column without variation is zero."""
        scaled = np.subtract(rows, self.mean, out=out, dtype=np.float32)
        scaled /= self.std
        return np.asarray(np.clip(scaled, -self.clip, self.clip, out=scaled))


@dataclass(frozen=True, slots=True, eq=False)
class Reduction:
    """A fitted reduction.

    Attributes:
        scaler: of the stored features.
        axes: (D, K) float32 principal axes, each divided by the components' standard deviation; None for none.
        energies: (K,) float32, mean square of the rows along each axis, descending; ones without axes.
    """

    scaler: Scaler
    axes: np.ndarray | None
    energies: np.ndarray

    @classmethod
    def of(cls, features: np.ndarray, rows: np.ndarray, *, components: int, rotate: bool = True) -> "Reduction":
        """Return the reduction fitted on some rows of the features.

        Args:
            features: (N, D) float16 or float32.
            rows: (n,) int64, positions of the training rows, one at least.
            components: principal components kept at most; 0 for the features as they are.
            rotate: take principal components even of features that are no wider than `components`.
        """
        scaler = Scaler.of(features, _WIDE_CLIP, where=rows)
        width = features.shape[1]
        if not components or (width <= components and not rotate):
            return cls(scaler, None, np.ones(width, np.float32))
        step = -(-len(rows) // _AXES_ROWS)
        axes = _leading_axes(scaler(features[rows[::step]]), components)
        return cls(scaler, axes.vectors / np.sqrt(axes.energies).astype(np.float32), axes.energies.astype(np.float32))

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Return the (N, K) float32 components."""
        out = np.empty((len(features), len(self.energies)), dtype=np.float32)
        for start in range(0, len(features), _BLOCK_ROWS):
            part = slice(start, start + _BLOCK_ROWS)
            block = self.scaler(features[part])
            out[part] = block if self.axes is None else block @ self.axes
        return out

    def leading(self, components: int) -> "Reduction":
        """Return the reduction to the first components; to all where `components` is 0."""
        if self.axes is None or not components:
            return self
        return Reduction(self.scaler, self.axes[:, :components], self.energies[:components])

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the fitted arrays by name."""
        arrays = {"raw.mean": self.scaler.mean, "raw.std": self.scaler.std, "energies": self.energies}
        return arrays if self.axes is None else {**arrays, "axes": self.axes}

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> "Reduction":
        """Return the reduction of `arrays()`.

        Raises:
            KeyError: an array is missing.
        """
        scaler = Scaler(arrays["raw.mean"], arrays["raw.std"], _WIDE_CLIP)
        return cls(scaler, arrays.get("axes"), arrays["energies"])


def _leading_axes(rows: np.ndarray, components: int) -> Axes:
    """Return the first principal axes of (N, D) rows; Halko et al. 2011 where all of them would cost too much."""
    if min(rows.shape) < max(_WIDE, 4 * components):
        axes = Axes.of(rows, floor=0.0)
        return Axes(axes.vectors[:, :components], axes.energies[:components])
    from sklearn.utils.extmath import randomized_svd  # half a second, and most jobs find their axes made

    _, values, vectors = randomized_svd(
        rows, components, n_oversamples=_OVERSAMPLING, n_iter=_POWER_ITERATIONS, random_state=0
    )
    keep = values > values[0] * 3e-4  # below this float32 holds noise
    energies = np.square(values[keep], dtype=np.float64) / len(rows)
    return Axes(np.ascontiguousarray(vectors[keep].T), energies)
