import json

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from talstack.evaluate.average_precision import average_precisions
from talstack.evaluate.bootstrap import _p_value, _quantiles, bootstrap_map, compare_detections, draw_weights
from talstack.evaluate.map import evaluate_detections, match_for_map
from talstack.io.detections import DETECTION_SCHEMA, INSTANCE_SCHEMA
from talstack.io.errors import InputError


def detections(*rows):
    return pl.DataFrame(rows, schema=DETECTION_SCHEMA, orient="row")


def instances(*rows):
    return pl.DataFrame(rows, schema=INSTANCE_SCHEMA, orient="row")


def copied(table, times):
    """Every recording as often as `times` says, each copy under a name of its own."""
    parts = [
        table.filter(pl.col("recording") == name).with_columns(recording=pl.lit(f"{name}{copy}"))
        for name, count in times.items()
        for copy in range(count)
    ]
    return pl.concat([table.clear(), *parts])


def simulated(seed, num_recordings=40, quality=0.6):
    """Instances of three classes, and detections of which a share of `quality` is right."""
    rng = np.random.default_rng(seed)
    truth, found = [], []
    for index in range(num_recordings):
        for start in np.arange(0, 60, 12.0)[: rng.integers(1, 6)]:
            label = "xyz"[rng.integers(3)]
            truth.append((f"r{index}", start, start + 8, label))
            right = rng.random() < quality
            begin = start + (rng.uniform(0, 1) if right else 7)
            found.append((f"r{index}", begin, begin + 8, label, rng.random() + right))
    return detections(*found), instances(*truth)


rows = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(0, 8), st.integers(1, 6), st.sampled_from("xy")), min_size=1
)
scores = st.lists(st.integers(0, 10_000), min_size=40, max_size=40, unique=True)


@settings(max_examples=150, deadline=None)
@given(rows, rows, scores, st.tuples(*[st.integers(0, 3)] * 3))
def test_a_weighted_recording_counts_as_so_many_copies(found_rows, true_rows, scores, times):
    found = detections(*((r, s, s + n, label, scores[i]) for i, (r, s, n, label) in enumerate(found_rows[:40])))
    truth = instances(*((r, s, s + n, label) for r, s, n, label in true_rows))
    matched, _ = match_for_map(found, truth, (0.3, 0.7), recordings="abc")
    weighted = average_precisions(matched, np.array([times]))[0]
    repeated = dict(zip("abc", times, strict=True))
    if copied(truth, repeated).is_empty():
        assert np.isnan(weighted).all()
        return
    expected = evaluate_detections(copied(found, repeated), copied(truth, repeated), tiou_thresholds=(0.3, 0.7)).ap
    for label, values in zip(matched.classes, weighted, strict=True):
        np.testing.assert_allclose(values, expected.get(label, (np.nan, np.nan)), atol=1e-12)


def test_small_blocks_of_weights_give_the_same(monkeypatch):
    found, truth = simulated(1)
    matched, _ = match_for_map(found, truth, (0.5, 0.75))
    weights = draw_weights(len(matched.recordings), 30, seed=0)
    whole = average_precisions(matched, weights)
    monkeypatch.setattr("talstack.evaluate.average_precision.WEIGHTS_PER_BLOCK", 50)
    np.testing.assert_array_equal(average_precisions(matched, weights), whole)


def test_draws_are_reproducible_and_keep_the_number_of_recordings():
    weights = draw_weights(7, 50, seed=3)
    assert weights.shape == (50, 7) and (weights.sum(axis=1) == 7).all()
    np.testing.assert_array_equal(weights, draw_weights(7, 50, seed=3))
    assert (weights != draw_weights(7, 50, seed=4)).any()


def test_intervals_hold_the_estimate_and_shrink_with_more_recordings():
    few, many = (
        bootstrap_map(match_for_map(*simulated(2, count), (0.5, 0.75))[0], num_draws=300) for count in (20, 320)
    )
    for result in (few, many):
        for interval in (*result.map, result.average_map):
            assert interval.low < interval.estimate < interval.high
    assert few.average_map.high - few.average_map.low > 2 * (many.average_map.high - many.average_map.low)


def test_the_estimate_is_the_evaluators_and_row_order_does_not_matter():
    found, truth = simulated(4)
    matched, _ = match_for_map(found, truth, (0.5, 0.75))
    result = bootstrap_map(matched, num_draws=200)
    plain = evaluate_detections(found, truth, tiou_thresholds=(0.5, 0.75))
    assert [interval.estimate for interval in result.map] == list(plain.map)
    assert result.average_map.estimate == plain.average_map
    shuffled, _ = match_for_map(found.reverse(), truth.sample(fraction=1, shuffle=True, seed=1), (0.5, 0.75))
    assert bootstrap_map(shuffled, num_draws=200) == result


def test_a_recording_without_instances_is_drawn_too():
    found, truth = simulated(4, 10)
    result = bootstrap_map(
        match_for_map(found, truth, (0.5,), recordings=["empty"])[0], recordings=["empty"], num_draws=100
    )
    assert result.num_recordings == 11


def test_draws_without_any_instance_are_left_out():
    truth = instances(("a", 0, 10, "x"))
    matched, _ = match_for_map(detections(("a", 0, 10, "x", 1)), truth, (0.5,), recordings=["a", "b"])
    result = bootstrap_map(matched, recordings=["b"], num_draws=400)
    assert 200 < result.num_draws < 400  # a quarter of the draws is b, b
    assert result.average_map.low == result.average_map.high == 1.0


