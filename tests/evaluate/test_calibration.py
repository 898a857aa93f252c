import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from talstack.evaluate.calibration import reliability, score_reliability, segment_reliability
from talstack.io.detections import DETECTION_SCHEMA, INSTANCE_SCHEMA
from talstack.io.errors import InputError
from talstack.io.manifest import SCHEMAS, Manifest, empty_table
from talstack.io.predictions import ModelKey, segment_rows
from talstack.io.targets import segment_index


def one(frame, **where):
    rows = frame.filter(**where).to_dicts()
    assert len(rows) == 1
    return rows[0]


def test_worked_example():
    found = reliability(np.array([0.1, 0.3, 0.6, 0.9]), np.array([False, True, True, True]), num_bins=2)
    wide = found.curve.filter(binning="equal_width")
    assert wide.select("bin", "low", "high", "count").rows() == [(0, 0.0, 0.5, 2), (1, 0.5, 1.0, 2)]
    assert wide["mean_prob"].to_list() == pytest.approx([0.2, 0.75])
    assert wide["frequency"].to_list() == [0.5, 1.0]
    summary = one(found.summary, binning="equal_width")
    assert summary["ece"] == pytest.approx(0.5 * 0.3 + 0.5 * 0.25)
    assert summary["mce"] == pytest.approx(0.3)
    assert summary["brier"] == pytest.approx((0.01 + 0.49 + 0.16 + 0.01) / 4)
    assert (summary["count"], summary["frequency"], summary["reason"]) == (4, 0.75, None)


def test_edges_belong_to_the_bin_below_and_zero_to_the_first():
    values = np.array([0.0, 0.5, 0.5000001, 1.0])
    curve = reliability(values, np.ones(4, dtype=bool), num_bins=2).curve.filter(binning="equal_width")
    assert curve["count"].to_list() == [2, 2]


def test_equal_mass_bins_hold_equal_counts_and_never_part_equal_values():
    values = np.arange(100) / 100
    curve = reliability(values, values > 0.5, num_bins=4).curve.filter(binning="equal_mass")
    assert curve["count"].to_list() == [25] * 4
    assert curve["high"].to_list() == [0.24, 0.49, 0.74, 0.99]
    ties = np.array([0.2] * 9 + [0.7])
    curve = reliability(ties, ties > 0.5, num_bins=5).curve.filter(binning="equal_mass")
    assert curve.select("count", "mean_prob").rows() == [(9, pytest.approx(0.2)), (1, 0.7)]
    same = reliability(np.full(7, 0.4), np.ones(7, dtype=bool)).curve.filter(binning="equal_mass")
    assert same.select("low", "high", "count").rows() == [(0.4, 0.4, 7)]


def slow_errors(probs, outcomes, num_bins):
    """Guo et al.'s definition, read off the page."""
    gaps = []
    for m in range(1, num_bins + 1):
        inside = [i for i, p in enumerate(probs) if (m - 1) / num_bins < p <= m / num_bins or (m == 1 and p == 0)]
        if inside:
            gap = abs(sum(outcomes[i] for i in inside) / len(inside) - sum(probs[i] for i in inside) / len(inside))
            gaps.append((len(inside) / len(probs) * gap, gap))
    return sum(weighted for weighted, _ in gaps), max(gap for _, gap in gaps)


PAIRS = st.lists(st.tuples(st.integers(0, 64).map(lambda i: i / 64), st.booleans()), min_size=1, max_size=60)


@given(PAIRS, st.sampled_from([1, 2, 4, 8]), st.randoms(use_true_random=False))
def test_equals_the_definition_and_ignores_the_order(pairs, num_bins, random):
    probs, outcomes = (np.array(column) for column in zip(*pairs, strict=True))
    found = reliability(probs, outcomes, num_bins=num_bins)
    summary = one(found.summary, binning="equal_width")
    assert (summary["ece"], summary["mce"]) == pytest.approx(slow_errors(probs.tolist(), outcomes.tolist(), num_bins))
    for binning in ("equal_width", "equal_mass"):
        curve = found.curve.filter(binning=binning)
        assert curve["count"].sum() == len(pairs)
        assert ((curve["low"] <= curve["mean_prob"]) & (curve["mean_prob"] <= curve["high"] + 1e-12)).all()
        assert (curve["count"] * curve["frequency"]).sum() == pytest.approx(outcomes.sum())
    shuffled = list(pairs)
    random.shuffle(shuffled)
    again = reliability(*(np.array(column) for column in zip(*shuffled, strict=True)), num_bins=num_bins)
    assert again.summary.equals(found.summary)
    assert again.curve.equals(found.curve)


