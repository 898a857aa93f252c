import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from talstack.evaluate.recall import average_recall, recall_at_kx
from talstack.io.detections import DETECTION_SCHEMA, INSTANCE_SCHEMA
from talstack.io.errors import InputError


def detections(*rows):
    return pl.DataFrame(rows, schema=DETECTION_SCHEMA, orient="row")


def instances(*rows):
    return pl.DataFrame(rows, schema=INSTANCE_SCHEMA, orient="row")


def tiou_of(row, target, *, hull=False):
    overlap = max(min(row[2], target[2]) - max(row[1], target[1]), 0.0)
    if hull:
        return overlap / (max(row[2], target[2]) - min(row[1], target[1]))
    return overlap / ((row[2] - row[1]) + (target[2] - target[1]) - overlap)


def ranked(rows):
    return sorted(rows, key=lambda row: (-row[4], row[1], row[2]))


def reference_curve(found, targets, thresholds, max_proposals):
    """eval_proposal.py's rule, recording by recording: (K, 100) recall."""
    names = sorted({row[0] for row in targets})
    per_video = {name: ranked(row for row in found if row[0] == name) for name in names}
    ratio = max_proposals * float(len(names)) / max(len(found), 1)
    per_video = {name: rows[: min(int(len(rows) * ratio), len(rows))] for name, rows in per_video.items()}
    total = max(sum(map(len, per_video.values())), 1)
    recall = np.zeros((len(thresholds), 100))
    for point in range(100):
        share = (point + 1) / 100.0 * (max_proposals * float(len(names)) / total)
        for k, threshold in enumerate(thresholds):
            for target in targets:
                rows = per_video[target[0]]
                rows = rows[: min(int(len(rows) * share), len(rows))]
                recall[k, point] += any(tiou_of(row, target) >= threshold for row in rows)
    return recall / len(targets)


def reference_kx(found, targets, thresholds, factor):
    """ActionFormer's and Ego4D's rules, instance by instance: recall per class and pooled, one row a threshold."""
    per_class, pooled = [], []
    for threshold in thresholds:
        hits = {label: [] for label in sorted({row[3] for row in targets})}
        strict = []
        for target in targets:
            num_wanted = sum((row[0], row[3]) == (target[0], target[3]) for row in targets)
            rows = ranked(row for row in found if (row[0], row[3]) == (target[0], target[3]))[: factor * num_wanted]
            hits[target[3]].append(any(tiou_of(row, target) >= threshold for row in rows))
            strict.append(any(tiou_of(row, target, hull=True) > threshold for row in rows))
        per_class.append({label: np.mean(values) for label, values in hits.items()})
        pooled.append(np.mean(strict))
    return per_class, pooled


spans = st.tuples(st.sampled_from("abc"), st.integers(-2, 12), st.integers(1, 8)).map(
    lambda v: (v[0], v[1], v[1] + v[2])
)
found_rows = st.lists(
    st.tuples(spans, st.sampled_from("xyz"), st.sampled_from([0.1, 0.5, 0.5, 0.9])).map(lambda v: (*v[0], v[1], v[2])),
    max_size=16,
)
truth_rows = st.lists(
    st.tuples(spans, st.sampled_from("xy")).map(lambda v: (*v[0], v[1])), min_size=1, max_size=8
)  # fmt: skip


@settings(deadline=None)
@given(found_rows, truth_rows, st.sampled_from([0.5, 1, 2, 3.5, 100]), st.randoms(use_true_random=False))
def test_the_curve_equals_the_definition(found, targets, max_proposals, random):
    thresholds = (0.5, 1 / 3, 0.75)
    expected = reference_curve(found, targets, thresholds, max_proposals)
    for _ in range(2):
        result = average_recall(
            detections(*found), instances(*targets), tiou_thresholds=thresholds, max_proposals=max_proposals
        )
        assert result.recall == pytest.approx(expected, abs=1e-12)
        assert result.average == pytest.approx(expected.mean(axis=0), abs=1e-12)
        random.shuffle(found)
        random.shuffle(targets)


@settings(deadline=None)
@given(found_rows, truth_rows, st.randoms(use_true_random=False))
def test_recall_at_kx_equals_both_definitions(found, targets, random):
    thresholds = (0.5, 0.25, 1 / 3)
    expected = [reference_kx(found, targets, thresholds, factor) for factor in (1, 3)]
    random.shuffle(found)
    random.shuffle(targets)
    result = recall_at_kx(detections(*found), instances(*targets), tiou_thresholds=thresholds, k=(1, 3))
    for j, (per_class, pooled) in enumerate(expected):
        assert result.pooled[:, j] == pytest.approx(pooled, abs=1e-12)
        for place, values in enumerate(per_class):
            assert {label: table[place, j] for label, table in result.per_class.items()} == pytest.approx(values)
            assert result.mean[place, j] == pytest.approx(np.mean(list(values.values())), abs=1e-12)


