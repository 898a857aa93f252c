import itertools
import json

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from talstack.evaluate import matching
from talstack.evaluate.average_precision import average_precisions
from talstack.evaluate.map import PRESETS, evaluate_detections, match_for_map
from talstack.io.detections import DETECTION_SCHEMA, INSTANCE_SCHEMA, read_predictions
from talstack.io.errors import InputError
from talstack.io.ground_truth import read_ground_truth


def detections(*rows):
    return pl.DataFrame(rows, schema=DETECTION_SCHEMA, orient="row")


def instances(*rows):
    return pl.DataFrame(rows, schema=INSTANCE_SCHEMA, orient="row")


def evaluate(found, truth, *thresholds, **settings):
    return evaluate_detections(found, truth, tiou_thresholds=thresholds or (0.5,), **settings)


def reference_ap(found, truth, label, threshold):
    """The definition of FACTS.md section 3, one prediction at a time."""
    mine = [row for row in found.iter_rows() if row[3] == label]
    mine.sort(key=lambda row: (-row[4], row[0], row[1], row[2]))
    targets = sorted(row for row in truth.iter_rows() if row[3] == label)
    taken, hits = set(), []
    for recording, start, end, _, _ in mine:
        best = []
        for index, (other, low, high, _) in enumerate(targets):
            overlap = max(min(end, high) - max(start, low), 0.0)
            tiou = overlap / ((end - start) + (high - low) - overlap)
            if other == recording and tiou >= threshold:
                best.append((-tiou, index))
        free = [index for _, index in sorted(best) if index not in taken]
        taken.update(free[:1])
        hits.append(bool(free))
    precision, recall = [0.0], [0.0]
    for count, num_hits in enumerate(itertools.accumulate(hits), start=1):
        precision.append(num_hits / count)
        recall.append(num_hits / len(targets))
    precision, recall = [*precision, 0.0], [*recall, 1.0]
    envelope = list(itertools.accumulate(reversed(precision), max))[::-1]
    return sum((recall[i] - recall[i - 1]) * envelope[i] for i in range(1, len(recall)))


# Few values on purpose: ties in score and in tIoU, duplicates, nested and touching intervals all turn up.
interval = st.tuples(st.integers(-2, 12), st.integers(1, 8)).map(lambda pair: (float(pair[0]), float(sum(pair))))
row = st.tuples(st.sampled_from("ab"), interval, st.sampled_from("xyz"))
instance_rows = st.lists(row, min_size=1, max_size=14)
detection_rows = st.lists(st.tuples(row, st.sampled_from([0.0, 0.25, 0.5, 1.0])), max_size=30)


# 0 instances are few: even a single one is searched for, as in a crowd; 0 groups: as where most have no instance
@pytest.mark.parametrize(("few_instances", "groups_per_row"), [(0, 4), (8, 0)])
@settings(max_examples=200, deadline=None)
@given(detection_rows, instance_rows, st.randoms(use_true_random=False))
def test_equals_the_walk_over_predictions_for_any_row_order(
    few_instances, groups_per_row, found_rows, true_rows, random
):
    found = detections(*((r, s, e, label, score) for (r, (s, e), label), score in found_rows))
    truth = instances(*((r, s, e, label) for r, (s, e), label in true_rows))
    thresholds = (0.1, 0.5, 0.75)
    shuffled = random.sample(range(found.height), found.height)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matching, "FEW_INSTANCES", few_instances)
        patch.setattr(matching, "GROUPS_PER_ROW", groups_per_row)
        result = evaluate(found[shuffled], truth[random.sample(range(truth.height), truth.height)], *thresholds)
    expected = {c: [reference_ap(found, truth, c, t) for t in thresholds] for c in truth["label"].unique()}
    assert result.ap.keys() == expected.keys()
    for label, values in expected.items():
        assert result.ap[label] == pytest.approx(values, abs=1e-12)
    assert result.map == pytest.approx(np.mean(list(expected.values()), axis=0), abs=1e-12)


def test_small_blocks_of_pairs_give_the_same(monkeypatch):
    rng = np.random.default_rng(3)
    start = rng.uniform(0, 50, 400)
    found = pl.DataFrame(
        {"recording": "a", "start_s": start, "end_s": start + 5, "label": "x", "score": rng.random(400)}
    )
    truth = found.head(60).select(list(INSTANCE_SCHEMA))
    whole = evaluate(found, truth, 0.1, 0.5)
    monkeypatch.setattr(matching, "PAIRS_PER_BLOCK", 7)
    assert evaluate(found, truth, 0.1, 0.5) == whole


