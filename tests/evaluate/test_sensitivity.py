import math

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from talstack.evaluate.false_positives import classify_detections
from talstack.evaluate.map import PRESETS, evaluate_detections
from talstack.evaluate.sensitivity import (
    CHARACTERISTICS,
    PRESET_EDGES,
    describe_instances,
    false_negatives,
    quantile_edges,
    sensitivity,
)
from talstack.io.detections import DETECTION_SCHEMA, INSTANCE_SCHEMA, read_predictions
from talstack.io.errors import InputError
from talstack.io.ground_truth import read_ground_truth

SHORT_OR_LONG = {"length": {"S": 5.0, "L": math.inf}}


def detections(*rows):
    return pl.DataFrame(rows, schema=DETECTION_SCHEMA, orient="row")


def instances(*rows):
    return pl.DataFrame(rows, schema=INSTANCE_SCHEMA, orient="row")


def one(end, start=0.0, **settings):
    settings = {"edges": PRESET_EDGES["anet"], **settings}
    return describe_instances(instances(("a", start, end, "x")), {"a": 100.0}, **settings).row(0, named=True)


def test_values_and_the_order_of_rows():
    truth = instances(("b", 1.0, 3.0, "x"), ("a", 0.0, 50.0, "y"), ("b", 5.0, 6.0, "x"), ("b", 5.0, 6.0, "y"))
    described = describe_instances(truth, {"a": 100.0})
    assert described.select(list(INSTANCE_SCHEMA)).equals(truth)
    assert described["length_s"].to_list() == [2.0, 50.0, 1.0, 1.0]
    assert described["coverage"].to_list() == [None, 0.5, None, None]
    assert described["num_instances"].to_list() == [2, 1, 2, 1]
    assert described["coverage_group"].to_list() == [None, "M", None, None]


@pytest.mark.parametrize(
    ("start", "end", "group"),
    [
        (0.0, 30.0, "XS"),
        (0.0, 30.001, "S"),
        (2.2, 32.2, "XS"),
        (0.0, 60.0, "S"),
        (0.0, 180.0, "L"),
        (0.0, 181.0, "XL"),
    ],
)
def test_a_length_on_an_edge_belongs_below(start, end, group):
    assert one(end, start)["length_group"] == group


@pytest.mark.parametrize(("end", "group"), [(20.0, "XS"), (60.0, "M"), (80.1, "XL"), (100.0, "XL"), (130.0, "XL")])
def test_coverage_groups(end, group):
    assert one(end)["coverage_group"] == group


@pytest.mark.parametrize(("count", "group"), [(1, "XS"), (2, "S"), (4, "S"), (5, "M"), (8, "M"), (9, "L")])
def test_number_groups(count, group):
    truth = instances(*[("a", float(i), i + 1.0, "x") for i in range(count)], ("a", 0.0, 1.0, "y"))
    described = describe_instances(truth, {}, edges=PRESET_EDGES["anet"])
    assert described["num_instances_group"].to_list() == [group] * count + ["XS"]


@pytest.mark.parametrize("preset", ["anet", "thumos"])
def test_groups_are_ordered(preset):
    described = describe_instances(instances(("a", 0.0, 1.0, "x")), {}, edges=PRESET_EDGES[preset])
    for name in CHARACTERISTICS:
        dtype = described.schema[f"{name}_group"]
        assert isinstance(dtype, pl.Enum)
        assert dtype.categories.to_list() == list(PRESET_EDGES[preset][name])
        assert PRESET_EDGES[preset][name].keys() <= {"XS", "S", "M", "L", "XL"}