def test_values_that_are_no_probabilities_have_a_curve_and_a_reason_but_no_error():
    found = reliability(np.array([-3.0, 0.5, 7.0, 8.0]), np.array([False, False, True, True]), num_bins=2)
    assert set(found.curve["binning"]) == {"equal_mass"}
    assert found.curve.select("mean_prob", "frequency").rows() == [(-1.25, 0.0), (7.5, 1.0)]
    for row in found.summary.to_dicts():
        assert (row["ece"], row["mce"], row["brier"]) == (None, None, None)
        assert "outside [0, 1]" in row["reason"]


def test_nothing_to_measure():
    found = reliability(np.zeros(0), np.zeros(0, dtype=bool))
    assert found.curve.is_empty()
    assert found.summary.select("count", "ece", "reason").unique().rows() == [(0, None, "no prediction")]


def test_refuses():
    with pytest.raises(InputError, match="1 of 2 values are not finite"):
        reliability(np.array([0.1, np.nan]), np.zeros(2, dtype=bool))
    with pytest.raises(InputError, match="expected probs"):
        reliability(np.zeros(2), np.zeros(3, dtype=bool))
    with pytest.raises(InputError, match="num_bins must be at least 1"):
        reliability(np.zeros(2), np.zeros(2, dtype=bool), num_bins=0)


def test_scores_are_compared_with_true_positives_at_each_tiou():
    instances = pl.DataFrame([("a", 0, 10, "run"), ("a", 20, 30, "sit")], schema=INSTANCE_SCHEMA, orient="row")
    rows = [
        ("a", 0.0, 10.0, "run", 0.9),
        ("a", 0.0, 9.0, "run", 0.8),  # taken already: a false positive
        ("a", 20.0, 26.0, "sit", 0.7),  # tIoU 0.6
        ("z", 0.0, 9.0, "run", 0.1),
        ("a", 0.0, 10.0, "fly", 0.99),  # a class that the ground truth lacks
    ]
    detections = pl.DataFrame(rows, schema=DETECTION_SCHEMA, orient="row")
    found = score_reliability(detections, instances, tiou_thresholds=(0.5, 0.75), num_bins=1)
    wide = found.summary.filter(binning="equal_width")
    assert wide.select("tiou", "count", "frequency").rows() == [(0.5, 4, 0.5), (0.75, 4, 0.25)]
    assert wide["mean_prob"].to_list() == pytest.approx([0.625, 0.625])
    again = score_reliability(detections.reverse(), instances.reverse(), tiou_thresholds=(0.5, 0.75), num_bins=1)
    assert again.curve.equals(found.curve)
    with pytest.raises(InputError, match=r"numbers in \(0, 1\]"):
        score_reliability(detections, instances, tiou_thresholds=(0.0,))


def test_segment_probabilities_of_each_head_against_segment_targets(tmp_path):
    recordings = [("a", 4.0, None, "test"), ("b", 2.0, None, "val")]
    manifest = Manifest(
        "set", tmp_path, ("run", "sit"), (),
        pl.DataFrame(recordings, schema=SCHEMAS["recordings"], orient="row"), empty_table("clips"),
        pl.DataFrame([("a", 0.0, 2.0, "run"), ("b", 0.0, 2.0, "sit")], schema=SCHEMAS["instances"], orient="row"),
    )  # fmt: skip
    index = segment_index(manifest, 1.0)
    common = {"fold": np.full(6, -1), "valid": np.array([True] * 3 + [False] + [True] * 2)}
    action = np.array([[0.9, 0.1], [0.9, 0.1], [0.1, 0.1], [np.nan, np.nan], [0.0, 0.0], [0.0, 0.0]])
    activity = np.array([[0.8], [0.8], [0.2], [np.nan], [0.0], [0.0]])
    table = pl.concat(
        [
            segment_rows(ModelKey("v", "rgb", "action-gbm"), index, action, classes=("run", "sit"), **common),
            segment_rows(ModelKey("v", "rgb", "activity-gbm"), index, activity, classes=("activity",), **common),
            segment_rows(ModelKey("v", "rgb", "scene-gbm"), index, activity, classes=("x",), **common),
        ]
    )
    found = segment_reliability(table, manifest, segment_s=1.0, recordings=["a"])
    wide = found.summary.filter(binning="equal_width")
    # three valid segments of two classes; two of the six happen
    assert wide.select("view", "modality", "head", "count").rows() == [
        ("v", "rgb", "action-gbm", 6),
        ("v", "rgb", "activity-gbm", 3),
    ]
    assert wide["frequency"].to_list() == pytest.approx([2 / 6, 2 / 3])
    assert wide["ece"].to_list() == pytest.approx([0.1, 0.2])
    both = segment_reliability(table.reverse(), manifest, segment_s=1.0, recordings=["b", "a"])
    assert both.summary.filter(binning="equal_width")["count"].to_list() == [10, 5]
    none = segment_reliability(table.clear(), manifest, segment_s=1.0, recordings=["a"])
    assert none.summary.is_empty()
    assert none.curve.columns == found.curve.columns
