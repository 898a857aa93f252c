import itertools

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from talstack.evaluate.compat import COMPAT, evaluate_compat, is_first_of_duplicates, prepare_opentad, round_decimals
from talstack.evaluate.map import evaluate_detections
from talstack.io.detections import DETECTION_SCHEMA, INSTANCE_SCHEMA
from talstack.io.errors import InputError

THRESHOLDS = (0.5, 0.75, 0.95)


def detections(*rows):
    return pl.DataFrame(rows, schema=DETECTION_SCHEMA, orient="row")


def instances(*rows):
    return pl.DataFrame(rows, schema=INSTANCE_SCHEMA, orient="row")


def evaluate(name, found, truth, *thresholds, **options):
    return evaluate_compat(name, found, truth, tiou_thresholds=thresholds or THRESHOLDS, **options)


def kept_one_by_one(rows):
    """ActionFormer's and OpenTAD's rule: whoever comes within 1e-3 s of a row kept before goes."""
    kept = []
    for row in rows:
        near = [k for k in kept if abs(k[1] - row[1]) <= 1e-3 and abs(k[2] - row[2]) <= 1e-3]
        if not any((k[0], k[3]) == (row[0], row[3]) for k in near):
            kept.append(row)
    return kept


def reference_ap(found, targets, threshold, *, forget=False):
    """ActivityNet's rules on rows, one at a time; `forget` lets an instance be taken again and again."""
    taken, hits = set(), []
    for recording, start, end, _, _ in sorted(found, key=lambda row: (-row[4], *row[:3])):
        best = []
        for index, (other, low, high, _) in enumerate(targets):
            overlap = max(min(end, high) - max(start, low), 0.0)
            tiou = overlap / ((end - start) + (high - low) - overlap)
            if other == recording and tiou >= threshold and (forget or index not in taken):
                best.append((-tiou, index))
        taken.update(index for _, index in sorted(best)[:1])
        hits.append(bool(best))
    precisions = [count / (n + 1) for n, count in enumerate(itertools.accumulate(hits))]
    envelope = list(itertools.accumulate(reversed(precisions), max))[::-1]
    return sum(p for p, hit in zip(envelope, hits, strict=True) if hit) / len(targets)


def reference_map(found, targets, thresholds, **options):
    labels = sorted({row[3] for row in targets})
    ap = [
        [
            reference_ap(*([r for r in rows if r[3] == label] for rows in (found, targets)), t, **options)
            for t in thresholds
        ]
        for label in labels
    ]
    return np.mean(ap, axis=0).tolist()


near_s = st.sampled_from([0.0, 4e-4, 8e-4, 1e-3, 1.2e-3, 1.6e-3, 2e-3, 0.3])
near_rows = st.lists(
    st.tuples(st.sampled_from("ab"), near_s, near_s.map(lambda v: v + 5), st.sampled_from("xy")),
    min_size=1,
    max_size=12,
)


@settings(deadline=None)
@given(near_rows, st.randoms(use_true_random=False))
def test_duplicates_go_by_start_and_end_whatever_the_order_of_rows(rows, random):
    shuffled = random.sample(rows, len(rows))
    is_kept = is_first_of_duplicates(instances(*shuffled))
    assert sorted(row for row, keep in zip(shuffled, is_kept, strict=True) if keep) == sorted(
        kept_one_by_one(sorted(rows))
    )


def test_a_chain_of_near_duplicates_keeps_its_ends():
    chain = [("a", 0.0008 * n, 5.0, "x") for n in range(3)]
    assert is_first_of_duplicates(instances(*chain)).tolist() == [True, False, True]
    assert is_first_of_duplicates(instances(chain[1], chain[0], chain[2])).tolist() == [False, True, True]


def test_actionformer_drops_short_instances_and_duplicates_with_a_count():
    rows = [("a", 0, 10, "x"), ("a", 0.0005, 10, "x"), ("a", 0, 10, "y"), ("b", 0, 10, "x"), ("a", 20, 20.0005, "x")]
    found = detections(("a", 0, 10, "x", 0.9), ("b", 0, 10, "x", 0.8), ("a", 0, 10, "y", 0.7), ("a", 0, 1, "z", 1))
    result = evaluate("actionformer", found, instances(*rows))
    assert result.map == (1.0, 1.0, 1.0)
    assert evaluate_detections(found, instances(*rows), tiou_thresholds=THRESHOLDS).map[0] < 1
    assert result.ignored == {
        "shorter than 0.001 s (instance)": 1,
        "duplicate within 0.001 s (instance)": 1,
        "label not in ground truth": 1,
    }
    assert result.to_json() | {"compat": "actionformer", "changed": {}} == result.to_json()