@pytest.mark.parametrize(
    ("values", "edges"),
    [
        ([5, 3, 1, 2, 4], {"XS": 1, "S": 2, "M": 3, "L": 4, "XL": math.inf}),
        ([1, 1, 1, 1, 1, 1, 1, 2, 3, None], {"S": 1, "M": 2, "L": math.inf}),
        ([1, 1, 1, 1], {"M": math.inf}),
        ([7], {"M": math.inf}),
        ([None], {"M": math.inf}),
    ],
)
def test_quantile_edges(values, edges):
    assert quantile_edges(pl.Series(values, dtype=pl.Float64)) == edges


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=60))
def test_quantile_groups_are_never_empty_and_about_equal_where_nothing_repeats(lengths):
    truth = instances(*[(f"r{i}", 0.0, float(length), "x") for i, length in enumerate(lengths)])
    groups = describe_instances(truth, {})["length_group"]
    assert set(groups) == set(groups.dtype.categories)
    spread = instances(*[(f"r{i}", 0.0, i + 1.0, "x") for i in range(len(lengths))])
    counts = describe_instances(spread, {})["length_group"].value_counts()["count"]
    assert counts.max() - counts.min() <= 1


@pytest.mark.parametrize(
    ("durations", "edges", "message"),
    [
        ({"a": 0.0}, None, "recording 'a': its duration must be positive and finite, got 0.0 s"),
        ({"a": math.nan}, None, "got nan s"),
        ({}, {"size": {"S": math.inf}}, "'size' is not one of coverage, length"),
        ({}, {"length": {"S": 3.0, "M": 3.0, "L": math.inf}}, "edges of length: upper edges must ascend"),
        ({}, {"length": {"S": 3.0}}, "the last must be infinite"),
        ({}, {"length": {}}, "the last must be infinite"),
    ],
)
def test_describe_refuses(durations, edges, message):
    with pytest.raises(InputError, match=message):
        describe_instances(instances(("a", 0.0, 1.0, "x")), durations, edges=edges)


def hand_made():
    """Three x (one of them short) and one y: N = 2."""
    truth = instances(("a", 0.0, 10.0, "x"), ("b", 0.0, 10.0, "x"), ("b", 50.0, 54.0, "x"), ("a", 50.0, 60.0, "y"))
    found = detections(
        ("a", 0.0, 10.0, "x", 0.9),
        ("a", 80.0, 90.0, "x", 0.8),
        ("b", 50.0, 54.0, "x", 0.7),
        ("a", 80.0, 90.0, "y", 0.6),
        ("a", 50.0, 60.0, "y", 0.5),
        ("a", 50.0, 60.0, "w", 0.9),
    )
    return found, describe_instances(truth, {"a": 100.0}, edges=SHORT_OR_LONG)


def test_ap_n_by_hand():
    found, described = hand_made()
    table = sensitivity(found, described, tiou_thresholds=(0.5, 0.7))
    assert table.schema == {
        "characteristic": pl.String,
        "group": pl.String,
        "num_instances": pl.Int64,
        "ap_n": pl.Float64,
        "change": pl.Float64,
    }
    # x: precision 1, then with recall 2/3 and one false positive (4/3) / (4/3 + 1); y: 2 / (2 + 1)
    x, y = (1 + 4 / 7) / 3, 2 / 3
    base = (x + y) / 2
    # short: only the x at 50; the true positive on the other x is left out, the false positive stays: 2 / (2 + 1)
    # long: x has two, of which one is found first; y as before
    long = (1 / 2 + 2 / 3) / 2
    rows = {row[:2]: row[2:] for row in table.iter_rows()}
    assert table.row(0) == ("all", "all", 4, pytest.approx(base), 0.0)
    assert rows["length", "S"] == (1, pytest.approx(2 / 3), pytest.approx(2 / 3 / base - 1))
    assert rows["length", "L"] == (3, pytest.approx(long), pytest.approx(long / base - 1))
    assert [group for name, group in rows if name == "length"] == ["S", "L"]


def test_thresholds_decide_one_by_one():
    truth = instances(("a", 0.0, 10.0, "x"), ("b", 0.0, 4.0, "x"))
    described = describe_instances(truth, {}, edges=SHORT_OR_LONG)
    found = detections(("a", 0.0, 6.0, "x", 0.9), ("b", 0.0, 4.0, "x", 0.8))
    # at 0.5 the first detection takes the long instance and is left out of the short ones; at 0.75 it is false: N = 2
    table = sensitivity(found, described, tiou_thresholds=(0.5, 0.75))
    assert table.filter(pl.col("group") == "S", pl.col("characteristic") == "length")["ap_n"].item() == pytest.approx(
        (1 + 2 / 3) / 2
    )


