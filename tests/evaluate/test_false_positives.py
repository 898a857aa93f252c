import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from talstack.evaluate import error_kinds
from talstack.evaluate.false_positives import (
    IMPACT_KINDS,
    KINDS,
    classify_detections,
    error_impact,
    false_positive_profile,
)
from talstack.evaluate.map import PRESETS, evaluate_detections
from talstack.io.detections import DETECTION_SCHEMA, INSTANCE_SCHEMA, read_predictions
from talstack.io.errors import InputError
from talstack.io.ground_truth import read_ground_truth


def detections(*rows):
    return pl.DataFrame(rows, schema=DETECTION_SCHEMA, orient="row")


def instances(*rows):
    return pl.DataFrame(rows, schema=INSTANCE_SCHEMA, orient="row")


def tiou(first, second):
    overlap = max(min(first[2], second[2]) - max(first[1], second[1]), 0.0) if first[0] == second[0] else 0.0
    return overlap / ((first[2] - first[1]) + (second[2] - second[1]) - overlap)


def reference_kinds(found, truth, threshold, background, precedence):
    """The definitions, one detection at a time: {detection: (kind, tIoU, label that decides)} as a sorted list."""
    targets, taken, answers = sorted(truth), set(), []
    for row in sorted(found, key=lambda row: (-row[4], row[0], row[1], row[2], row[3])):
        overlaps = [tiou(row, target) for target in targets]
        order = sorted(range(len(targets)), key=lambda i: (-overlaps[i], i))
        own = [i for i in order if targets[i][3] == row[3]]
        other = [i for i in order if targets[i][3] != row[3]]
        free = [i for i in own if i not in taken and overlaps[i] >= threshold]
        if precedence == "overlap" and own and other:
            if overlaps[own[0]] >= overlaps[other[0]]:
                other = []
            else:
                own = []
        best = max((overlaps[i] for i in order), default=0.0)
        first_with = [i for i in (own[:1] + other[:1]) if overlaps[i] == best]
        steps = [
            ("double detection", own, threshold),
            ("wrong label", other, threshold),
            ("localization", own, background),
            ("confusion", other, background),
        ]
        answer = ("background", best, targets[first_with[0]][3] if best > 0 else None)
        for kind, candidates, level in reversed(steps):
            if candidates and overlaps[candidates[0]] >= level:
                answer = (kind, overlaps[candidates[0]], targets[candidates[0]][3])
        if free:
            taken.add(free[0])
            answer = ("true positive", overlaps[free[0]], row[3])
        answers.append((*row, *answer))
    return sorted(answers, key=repr)


# Few values on purpose: ties in score and in tIoU, duplicates, nested and touching intervals all turn up.
interval = st.tuples(st.integers(-2, 12), st.integers(1, 8)).map(lambda pair: (float(pair[0]), float(sum(pair))))
instance = st.tuples(st.sampled_from("ab"), interval, st.sampled_from("xyz")).map(lambda v: (v[0], *v[1], v[2]))
detection = st.tuples(
    st.sampled_from("abc"), interval, st.sampled_from("wxyz"), st.sampled_from([0.0, 0.25, 0.5, 1.0])
).map(lambda v: (v[0], *v[1], v[2], v[3]))
instance_rows = st.lists(instance, min_size=1, max_size=12)
detection_rows = st.lists(detection, max_size=25)
precedences = st.sampled_from(["own label", "overlap"])


def shuffled(table, random):
    return table[random.sample(range(table.height), table.height)]


@settings(max_examples=300, deadline=None)
@given(detection_rows, instance_rows, st.sampled_from([0.3, 0.5, 0.75]), precedences, st.randoms(use_true_random=False))
def test_kinds_equal_the_definitions_for_any_row_order(found, truth, threshold, precedence, random):
    given_detections, given_instances = shuffled(detections(*found), random), shuffled(instances(*truth), random)
    classified = classify_detections(
        given_detections, given_instances, tiou_threshold=threshold, background_tiou=0.2, precedence=precedence
    )
    assert classified.select(list(DETECTION_SCHEMA)).equals(given_detections)
    columns = [*DETECTION_SCHEMA, "kind", "tiou", "instance_label"]
    expected = reference_kinds(found, truth, threshold, 0.2, precedence)
    assert sorted(classified.select(columns).iter_rows(), key=repr) == expected
    for row in classified.iter_rows(named=True):
        if row["instance"] is None:
            assert (row["tiou"], row["instance_label"], row["kind"]) == (0.0, None, "background")
        else:
            target = given_instances.row(row["instance"])
            assert (tiou(list(row.values())[:3], target), target[3]) == (row["tiou"], row["instance_label"])


