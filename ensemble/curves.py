"""Probability curves over the segments of recordings, read at any time.

The probability of a segment stands at the segment's centre and its logit is linear in between, constant before the
first and after the last. (Interpolating the probabilities themselves puts the ends of a confident curve half-way
between centres: 27 against 36 mAP at tIoU 0.95 for a stacker on mhad.) Means are taken over the same interpolated
curve, or runs that end at segment bounds would be preferred (45 against 52 there).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from talstack.ensemble.design import logits
from talstack.io.predictions import SegmentIndex

FINE = 8  # points per segment at which curves are integrated: contrast must see where in a segment a run ends
LEAST = 1e-3  # of a segment: over less, differences of integrals are noise


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
    """The curves of some recordings, laid end to end, with their running integrals; `at` reads them.

    Attributes:
        values: the (S, K) curves of every recording.
        num_segments, first, durations_s: of every recording, where it begins among the segments, and its seconds.
        logits: (N, K) float32.
        within: (N * (FINE + 1), K) float32, sum of a segment's fine steps up to each, from none to all.
        before: (N, K) float64, sum of the fine steps of a recording's segments up to each.
    """

    def __init__(
        self, values: Sequence[np.ndarray], segment_s: float, durations_s: Sequence[float] | None = None
    ) -> None:
        """Take the (S, K) curves of every recording, at the segment centres.

        Args:
            durations_s: of every recording, which may end within its last segment; by default it ends with it.
        """
        self.values = values
        self.segment_s, self.step_s = segment_s, segment_s / FINE
        self.num_segments = np.array([len(part) for part in values], dtype=np.int64)
        self.first = np.cumsum(self.num_segments) - self.num_segments
        self.durations_s = self.num_segments * segment_s if durations_s is None else np.array(durations_s, np.float64)
        num, num_curves = int(self.num_segments.sum()), values[0].shape[1]
        self.logits = np.empty((num, num_curves), dtype=np.float32)  # row by row, whatever the order of the curves
        np.concatenate([logits(part) for part in values], out=self.logits)
        within = np.empty((num, FINE + 1, num_curves), dtype=np.float32)
        self.before = np.zeros((num, num_curves))
        for first, past in zip(self.first, self.first + self.num_segments, strict=True):  # stays in a core's cache
            fine, sums = _fine_curves(self.logits[first:past]), within[first:past]
            sums[:, 0] = 0.0
            for number in range(FINE):
                np.add(sums[:, number], fine[:, number], out=sums[:, number + 1])
            np.cumsum(sums[:-1, FINE], axis=0, dtype=np.float64, out=self.before[first + 1 : past])
        self.within = within.reshape(-1, num_curves)

    def at(self, owner: np.ndarray) -> "RowMeans":
        """Return what reads the curves of the (n,) recordings, given by their position, row by row."""
        return RowMeans(self, self.first[owner], self.num_segments[owner])


@dataclass(frozen=True, slots=True, eq=False)
class RowMeans:
    """Means and logits of curves, every row in a recording of its own; times are seconds on that one's clock.

    Attributes:
        means: the curves.
        first, num_segments: (n,) where each row's recording begins among the segments, and how many it has.
    """

    means: CurveMeans
    first: np.ndarray
    num_segments: np.ndarray

    @property
    def segment_s(self) -> float:
        """Length of a segment, seconds."""
        return self.means.segment_s

    @property
    def end_s(self) -> np.ndarray:
        """Where the last segment ends, (n,) seconds."""
        return self.num_segments * self.means.segment_s

    def rows(self, keep: np.ndarray | slice) -> "RowMeans":
        """Return some of the rows."""
        return RowMeans(self.means, self.first[keep], self.num_segments[keep])

    def integral(self, times_s: np.ndarray, column: np.ndarray | slice) -> np.ndarray:
        """Return the integral from 0 to each time, seconds; beyond the last segment it stays as it is there.

        Args:
            column: one curve per time gives (n,); a slice of curves gives (n, k).
        """
        num_steps, means = self.num_segments * FINE, self.means
        position = np.clip(times_s / means.step_s, 0.0, num_steps)
        step = np.minimum(position.astype(np.int64), num_steps - 1)
        part = (position - step).astype(np.float32)
        segment = self.first + step // FINE
        low = self.first * FINE + step + segment  # a segment has one sum more than steps
        until, steps = _taken(means.within, low, column), _taken(means.within, low + 1, column)
        steps -= until
        steps *= part[:, None] if isinstance(column, slice) else part
        steps += until
        total = _taken(means.before, segment, column)
        total += steps
        total *= means.step_s
        return total

    def inside(self, intervals: np.ndarray, column: np.ndarray | slice) -> np.ndarray:
        """Return the mean over each interval, (n,) or (n, k)."""
        low, high = self._bounds(intervals)
        length = high - low
        total = self.integral(high, column) - self.integral(low, column)
        return total / (length[:, None] if isinstance(column, slice) else length)

    def _bounds(self, intervals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return where intervals start and end within their recordings, `LEAST` of a segment apart at least."""
        start, end = np.clip(intervals, 0.0, self.end_s[:, None]).T
        least_s = LEAST * self.segment_s
        start = np.minimum(start, self.end_s - least_s)
        return start, np.maximum(end, start + least_s)

    def contrast(self, intervals: np.ndarray, column: np.ndarray, margin: float) -> np.ndarray:
        """Return the mean inside minus the mean in the margins on either side, (n,), not below 0.

        A margin is `margin` times the interval's length, at least one segment, and ends at the recording's ends;
        an interval that fills the recording is contrasted with nothing.
        """
        start, end = self._bounds(intervals)
        width = np.maximum(margin * (end - start), self.segment_s)
        before, after = np.maximum(start - width, 0.0), np.minimum(end + width, self.end_s)
        upto_start, upto_end = self.integral(start, column), self.integral(end, column)
        outer = self.integral(after, column) - upto_end + upto_start - self.integral(before, column)
        length = after - end + start - before
        outside = np.where(length > 1e-9, outer / np.maximum(length, 1e-9), 0.0)
        return np.maximum((upto_end - upto_start) / (end - start) - outside, 0.0)

    def logits_at(self, times_s: np.ndarray, column: np.ndarray) -> np.ndarray:
        """Return the interpolated logit of one curve per row, shaped as the (n, k) times; `column` is (n,)."""
        first, last, column = self.first[:, None], self.num_segments[:, None] - 1, column[:, None]
        position = np.clip(times_s / self.segment_s - 0.5, 0.0, last)
        left = np.minimum(position.astype(np.int64), np.maximum(last - 1, 0))
        right = np.minimum(left + 1, last)
        part = position - left
        at_left, at_right = (_taken(self.means.logits, first + place, column) for place in (left, right))
        return (1.0 - part) * at_left + part * at_right

    def logits_around(self, times_s: np.ndarray, offsets: Sequence[float], column: np.ndarray) -> np.ndarray:
        """Return what `logits_at` gives at the (n,) times plus each of k offsets in segments, (n, k) float32.

        The segments around a time are read once for all offsets.
        """
        position = times_s / self.segment_s - 0.5
        here = np.floor(position)
        beyond = (position - here).astype(np.float32)
        lowest, highest = math.floor(min(offsets)), math.floor(max(offsets)) + 2
        near = np.clip(here.astype(np.int64) + np.arange(lowest, highest + 1)[:, None], 0, self.num_segments - 1)
        window = _taken(self.means.logits, self.first + near, column)
        found = np.empty((len(offsets), len(times_s)), dtype=np.float32)
        for own, offset in zip(found, offsets, strict=True):
            place = math.floor(offset) - lowest
            part = beyond + np.float32(offset - math.floor(offset))  # from 0 to 2 segments beyond that place
            second, third = np.minimum(part, 1.0), np.maximum(part - 1.0, 0.0)
            np.multiply(1.0 - second, window[place], out=own)
            own += (second - third) * window[place + 1]
            own += third * window[place + 2]
        return found.T


