import json

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from talstack.evaluate.thumos14 import evaluate_thumos14, match_thumos14, thumos14_outcomes
from talstack.io.detections import DETECTION_SCHEMA, INSTANCE_SCHEMA, read_predictions
from talstack.io.errors import InputError
from talstack.io.ground_truth import read_ground_truth

THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5)


def detections(*rows):
    return pl.DataFrame(rows, schema=DETECTION_SCHEMA, orient="row")


def instances(*rows):
    return pl.DataFrame(rows, schema=INSTANCE_SCHEMA, orient="row")


def reference(found, truth, threshold):
    """The toolkit's rules, one instance and one detection at a time: (outcome of each row, {class: AP})."""
    rows, targets = list(found.iter_rows()), list(truth.iter_rows())
    outcomes = [None] * len(rows)
    order = sorted(range(len(rows)), key=lambda i: (-rows[i][4], *rows[i][:3]))
    ap = {}
    for label in sorted({target[3] for target in targets} - {"Ambiguous"}):
        mine = [i for i in order if rows[i][3] == label]
        free = set(mine)
        for recording, low, high, _ in (target for target in targets if target[3] == label):
            best, chosen = threshold, None
            for i in mine:
                other, start, end = rows[i][:3]
                tiou = (min(end, high) - max(start, low)) / (max(end, high) - min(start, low))
                if other == recording and i in free and tiou > best:
                    best, chosen = tiou, i
            free.discard(chosen)
            if chosen is not None:
                outcomes[chosen] = "tp"
        for i in free:
            ambiguous = [t for t in targets if t[3] == "Ambiguous" and t[0] == rows[i][0]]
            hidden = any(min(rows[i][2], t[2]) > max(rows[i][1], t[1]) for t in ambiguous)
            outcomes[i] = "ignored" if hidden else "fp"
        hits = [outcomes[i] == "tp" for i in mine if outcomes[i] != "ignored"]
        precisions = [sum(hits[: n + 1]) / (n + 1) for n, hit in enumerate(hits) if hit]
        ap[label] = sum(precisions) / sum(target[3] == label for target in targets)
    return outcomes, ap


spans = st.tuples(st.sampled_from("ab"), st.integers(-1, 12), st.integers(1, 8)).map(
    lambda v: (v[0], v[1], v[1] + v[2])
)
found_rows = st.lists(st.tuples(spans, st.sampled_from("xyz"), st.sampled_from([0.1, 0.5, 0.5, 0.9])), max_size=14)
truth_rows = st.lists(st.tuples(spans, st.sampled_from(["x", "x", "y", "Ambiguous"])), max_size=10)


@settings(deadline=None)
@given(found_rows, truth_rows, st.sampled_from([0.1, 1 / 3, 0.5, 0.75]), st.randoms(use_true_random=False))
def test_same_as_the_rules_taken_word_by_word(found, targets, threshold, random):
    rows = [(*span, label, score) for span, label, score in found]
    truth = instances(("a", 0, 1, "x"), *((*span, label) for span, label in targets))
    outcomes, ap = reference(detections(*rows), truth, threshold)
    assert thumos14_outcomes(detections(*rows), truth, tiou_threshold=threshold).to_list() == outcomes
    random.shuffle(rows)
    result = evaluate_thumos14(detections(*rows), truth, tiou_thresholds=[0.6, threshold])
    assert {label: values[1] for label, values in result.ap.items()} == pytest.approx(ap, abs=1e-12)
    ignored = sum(outcome == "ignored" for outcome in outcomes)
    assert result.ignored.get(f"overlaps Ambiguous, at tIoU {threshold:g}", 0) == ignored


def test_each_rule_on_its_own():
    truth = instances(("a", 0, 10, "x"), ("a", 20, 30, "Ambiguous"))
    at_half = detections(("a", 0, 5, "x", 0.9))
    assert evaluate_thumos14(at_half, truth, tiou_thresholds=[0.5, 0.49]).map == (0.0, 1.0)  # strictly greater
    touching = detections(("a", 10, 20, "x", 0.9), ("a", 29, 40, "x", 0.8), ("b", 20, 30, "x", 0.7))
    assert thumos14_outcomes(touching, truth, tiou_threshold=0.5).to_list() == ["fp", "ignored", "fp"]
    result = evaluate_thumos14(touching, truth, tiou_thresholds=[0.5], recordings=["a"])
    assert result.ignored == {"Ambiguous (instance)": 1, "overlaps Ambiguous, at tIoU 0.5": 1}
    assert (result.compat, result.num_instances, result.num_unlisted) == ("thumos14", 1, 1)
    unknown = detections(("a", 0, 10, "x", 0.1), ("a", 0, 10, "y", 0.9))
    assert thumos14_outcomes(unknown, truth, tiou_threshold=0.5).to_list() == ["tp", None]


def test_ap_is_not_interpolated():
    truth = instances(("a", 0, 10, "x"), ("a", 20, 30, "x"))
    rows = [("a", 50, 60, "x", 0.9), ("a", 0, 10, "x", 0.8), ("a", 20, 30, "x", 0.7)]
    assert evaluate_thumos14(detections(*rows), truth, tiou_thresholds=[0.5]).map == pytest.approx((7 / 12,))  # not 2/3


def test_instances_choose_in_the_order_of_their_table():
    first, second = ("a", 0, 10, "x"), ("a", 2, 12, "x")
    found = detections(("a", 1, 11, "x", 0.9), ("a", 4, 14, "x", 0.8))
    recalls = [
        match_thumos14(found, instances(*order), [0.6]).recalls()[0, 0] for order in ((first, second), (second, first))
    ]
    assert recalls == [1.0, 0.5]


def test_no_instance_besides_ambiguous_is_refused():
    with pytest.raises(InputError, match="no instance besides Ambiguous"):
        evaluate_thumos14(detections(), instances(("a", 0, 1, "Ambiguous")), tiou_thresholds=[0.5])


@pytest.mark.parametrize("place", range(5))
def test_published_figures_of_scnn(shared_data, place):
    folder = shared_data / "conformance" / "thumos14_scnn"
    expected = json.loads((folder / "expected.json").read_text())["thresholds"][place]
    assert expected["tiou"] == THRESHOLDS[place]
    truth = read_ground_truth(folder / "ground_truth.csv")
    found = read_predictions(folder / expected["file"], score_column="rank_score").detections
    outcomes = pl.read_csv(folder / expected["file"])["outcome"]
    assert thumos14_outcomes(found, truth.instances, tiou_threshold=expected["tiou"]).equals(outcomes)
    for table in (found, found.sample(fraction=1.0, shuffle=True, seed=place)):
        result = evaluate_thumos14(table, truth.instances, tiou_thresholds=[expected["tiou"]])
        assert result.average_map == pytest.approx(expected["published_map"], abs=1e-9)
        assert {label: values[0] for label, values in result.ap.items()} == pytest.approx(
            expected["published_ap"], abs=1e-9
        )
        recalls = match_thumos14(table, truth.instances, [expected["tiou"]]).recalls()
        assert np.mean(recalls) == pytest.approx(expected["published_mean_recall"], abs=1e-9)
        assert result.ignored[f"overlaps Ambiguous, at tIoU {expected['tiou']:g}"] == expected["ignored"]
