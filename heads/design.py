"""The design matrix: from the stored features of a (view, modality) to the rows that a head learns from.

Features are standardised and reduced to principal components; the backbone's own log-probabilities are appended;
then comes the context of neighbouring segments (activity, action) or the mean, maximum and standard deviation over
the recording (scene); last, every column is standardised again and cut at `clip`. Everything that is fitted is
fitted on the training rows alone.
"""

from dataclasses import dataclass

import numpy as np

from talstack.heads.context import context_rows, num_blocks
from talstack.heads.features import GroupFeatures
from talstack.heads.solver import Axes
from talstack.io.predictions import SegmentIndex

_SMALLEST_STD = 1e-6  # columns that vary less are constant: they become zero instead of noise
_WIDE_CLIP = 6.0
_NUM_POOLED = 3  # mean, maximum, standard deviation
_BLOCK_ROWS = 16_384  # rows standardised at a time: bounds the float32 copy of wide features


@dataclass(frozen=True, slots=True)
class DesignSettings:
    """What the rows hold.

    Attributes:
        pooled: one row per recording instead of one per segment.
        components: principal components kept at most; 0 for the features as they are.
        rotate: take principal components even of features that are no wider than `components`.
        whitening: how far the components' sizes are made equal: 0 keeps their proportions, 1 makes them equal. It
            matters to penalised learners only.
        windows: context windows in segments.
        squares: squared columns beside the columns.
        clip: standardised columns are cut at this many standard deviations.
    """

    pooled: bool
    components: int
    windows: tuple[int, ...]
    clip: float
    rotate: bool = False
    whitening: float = 1.0
    squares: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Scaler:
    """Standardises columns: (rows - mean) / std, cut at `clip`."""

    mean: np.ndarray
    std: np.ndarray
    clip: float

    @classmethod
    def of(cls, rows: np.ndarray, clip: float) -> "Scaler":
        """Return the scaler of these training rows, (N, D)."""
        mean = rows.mean(axis=0, dtype=np.float64)
        std = rows.std(axis=0, dtype=np.float64)
        return cls(mean.astype(np.float32), np.where(std > _SMALLEST_STD, std, np.inf).astype(np.float32), clip)

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """Return the standardised rows, (N, D) float32; a column without variation is zero."""
        scaled = (rows.astype(np.float32) - self.mean) / self.std
        return np.asarray(np.clip(scaled, -self.clip, self.clip))