def _taken(values: np.ndarray, rows: np.ndarray, column: np.ndarray | slice) -> np.ndarray:
    """Return values[rows, column] of a (N, K) array, several times as fast."""
    if isinstance(column, slice):
        return np.take(values, rows, axis=0)[:, column]
    return np.take(values.reshape(-1), rows * values.shape[1] + column)


def _fine_curves(at_centres: np.ndarray) -> np.ndarray:
    """Return a recording's curves at the middles of `FINE` equal parts of every segment, (S, FINE, K) float32.

    Args:
        at_centres: (S, K) float32 logits.
    """
    before = np.concatenate([at_centres[:1], at_centres[:-1]])
    after = np.concatenate([at_centres[1:], at_centres[-1:]])
    fine = np.empty((len(at_centres), FINE, at_centres.shape[1]), dtype=np.float32)
    for number in range(FINE):
        part = (number + 0.5) / FINE - 0.5  # of a segment, from its centre
        other = before if part < 0 else after
        fine[:, number] = np.float32(1 - abs(part)) * at_centres + np.float32(abs(part)) * other
    np.negative(fine, out=fine)  # scipy's expit takes four times as long; logits are too small for an overflow
    np.exp(fine, out=fine)
    fine += 1.0
    return np.reciprocal(fine, out=fine)