def test_a_crowd_of_instances_of_all_lengths_equals_the_walk():
    rng = np.random.default_rng(5)
    start, length = rng.uniform(0, 300, 80), rng.lognormal(1.5, 1.2, 80)
    truth = instances(*(("a", s, s + n, "x") for s, n in zip(start, length, strict=True)))
    of = rng.integers(80, size=400)
    low = start[of] + rng.choice([0.0, 0.1, 0.5], 400) * length[of]
    high = low + length[of] * rng.choice([0.5, 0.75, 1.0, 1.5], 400)
    found = detections(*(("a", s, e, "x", score) for s, e, score in zip(low, high, rng.random(400), strict=True)))
    thresholds = (0.95, 0.1, 0.5, 0.5, 1.0)  # neither sorted nor unique
    assert evaluate(found, truth, *thresholds).ap["x"] == pytest.approx(
        [reference_ap(found, truth, "x", threshold) for threshold in thresholds], abs=1e-12
    )


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e5])
def test_exact_thresholds_are_found_in_a_crowd_far_from_zero(size):
    start = 1e6 + np.arange(20) * 4 * size
    truth = instances(*(("a", s, s + size, "x") for s in start))
    for threshold in (0.25, 0.5, 1.0):
        for found in (
            detections(*(("a", s, s + size * threshold, "x", 1) for s in start)),
            detections(*(("a", s, s + size / threshold, "x", 1) for s in start)),
        ):
            measured = reference_ap(found, truth, "x", threshold)
            assert evaluate(found, truth, threshold).ap["x"][0] == pytest.approx(measured, abs=1e-12)


def test_unweighted_is_the_same_as_weights_of_one():
    rng = np.random.default_rng(9)
    start = rng.uniform(0, 60, 600)
    found = pl.DataFrame(
        {
            "recording": rng.choice(["a", "b", "c"], 600),
            "start_s": start,
            "end_s": start + rng.uniform(1, 9, 600),
            "label": rng.choice(["x", "y", "z"], 600),
            "score": rng.random(600).round(2),
        }
    )
    truth = found.filter(pl.col("label") != "z").sample(40, seed=1).drop("score")
    truth = pl.concat([truth, instances(("a", 900, 901, "z"))])  # a class without a hit
    matched, _ = match_for_map(found, truth, (0.3, 0.5, 0.7))
    ones = np.ones((1, len(matched.recordings)))
    np.testing.assert_allclose(average_precisions(matched), average_precisions(matched, ones), rtol=0, atol=1e-14)


def test_falls_through_to_the_second_best_instance():
    truth = instances(("a", 0, 10, "x"), ("a", 2, 12, "x"))
    found = detections(("a", 0, 10, "x", 0.9), ("a", 0.5, 10.5, "x", 0.8), ("a", 1, 11, "x", 0.7))
    # the second overlaps the taken instance most and falls through; for the third both are taken
    assert evaluate(found, truth, 0.5).ap == {"x": (1.0,)}
    assert evaluate(found, truth, 0.9).ap == {"x": (0.5,)}


def test_a_long_chain_of_refusals():
    truth = instances(*(("a", i, i + 10, "x") for i in range(6)))
    found = detections(*(("a", i / 2, i / 2 + 10, "x", 1 - i / 100) for i in range(12)))
    assert evaluate(found, truth, 0.5).ap["x"][0] == pytest.approx(reference_ap(found, truth, "x", 0.5))


@pytest.mark.parametrize(("end", "threshold"), [(10.0, 0.5), (15.0, 0.75), (18.0, 0.9)])
def test_exactly_on_the_threshold_is_a_hit(end, threshold):
    truth, found = instances(("a", 0, 20, "x")), detections(("a", 0, end, "x", 1))
    assert evaluate(found, truth, threshold).map == (1.0,)
    assert evaluate(found, truth, threshold + 1e-9).map == (0.0,)