def test_opentad_keeps_short_instances():
    truth = instances(("a", 0, 10, "x"), ("a", 20, 20.0005, "x"))
    assert evaluate("opentad", detections(), truth).num_instances == 2
    assert evaluate("actionformer", detections(), truth).num_instances == 1


@pytest.mark.parametrize("value", [1.115, 2.675, 0.285, 1.005, 0.145, 123456.785, -1.115, 8.5, 0.005, 1e-200])
def test_rounding_is_pythons(value):
    assert round_decimals(np.array([value]), 2).tolist() == [round(value, 2)]


@settings(deadline=None)
@given(
    st.lists(st.floats(-1e5, 1e5) | st.integers(-(10**7), 10**7).map(lambda n: n / 1000), max_size=20),
    st.sampled_from([2, 4]),
)
def test_rounding_is_pythons_everywhere(values, decimals):
    assert round_decimals(np.array(values, dtype=float), decimals).tolist() == [round(v, decimals) for v in values]


def test_opentad_rounds_predictions_only():
    truth = instances(("a", 0.0, 10.004, "x"), ("a", 20, 30, "x"))
    found = detections(("a", 0.004, 10.0, "x", 0.50004), ("a", 20, 30, "x", 0.50001))
    prepared = prepare_opentad(found, truth)
    assert prepared.detections.rows() == [("a", 0.0, 10.0, "x", 0.5), ("a", 20.0, 30.0, "x", 0.5)]
    assert prepared.instances.equals(truth)
    assert evaluate("opentad", found, truth).changed == {"rounded to 0.01 s or to 0.0001 in score": 2}


def test_what_rounding_leaves_without_length_is_a_counted_false_positive():
    truth = instances(("a", 0, 10, "x"))
    found = detections(("a", 3.001, 3.002, "x", 0.9), ("a", 0, 10, "x", 0.8))
    result = evaluate("opentad", found, truth)
    assert result.changed["zero length after rounding, a false positive"] == 1
    assert result.map == (0.5, 0.5, 0.5)
    assert result.num_predictions == 2


span = st.tuples(st.integers(0, 3000), st.integers(1, 1500)).map(lambda v: (v[0] / 100, (v[0] + v[1]) / 100))
jitter = st.sampled_from([0.0, 0.001, 0.004, 0.0049, -0.004])
found_rows = st.lists(
    st.tuples(
        st.sampled_from("ab"), span, jitter, st.sampled_from("xy"), st.sampled_from([0.12344, 0.12341, 0.5, 0.9])
    ),
    max_size=10,
).map(lambda rows: [(r, s[0] + j + 0.005, s[1], label, score) for r, s, j, label, score in rows if s[1] - s[0] > 0.01])
truth_rows = st.lists(st.tuples(st.sampled_from("ab"), span, st.sampled_from("xy")), min_size=1, max_size=6).map(
    lambda rows: [(r, *s, label) for r, s, label in rows]
)


@settings(deadline=None)
@given(found_rows, truth_rows, st.randoms(use_true_random=False))
def test_opentad_equals_its_rules_row_by_row(found, targets, random):
    rounded = [(r, round(s, 2), round(e, 2), label, round(score, 4)) for r, s, e, label, score in found]
    expected = reference_map(rounded, kept_one_by_one(sorted(targets)), THRESHOLDS)
    random.shuffle(found)
    assert evaluate("opentad", detections(*found), instances(*targets)).map == pytest.approx(expected, abs=1e-12)


@settings(deadline=None)
@given(found_rows, truth_rows, st.randoms(use_true_random=False))
def test_actionformer_equals_its_rules_row_by_row(found, targets, random):
    expected = reference_map(found, kept_one_by_one(sorted(targets)), THRESHOLDS)
    random.shuffle(found)
    assert evaluate("actionformer", detections(*found), instances(*targets)).map == pytest.approx(expected, abs=1e-12)


def x360_rows(rows, *, snap):
    """Rows within one piece as the kit's segment_iou sees them: rounded, within the piece, predictions snapped."""
    seen = []
    for recording, start, end, *rest in rows:
        low = start // 10 * 10
        start, end = (min(max(float(np.round(t - low, 2)), 0.0), 10.0) for t in (start, end))
        if snap:
            start, end = 0.0 if start < 0.1 else start, 10.0 if end > 9.9 else end
        seen.append((f"{recording}_{low}", start, end, *rest))
    return seen