@settings(max_examples=60, deadline=None)
@given(detection_rows, instance_rows)
def test_ranks_count_from_one_within_the_label_and_true_positives_are_the_evaluators(found, truth):
    classified = classify_detections(detections(*found), instances(*truth))
    for (label,), rows in classified.group_by("label"):
        rows = rows.sort("rank")
        assert rows["rank"].to_list() == list(range(1, rows.height + 1))
        keys = list(rows.select("score", "recording", "start_s", "end_s").iter_rows())
        assert keys == sorted(keys, key=lambda key: (-key[0], *key[1:]))
        hits = rows.filter(pl.col("kind") == "true positive")
        assert hits["instance"].n_unique() == hits.height
        precision = [(place + 1) / rank for place, rank in enumerate(hits["rank"])]
        area = sum(max(precision[place:]) for place in range(len(precision)))
        count = sum(row[3] == label for row in truth)
        if count:
            result = evaluate_detections(detections(*found), instances(*truth), tiou_thresholds=(0.5,))
            assert area / count == pytest.approx(result.ap[label][0], abs=1e-12)


def kinds_of(found, truth, **settings):
    return classify_detections(detections(*found), instances(*truth), **settings)["kind"].to_list()


def test_each_kind():
    truth = [("a", 0.0, 10.0, "x"), ("a", 100.0, 110.0, "y")]
    found = [
        ("a", 0.0, 10.0, "x", 0.9),
        ("a", 0.0, 9.0, "x", 0.8),
        ("a", 100.0, 109.0, "x", 0.7),
        ("a", 0.0, 4.0, "x", 0.6),
        ("a", 100.0, 104.0, "x", 0.5),
        ("a", 9.5, 20.0, "x", 0.4),
    ]
    assert tuple(kinds_of(found, truth)) == KINDS


def test_the_background_overlaps_most_whatever_the_label():
    truth = instances(("a", 0.0, 10.0, "x"), ("a", 19.8, 40.0, "y"))
    row = classify_detections(detections(("a", 9.5, 20.0, "x", 0.4)), truth).row(0, named=True)
    assert (row["kind"], row["instance"], row["tiou"]) == ("background", 0, 0.5 / 20.0)
    row = classify_detections(detections(("a", 9.9, 20.3, "x", 0.4)), truth).row(0, named=True)
    assert (row["instance"], row["instance_label"]) == (1, "y")


def test_own_label_goes_before_a_larger_overlap_with_another_label():
    truth = [("a", 0.0, 10.0, "x"), ("a", 0.0, 8.0, "y")]
    found = [("a", 0.0, 10.0, "x", 0.9), ("a", 0.0, 8.0, "x", 0.8)]  # the second: 0.8 with x, which is taken, 1 with y
    assert kinds_of(found, truth) == ["true positive", "double detection"]
    assert kinds_of(found, truth, precedence="overlap") == ["true positive", "wrong label"]


def test_wrong_label_goes_before_localization():
    truth = [("a", 0.0, 20.0, "x"), ("a", 0.0, 8.0, "y")]
    assert kinds_of([("a", 0.0, 8.0, "x", 0.9)], truth) == ["wrong label"]


def test_localization_goes_before_a_larger_overlap_with_another_label():
    truth = [("a", 0.0, 40.0, "x"), ("a", 0.0, 20.0, "y")]
    found = [("a", 0.0, 8.0, "x", 0.9)]  # 0.2 with x, 0.4 with y
    assert kinds_of(found, truth) == ["localization"]
    assert kinds_of(found, truth, precedence="overlap") == ["confusion"]


