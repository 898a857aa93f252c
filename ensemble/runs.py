"""Runs of curves above thresholds, to sub-segment precision.

A run begins and ends where the interpolated curve (see `talstack.ensemble.curves`) crosses the threshold.
"""

import numpy as np

from talstack.ensemble.design import logits
from talstack.io.grid import SegmentGrid


def threshold_runs(
    values: np.ndarray, thresholds: tuple[float, ...], grid: SegmentGrid, *, gap_s: float = 0.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the runs of every curve at or above every threshold.

    Args:
        values: (S, K) curves at the segment centres.
        gap_s: runs of one curve and threshold with at most this between them are one, seconds.

    Returns:
        (n,) int64 curve and (n,) float64 threshold of each run and (n, 2) float64 seconds, longer than 0. A run that
        begins with the first segment starts at 0, one that goes on to the last ends with the recording.
    """
    levels = np.asarray(thresholds, dtype=np.float64)
    above = values.T[None] >= levels[:, None, None]
    edge = np.zeros((*above.shape[:2], 1), dtype=np.int8)
    step = np.diff(np.concatenate([edge, above.view(np.int8), edge], axis=2), axis=2)
    starts, ends = np.flatnonzero(step == 1), np.flatnonzero(step == -1)  # they alternate along a curve
    level, curve, first = np.unravel_index(starts, step.shape)
    past = ends % step.shape[2]
    intervals = crossings(values, curve, np.stack([first, past], axis=1), levels[level], grid)
    if gap_s > 0:
        keep, intervals = _joined(level * values.shape[1] + curve, intervals, gap_s)
        level, curve = level[keep], curve[keep]
    real = intervals[:, 1] > intervals[:, 0]
    return curve[real], levels[level[real]], intervals[real]


def crossings(
    values: np.ndarray, curve: np.ndarray, segments: np.ndarray, level: np.ndarray, grid: SegmentGrid
) -> np.ndarray:
    """Return the (n, 2) seconds at which curves cross their level around runs of segments [first, past).

    Where a curve does not cross between the two segments at an end, the end lies at the centre that is nearer to the
    level.
    """
    first, past = segments.T
    start = np.where(first > 0, _crossing(values, curve, first - 1, level), -0.5)
    end = np.where(past < len(values), _crossing(values, curve, past - 1, level), np.inf)
    intervals = np.stack([(start + 0.5) * grid.segment_s, (end + 0.5) * grid.segment_s], axis=1)
    return np.minimum(intervals, grid.duration_s)


def _crossing(values: np.ndarray, curve: np.ndarray, segment: np.ndarray, level: np.ndarray) -> np.ndarray:
    """Return where the curve passes the level between the centres of `segment` and the next, in segments."""
    left = logits(values[np.clip(segment, 0, len(values) - 1), curve])
    right = logits(values[np.clip(segment + 1, 0, len(values) - 1), curve])
    slope = right - left
    part = np.divide(logits(level) - left, slope, out=np.full_like(slope, 0.5), where=slope != 0)
    return segment + np.clip(part, 0.0, 1.0)


def _joined(line: np.ndarray, intervals: np.ndarray, gap_s: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the first run of each chain with short gaps, and the chains' (m, 2) intervals.

    Args:
        line: (n,) int, equal for runs of one curve and threshold, which stand together in order of time.
    """
    apart = (line[1:] != line[:-1]) | (intervals[1:, 0] - intervals[:-1, 1] > gap_s)
    first = np.flatnonzero(np.append(True, apart)[: len(line)])
    last = np.append(first[1:], len(line)) - 1
    return first, np.stack([intervals[first, 0], intervals[last[: len(first)], 1]], axis=1)