def test_ties_are_broken_by_recording_start_end_and_never_by_row():
    truth = instances(("b", 0, 10, "x"))
    found = detections(("b", 0, 10, "x", 0.5), ("a", 0, 10, "x", 0.5))
    assert evaluate(found, truth).ap["x"] == evaluate(found.reverse(), truth).ap["x"] == (0.5,)
    truth = instances(("a", 0, 10, "x"), ("a", 20, 30, "x"))
    found = detections(("a", 20, 30, "x", 0.5), ("a", 0, 10, "x", 0.5), ("a", 0, 2, "x", 0.5))
    assert evaluate(found, truth).ap["x"][0] == pytest.approx(2 / 3)  # [0, 2] is walked first: precision 2/3 twice


def test_scores_of_any_sign_and_size_are_walked_in_descending_order():
    scores = [1e300, 2.5, 1.0, 5e-324, 0.0, -5e-324, -1.0, -2.5, -1e300]
    for rank in range(len(scores)):
        truth = instances(("a", 100 * rank, 100 * rank + 10, "x"))  # only the detection of that rank is a hit
        found = detections(*(("a", 100 * i, 100 * i + 10, "x", score) for i, score in enumerate(scores)))
        assert evaluate(found.reverse(), truth).ap["x"] == (1 / (rank + 1),)


def test_zero_and_minus_zero_tie():
    truth = instances(("a", 0, 10, "x"), ("a", 50, 60, "x"))
    for first, second in ((0.0, -0.0), (-0.0, 0.0)):
        found = detections(("a", 50, 60, "x", first), ("a", 20, 30, "x", second), ("a", 0, 10, "x", second))
        assert evaluate(found, truth).ap["x"][0] == pytest.approx((1 + 2 / 3) / 2)  # by start: hit, miss, hit


def test_the_same_prediction_twice_is_one_hit_and_one_false_positive():
    truth = instances(("a", 0, 10, "x"), ("b", 0, 10, "x"))
    found = detections(("a", 0, 10, "x", 0.9), ("a", 0, 10, "x", 0.8), ("b", 0, 10, "x", 0.7))
    assert evaluate(found, truth).ap["x"][0] == pytest.approx((1 + 2 / 3) / 2)


def test_an_instance_listed_twice_counts_twice():
    truth = instances(("a", 0, 10, "x"), ("a", 0, 10, "x"))
    assert evaluate(detections(("a", 0, 10, "x", 0.9)), truth).ap["x"] == (0.5,)


def test_no_predictions_score_zero_and_a_class_without_predictions_counts():
    truth = instances(("a", 0, 10, "x"), ("a", 0, 10, "y"))
    empty = evaluate(detections(), truth, 0.5, 0.75)
    assert (empty.map, empty.average_map, empty.num_predictions) == ((0.0, 0.0), 0.0, 0)
    assert evaluate(detections(("a", 0, 10, "x", 1)), truth).map == (0.5,)


def test_no_ground_truth_is_refused():
    with pytest.raises(InputError, match="no instance, so mAP is undefined"):
        evaluate(detections(("a", 0, 10, "x", 1)), instances())


def test_unknown_labels_are_ignored_with_a_count_and_unknown_recordings_are_false_positives():
    truth = instances(("a", 0, 10, "x"))
    found = detections(("a", 0, 10, "ghost", 1), ("elsewhere", 0, 10, "x", 0.9), ("a", 0, 10, "x", 0.8))
    result = evaluate(found, truth)
    assert result.ap == {"x": (0.5,)}
    assert result.ignored == {"label not in ground truth": 1}
    assert (result.num_predictions, result.num_instances, result.num_unlisted) == (2, 1, 1)
    assert evaluate(found, truth, recordings=["a", "elsewhere"]).num_unlisted == 0


def test_a_detection_on_another_recording_or_of_another_class_takes_nothing():
    truth = instances(("a", 0, 10, "x"), ("a", 0, 10, "y"), ("b", 50, 60, "x"))
    found = detections(("b", 0, 10, "x", 0.9), ("a", 50, 60, "y", 0.9))
    assert evaluate(found, truth).map == (0.0,)


@pytest.mark.parametrize("thresholds", [(), (0.0,), (1.1,), (float("nan"),), ((0.5, 0.6),)])
def test_refuses_thresholds(thresholds):
    with pytest.raises(InputError, match="tIoU thresholds"):
        evaluate_detections(detections(), instances(("a", 0, 1, "x")), tiou_thresholds=thresholds)


def test_refuses_rows_that_would_give_nan():
    with pytest.raises(InputError, match="detections: end_s must be after start_s"):
        evaluate(detections(("a", 5, 5, "x", 1)), instances(("a", 0, 1, "x")))
    with pytest.raises(InputError, match="instances: .* must be finite"):
        evaluate(detections(), instances(("a", 0, float("nan"), "x")))


