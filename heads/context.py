"""Temporal context: what the neighbouring segments say, as further columns.

For a window of n segments, with b and a the means over the n segments before and after, three blocks of columns:
the level (b + a) / 2, the slope (a - b) / 2, which is largest at a boundary, and the spread, the standard deviation
over the n segments on both sides and the segment itself. Neighbours never cross recordings; invalid ones are left
out, and a side without any counts as equal to the segment itself.
"""

from collections.abc import Sequence

import numpy as np

from talstack.io.predictions import SegmentIndex


def num_blocks(windows: Sequence[int]) -> int:
    """Return how many blocks of columns `context_rows` makes."""
    return 1 + 3 * len(windows)


def context_rows(rows: np.ndarray, valid: np.ndarray, *, index: SegmentIndex, windows: Sequence[int]) -> np.ndarray:
    """Return the rows and their context, (N, D * num_blocks) float32, block after block; invalid rows mean nothing.

    Args:
        rows: (N, D) float32.
        valid: (N,) bool.
        windows: lengths of the windows in segments.
    """
    width = rows.shape[1]
    out = np.empty((len(rows), width * num_blocks(windows)), dtype=np.float32)
    out[:, :width] = rows
    for _, part in index.slices():
        sums = _Sums(rows[part], valid[part])
        for i, window in enumerate(windows):
            start = width * (1 + 3 * i)
            out[part, start : start + 3 * width] = _window(sums, rows[part], window)
    return out


class _Sums:
    """Running sums over one recording's valid rows, so that a window's sum is one difference."""

    def __init__(self, rows: np.ndarray, valid: np.ndarray) -> None:
        masked = np.where(valid[:, None], rows, 0.0).astype(np.float64)
        self.count = np.concatenate([[0], np.cumsum(valid)])
        self.total = _running(masked)
        self.squared = _running(masked**2)


def _running(rows: np.ndarray) -> np.ndarray:
    return np.concatenate([np.zeros((1, rows.shape[1])), np.cumsum(rows, axis=0)])


def _window(sums: _Sums, rows: np.ndarray, window: int) -> np.ndarray:
    """Return level, slope and spread of one window, (S, 3 * D) float64."""
    here = np.arange(len(rows))
    first, end = np.maximum(here - window, 0), np.minimum(here + window + 1, len(rows))
    before = _mean(sums, first, here, rows)
    after = _mean(sums, here + 1, end, rows)
    count = np.maximum(sums.count[end] - sums.count[first], 1)[:, None]
    mean = (sums.total[end] - sums.total[first]) / count
    variance = (sums.squared[end] - sums.squared[first]) / count - mean**2
    return np.concatenate([(before + after) / 2, (after - before) / 2, np.sqrt(np.maximum(variance, 0.0))], axis=1)


def _mean(sums: _Sums, first: np.ndarray, end: np.ndarray, otherwise: np.ndarray) -> np.ndarray:
    """Return the mean of the valid rows [first, end) of each segment; `otherwise` where there is none."""
    count = (sums.count[end] - sums.count[first])[:, None]
    return np.where(count > 0, (sums.total[end] - sums.total[first]) / np.maximum(count, 1), otherwise)
