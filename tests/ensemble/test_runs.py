"""Runs above thresholds: where they begin and end, and when two are one."""

import numpy as np

from talstack.ensemble.runs import crossings, threshold_runs
from talstack.io.grid import SegmentGrid

GRID = SegmentGrid(10.0, 1.0)


def flags(text: str) -> np.ndarray:
    """Return a curve of 0.9 at every x and 0.1 elsewhere, (S, 1)."""
    return np.array([[0.9 if letter == "x" else 0.1] for letter in text])


def test_every_threshold_and_curve_has_its_own_runs() -> None:
    values = np.column_stack([flags(".xx......."), 0.5 * flags("......xxx.")])
    curve, level, intervals = threshold_runs(values, (0.3, 0.6), GRID)
    assert list(zip(curve.tolist(), level.tolist(), strict=True)) == [(0, 0.3), (1, 0.3), (0, 0.6)]
    assert np.allclose(intervals.mean(axis=1), [2.0, 7.5, 2.0])


def test_runs_with_a_short_gap_are_one() -> None:
    values = np.column_stack([flags("xx.xx...xx"), flags("..........")])
    assert len(threshold_runs(values, (0.5,), GRID)[2]) == 3
    curve, level, intervals = threshold_runs(values, (0.5,), GRID, gap_s=1.0)
    assert np.allclose(intervals, [[0.0, 5.0], [8.0, 10.0]], atol=0.01)
    assert (curve.tolist(), level.tolist()) == ([0, 0], [0.5, 0.5])


def test_gaps_between_curves_or_thresholds_are_not_closed() -> None:
    values = np.column_stack([flags(".......xxx"), flags("xx........")])
    _, _, intervals = threshold_runs(values, (0.4, 0.5), GRID, gap_s=9.0)
    assert len(intervals) == 4


def test_no_run_stays_no_run_when_gaps_are_closed() -> None:
    assert len(threshold_runs(flags(".........."), (0.5,), GRID, gap_s=1.0)[2]) == 0


def test_end_without_a_crossing_lies_at_the_centre_nearer_to_the_level() -> None:
    values = np.array([[0.1], [0.2], [0.9], [0.9], [0.6], [0.1]])
    # the model's run ends one segment before the curve falls below 0.5, at a centre that is above the level still
    found = crossings(values, np.array([0]), np.array([[2, 4]]), np.array([0.5]), GRID)
    assert found[0, 1] == 4.5
    assert 1.5 < found[0, 0] < 2.5