@dataclass(frozen=True, slots=True, eq=False)
class Reduction:
    """From stored features to principal components.

    Attributes:
        scaler: of the stored features.
        axes: (D, K) float32 principal axes, each divided by the components' standard deviation; None for none.
        gains: (K,) float32, the size that each finished component gets back, mean square one.
    """

    scaler: Scaler
    axes: np.ndarray | None
    gains: np.ndarray

    @classmethod
    def of(cls, features: np.ndarray, settings: DesignSettings) -> "Reduction":
        """Return the reduction fitted on these training rows, (N, D) float16."""
        # before components are taken only what would drown all else is cut
        scaler = Scaler.of(features.astype(np.float32), _WIDE_CLIP)
        width, wanted = features.shape[1], settings.components
        if not wanted or (width <= wanted and not settings.rotate):
            return cls(scaler, None, np.ones(width, np.float32))
        axes = Axes.of(scaler(features), floor=0.0)
        energies = axes.energies[:wanted]
        gains = energies ** ((1.0 - settings.whitening) / 2.0)
        gains /= np.sqrt(np.square(gains).mean())
        scaled = axes.vectors[:, :wanted] / np.sqrt(energies).astype(np.float32)
        return cls(scaler, scaled, gains.astype(np.float32))

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Return the (N, K) float32 components."""
        starts = range(0, max(len(features), 1), _BLOCK_ROWS)
        blocks = [self.scaler(features[start : start + _BLOCK_ROWS]) for start in starts]
        return np.concatenate([block if self.axes is None else block @ self.axes for block in blocks])


@dataclass(frozen=True, slots=True, eq=False)
class Design:
    """A fitted design.

    Attributes:
        settings: what the rows hold.
        reduction: of the stored features.
        columns: scaler of the finished columns.
        squared: scaler of their squares, where these are used.
    """

    settings: DesignSettings
    reduction: Reduction
    columns: Scaler
    squared: Scaler | None

    @classmethod
    def fit(cls, group: GroupFeatures, settings: DesignSettings) -> "Design":
        """Return the design fitted on the valid rows, one at least, of a group of training recordings alone."""
        reduction = Reduction.of(group.features[group.valid], settings)
        finished, valid = _finish(group, reduction, settings)
        columns = Scaler.of(finished[valid], settings.clip)
        squared = Scaler.of(columns(finished[valid]) ** 2, settings.clip) if settings.squares else None
        return cls(settings, reduction, columns, squared)

    def rows(self, group: GroupFeatures) -> tuple[np.ndarray, np.ndarray]:
        """Return (rows, valid): (N, P) float32 and (N,) bool by segment, or by recording where pooled."""
        finished, valid = _finish(group, self.reduction, self.settings)
        rows = self.columns(finished)
        num_own = finished.shape[1] // self._num_blocks - len(self.reduction.gains)  # the backbone's own columns
        gains = np.tile(np.concatenate([self.reduction.gains, np.ones(num_own, np.float32)]), self._num_blocks)
        if self.squared is None:
            rows *= gains
        else:
            rows = np.concatenate([rows * gains, self.squared(rows**2) * gains], axis=1)
        rows[~valid] = 0.0
        return rows, valid

    @property
    def _num_blocks(self) -> int:
        return _NUM_POOLED if self.settings.pooled else num_blocks(self.settings.windows)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the fitted arrays by name."""
        reduction = self.reduction
        arrays = {"raw.mean": reduction.scaler.mean, "raw.std": reduction.scaler.std, "gains": reduction.gains}
        arrays |= {"columns.mean": self.columns.mean, "columns.std": self.columns.std}
        if reduction.axes is not None:
            arrays["axes"] = reduction.axes
        if self.squared is not None:
            arrays |= {"squared.mean": self.squared.mean, "squared.std": self.squared.std}
        return arrays

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray], settings: DesignSettings) -> "Design":
        """Return the design of `arrays()`.

        Raises:
            KeyError: an array is missing.
        """
        scaler = Scaler(arrays["raw.mean"], arrays["raw.std"], _WIDE_CLIP)
        return cls(
            settings,
            Reduction(scaler, arrays.get("axes"), arrays["gains"]),
            Scaler(arrays["columns.mean"], arrays["columns.std"], settings.clip),
            Scaler(arrays["squared.mean"], arrays["squared.std"], settings.clip) if settings.squares else None,
        )


def _finish(group: GroupFeatures, reduction: Reduction, settings: DesignSettings) -> tuple[np.ndarray, np.ndarray]:
    """Return the columns before their last scaling, and which rows are valid."""
    own = [group.log_probs, group.scene_log_probs] if settings.pooled else [group.log_probs]
    reduced = np.concatenate([reduction(group.features), *own], axis=1)
    if settings.pooled:
        return pool_rows(reduced, group.valid, index=group.index)
    return context_rows(reduced, group.valid, index=group.index, windows=settings.windows), group.valid


def pool_rows(rows: np.ndarray, valid: np.ndarray, *, index: SegmentIndex) -> tuple[np.ndarray, np.ndarray]:
    """Return ((R, 3 * D) float32 mean, maximum and standard deviation of each recording's valid rows, (R,) bool)."""
    pooled = np.zeros((len(index.recordings), 3 * rows.shape[1]), dtype=np.float32)
    there = np.zeros(len(index.recordings), dtype=bool)
    for i, (_, part) in enumerate(index.slices()):
        own = rows[part][valid[part]]
        if len(own):
            pooled[i], there[i] = np.concatenate([own.mean(axis=0), own.max(axis=0), own.std(axis=0)]), True
    return pooled, there