def test_intervals_are_centred_on_the_estimate_and_wider_than_the_draws():
    found, truth = simulated(0, 12)
    accidental = found.with_columns(score=pl.Series(np.random.default_rng(0).random(found.height)))
    matched, _ = match_for_map(accidental, truth, (0.5,))
    draws = np.nanmean(average_precisions(matched, draw_weights(12, 2000, 0)), axis=(1, 2))
    result = bootstrap_map(matched, num_draws=2000, level=0.8).average_map
    low, high = np.quantile(draws, (0.1, 0.9))
    assert draws.mean() > result.estimate + 0.01  # fewer different recordings, higher mAP
    assert result.high - result.low == pytest.approx(1.3634 / 1.2816 * np.sqrt(12 / 11) * (high - low), rel=5e-3)
    assert (result.low + result.high) / 2 == pytest.approx(result.estimate + (low + high) / 2 - draws.mean(), abs=0.01)


def test_intervals_stay_in_the_range_of_a_map():
    truth = instances(*((f"r{i}", 0, 10, "x") for i in range(6)))
    found = detections(*((f"r{i}", 0, 10, "x", 1) for i in range(1, 6)), ("r0", 20, 30, "x", 0.5))
    result = bootstrap_map(match_for_map(found, truth, (0.5,))[0], num_draws=300).average_map
    assert result.low < result.estimate < result.high == 1.0


def test_a_run_against_itself_is_undecided():
    found, truth = simulated(5)
    result = compare_detections(found, found, truth, tiou_thresholds=(0.5,), num_draws=200)
    assert (result.verdict, result.p_value, result.share_a_better) == ("undecided", 1.0, 0.5)
    assert (result.average_difference.low, result.average_difference.high) == (0.0, 0.0)


def test_the_better_run_wins_from_either_side():
    good, truth = simulated(6, quality=0.9)
    bad = good.with_columns(end_s=pl.col("end_s") + 3 * (pl.col("start_s") % 7))
    forth = compare_detections(good, bad, truth, tiou_thresholds=(0.5, 0.75), num_draws=300)
    back = compare_detections(bad, good, truth, tiou_thresholds=(0.5, 0.75), num_draws=300)
    assert (forth.verdict, back.verdict) == ("a", "b")
    assert forth.p_value == back.p_value < 0.02
    assert forth.average_difference.estimate == pytest.approx(-back.average_difference.estimate)
    assert forth.average_difference.low == pytest.approx(-back.average_difference.high)
    assert forth.a == back.b


def test_pairing_sees_a_small_difference_that_two_intervals_would_hide():
    found, truth = simulated(7, 60)
    worse = found.with_columns(score=pl.when(pl.col("recording").str.ends_with("3")).then(0.0).otherwise("score"))
    result = compare_detections(found, worse, truth, tiou_thresholds=(0.5,), num_draws=300)
    assert result.a.average_map.low < result.b.average_map.high  # the intervals overlap
    assert result.verdict == "a"


def test_classes_say_where_the_difference_lies():
    truth = instances(*((f"r{i}", 0, 10, label) for i in range(6) for label in "xy"))
    found = detections(*((f"r{i}", 0, 10, label, 0.5) for i in range(6) for label in "xy"))
    other = found.filter((pl.col("label") == "x") | (pl.col("recording") == "r0"))
    table = compare_detections(found, other, truth, tiou_thresholds=(0.5,), num_draws=100).classes
    assert table.select("label", "num_instances", "a", "b").rows() == [("x", 6, 1.0, 1.0), ("y", 6, 1.0, 1 / 6)]
    assert table["low"].to_list()[0] == 0.0 < table["low"].to_list()[1]


def test_detections_on_unlisted_recordings_are_false_positives_in_every_draw():
    found, truth = simulated(8)
    stray = detections(*((f"elsewhere{i}", 0, 10, "x", 5.0) for i in range(50)))
    more = pl.concat([found, stray])
    result = compare_detections(more, found, truth, tiou_thresholds=(0.5,), num_draws=200)
    assert result.a.num_recordings == result.b.num_recordings == 40
    assert result.average_difference.estimate < 0
    assert result.b == compare_detections(found, found, truth, tiou_thresholds=(0.5,), num_draws=200).b
    alone = bootstrap_map(match_for_map(more, truth, (0.5,))[0], num_draws=200)
    assert alone == result.a


@pytest.mark.parametrize("num_draws", [100, 199, 1000])
def test_the_verdict_and_the_p_value_agree(num_draws):
    rng = np.random.default_rng(num_draws)
    for _ in range(300):
        spread = rng.normal(rng.uniform(1, 3), 1, (num_draws, 1))
        (interval,) = _quantiles(np.zeros(1), spread, 0.95)
        assert (interval.low > 0 or interval.high < 0) == (_p_value(spread) <= 0.05)


def test_to_json_is_plain():
    found, truth = simulated(9)
    value = compare_detections(found, found.head(20), truth, tiou_thresholds=(0.5,), num_draws=100).to_json()
    assert json.loads(json.dumps(value, allow_nan=False)) == json.loads(json.dumps(value))
    assert value["classes"][0].keys() == {"label", "num_instances", "a", "b", "difference", "low", "high"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_draws": 10}, "at least 100 draws"),
        ({"level": 0.999}, "at least 1999 draws"),
        ({"level": 1.0}, "level in"),
        ({"level": float("nan")}, "level in"),
    ],
)
def test_refuses_settings(settings, message):
    matched, _ = match_for_map(*simulated(1), (0.5,))
    with pytest.raises(InputError, match=message):
        bootstrap_map(matched, **settings)


def test_one_recording_has_no_interval():
    matched, _ = match_for_map(detections(), instances(("a", 0, 1, "x")), (0.5,))
    with pytest.raises(InputError, match="only one recording"):
        bootstrap_map(matched)