def test_unknown_durations_leave_coverage_out():
    found, described = hand_made()
    table = sensitivity(found, described, tiou_thresholds=(0.5,))
    assert table.filter(pl.col("characteristic") == "coverage")["num_instances"].sum() == 2  # recording b is unknown
    assert false_negatives(found, described).filter(pl.col("characteristic") == "coverage")["num_instances"].sum() == 2
    unknown = describe_instances(described.select(list(INSTANCE_SCHEMA)), {}, edges=SHORT_OR_LONG)
    for rows in (sensitivity(found, unknown, tiou_thresholds=(0.5,)), false_negatives(found, unknown)):
        assert rows["characteristic"].unique().sort().to_list() == ["all", "length", "num_instances"]


def test_nothing_found():
    described = hand_made()[1]
    table = sensitivity(detections(), described, tiou_thresholds=(0.5,))
    assert table["ap_n"].to_list() == [0.0] * table.height
    assert table["change"].null_count() == table.height
    missed = false_negatives(detections(), described)
    assert missed["num_missed"].to_list() == missed["num_instances"].to_list()
    assert missed["share"].to_list() == [1.0] * missed.height


def test_misses_by_hand():
    found, described = hand_made()
    rows = {row[:2]: row[2:] for row in false_negatives(found, described).iter_rows()}
    assert rows["all", "all"] == (4, 1, 0.25)  # the x of recording b
    assert rows["length", "S"] == (1, 0, 0.0)
    assert rows["length", "L"] == (3, 1, 1 / 3)


@pytest.mark.parametrize(("num_before", "num_missed"), [(18, 0), (19, 1), (20, 1)])
def test_an_instance_found_at_too_low_a_precision_is_missed(num_before, num_missed):
    described = describe_instances(instances(("a", 0.0, 10.0, "x")), {})
    wrong = [("b", 0.0, 10.0, "x", 0.9)] * num_before
    found = detections(*wrong, ("a", 0.0, 10.0, "x", 0.5))  # precision 1 / (num_before + 1) against 0.05
    assert false_negatives(found, described)["num_missed"][0] == num_missed
    assert false_negatives(found, described, min_precision=0.0)["num_missed"][0] == 0


@pytest.mark.parametrize(("num_before", "num_missed"), [(37, 0), (38, 1)])
def test_the_precision_of_misses_is_normalised(num_before, num_missed):
    others = [("a", float(i), i + 1.0, "y") for i in range(3)]
    described = describe_instances(instances(("a", 0.0, 10.0, "x"), *others), {})  # N = 2
    found = [("b", 0.0, 10.0, "x", 0.9)] * num_before + [("a", 0.0, 10.0, "x", 0.5)]  # 2 / (2 + num_before)
    found += [(*other, 0.9) for other in others]
    assert false_negatives(detections(*found), described)["num_missed"][0] == num_missed


def test_refuses():
    found, described = hand_made()
    with pytest.raises(InputError, match="min_precision must lie in"):
        false_negatives(found, described, min_precision=1.0)
    with pytest.raises(InputError, match="no column 'length_group'"):
        sensitivity(found, described.drop("length_group"), tiou_thresholds=(0.5,))
    with pytest.raises(InputError, match="no column 'coverage_group'"):
        false_negatives(found, described.select(list(INSTANCE_SCHEMA)))
    with pytest.raises(InputError, match="tIoU thresholds"):
        sensitivity(found, described, tiou_thresholds=())
    with pytest.raises(InputError, match="no instance"):
        sensitivity(found, described[:0], tiou_thresholds=(0.5,))


def reference_ap_n(classified, described, members):
    """AP_N one detection at a time; `members` are rows of the instances."""
    norm, aps = described.height / described["label"].n_unique(), []
    for label in described["label"].unique():
        size = sum(described["label"][row] == label for row in members)
        if not size:
            continue
        num_found, num_false, curve = 0, 0, []
        for row in classified.filter(pl.col("label") == label).sort("rank").iter_rows(named=True):
            is_hit = row["kind"] == "true positive"
            if is_hit and row["instance"] not in members:
                continue
            num_found, num_false = num_found + is_hit, num_false + (not is_hit)
            recall = num_found / size
            if is_hit:
                curve.append(recall * norm / (recall * norm + num_false))
        aps.append(sum(max(curve[place:]) for place in range(len(curve))) / size)
    return float(np.mean(aps))


