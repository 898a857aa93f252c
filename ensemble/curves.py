"""Probability curves over the segments of recordings, read at any time.

The probability of a segment stands at the segment's centre and its logit is linear in between, constant before the
first and after the last. (Interpolating the probabilities themselves puts the ends of a confident curve half-way
between centres: 27 against 36 mAP at tIoU 0.95 for a stacker on mhad.) Means are taken over the same interpolated
curve, or runs that end at segment bounds would be preferred (45 against 52 there).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from talstack.ensemble.design import logits
from talstack.io.grid import SegmentGrid
from talstack.io.predictions import SegmentIndex

FINE = 8  # points per segment at which curves are integrated: contrast must see where in a segment a run ends


@dataclass(frozen=True, slots=True, eq=False)
class Curves:
    """Probabilities of one system over the segments of some recordings.

    Attributes:
        index: which recordings and segments the N rows are.
        action: (N, C) float, the probability that each action happens in the segment.
        activity: (N,) float, the probability of any action.
    """

    index: SegmentIndex
    action: np.ndarray
    activity: np.ndarray

    def __iter__(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yield every recording and its (S, 1 + C) float64 curves, activity first."""
        for recording, rows in self.index.slices():
            yield recording, np.column_stack([self.activity[rows], self.action[rows]]).astype(np.float64)

    def subset(self, recordings: list[str]) -> "Curves":
        """Return the curves of some of the recordings, in the order given."""
        rows = dict(self.index.slices())
        keep = np.concatenate([np.arange(rows[r].start, rows[r].stop) for r in recordings] or [np.zeros(0, np.int64)])
        return Curves(self.index.subset(recordings), self.action[keep], self.activity[keep])


class CurveMeans:
    """Means of curves over intervals, by the running integral of the curves read at `FINE` points per segment."""

    def __init__(self, values: np.ndarray, grid: SegmentGrid) -> None:
        self.grid = grid
        self._step_s = grid.segment_s / FINE
        self._logits = logits(values)
        self._values = _fine_curves(self._logits)
        start = np.zeros((1, values.shape[1]))
        self._integral = np.concatenate([start, np.cumsum(self._values, axis=0)]) * self._step_s

    def integral(self, times_s: np.ndarray, column: np.ndarray | slice) -> np.ndarray:
        """Return the integral from 0 to each time, seconds; beyond the last segment it stays as it is there.

        Args:
            column: one curve per time gives (n,); a slice of curves gives (n, k).
        """
        position = np.clip(times_s / self._step_s, 0.0, len(self._values))
        step = np.minimum(position.astype(np.int64), len(self._values) - 1)
        part_s = (position - step) * self._step_s
        if isinstance(column, slice):
            part_s = part_s[:, None]
        return self._integral[step, column] + self._values[step, column] * part_s

    def inside(self, intervals: np.ndarray, column: np.ndarray | slice) -> np.ndarray:
        """Return the mean over each interval, (n,) or (n, k)."""
        low, high = np.clip(intervals, 0.0, self.end_s).T
        length = np.maximum(high - low, 1e-9)
        total = self.integral(high, column) - self.integral(low, column)
        return total / (length[:, None] if isinstance(column, slice) else length)

    def contrast(self, intervals: np.ndarray, column: np.ndarray, margin: float) -> np.ndarray:
        """Return the mean inside minus the mean in the margins on either side, (n,), not below 0.

        A margin is `margin` times the interval's length, at least one segment, and ends at the recording's ends;
        an interval that fills the recording is contrasted with nothing.
        """
        start, end = np.clip(intervals, 0.0, self.end_s).T
        width = np.maximum(margin * (end - start), self.grid.segment_s)
        before, after = np.maximum(start - width, 0.0), np.minimum(end + width, self.end_s)
        outer = self.integral(after, column) - self.integral(end, column)
        outer += self.integral(start, column) - self.integral(before, column)
        length = after - end + start - before
        outside = np.where(length > 1e-9, outer / np.maximum(length, 1e-9), 0.0)
        return np.maximum(self.inside(intervals, column) - outside, 0.0)

    def logits_at(self, times_s: np.ndarray, column: np.ndarray) -> np.ndarray:
        """Return the interpolated logit of one curve per row, shaped as the (n, k) times; `column` is (n,)."""
        last = len(self._logits) - 1
        position = np.clip(times_s / self.grid.segment_s - 0.5, 0.0, last)
        left = np.minimum(position.astype(np.int64), max(last - 1, 0))
        right = np.minimum(left + 1, last)
        part = position - left
        return (1.0 - part) * self._logits[left, column[:, None]] + part * self._logits[right, column[:, None]]

    @property
    def end_s(self) -> float:
        """Where the last segment ends, seconds."""
        return len(self._values) * self._step_s


def _fine_curves(at_centres: np.ndarray) -> np.ndarray:
    """Return the curves of (S, K) logits at the middles of `FINE` equal parts of every segment, (S * FINE, K)."""
    num_segments = len(at_centres)
    position = np.clip((np.arange(num_segments * FINE) + 0.5) / FINE - 0.5, 0.0, num_segments - 1)
    left = np.minimum(position.astype(np.int64), max(num_segments - 2, 0))
    right = np.minimum(left + 1, num_segments - 1)
    part = (position - left)[:, None].astype(np.float32)
    return expit((1.0 - part) * at_centres[left] + part * at_centres[right]).astype(np.float64)
