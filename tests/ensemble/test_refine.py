"""Learned boundaries: they undo what shifts a crossing, and follow boundary heads where these know more."""

import numpy as np
import pytest

from talstack.ensemble.curves import CurveMeans
from talstack.ensemble.refine import LEAST_ROWS, REACH, BoundaryVotes, EdgeModel, edge_features
from talstack.io.grid import SegmentGrid

SEGMENT_S = 1.0
NUM = 40


def rows_of(*, late_s: float, seed: int, heads: bool = False, blur: float = 1.0):
    """Return features, true-minus-found ends in segments, and intervals of runs whose curves lag behind."""
    rng = np.random.default_rng(seed)
    features, late, intervals = [], [], []
    for _ in range(60):
        start = rng.uniform(5, 15)
        true = np.array([[start, start + rng.uniform(4, 15)]])
        grid = SegmentGrid(NUM * SEGMENT_S, SEGMENT_S)
        shown = true + (late_s if not heads else rng.normal(0, 0.3, (1, 2)))
        distance = np.minimum(grid.centres_s - shown[0, 0], shown[0, 1] - grid.centres_s)
        curve = 1 / (1 + np.exp(-np.clip(4 * distance / blur, -6, 6)))
        means = CurveMeans([np.column_stack([curve, curve])], grid.segment_s).at(np.zeros(1, dtype=int))
        boundaries = boundary_curves(true[0], grid) if heads else None
        features.append(edge_features(means, shown, np.array([0]), np.array([0.5]), boundaries))
        late.append((true - shown) / SEGMENT_S)
        intervals.append(shown)
    return np.concatenate(features), np.concatenate(late), np.concatenate(intervals)


def boundary_curves(true: np.ndarray, grid: SegmentGrid) -> BoundaryVotes:
    offsets = [edge - grid.centres_s for edge in true]
    probs = [np.exp(-0.5 * np.square(offset / 0.7)) for offset in offsets]
    return BoundaryVotes(probs[0], probs[1], offsets[0], offsets[1])


def test_systematic_delay_is_undone_on_other_recordings() -> None:
    features, late, _ = rows_of(late_s=0.3, seed=0)
    model = EdgeModel.fit(features, late, np.ones(len(late)), l2=1.0)
    features, late, intervals = rows_of(late_s=0.3, seed=1)
    moved = model.move(intervals, features, SEGMENT_S)
    assert np.abs(moved - (intervals + late * SEGMENT_S)).mean() < 0.05


def test_boundary_heads_are_followed_where_the_curves_err() -> None:
    errors = []
    features, late, _ = rows_of(late_s=0.0, seed=0, heads=True)
    model = EdgeModel.fit(features, late, np.ones(len(late)), l2=1.0)
    features, late, intervals = rows_of(late_s=0.0, seed=1, heads=True)
    moved = model.move(intervals, features, SEGMENT_S)
    errors = [np.abs(late).mean(), np.abs(moved - (intervals + late)).mean()]
    assert errors[1] < 0.4 * errors[0]


def test_ends_move_by_a_bounded_part_of_a_segment() -> None:
    model = EdgeModel(np.zeros((2, 3)), np.ones((2, 3)), np.zeros((2, 3)), np.array([9.0, -9.0]))
    moved = model.move(np.array([[5.0, 20.0]]), np.zeros((1, 2, 3)), 0.5)
    assert moved.tolist() == [[5.0 + REACH * 0.5, 20.0 - REACH * 0.5]]


def test_too_few_rows_teach_nothing() -> None:
    features, late, _ = rows_of(late_s=0.3, seed=0)
    few = slice(LEAST_ROWS - 1)
    assert EdgeModel.fit(features[few], late[few], np.ones(LEAST_ROWS - 1), l2=1.0) is None


def test_gross_errors_do_not_pull_the_others() -> None:
    features, late, _ = rows_of(late_s=0.3, seed=0)
    spoilt = late.copy()
    spoilt[::6] = 1.5
    model = EdgeModel.fit(features, spoilt, np.ones(len(late)), l2=30.0)
    features, late, intervals = rows_of(late_s=0.3, seed=1)
    error = model.move(intervals, features, SEGMENT_S) - (intervals + late)
    assert np.abs(np.median(error)) < 0.1


def test_model_survives_json() -> None:
    features, late, intervals = rows_of(late_s=0.3, seed=0)
    model = EdgeModel.fit(features, late, np.ones(len(late)), l2=1.0)
    again = EdgeModel.from_json(model.to_json())
    np.testing.assert_array_equal(again.move(intervals, features, 1.0), model.move(intervals, features, 1.0))


def test_window_goes_from_outside_to_inside_on_both_sides() -> None:
    grid = SegmentGrid(20.0, 1.0)
    curve = np.where((grid.centres_s > 5) & (grid.centres_s < 12), 0.99, 0.01)
    means = CurveMeans([np.column_stack([curve, curve])], grid.segment_s).at(np.zeros(1, dtype=int))
    features = edge_features(means, np.array([[5.0, 12.0]]), np.array([0]), np.array([0.5]), None)
    start, end = features[0, 0, :9], features[0, 1, :9]
    assert (np.diff(start) >= 0).all()
    assert start == pytest.approx(end)
