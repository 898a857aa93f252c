"""Temporal context: what the neighbouring segments say, as further columns.

Three kinds of blocks follow the segment's own columns. The n nearest segments on either side, concatenated. For each
window of n segments, with b and a the means over the n segments before and after, any of: the level (b + a) / 2; the
slope (a - b) / 2, which is largest at a boundary; the spread, the standard deviation over the n segments on both sides
and the segment itself; and the max over the same. Last, where in the recording the segment lies. Neighbours never cross
recordings; invalid ones are left out, and a side without any counts as equal to the segment itself.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import maximum_filter1d

from talstack.io.predictions import SegmentIndex

STATISTICS = ("level", "slope", "spread", "max")
_NUM_POSITION = 3  # share of the recording, segments since its start and until its end


@dataclass(frozen=True, slots=True)
class Context:
    """Which columns are added.

    Attributes:
        windows: lengths in segments.
        statistics: of each window, from `STATISTICS`.
        neighbours: how many segments on either side are concatenated.
        position: whether the place in the recording is told.
    """

    windows: tuple[int, ...] = ()
    statistics: tuple[str, ...] = ("level", "slope", "spread")
    neighbours: int = 0
    position: bool = False

    @property
    def num_blocks(self) -> int:
        """How often the own width is repeated."""
        return 1 + 2 * self.neighbours + len(self.windows) * len(self.statistics)

    def width(self, own: int) -> int:
        """Return the number of columns made of `own` columns."""
        return own * self.num_blocks + _NUM_POSITION * self.position


def context_rows(
    rows: np.ndarray, valid: np.ndarray, *, index: SegmentIndex, context: Context, out: np.ndarray | None = None
) -> np.ndarray:
    """Return the rows and their context, (N, context.width(D)) float32, block after block; invalid rows mean nothing.

    Args:
        rows: (N, D) float32.
        valid: (N,) bool.
        out: where they are written, if given.
    """
    if out is None:
        out = np.empty((len(rows), context.width(rows.shape[1])), dtype=np.float32)
    for _, part in index.slices():
        start = 0
        for block in _blocks(rows[part], valid[part], context):
            out[part, start : start + block.shape[1]] = block
            start += block.shape[1]
    return out


def _blocks(rows: np.ndarray, valid: np.ndarray, context: Context) -> Iterator[np.ndarray]:
    yield rows
    for step in range(1, context.neighbours + 1):
        yield _neighbour(rows, valid, -step)
        yield _neighbour(rows, valid, step)
    sums = _Sums(rows, valid) if context.windows else None
    for window in context.windows:
        yield from _window(sums, rows, valid, window=window, statistics=context.statistics)
    if context.position:
        yield _position(len(rows))


def _neighbour(rows: np.ndarray, valid: np.ndarray, step: int) -> np.ndarray:
    there = np.arange(len(rows)) + step
    inside = (there >= 0) & (there < len(rows))
    there = np.clip(there, 0, len(rows) - 1)
    return rows[np.where(inside & valid[there], there, np.arange(len(rows)))]


def _position(num_segments: int) -> np.ndarray:
    here = np.arange(num_segments) + 0.5
    return np.stack([here / num_segments, np.log(here), np.log(num_segments - here)], axis=1)


class _Sums:
    """Running sums over one recording's valid rows, so that a window's sum is one difference."""

    def __init__(self, rows: np.ndarray, valid: np.ndarray) -> None:
        masked = np.where(valid[:, None], rows, 0.0).astype(np.float64)
        self.count = np.concatenate([[0], np.cumsum(valid)])
        self.total = _running(masked)
        self.squared = _running(masked**2)


def _running(rows: np.ndarray) -> np.ndarray:
    return np.concatenate([np.zeros((1, rows.shape[1])), np.cumsum(rows, axis=0)])


def _window(
    sums: _Sums | None, rows: np.ndarray, valid: np.ndarray, *, window: int, statistics: tuple[str, ...]
) -> Iterator[np.ndarray]:
    """Yield the statistics of one window, (S, D) each."""
    assert sums is not None
    here = np.arange(len(rows))
    first, end = np.maximum(here - window, 0), np.minimum(here + window + 1, len(rows))
    before, after = _mean(sums, first, here, rows), _mean(sums, here + 1, end, rows)
    for name in statistics:
        if name == "level":
            yield (before + after) / 2
        elif name == "slope":
            yield (after - before) / 2
        elif name == "spread":
            yield _spread(sums, first, end)
        else:
            highest = maximum_filter1d(
                np.where(valid[:, None], rows, -np.inf), 2 * window + 1, axis=0, mode="constant", cval=-np.inf
            )
            yield np.where(np.isfinite(highest), highest, rows)


def _mean(sums: _Sums, first: np.ndarray, end: np.ndarray, otherwise: np.ndarray) -> np.ndarray:
    """Return the mean of the valid rows [first, end) of each segment; `otherwise` where there is none."""
    count = (sums.count[end] - sums.count[first])[:, None]
    return np.where(count > 0, (sums.total[end] - sums.total[first]) / np.maximum(count, 1), otherwise)


def _spread(sums: _Sums, first: np.ndarray, end: np.ndarray) -> np.ndarray:
    count = np.maximum(sums.count[end] - sums.count[first], 1)[:, None]
    mean = (sums.total[end] - sums.total[first]) / count
    return np.sqrt(np.maximum((sums.squared[end] - sums.squared[first]) / count - mean**2, 0.0))
