"""Runs above thresholds: where they begin and end, and when two are one."""

import numpy as np
import pytest

from talstack.ensemble.curves import CurveMeans
from talstack.ensemble.runs import crossings, threshold_runs


def flags(text: str) -> np.ndarray:
    """Return a curve of 0.9 at every x and 0.1 elsewhere, (S, 1)."""
    return np.array([[0.9 if letter == "x" else 0.1] for letter in text])


def test_every_threshold_and_curve_has_its_own_runs() -> None:
    values = np.column_stack([flags(".xx......."), 0.5 * flags("......xxx.")])
    runs = threshold_runs(CurveMeans([values], 1.0), (0.6, 0.3))
    assert list(zip(runs.curve.tolist(), runs.level.tolist(), strict=True)) == [(0, 0.3), (1, 0.3), (0, 0.6)]
    assert np.allclose(runs.intervals.mean(axis=1), [2.0, 7.5, 2.0])
    assert not runs.markov.any()


def test_runs_with_a_short_gap_are_one() -> None:
    values = np.column_stack([flags("xx.xx...xx"), flags("..........")])
    means = CurveMeans([values, values], 1.0)
    assert threshold_runs(means, (0.5,)).owner.tolist() == [0, 0, 0, 1, 1, 1]
    runs = threshold_runs(means, (0.5,), gap_s=1.0)
    assert np.allclose(runs.intervals, 2 * [[0.0, 5.0], [8.0, 10.0]], atol=0.01)
    assert (runs.owner.tolist(), runs.curve.tolist(), runs.level.tolist()) == ([0, 0, 1, 1], [0] * 4, [0.5] * 4)


def test_gaps_between_curves_or_thresholds_are_not_closed() -> None:
    values = np.column_stack([flags(".......xxx"), flags("xx........")])
    assert len(threshold_runs(CurveMeans([values], 1.0), (0.4, 0.5), gap_s=9.0).curve) == 4


def test_no_run_stays_no_run_when_gaps_are_closed() -> None:
    runs = threshold_runs(CurveMeans([flags("..........")], 1.0), (0.5,), gap_s=1.0)
    assert runs.intervals.shape == (0, 2)


def test_end_without_a_crossing_lies_at_the_centre_nearer_to_the_level() -> None:
    values = np.array([[0.1], [0.2], [0.9], [0.9], [0.6], [0.1]])
    # the model's run ends one segment before the curve falls below 0.5, at a centre that is above the level still
    one = np.array([0])
    found = crossings(CurveMeans([values], 1.0), one, one, np.array([0.5]), np.array([[2, 4]]))
    assert found[0, 1] == 4.5
    assert 1.5 < found[0, 0] < 2.5


@pytest.mark.parametrize("gap_s", [0.0, 0.7])
def test_many_recordings_at_once_are_what_each_is_alone(gap_s) -> None:
    rng, levels = np.random.default_rng(0), (0.2, 0.4, 0.6, 0.8)
    values = [rng.uniform(0.01, 0.99, (num, 4)) for num in (1, 30, 2, 17)]
    durations_s = [0.4, 14.9, 1.0, 8.5]
    together = threshold_runs(CurveMeans(values, 0.5, durations_s), levels, columns=slice(1, 3), gap_s=gap_s)
    assert set(together.curve.tolist()) == {1, 2}
    for recording, (of_one, duration_s) in enumerate(zip(values, durations_s, strict=True)):
        own = together.rows(together.owner == recording)
        alone = threshold_runs(CurveMeans([of_one[:, 1:3]], 0.5, [duration_s]), levels, gap_s=gap_s)
        assert (own.curve - 1).tolist() == alone.curve.tolist()
        assert own.level.tolist() == alone.level.tolist()
        np.testing.assert_array_equal(own.intervals, alone.intervals)
        assert own.intervals.max(initial=0.0) <= duration_s


def test_runs_are_the_stretches_at_or_above_the_threshold() -> None:
    rng = np.random.default_rng(1)
    values = rng.uniform(0.01, 0.99, (40, 1))
    for level in (0.3, 0.5, 0.7):
        runs = threshold_runs(CurveMeans([values], 1.0), (level,))
        inside = np.zeros(40, dtype=bool)
        for start, end in runs.intervals:
            inside |= (np.arange(40) + 0.5 >= start) & (np.arange(40) + 0.5 <= end)
        assert inside.tolist() == (values[:, 0] >= level).tolist()


def test_a_touch_of_the_level_is_no_run_but_closes_a_gap() -> None:
    values = np.array([[0.9], [0.1], [0.5], [0.1], [0.9]])
    means = CurveMeans([values], 1.0)
    apart = threshold_runs(means, (0.5,))
    assert len(apart.curve) == 2
    assert len(threshold_runs(means, (0.5,), gap_s=1.0).curve) == 2
    together = threshold_runs(means, (0.5,), gap_s=1.6)  # 1.5 to the touch, and 1.5 from it; 3 without
    assert together.intervals.tolist() == [[0.0, 5.0]]