@pytest.mark.parametrize(
    ("label", "end", "kind"),
    [
        ("x", 5.0, "double detection"),
        ("x", 4.9, "localization"),
        ("x", 1.0, "localization"),
        ("x", 0.9, "background"),
        ("y", 5.0, "wrong label"),
        ("y", 4.9, "confusion"),
        ("y", 1.0, "confusion"),
        ("y", 0.9, "background"),
    ],
)
def test_a_value_at_the_threshold_counts(label, end, kind):
    found = [("a", 0.0, 5.0, "x", 0.9), ("a", 0.0, end, label, 0.8)]  # the first has exactly 0.5 with the instance
    assert kinds_of(found, [("a", 0.0, 10.0, "x")]) == ["true positive", kind]


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_of_two_labels_with_the_same_interval_the_first_by_name_decides(order):
    truth = instances(("a", 0.0, 10.0, "y"), ("a", 0.0, 10.0, "z"))[order]
    row = classify_detections(detections(("a", 0.0, 10.0, "x", 0.9)), truth).row(0, named=True)
    assert (row["kind"], row["instance_label"], row["instance"]) == ("wrong label", "y", order.index(0))


def test_a_label_that_the_ground_truth_lacks():
    found = [("a", 0.0, 10.0, "w", 0.9), ("a", 0.0, 4.0, "w", 0.8), ("b", 0.0, 4.0, "w", 0.7)]
    assert kinds_of(found, [("a", 0.0, 10.0, "x")]) == ["wrong label", "confusion", "background"]


def test_small_blocks_give_the_same(monkeypatch):
    rng = np.random.default_rng(3)
    start = rng.uniform(0, 50, 300)
    labels, recordings = rng.choice(list("xyz"), 300), rng.choice(list("ab"), 300)
    found = pl.DataFrame(
        {"recording": recordings, "start_s": start, "end_s": start + 5, "label": labels, "score": rng.random(300)}
    )
    truth = found[:40].drop("score").with_columns(pl.col("start_s") + 1)
    whole = classify_detections(found, truth)
    monkeypatch.setattr(error_kinds, "DETECTIONS_PER_BLOCK", 7)
    assert classify_detections(found, truth).equals(whole)


def test_without_detections():
    truth = instances(("a", 0.0, 10.0, "x"))
    classified = classify_detections(detections(), truth)
    assert classified.columns == [*DETECTION_SCHEMA, "kind", "tiou", "instance", "instance_label", "rank"]
    assert [str(dtype) for dtype in classified.dtypes[6:]] == ["Float64", "Int64", "String", "Int64"]
    profile = false_positive_profile(classified, truth)
    assert (profile.height, profile["count"].sum(), profile["share"].sum()) == (60, 0, 0.0)
    impact = error_impact(detections(), truth, tiou_thresholds=(0.5,))
    assert impact.filter(pl.col("kind") != "missed")["gain_corrected"].to_list() == [0.0] * 10
    assert impact.filter(pl.col("kind") == "missed")["map_if_corrected"].to_list() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tiou_threshold": 1.5}, "tIoU thresholds must be"),
        ({"background_tiou": 0.0}, "background tIoU must be above 0 and at most 0.5"),
        ({"background_tiou": 0.6}, "got 0.6"),
        ({"precedence": "label"}, "precedence must be one of own label, overlap; got 'label'"),
    ],
)
def test_refuses(settings, message):
    with pytest.raises(InputError, match=message):
        kinds_of([("a", 0.0, 1.0, "x", 0.9)], [("a", 0.0, 10.0, "x")], **settings)


def test_refuses_no_instance():
    with pytest.raises(InputError, match="no instance"):
        kinds_of([("a", 0.0, 1.0, "x", 0.9)], [])


def test_profile_by_hand():
    truth = instances(("a", 0.0, 10.0, "x"), ("b", 0.0, 10.0, "x"), ("a", 50.0, 60.0, "y"))
    found = detections(
        ("a", 0.0, 10.0, "x", 0.9),  # x: G = 2
        ("a", 20.0, 30.0, "x", 0.8),
        ("b", 0.0, 10.0, "x", 0.7),
        ("a", 50.0, 60.0, "y", 0.9),  # y: G = 1
        ("a", 50.0, 59.0, "y", 0.8),
        ("a", 50.0, 58.0, "y", 0.7),  # beyond the best 2 G
        ("a", 50.0, 60.0, "w", 0.9),  # not a label of the ground truth
    )
    classified = classify_detections(found, truth)
    profile = false_positive_profile(classified, truth, multiples=2)
    counts = {(k, kind): (count, share) for k, kind, count, share in profile.iter_rows() if count}
    assert counts == {
        (1, "true positive"): (2, 2 / 3),
        (1, "background"): (1, 1 / 3),
        (2, "true positive"): (3, 3 / 5),
        (2, "background"): (1, 1 / 5),
        (2, "double detection"): (1, 1 / 5),
    }
    assert profile["kind"].to_list() == [*KINDS, *KINDS]
    bands = false_positive_profile(classified, truth, multiples=3, cumulative=False).filter(pl.col("count") > 0)
    assert [row[:3] for row in bands.iter_rows()] == [
        (1, "true positive", 2),
        (1, "background", 1),
        (2, "true positive", 1),
        (2, "double detection", 1),
        (3, "double detection", 1),
    ]


