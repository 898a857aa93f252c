"""Decoding of curves whose intervals are known."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from talstack.ensemble.curves import CurveMeans, Curves
from talstack.ensemble.decode import Decoder, DecodeSettings
from talstack.ensemble.durations import ClassDurations
from talstack.ensemble.runs import threshold_runs
from talstack.io.grid import SegmentGrid
from talstack.io.predictions import SegmentIndex

ACTIONS = ("pour", "wave")


def curve(grid: SegmentGrid, intervals: list[tuple[float, float]], *, sharpness: float = 8.0) -> np.ndarray:
    """Return a probability whose logit crosses 0 exactly at the ends of the intervals."""
    distance = np.full(len(grid), -np.inf)
    for start, end in intervals:
        distance = np.maximum(distance, np.minimum(grid.centres_s - start, end - grid.centres_s))
    return 1.0 / (1.0 + np.exp(-np.clip(sharpness * distance / grid.segment_s, -50, 50)))


def decoder(grid: SegmentGrid, low: float = 0.0, high: float = np.inf) -> Decoder:
    return Decoder(ACTIONS, {"r": grid}, replace(ClassDurations.unknown(2), limits_s=np.array([[low, high]] * 2)))


def curves(grid: SegmentGrid, action: np.ndarray, activity: np.ndarray) -> Curves:
    return Curves(SegmentIndex(("r",), (len(grid),)), action, activity)


@pytest.mark.parametrize(
    ("segment_s", "known"), [(0.25, [(3.33, 5.41), (7.9, 9.62)]), (1.0, [(4.3, 8.85), (14.6, 17.2)])]
)
def test_intervals_come_back_to_a_small_part_of_a_segment(segment_s, known) -> None:
    grid = SegmentGrid(20.0, segment_s)
    values = curve(grid, known)
    action = np.stack([values, np.full(len(grid), 0.01)], axis=1)
    found = decoder(grid).decode(curves(grid, action, values), DecodeSettings())
    best = found.filter(pl.col("label") == "pour").head(2).sort("start_s")
    np.testing.assert_allclose(best.select("start_s", "end_s").to_numpy(), known, atol=0.1 * segment_s)


def test_confident_curve_keeps_its_boundary_within_the_segment() -> None:
    # nearly 1 in one segment, 0.6 in the next, 0 after: the end lies just behind the middle of the second
    grid = SegmentGrid(4.0, 1.0)
    values = np.array([[0.999], [0.999], [0.6], [0.0005]])
    intervals = threshold_runs(CurveMeans([values], grid.segment_s, [grid.duration_s]), (0.5,)).intervals
    assert intervals[0, 1] == pytest.approx(2.55, abs=0.02)


def test_full_extent_outranks_the_peak_inside_it() -> None:
    grid = SegmentGrid(20.0, 0.5)
    extent = curve(grid, [(5.0, 11.0)], sharpness=4.0) * 0.6
    peak = curve(grid, [(7.0, 8.5)], sharpness=4.0) * 0.35
    values = extent + peak
    action = np.stack([values, np.zeros(len(grid))], axis=1)
    by_contrast = decoder(grid).decode(curves(grid, action, values), DecodeSettings(contrast_weight=1.0, margin=0.2))
    by_mean = decoder(grid).decode(curves(grid, action, values), DecodeSettings(contrast_weight=0.0))
    assert by_contrast["end_s"][0] - by_contrast["start_s"][0] == pytest.approx(6.0, abs=0.5)
    assert by_mean["end_s"][0] - by_mean["start_s"][0] < 3.0


def test_overlapping_actions_need_class_runs() -> None:
    grid = SegmentGrid(20.0, 1.0)
    known = {"pour": (4.0, 9.0), "wave": (7.0, 13.0)}
    action = np.stack([curve(grid, [interval]) for interval in known.values()], axis=1)
    data = curves(grid, action, action.max(axis=1))
    best = decoder(grid).decode(data, DecodeSettings(proposals="class")).unique("label", keep="first")
    for start, end, label in best.select("start_s", "end_s", "label").iter_rows():
        assert (start, end) == pytest.approx(known[label], abs=0.1)
    merged = decoder(grid).decode(data, DecodeSettings(proposals="activity"))
    assert merged.select("start_s", "end_s").row(0) == pytest.approx((4.0, 13.0), abs=0.1)


def test_activity_runs_carry_their_likeliest_classes() -> None:
    grid = SegmentGrid(10.0, 0.5)
    activity = curve(grid, [(3.0, 6.0)])
    action = np.stack([0.3 * activity, 0.6 * activity], axis=1)
    settings = DecodeSettings(proposals="activity", labels_per_run=1)
    assert set(decoder(grid).decode(curves(grid, action, activity), settings)["label"]) == {"wave"}
    both = DecodeSettings(proposals="activity", labels_per_run=2)
    found = decoder(grid).decode(curves(grid, action, activity), both)
    assert found["label"][0] == "wave"
    assert set(found["label"]) == {"pour", "wave"}


def test_runs_at_the_ends_of_the_recording_reach_them() -> None:
    grid = SegmentGrid(9.7, 1.0)
    values = np.full((len(grid), 1), 0.9)
    intervals = threshold_runs(CurveMeans([values], grid.segment_s, [grid.duration_s]), (0.5,)).intervals
    assert intervals.tolist() == [[0.0, 9.7]]
    values[3:6] = 0.1
    intervals = threshold_runs(CurveMeans([values], grid.segment_s, [grid.duration_s]), (0.5,)).intervals
    np.testing.assert_allclose(intervals, [[0.0, 3.0], [6.0, 9.7]])


def test_durations_of_the_training_instances_bound_the_proposals() -> None:
    grid = SegmentGrid(30.0, 0.5)
    values = curve(grid, [(2.0, 3.0), (10.0, 22.0)])
    action = np.stack([values, np.zeros(len(grid))], axis=1)
    free = decoder(grid).decode(curves(grid, action, values), DecodeSettings())
    bounded = decoder(grid, low=1.8, high=9.0).decode(
        curves(grid, action, values), DecodeSettings(shortest=1.0, longest=1.0)
    )
    length = free["end_s"] - free["start_s"]
    assert length.min() < 1.5
    assert length.max() > 11.0
    assert bounded.is_empty()


def test_shift_moves_starts_and_ends_but_not_out_of_the_recording() -> None:
    grid = SegmentGrid(10.0, 0.5)
    values = curve(grid, [(0.2, 4.0)])
    action = np.stack([values, np.zeros(len(grid))], axis=1)
    still = decoder(grid).decode(curves(grid, action, values), DecodeSettings())
    moved = decoder(grid).decode(curves(grid, action, values), DecodeSettings(start_shift_s=-0.5, end_shift_s=0.25))
    assert moved["end_s"][0] == pytest.approx(still["end_s"][0] + 0.25)
    assert moved["start_s"].min() == 0.0


def test_smoothing_joins_a_curve_that_flickers() -> None:
    grid = SegmentGrid(20.0, 0.5)
    values = curve(grid, [(5.0, 12.0)])
    values[16] = 0.02
    action = np.stack([values, np.zeros(len(grid))], axis=1)
    rough = decoder(grid).decode(curves(grid, action, values), DecodeSettings(proposals="class"))
    smooth = decoder(grid).decode(curves(grid, action, values), DecodeSettings(proposals="class", smoothing_s=0.7))
    assert rough["end_s"][0] - rough["start_s"][0] < 5.0
    assert smooth["end_s"][0] - smooth["start_s"][0] == pytest.approx(7.0, abs=1.0)


def test_detections_per_recording_are_limited_and_sorted() -> None:
    grid = SegmentGrid(60.0, 0.5)
    rng = np.random.default_rng(0)
    action = rng.random((len(grid), 2))
    found = decoder(grid).decode(curves(grid, action, action.max(axis=1)), DecodeSettings(max_detections=7))
    assert found.height == 7
    assert found["score"].is_sorted(descending=True)


def test_silent_curves_give_no_detection() -> None:
    grid = SegmentGrid(10.0, 1.0)
    found = decoder(grid).decode(curves(grid, np.zeros((10, 2)), np.zeros(10)), DecodeSettings())
    assert found.is_empty()
    assert found.columns == ["recording", "start_s", "end_s", "label", "score"]


def test_means_follow_the_interpolated_curve() -> None:
    grid = SegmentGrid(4.0, 1.0)
    values = np.array([0.01, 0.9, 0.6, 0.05])
    times = np.linspace(0, 4, 40_001)
    dense = 1.0 / (1.0 + np.exp(-np.interp(times, grid.centres_s, np.log(values / (1 - values)))))

    def mean(low: float, high: float) -> float:
        return float(dense[(times >= low) & (times <= high)].mean())

    column = np.zeros(1, dtype=int)
    means = CurveMeans([values[:, None]], 1.0).at(column)
    assert means.inside(np.array([[0.7, 2.45]]), column)[0] == pytest.approx(mean(0.7, 2.45), abs=0.01)
    # a short run is contrasted with one segment on either side
    expected = mean(1.2, 2.4) - (mean(0.2, 1.2) + mean(2.4, 3.4)) / 2
    assert means.contrast(np.array([[1.2, 2.4]]), column, 0.2)[0] == pytest.approx(expected, abs=0.01)
    # at the recording's start there is a margin on one side only, and around all of it none
    expected = mean(0.0, 2.5) - mean(2.5, 3.5)
    assert means.contrast(np.array([[0.0, 2.5]]), column, 0.1)[0] == pytest.approx(expected, abs=0.01)
    assert means.contrast(np.array([[0.0, 4.0]]), column, 0.1)[0] == pytest.approx(mean(0.0, 4.0), abs=0.01)


def test_logits_around_a_time_are_those_at_each_moment() -> None:
    rng = np.random.default_rng(0)
    means = CurveMeans([rng.uniform(0.01, 0.99, (size, 3)) for size in (5, 1, 8)], 0.5)
    owner, column = np.array([0, 1, 2, 2, 0, 2]), np.array([0, 1, 2, 0, 2, 1])
    times_s = np.array([0.0, 0.2, 4.0, 1.25, 2.6, 1.9])
    offsets = [-2.0, -1.5, -0.5, 0.0, 0.3, 1.0, 2.5]
    rows = means.at(owner)
    expected = rows.logits_at(times_s[:, None] + 0.5 * np.array(offsets), column)
    np.testing.assert_allclose(rows.logits_around(times_s, offsets, column), expected, atol=1e-6)


def test_limits_come_from_training_recordings_only(world) -> None:
    manifest, _ = world
    training = manifest.recordings_of(["train"])
    limits = Decoder.of(manifest, 1.0, training).durations.limits_s
    known = manifest.instances.filter(pl.col("recording").is_in(training) & (pl.col("label") == "wave"))
    length = known["end_s"] - known["start_s"]
    np.testing.assert_allclose(limits[1], [length.min(), length.max()])
    other = manifest.instances.filter(pl.col("recording").is_in(training[:1]) & (pl.col("label") == "wave"))
    assert Decoder.of(manifest, 1.0, training[:1]).durations.limits_s[1, 0] == (other["end_s"] - other["start_s"]).min()


@pytest.mark.parametrize("length_s", [0.0, 1e-9, 1e-6, 1e-4])
def test_the_shortest_runs_have_the_mean_of_where_they_are(length_s) -> None:
    rng = np.random.default_rng(0)
    means = CurveMeans([rng.uniform(0.1, 0.9, (400, 2))], 0.5)
    starts = np.append(rng.uniform(0.0, 199.0, 200), [0.0, 200.0 - length_s])
    rows, column = means.at(np.zeros(len(starts), dtype=np.int64)), np.ones(len(starts), dtype=np.int64)
    around = rows.inside(np.stack([starts - 0.02, starts + 0.02], axis=1), column)
    intervals = np.stack([starts, starts + length_s], axis=1)
    np.testing.assert_allclose(rows.inside(intervals, column), around, atol=0.1)
    np.testing.assert_allclose(rows.inside(intervals, slice(1, 2))[:, 0], rows.inside(intervals, column), atol=1e-6)
    assert (rows.contrast(intervals, column, 0.5) <= around + 0.1).all()
