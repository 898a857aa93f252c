"""Rows of another program's features laid on the segment grid.

Row i of a feature file stands for `window` frames from frame i * stride on, so its middle lies at
(i * stride + window / 2) / fps seconds. This is ActionFormer's reading (libs/datasets/thumos14.py: a time t is at row
(t * fps - 0.5 * num_frames) / feat_stride) and OpenTAD's (opentad/datasets/thumos.py: (t * fps - offset_frames) /
snippet_stride, with offset_frames = window / 2 in its THUMOS I3D configuration: stride 4, window 16, offset 8).
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from talstack.extract.external import pool_series
from talstack.io.errors import InputError
from talstack.io.grid import SegmentGrid

Pool = Literal["mean", "statistics"]
Between = Literal["linear", "nearest", "mask"]
SLACK = 1 + 1e-6  # of steps and lengths that are equal but for rounding
GAP_STEPS = 1.5  # rows further apart than this many steps have one missing between them


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Rows on a recording's clock.

    Attributes:
        values: (T, C) float32; rows with NaN or infinity count as missing.
        times_s: (T,) float64 middles, seconds, ascending.
        reach_s: how far from its middle a row still speaks for the recording: half its window or step.
        step_s: from one row to the next, seconds.
    """

    values: np.ndarray
    times_s: np.ndarray
    reach_s: float
    step_s: float

    @property
    def good(self) -> np.ndarray:
        """Which rows are whole numbers or fractions throughout, (T,) bool."""
        return np.asarray(np.isfinite(self.values).all(axis=1))


def row_times_s(num_rows: int, *, stride_frames: float, window_frames: float, fps: float) -> np.ndarray:
    """Return the middle of every row, (num_rows,) float64 seconds."""
    return (np.arange(num_rows, dtype=np.float64) * stride_frames + window_frames / 2) / fps


def pool_rows(rows: Rows, grid: SegmentGrid, *, pool: Pool, between: Between) -> tuple[np.ndarray, np.ndarray]:
    """Return the features of each segment, (S, D) float32, and which segments have any, (S,) bool.

    Where a step is no longer than a segment, a segment gets the mean of the rows whose middles lie in it (D = C), or
    the statistics of `talstack.extract.external` (D = 5 C). Where it is longer, `between` says what a segment's
    middle gets: "linear" interpolates between the rows on either side (the nearest row at the ends), "nearest" takes
    the nearest row, "mask" leaves segments without a row empty. A row speaks no further than `reach_s`, and a segment
    whose rows are all missing is never filled from its neighbours.

    Raises:
        InputError: statistics of rows that are further apart than segments.
    """
    dense = rows.step_s <= grid.segment_s * SLACK
    if pool == "statistics":
        if not dense:
            raise InputError(
                f"statistics need a row in every segment: rows are {rows.step_s:.3g} s apart, segments "
                f"{grid.segment_s:.3g} s long; use --pool mean, or longer segments"
            )
        return pool_series(rows.values[rows.good], rows.times_s[rows.good], grid)
    if not dense and between == "linear":
        return _interpolate(rows, grid)
    good, width = rows.good, rows.values.shape[1]
    features, valid = pool_series(rows.values[good].astype(np.float64), rows.times_s[good], grid)
    features = features[:, :width]
    if between != "mask":
        _fill_empty(features, valid, rows, grid)
    features[~valid] = 0
    return features, valid


def _nearest(rows: Rows, middles_s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the nearest row of each time, and whether it is good and within reach."""
    after = np.clip(np.searchsorted(rows.times_s, middles_s), 1, max(len(rows.times_s) - 1, 1))
    before = after - 1
    after = np.minimum(after, len(rows.times_s) - 1)
    closer = np.abs(rows.times_s[after] - middles_s) < np.abs(rows.times_s[before] - middles_s)
    index = np.where(closer, after, before)
    near = np.abs(rows.times_s[index] - middles_s) <= rows.reach_s * SLACK
    return index, near & rows.good[index]


def _fill_empty(features: np.ndarray, valid: np.ndarray, rows: Rows, grid: SegmentGrid) -> None:
    """Give segments without a row the nearest one: at the ends, or where steps are long.

    In a segment whose own rows are all missing, the nearest row is one of them, so it stays empty.
    """
    index, usable = _nearest(rows, grid.centres_s)
    take = ~valid & usable
    features[take], valid[take] = rows.values[index[take]], True


def _interpolate(rows: Rows, grid: SegmentGrid) -> tuple[np.ndarray, np.ndarray]:
    """Return each segment's middle between the rows on either side; the nearest row where one of them is missing."""
    middles_s, times_s, good = grid.centres_s, rows.times_s, rows.good
    index, valid = _nearest(rows, middles_s)
    features = np.zeros((len(grid), rows.values.shape[1]), dtype=np.float32)
    features[valid] = rows.values[index[valid]]
    if len(times_s) > 1:
        after = np.clip(np.searchsorted(times_s, middles_s), 1, len(times_s) - 1)
        before, gap_s = after - 1, times_s[after] - times_s[after - 1]
        inside = (times_s[before] <= middles_s) & (middles_s <= times_s[after])
        inside &= (gap_s > 0) & (gap_s <= GAP_STEPS * rows.step_s)  # clips that overlap give equal times
        both = inside & good[before] & good[after]
        share = ((middles_s - times_s[before])[both] / gap_s[both])[:, None]
        features[both] = (1 - share) * rows.values[before[both]] + share * rows.values[after[both]]
        valid |= both
    return features, valid