def test_profile_refuses():
    classified = classify_detections(detections(), instances(("a", 0.0, 1.0, "x")))
    with pytest.raises(InputError, match="multiples must be 1 or more, got 0"):
        false_positive_profile(classified, instances(("a", 0.0, 1.0, "x")), multiples=0)
    with pytest.raises(InputError, match="no column 'kind'"):
        false_positive_profile(classified.drop("kind"), instances(("a", 0.0, 1.0, "x")))


def impact_of(kind, found, truth):
    table = error_impact(detections(*found), instances(*truth), tiou_thresholds=(0.5,))
    row = table.filter((pl.col("kind") == kind) & (pl.col("tiou") == 0.5)).row(0, named=True)
    return row["count"], row["map"], row["map_if_removed"], row["map_if_corrected"]


X, Y = ("a", 0.0, 10.0, "x"), ("a", 50.0, 60.0, "y")


@pytest.mark.parametrize(
    ("kind", "found", "truth", "expected"),
    [
        ("background", [("a", 80.0, 90.0, "x", 0.9), (*X, 0.8)], [X], (1, 0.5, 1.0, 1.0)),
        # precision at the two hits: 1 and 2/3; without the double detection 1 and 1
        (
            "double detection",
            [(*X, 0.9), (*X, 0.8), ("b", 0.0, 10.0, "x", 0.7)],
            [X, ("b", 0.0, 10.0, "x")],
            (1, 5 / 6, 1.0, 1.0),
        ),
        ("localization", [("a", 0.0, 4.0, "x", 0.9)], [X], (1, 0.0, 0.0, 1.0)),
        # a true positive has the instance: nothing to correct, the localization error goes
        ("localization", [("a", 0.0, 4.0, "x", 0.9), (*X, 0.8)], [X], (1, 0.5, 1.0, 1.0)),
        # of two only the better takes it; the other goes
        ("localization", [("a", 0.0, 4.0, "x", 0.9), ("a", 0.0, 3.0, "x", 0.8)], [X, Y], (2, 0.0, 0.0, 0.5)),
        (
            "localization",
            [("a", 0.0, 3.0, "x", 0.7), ("a", 80.0, 90.0, "x", 0.8), ("a", 0.0, 4.0, "x", 0.9)],
            [X],
            (2, 0.0, 0.0, 1.0),
        ),
        ("wrong label", [("a", 0.0, 10.0, "y", 0.9), (*Y, 0.8)], [X, Y], (1, 0.25, 0.5, 1.0)),
        # a wrong label keeps its score: ranked after the false positive of its new label
        ("wrong label", [("a", 0.0, 10.0, "y", 0.5), ("a", 80.0, 90.0, "x", 0.6)], [X], (1, 0.0, 0.0, 0.5)),
        ("confusion", [("a", 0.0, 4.0, "y", 0.9), (*Y, 0.8)], [X, Y], (1, 0.25, 0.5, 1.0)),
        # a label that the ground truth lacks costs nothing, but corrected it counts
        ("wrong label", [("a", 0.0, 10.0, "w", 0.9)], [X], (1, 0.0, 0.0, 1.0)),
        # missed: of x one of two is found; of y none, and nothing was detected
        ("missed", [(*X, 0.9)], [X, ("b", 0.0, 10.0, "x"), Y], (2, 0.25, None, 1.0)),
        # of y none, but something was detected
        ("missed", [(*X, 0.9), ("b", 0.0, 10.0, "y", 0.9)], [X, Y], (1, 0.5, None, 0.5)),
        # an instance that a correction would reach is not missed
        ("missed", [("a", 0.0, 4.0, "y", 0.9)], [X], (0, 0.0, None, 0.0)),
    ],
)
def test_impact_by_hand(kind, found, truth, expected):
    assert impact_of(kind, found, truth) == pytest.approx(expected)