interval = st.tuples(st.integers(-2, 12), st.integers(1, 8)).map(lambda pair: (float(pair[0]), float(sum(pair))))
instance = st.tuples(st.sampled_from("ab"), interval, st.sampled_from("xyz")).map(lambda v: (v[0], *v[1], v[2]))
detection = st.tuples(
    st.sampled_from("abc"), interval, st.sampled_from("wxyz"), st.sampled_from([0.0, 0.25, 0.5, 1.0])
).map(lambda v: (v[0], *v[1], v[2], v[3]))


def shuffled(table, random):
    return table[random.sample(range(table.height), table.height)]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(detection, max_size=25),
    st.lists(instance, min_size=1, max_size=12, unique=True),
    st.randoms(use_true_random=False),
)
def test_equals_the_definition_for_any_row_order(found, truth, random):
    found, described = detections(*found), describe_instances(instances(*truth), {"a": 20.0})
    thresholds = (0.3, 0.6)
    table = sensitivity(shuffled(found, random), shuffled(described, random), tiou_thresholds=thresholds)
    missed = false_negatives(shuffled(found, random), shuffled(described, random), min_precision=0.0)
    assert table.select("characteristic", "group").equals(missed.select("characteristic", "group"))
    at_half, *classified = (
        classify_detections(found, described.select(list(INSTANCE_SCHEMA)), tiou_threshold=threshold)
        for threshold in (0.5, *thresholds)
    )
    taken = set(at_half.filter(pl.col("kind") == "true positive")["instance"])
    for (name, group, size, ap_n, change), miss in zip(table.iter_rows(), missed.iter_rows(), strict=True):
        column = [group] * described.height if name == "all" else described[f"{name}_group"]
        members = {row for row, value in enumerate(column) if value == group}
        expected = np.mean([reference_ap_n(kinds, described, members) for kinds in classified])
        assert (size, ap_n) == (len(members), pytest.approx(expected, abs=1e-12))
        assert change is None or change == pytest.approx(ap_n / table["ap_n"][0] - 1)
        assert miss[2:4] == (len(members), len(members - taken))


def test_equal_classes_give_the_ordinary_map():
    rng = np.random.default_rng(1)
    start = np.tile(np.arange(10) * 20.0, 3)
    truth = pl.DataFrame({"recording": "a", "start_s": start, "end_s": start + 10, "label": np.repeat(list("xyz"), 10)})
    found = truth[np.repeat(np.arange(30), 2)].with_columns(
        pl.col("start_s") + rng.uniform(-6, 6, 60), score=pl.Series(rng.random(60))
    )
    described = describe_instances(truth, {"a": 300.0})
    expected = evaluate_detections(found, truth, tiou_thresholds=PRESETS["anet"]).average_map
    table = sensitivity(found, described, tiou_thresholds=PRESETS["anet"])
    assert table["ap_n"][0] == pytest.approx(expected, abs=1e-12)
    assert table.group_by("characteristic").agg(pl.col("num_instances").sum())["num_instances"].to_list() == [30] * 4


def test_on_activitynet(shared_data):
    folder = shared_data / "conformance" / "activitynet"
    truth = read_ground_truth(folder / "ground_truth.json")
    found = read_predictions(folder / "predictions.csv").detections
    described = describe_instances(truth.instances, truth.durations_s, edges=PRESET_EDGES["anet"])
    sizes = dict(described.group_by("num_instances_group").len().iter_rows())
    assert sizes == {"XS": 126, "S": 415, "M": 133, "L": 38}
    missed = false_negatives(found, described)
    assert missed.row(0)[:4] == ("all", "all", 712, 42)
    loose = false_negatives(found, described, min_precision=0.0)
    assert loose.row(0)[:4] == ("all", "all", 712, 712 - 677)