def test_to_json_is_the_contract():
    truth = instances(("a", 0, 10, "y"), ("a", 0, 10, "x"))
    found = detections(("a", 0, 10, "x", 1), ("a", 0, 10, "z", 1))
    assert json.loads(json.dumps(evaluate(found, truth, 0.5, 0.75, preset="mine").to_json())) == {
        "preset": "mine",
        "tiou": [0.5, 0.75],
        "map": [0.5, 0.5],
        "average_map": 0.5,
        "ap": {"x": [1.0, 1.0], "y": [0.0, 0.0]},
        "num_predictions": 1,
        "num_instances": 2,
        "ignored": {"label not in ground truth": 1},
    }


def test_presets():
    assert PRESETS["anet"] == tuple(np.linspace(0.5, 0.95, 10))
    assert PRESETS["thumos"] == (0.3, 0.4, 0.5, 0.6, 0.7)
    assert PRESETS["epic"] == PRESETS["ego4d"] == (0.1, 0.2, 0.3, 0.4, 0.5)
    assert PRESETS["binego360"] == (0.5, 0.75, 0.95)


def anet(found, truth):
    return evaluate_detections(
        found, truth.instances, tiou_thresholds=PRESETS["anet"], preset="anet", recordings=truth.recordings
    )


@pytest.mark.parametrize("name", ["ground_truth.json", "ground_truth.csv"])
def test_activitynet_official_figures_per_class(shared_data, name):
    folder = shared_data / "conformance" / "activitynet"
    found = read_predictions(folder / "predictions.csv")
    expected = json.loads((folder.parent / "expected_anet.json").read_text())
    result = anet(found.detections, read_ground_truth(folder / name))
    assert result.tiou == tuple(expected["tiou_thresholds"])
    assert result.ap.keys() == expected["ap"].keys()
    for label, values in expected["ap"].items():
        np.testing.assert_allclose(result.ap[label], values, rtol=0, atol=1e-9, err_msg=label)
    np.testing.assert_allclose(result.map, expected["map"], rtol=0, atol=1e-9)
    assert result.average_map == pytest.approx(0.3159767273528308, abs=1e-9)
    assert (result.num_predictions, result.num_instances, result.ignored) == (29941, 712, {})
    assert "1551 of 29941 intervals start before second 0" in found.warnings[0]


def test_activitynet_ties_do_not_depend_on_row_order(shared_data):
    folder = shared_data / "conformance" / "activitynet"
    found = read_predictions(folder / "predictions_ties.csv").detections
    truth = read_ground_truth(folder / "ground_truth.json")
    for seed in (None, 1, 2):
        rows = found if seed is None else found.sample(fraction=1, shuffle=True, seed=seed)
        assert anet(rows, truth).average_map == pytest.approx(0.3172690835635683, abs=1e-12)


def test_qvhighlights_published_figures(shared_data):
    folder = shared_data / "conformance" / "qvhighlights"
    found = read_predictions(folder / "predictions.csv", score_column="rank_score").detections
    result = anet(found, read_ground_truth(folder / "ground_truth.csv"))
    published = json.loads((folder / "expected.json").read_text())["published_map_percent"]
    assert [round(100 * value, 2) for value in result.map] == list(published.values())[:-1]
    assert round(100 * result.average_map, 2) == published["average"] == 32.20


def test_detections_are_ranked_by_the_whole_score() -> None:
    """The sort looks at the upper bits of a score first; the last one decides as well."""
    rng = np.random.default_rng(0)
    score = rng.choice([-3.5, -0.0, 0.0, 0.25, 0.5, 1e300], size=500)
    score = np.where(rng.random(500) < 0.5, np.nextafter(score, np.inf), score)
    label, start = rng.integers(0, 3, 500), rng.integers(0, 4, 500).astype(float)
    names, classes = pl.Series([f"r{i}" for i in range(2)]), pl.Series(["a", "b", "c"])
    recording = rng.integers(0, 2, 500)
    table = pl.DataFrame(
        {
            "recording": names.gather(recording), "start_s": start, "end_s": start + 1, "label": classes.gather(label),
            "score": score,
        }
    )  # fmt: skip
    expected = np.lexsort((start + 1, start, recording, 0.0 - score, label))
    assert matching.rank_intervals(table, classes, names).row.tolist() == expected.tolist()
