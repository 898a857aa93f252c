import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from talstack.io.bins import (
    bin_detections,
    bin_instances,
    bin_of,
    format_prediction,
    num_bins,
    parse_prediction,
    parse_row_id,
    row_id,
)
from talstack.io.detections import DETECTION_SCHEMA, INSTANCE_SCHEMA
from talstack.io.errors import InputError


def detections(*rows):
    return pl.DataFrame(rows, schema=DETECTION_SCHEMA, orient="row")


def times(table):
    return table.select("start_s", "end_s").rows()


@pytest.mark.parametrize(("duration_s", "count"), [(0.4, 1), (10.0, 1), (10.5, 2), (59.9, 6), (60.0, 6), (60.2, 7)])
def test_number_of_bins(duration_s, count):
    assert num_bins(duration_s) == count


def test_row_ids():
    assert row_id("8c0d_x", 2) == "8c0d_x_20_30"
    assert parse_row_id("8c0d_x_20_30") == ("8c0d_x", 2)
    assert (bin_of(9.9), bin_of(10.0)) == (0, 1)
    for bad in ("rec", "rec_0_20", "rec_5_15", "_0_10", "rec_a_b", "rec_-10_0", "rec_00_10", "rec_0.0_10.0"):
        with pytest.raises(InputError, match="expected <recording>_<bin start>_<bin end>"):
            parse_row_id(bad)
    nines = 400 * "9"
    with pytest.raises(InputError, match="expected <recording>_<bin start>_<bin end>"):
        parse_row_id(f"a_{nines}0_{nines[1:]}10")


def test_cuts_at_the_edges_and_keeps_recording_time():
    cut = bin_detections(detections(("a", 8.0, 31.0, "x", 0.5)))
    assert times(cut) == [(8.0, 10.0), (10.0, 20.0), (20.0, 30.0), (30.0, 31.0)]
    assert cut["score"].to_list() == [0.5] * 4
    assert times(bin_detections(detections(("a", 10.0, 20.0, "x", 0.5)))) == [(10.0, 20.0)]


def test_rounds_to_tenths_inside_the_bin():
    assert times(bin_detections(detections(("a", 9.34, 10.96, "x", 1.0)))) == [(9.3, 10.0), (10.0, 11.0)]


def test_pieces_under_half_a_second_are_dropped():
    assert times(bin_detections(detections(("a", 9.51, 12.0, "x", 1)))) == [(10.0, 12.0)]
    assert times(bin_detections(detections(("a", 12.3, 12.8, "x", 1)))) == [(12.3, 12.8)]
    assert times(bin_detections(detections(("a", 0.04, 0.53, "x", 1)))) == []  # 0.49 s, although it rounds to 0.5
    assert bin_detections(detections()).is_empty()


def test_ground_truth_is_cut_but_not_rounded():
    truth = pl.DataFrame([("a", 9.34, 20.45, "x")], schema=INSTANCE_SCHEMA, orient="row")
    assert times(bin_instances(truth)[0]) == [(9.34, 10.0), (10.0, 20.0)]
    assert bin_instances(truth)[0].schema == truth.schema


@given(st.floats(0, 300), st.floats(0.001, 100))
def test_every_piece_is_one_that_the_rule_accepts(start, length):
    cut = bin_detections(detections(("a", start, start + length, "x", 1.0)))
    for low, high in times(cut):
        assert bin_of(low) * 10 <= low < high <= bin_of(low) * 10 + 10
        assert high - low >= 0.5 - 1e-9
        assert (round(low, 1), round(high, 1)) == (low, high)
    assert bin_detections(cut).equals(cut)
    assert abs(sum(high - low for low, high in times(cut)) - length) <= 1.2


def test_predictions_as_text():
    text = format_prediction([(4, 12.3, 17.9, 0.999), (12, 10.0, 20.0, 1e-07)])
    assert text == "[[4, 12.3, 17.9, 0.999], [12, 10.0, 20.0, 1e-07]]"
    assert parse_prediction(text) == [(4, 12.3, 17.9, 0.999), (12, 10.0, 20.0, 1e-07)]
    assert format_prediction([]) == "[]"
    assert parse_prediction("[(4, 1, 2, .5),]") == [(4, 1.0, 2.0, 0.5)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("__import__('os').system('true')", "not a list literal"),
        ("[[4, 1, 2", "not a list literal"),
        ("[" * 100_000, "not a list literal"),
        ("{}", "expected a list, got dict"),
        ("[4, 1, 2, 0.5]", r"entry 4: expected \[class id, start, end, score\]"),
        ("[[4.5, 1, 2, 0.5]]", "expected .class id"),
        ("[[true, 1, 2, 0.5]]", "expected .class id"),
        ("[[4, '1', 2, 0.5]]", "expected .class id"),
        ("[[4, 1, 2]]", "expected .class id"),
        ("[[NaN, 1, 2, 3]]", "expected .class id"),
        ("[[1, 1" + "0" * 400 + ", 2, 3]]", "too large"),
    ],
)
def test_other_text_is_refused_and_never_run(text, message):
    with pytest.raises(InputError, match=message):
        parse_prediction(text)
