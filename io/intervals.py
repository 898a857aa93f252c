"""Intervals in seconds: checks, overlap, intersection over union.

An interval is [start_s, end_s), seconds on one recording's clock. Many intervals are an (n, 2) float64 array.
"""

import numpy as np

from talstack.io.errors import InputError


def validate_intervals(intervals: np.ndarray, *, what: str = "intervals") -> np.ndarray:
    """Return the intervals as (n, 2) float64, seconds.

    Raises:
        InputError: another shape, a value that is not finite, or an end that is not after its start; the
            message names the first bad row.
    """
    array = np.asarray(intervals, dtype=np.float64)
    if array.size == 0:
        return array.reshape(0, 2)
    if array.ndim != 2 or array.shape[1] != 2:
        raise InputError(f"{what}: expected shape (n, 2), got {array.shape}")
    bad = ~np.isfinite(array).all(axis=1) | ~(array[:, 1] > array[:, 0])
    if bad.any():
        row = int(np.argmax(bad))
        raise InputError(
            f"{what}: row {row} is [{array[row, 0]}, {array[row, 1]}]; start and end must be finite and end > start"
        )
    return array


def pairwise_tiou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the temporal intersection over union of every pair, (n, m) float64."""
    return aligned_tiou((first[:, None, 0], first[:, None, 1]), (second[None, :, 0], second[None, :, 1]))


def aligned_tiou(first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Return the temporal intersection over union of intervals side by side, float64.

    No epsilon in the denominator (ActivityNet's definition): both sides must have positive length. Every tIoU is
    computed here, since two ways to write it differ in the last digit, which decides on the threshold.

    Args:
        first, second: starts and ends, seconds; arrays that broadcast.
    """
    (start, end), (other_start, other_end) = first, second
    overlap = np.maximum(np.minimum(end, other_end) - np.maximum(start, other_start), 0.0)
    tiou: np.ndarray = overlap / ((end - start) + (other_end - other_start) - overlap)
    return tiou


def overlap_s(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the length of every pair's intersection in seconds, (n, m) float64."""
    start = np.maximum(first[:, None, 0], second[None, :, 0])
    end = np.minimum(first[:, None, 1], second[None, :, 1])
    return np.clip(end - start, 0.0, None)


def merge_intervals(intervals: np.ndarray) -> np.ndarray:
    """Return the union of (n, 2) intervals as (m, 2) float64 that neither overlap nor touch, ascending, seconds."""
    if len(intervals) == 0:
        return intervals
    ordered = intervals[np.argsort(intervals[:, 0], kind="stable")]
    reach = np.maximum.accumulate(ordered[:, 1])
    first = np.flatnonzero(np.concatenate([[True], ordered[1:, 0] > reach[:-1]]))
    return np.stack([ordered[first, 0], np.maximum.reduceat(ordered[:, 1], first)], axis=1)