def corrected_table(classified, truth, kind):
    """The detections with those of a kind corrected or removed, one at a time."""
    taken = set(classified.filter(pl.col("kind") == "true positive")["instance"])
    rows = []
    for row in classified.sort("score", descending=True).iter_rows(named=True):
        if row["kind"] == kind:
            if kind in ("double detection", "background") or row["instance"] in taken:
                continue
            taken.add(row["instance"])
            recording, start, end, label = truth.row(row["instance"])
            rows.append((recording, start, end, label, row["score"]))
        else:
            rows.append(tuple(row[name] for name in DETECTION_SCHEMA))
    return detections(*rows)


@settings(max_examples=40, deadline=None)
@given(detection_rows, instance_rows, precedences, st.randoms(use_true_random=False))
def test_impact_equals_scoring_the_corrected_tables(found, truth, precedence, random):
    scores = random.sample(range(len(found)), len(found))  # no ties: a new interval must not change the order
    found = detections(*((*row[:4], score / 32) for row, score in zip(found, scores, strict=True)))
    truth, thresholds = instances(*truth), (0.3, 0.6)
    impact = error_impact(found, truth, tiou_thresholds=thresholds, background_tiou=0.2, precedence=precedence)
    for threshold in thresholds:
        classified = classify_detections(
            found, truth, tiou_threshold=threshold, background_tiou=0.2, precedence=precedence
        )
        for row in impact.filter(pl.col("tiou") == threshold, pl.col("kind") != "missed").iter_rows(named=True):
            kept = classified.filter(pl.col("kind") != row["kind"]).select(list(DETECTION_SCHEMA))
            assert row["count"] == found.height - kept.height
            tables = (found, kept, corrected_table(classified, truth, row["kind"])) if row["count"] else (found,) * 3
            maps = [evaluate_detections(table, truth, tiou_thresholds=(threshold,)).average_map for table in tables]
            assert [row["map"], row["map_if_removed"], row["map_if_corrected"]] == pytest.approx(maps, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(detection_rows, instance_rows, precedences, st.randoms(use_true_random=False))
def test_no_gain_is_negative_and_rows_may_be_shuffled(found, truth, precedence, random):
    found, truth = detections(*found), instances(*truth)
    chosen = {"tiou_thresholds": (0.3, 0.5, 0.75), "precedence": precedence}
    impact = error_impact(found, truth, **chosen)
    gains = impact.select(pl.col("gain_removed").fill_null(0.0), "gain_corrected")
    assert gains.min_horizontal().min() >= -1e-12
    assert (gains["gain_corrected"] - gains["gain_removed"]).min() >= -1e-12
    again = error_impact(shuffled(found, random), shuffled(truth, random), **chosen)
    numbers = [name for name in impact.columns if name != "kind"]
    assert again.select(numbers).to_numpy() == pytest.approx(impact.select(numbers).to_numpy(), nan_ok=True, abs=1e-12)
    assert again["kind"].to_list() == impact["kind"].to_list() == [*IMPACT_KINDS] * 4
    average = impact.filter(pl.col("tiou").is_null() & (pl.col("kind") == "confusion"))
    single = impact.filter(pl.col("tiou").is_not_null() & (pl.col("kind") == "confusion"))
    assert average.drop("kind", "tiou").row(0) == pytest.approx(single.drop("kind", "tiou").mean().row(0))


def test_on_activitynet(shared_data):
    folder = shared_data / "conformance" / "activitynet"
    found = read_predictions(folder / "predictions.csv").detections
    truth = read_ground_truth(folder / "ground_truth.json").instances
    classified = classify_detections(found, truth)
    counts = dict(classified.group_by("kind").len().iter_rows())
    assert [counts[kind] for kind in KINDS] == [677, 11975, 2442, 5527, 4149, 5171]
    impact = error_impact(found, truth, tiou_thresholds=PRESETS["anet"]).filter(pl.col("tiou").is_null())
    assert impact["map"].to_list() == pytest.approx([0.315976727] * 6, abs=1e-9)
