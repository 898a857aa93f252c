"""Runs of curves above thresholds, to sub-segment precision.

A run begins and ends where the interpolated curve (see `talstack.ensemble.curves`) crosses the threshold. All
recordings are worked on at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from talstack.ensemble.curves import CurveMeans
from talstack.ensemble.design import logits


@dataclass(frozen=True, slots=True, eq=False)
class Runs:
    """Runs of curves; arrays (n,) but for the intervals.

    Attributes:
        owner: position of the recording, int64.
        curve: column of the curve, 0 for the activity, 1 + class for a class, int64.
        level: threshold that the run is above, float64.
        intervals: (n, 2) float64 seconds.
        markov: whether a hidden Markov model found it.
    """

    owner: np.ndarray
    curve: np.ndarray
    level: np.ndarray
    intervals: np.ndarray
    markov: np.ndarray

    @classmethod
    def none(cls) -> "Runs":
        """Return no run."""
        nothing = np.zeros(0, dtype=np.int64)
        return cls(nothing, nothing, np.zeros(0), np.zeros((0, 2)), np.zeros(0, dtype=bool))

    @classmethod
    def between(
        cls,
        means: CurveMeans,
        owner: np.ndarray,
        curve: np.ndarray,
        level: np.ndarray,
        segments: np.ndarray,
        *,
        markov: bool,
    ) -> "Runs":
        """Return the runs of (n, 2) segments [first, past), each to where its curve crosses its level."""
        return cls(owner, curve, level, crossings(means, owner, curve, level, segments), np.full(len(owner), markov))

    @classmethod
    def joined(cls, parts: Sequence["Runs"]) -> "Runs":
        """Return the runs of all parts, one after the other."""
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in cls.__slots__))

    def real(self) -> "Runs":
        """Return those that last; a curve may touch its level for no time at all."""
        return self.rows(self.intervals[:, 1] > self.intervals[:, 0])

    def rows(self, keep: np.ndarray) -> "Runs":
        """Return some of the runs."""
        return Runs(*(getattr(self, name)[keep] for name in Runs.__slots__))


def threshold_runs(
    means: CurveMeans, thresholds: Sequence[float], *, columns: slice = slice(None), gap_s: float = 0.0
) -> Runs:
    """Return the runs of every curve at or above every threshold that last; by recording, level, curve and time.

    A run that begins with the first segment starts at 0, one that goes on to the last ends with the recording.

    Args:
        columns: of which curves.
        gap_s: runs of one curve and threshold with at most this between them are one, seconds.
    """
    levels = np.sort(np.asarray(thresholds, dtype=np.float64))
    first_curve, _, _ = columns.indices(means.logits.shape[1])
    (owner, level, curve, first), past = _changes(means, logits(levels), columns)
    runs = Runs.between(means, owner, curve + first_curve, levels[level], np.stack([first, past], axis=1), markov=False)
    return (_joined(runs, gap_s) if gap_s > 0 else runs).real()


def _changes(means: CurveMeans, levels: np.ndarray, columns: slice) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
    """Return where curves rise to the ascending logits and where they fall below again, run by run.

    Returns:
        Recording, position of the level, column and first segment of every run; and the segment past it.
    """
    values = means.logits[:, columns]
    recordings = np.arange(len(means.num_segments))
    own = np.repeat(recordings, means.num_segments)
    reached = np.zeros((len(values) + len(recordings) + 1, values.shape[1]), dtype=np.int8)  # levels, 0 in between
    above = np.zeros(values.shape, dtype=np.int8)
    for level in levels:
        above += values >= level
    reached[1 + np.arange(len(values)) + own] = above
    changed = np.flatnonzero(np.diff(reached, axis=0))
    row, column = np.divmod(changed, values.shape[1])
    before, after = reached[row, column], reached[row + 1, column]
    owner = np.repeat(recordings, means.num_segments + 1)[row]
    segment = row - (means.first + recordings)[owner]
    sides = []
    for low, high in ((before, after), (after, before)):  # a rise, a fall, may pass several levels
        times = np.maximum(high.astype(np.int64) - low, 0)
        which = np.repeat(np.arange(len(row)), times)
        level = low[which] + np.arange(len(which)) - np.repeat(np.cumsum(times) - times, times)
        keys = owner[which], level, column[which], segment[which]
        order = np.lexsort(keys[::-1])  # rises and falls alternate along a curve and a level
        sides.append(tuple(key[order] for key in keys))
    rises, falls = sides
    return rises, falls[-1]


def crossings(
    means: CurveMeans, owner: np.ndarray, curve: np.ndarray, level: np.ndarray, segments: np.ndarray
) -> np.ndarray:
    """Return the (n, 2) seconds at which curves cross their level around runs of (n, 2) segments [first, past).

    Where a curve does not cross between the two segments at an end, the end lies at the centre that is nearer to the
    level.
    """
    first, past = segments.T
    num, row, target = means.num_segments[owner], means.first[owner], logits(level)
    last = num - 1

    def crossing(segment: np.ndarray) -> np.ndarray:
        """Return where the curve passes the level between the centres of the segment and the next, in segments."""
        left, right = (means.logits[row + np.clip(segment + step, 0, last), curve] for step in (0, 1))
        slope = right - left
        part = np.divide(target - left, slope, out=np.full_like(slope, 0.5), where=slope != 0)
        return segment + np.clip(part, 0.0, 1.0)

    start = np.where(first > 0, crossing(first - 1), -0.5)
    end = np.where(past < num, crossing(past - 1), np.inf)
    intervals = np.stack([(start + 0.5) * means.segment_s, (end + 0.5) * means.segment_s], axis=1)
    return np.minimum(intervals, means.durations_s[owner][:, None])


def _joined(runs: Runs, gap_s: float) -> Runs:
    """Return each chain of runs with short gaps as one; runs of a recording, curve and level stand together."""
    owner, curve, level, intervals = runs.owner, runs.curve, runs.level, runs.intervals
    other = (owner[1:] != owner[:-1]) | (curve[1:] != curve[:-1]) | (level[1:] != level[:-1])
    apart = other | (intervals[1:, 0] - intervals[:-1, 1] > gap_s)
    first = np.flatnonzero(np.append(True, apart)[: len(owner)])
    last = np.append(first[1:], len(owner)) - 1
    chains = runs.rows(first)
    chains.intervals[:, 1] = intervals[last[: len(first)], 1]
    return chains
