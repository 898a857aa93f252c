"""Rows of another program's features on the segment grid."""

import numpy as np
import pytest

from talstack.extract.row_pooling import Between, Rows, pool_rows, row_times_s
from talstack.io.grid import SegmentGrid


def test_rows_lie_where_actionformer_and_opentad_put_them() -> None:
    times_s = row_times_s(100, stride_frames=4, window_frames=16, fps=30.0)
    assert (times_s * 30 - 0.5 * 16) / 4 == pytest.approx(np.arange(100))  # ActionFormer: num_frames 16
    assert (times_s * 30 - 8) / 4 == pytest.approx(np.arange(100))  # OpenTAD: offset_frames 8


@pytest.mark.parametrize("between", ["linear", "nearest", "mask"])
@pytest.mark.parametrize("step_s", [0.1, 0.25, 1.0, 1.7, 4.0])
def test_missing_rows_never_show_and_never_become_zero(step_s: float, between: Between) -> None:
    rng = np.random.default_rng(0)
    checked = 0
    for trial in range(20):
        grid, num_rows = SegmentGrid(30.0, 1.0), int(30 / step_s)
        values = rng.normal(10, 0.1, size=(num_rows, 3)).astype(np.float32)
        missing = rng.random(num_rows) < 0.4
        missing[trial % num_rows] = False
        values[missing, rng.integers(3)] = np.nan
        times_s = (np.arange(num_rows) + 0.5) * step_s
        rows = Rows(values, times_s, step_s / 2, step_s)
        features, valid = pool_rows(rows, grid, pool="mean", between=between)
        assert features.dtype == np.float32
        assert np.isfinite(features).all()
        assert (features[valid] > 9).all()
        assert (features[~valid] == 0).all()
        segment = grid.index_at(times_s)
        for i in range(len(grid)):
            own = segment == i
            if own.any() and step_s <= 1.0:
                assert valid[i] == (own & ~missing).any()
                checked += 1
    print(f"step {step_s} s, {between}: {checked} segments held against their own rows")


def test_a_gap_is_not_interpolated() -> None:
    values = np.arange(8, dtype=np.float32)[:, None]
    times_s = np.array([1.0, 3.0, 5.0, 7.0, 17.0, 19.0, 21.0, 23.0])  # every 2 s, ten seconds left out
    features, valid = pool_rows(
        Rows(values, times_s, 1.0, 2.0), SegmentGrid(24.0, 1.0), pool="mean", between="linear"
    )  # fmt: skip
    assert np.flatnonzero(~valid).tolist() == list(range(8, 16))
    assert features[4, 0] == pytest.approx(1.75)


def test_one_row_speaks_for_its_window() -> None:
    for between in ("linear", "nearest"):
        rows = Rows(np.ones((1, 2), np.float32), np.array([5.0]), 2.0, 4.0)
        _, valid = pool_rows(rows, SegmentGrid(10.0, 1.0), pool="mean", between=between)
        assert np.flatnonzero(valid).tolist() == [3, 4, 5, 6]