piece = st.tuples(st.integers(0, 2), st.integers(0, 940), st.integers(60, 1000)).map(
    lambda v: (v[0] * 10 + v[1] / 100, v[0] * 10 + min(v[1] + v[2], 1000) / 100)
)
piece_rows = st.lists(st.tuples(st.sampled_from("ab"), piece, st.sampled_from("xy")), min_size=1, max_size=8).map(
    lambda rows: [(r, *s, label) for r, s, label in rows]
)


@settings(deadline=None)
@given(piece_rows, piece_rows, st.lists(st.integers(0, 10**6), min_size=8, max_size=8, unique=True))
def test_x360_equals_its_rules_row_by_row(found, targets, scores):
    found = [(*row, score) for row, score in zip(found, scores, strict=False)]
    targets = kept_one_by_one(sorted(targets))
    seen, truth = x360_rows(found, snap=True), x360_rows(targets, snap=False)
    for name, forget in (("x360", False), ("x360-repeats", True)):
        expected = reference_map(seen, truth, THRESHOLDS, forget=forget)
        result = evaluate(name, detections(*found[::-1]), instances(*targets))
        assert result.map == pytest.approx(expected, abs=1e-12)


def test_x360_snaps_predictions_and_not_instances():
    whole, inner = (0.0, 10.0), (0.06, 9.95)
    for found, target, expected in ((inner, whole, 1.0), (whole, inner, 0.0)):
        result = evaluate("x360", detections(("a", *found, "x", 0.9)), instances(("a", *target, "x")), 0.9999)
        assert result.map == (expected,)
    at_limit = detections(("a", 100.1, 109.9, "x", 0.9))  # 109.9 - 100 is a little above 9.9
    assert evaluate("x360", at_limit, instances(("a", 100.1, 109.9, "x"))).changed == {}


def test_x360_counts_what_it_cuts_and_drops():
    truth = instances(("a", 5, 20.3, "x"), ("a", -3, -1, "x"))
    rows = [("a", 5, 20, 0.9), ("a", 9.8, 15, 0.5), ("a", 1, 1.2, 0.4), ("z", 0, 10, 0.3), ("a", -2, 4, 0.2)]
    found = detections(*((*row[:3], "x", row[3]) for row in rows))
    result = evaluate("x360", found, truth)
    assert result.ignored == {
        "not longer than 0.2 s": 1,
        "piece under 0.5 s": 1,
        "piece under 0.5 s (instance)": 1,
        "before second 0 (instance)": 1,
    }
    assert result.changed == {"cut at the edges of pieces": 2}
    assert (result.num_predictions, result.num_instances, result.num_unlisted) == (5, 2, 1)
    assert result.map[0] == 1.0


def test_x360_repeats_says_how_many_hits_are_repeated():
    found = detections(*(("a", 0, 10, "x", score) for score in (0.9, 0.8, 0.7)))
    truth = instances(("a", 0, 10, "x"))
    result = evaluate("x360-repeats", found, truth)
    assert result.map == (3.0, 3.0, 3.0)
    assert result.changed == {"repeated hits that count as true positives, at tIoU 0.5": 2}
    assert evaluate("x360", found, truth).map == (1.0, 1.0, 1.0)


@pytest.mark.parametrize("name", COMPAT)
def test_every_rule_set_by_name(name):
    truth, found = instances(("a", 0, 10, "x")), detections(("a", 0, 10, "x", 0.9), ("q", 0, 10, "x", 0.1))
    result = evaluate(name, found, truth, preset="binego360", recordings=["a", "b"])
    assert (result.compat, result.preset, result.num_unlisted) == (name, "binego360", 1)
    assert result.average_map == 1.0
    assert evaluate(name, detections(), truth).average_map == 0.0


def test_refusals():
    truth = instances(("a", 0, 10, "x"))
    with pytest.raises(InputError, match="compat 'voc': expected one of actionformer"):
        evaluate("voc", detections(), truth)
    with pytest.raises(InputError, match="rules of actionformer leave no instance"):
        evaluate("actionformer", detections(), instances(("a", 0, 0.0005, "x")))
    with pytest.raises(InputError, match="end_s must be after start_s"):
        evaluate("opentad", detections(("a", 3, 3, "x", 0.9)), truth)
    with pytest.raises(InputError, match="tIoU thresholds"):
        evaluate("x360", detections(), truth, 1.5)