def test_average_recall_by_hand():
    # Two recordings with an instance, N = 4 proposals in all, one of them elsewhere. At most AN = 2: every recording
    # may keep int(n * 2 * 2 / 4), that is all it has, so M = 3, and point j takes int(m * j / 100 * 4 / 3).
    truth = instances(("a", 0, 10, "x"), ("b", 0, 10, "y"))
    found = detections(
        ("a", 0, 6, "x", 0.9), ("a", 0, 10, "z", 0.1), ("b", 0, 10, "x", 0.5), ("elsewhere", 0, 10, "x", 0.9)
    )  # fmt: skip
    result = average_recall(found, truth, max_proposals=2)
    # recording a: its first proposal from j = 38 (2 * 0.38 * 4 / 3 = 1.01), the second from j = 75; b: from j = 75.
    # The first has tIoU 0.6: a hit at 0.50, 0.55 and 0.60, 3 of 10 thresholds, for one of two instances.
    expected = [0.0] * 37 + [0.15] * 37 + [1.0] * 26
    assert result.average == pytest.approx(expected)
    assert result.num_proposals == pytest.approx(np.arange(1, 101) / 50)
    assert (result.at(0.76), result.at(2)) == pytest.approx((0.15, 1.0))
    assert result.auc == pytest.approx((0.075 + 36 * 0.15 + 0.575 + 25) / 100)  # trapezoids of width 0.02, over 2
    assert (result.num_recordings, result.num_other) == (2, 1)
    with pytest.raises(InputError, match=r"AR@5: the curve has points from 0.02 to 2"):
        result.at(5)


def test_a_segment_under_two_labels_spends_the_budget_twice():
    truth = instances(("a", 0, 10, "x"))
    twice = [("a", 50, 60, "y", 0.9), ("a", 50, 60, "z", 0.9), ("a", 0, 10, "x", 0.5)]
    at_two = [average_recall(detections(*rows), truth).at(2) for rows in (twice, twice[1:])]
    assert at_two == [0.0, 1.0]


def test_recall_at_kx_by_hand():
    truth = instances(("a", 0, 10, "x"), ("a", 20, 30, "x"), ("b", 0, 10, "y"))
    found = detections(
        ("a", 0, 10, "x", 0.9), ("a", 1, 10, "x", 0.8), ("a", 20, 25, "x", 0.7), ("b", 0, 10, "x", 0.9)
    )  # fmt: skip
    result = recall_at_kx(found, truth, tiou_thresholds=(0.5, 0.6))
    # class x in a: 2 instances, so 1x takes two detections, both on the first instance; 5x takes all three, the last
    # with tIoU 0.5 exactly: a hit for "at least", none for "above". Class y is never found.
    assert result.mean.tolist() == [[0.25, 0.5], [0.25, 0.25]]
    assert result.pooled == pytest.approx(np.full((2, 2), 1 / 3))
    assert result.to_json()["mean"] == {"1x": [0.25, 0.25], "5x": [0.5, 0.25]}


def test_nothing_found_is_zero_and_bad_input_is_refused():
    truth = instances(("a", 0, 10, "x"))
    assert average_recall(detections(), truth).auc == 0
    assert not recall_at_kx(detections(), truth).pooled.any()
    for found in (detections(("z", 0, 10, "x", 0.5)), detections(("a", 0, 10, "y", 0.5))):
        assert not recall_at_kx(found, truth).mean.any()
    with pytest.raises(InputError, match="no instance"):
        average_recall(detections(), instances())
    with pytest.raises(InputError, match="max_proposals"):
        average_recall(detections(), truth, max_proposals=0)
    with pytest.raises(InputError, match="whole numbers of at least 1"):
        recall_at_kx(detections(), truth, k=(0,))
    with pytest.raises(InputError, match="tIoU thresholds"):
        recall_at_kx(detections(), truth, tiou_thresholds=())


def test_usual_points_of_the_curve():
    value = average_recall(detections(("a", 0, 10, "x", 0.5)), instances(("a", 0, 10, "x"))).to_json()
    assert value["ar"] == {"1": 1.0, "5": 1.0, "10": 1.0, "100": 1.0}
    assert value["auc"] == pytest.approx(0.99)  # the curve starts at AN = 1
    assert len(value["average_recall"]) == len(value["num_proposals"]) == 100
