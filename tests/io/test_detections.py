import json

import polars as pl
import pytest

from talstack.io.detections import (
    DETECTION_SCHEMA,
    drop_zero_length,
    read_predictions,
    validate_detections,
    validate_instances,
    write_activitynet,
    write_csv,
    write_parquet,
)
from talstack.io.errors import InputError, MissingInputError

ROWS = [("a", 1.0, 2.5, "run", 0.25), ("b", 0.1, 7.0, "sit, stand", 1e-12), ("a", 3.0, 4.0, "run", 0.75)]


def table(*rows):
    return pl.DataFrame(rows, schema=DETECTION_SCHEMA, orient="row")


@pytest.fixture
def write(tmp_path):
    def write_file(name, text):
        path = tmp_path / name
        path.write_text(text if isinstance(text, str) else json.dumps(text), encoding="utf-8")
        return path

    return write_file


def test_validate_orders_columns_and_makes_numbers_float():
    mixed = pl.DataFrame({"score": [1], "label": ["x"], "end_s": [3], "recording": ["a"], "start_s": [0]})
    result = validate_detections(mixed, where="here")
    assert dict(result.schema) == DETECTION_SCHEMA
    assert result.rows() == [("a", 0.0, 3.0, "x", 1.0)]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (
            ("b", float("nan"), 2.0, "x", 0.5),
            "here: start_s, end_s, score must be finite; 1 row.s., the first is row 1 .*'b'",
        ),
        (("b", 1.0, float("inf"), "x", 0.5), "must be finite"),
        (("b", 1.0, 2.0, "x", float("nan")), "must be finite"),
        (("b", 2.0, 2.0, "x", 0.5), "end_s must be after start_s.*row 1"),
        (("b", 3.0, 2.0, "x", 0.5), "end_s must be after start_s"),
        (("b", -0.1, 2.0, "x", 0.5), "start_s must not be negative.*row 1"),
        (("b", 1.0, 2e12, "x", 0.5), r"start_s, end_s must lie within 1e\+12 seconds of 0.*row 1"),
        (("b", -1.7e308, 1.7e308, "x", 0.5), "must lie within"),
        (("b", 1.0, 2.0, None, 0.5), "an empty value.*row 1"),
        (("b", 1.0, 2.0, "x", None), "an empty value"),
    ],
)
def test_validate_names_the_first_bad_row(bad, message):
    with pytest.raises(InputError, match=message):
        validate_detections(table(ROWS[0], bad), where="here")


def test_validate_names_columns():
    with pytest.raises(InputError, match="here: missing column score"):
        validate_detections(table().drop("score"), where="here")
    with pytest.raises(InputError, match="here: unknown column system"):
        validate_detections(table().with_columns(system=pl.lit("stack")), where="here")
    with pytest.raises(InputError, match="here, column score: expected Float64, got String"):
        validate_detections(table(ROWS[0]).with_columns(pl.col("score").cast(pl.String)), where="here")
    with pytest.raises(InputError, match="here, column label: expected String, got Int64"):
        validate_detections(table(ROWS[0]).with_columns(label=pl.lit(3, dtype=pl.Int64)), where="here")
    with pytest.raises(InputError, match="unknown column score; expected recording, start_s, end_s, label$"):
        validate_instances(table(), where="truth")


def test_negative_starts_can_be_allowed_and_zero_length_dropped_with_a_count():
    rows = table(("a", -1.0, 2.0, "x", 0.5), ("a", 2.0, 2.0, "x", 0.5))
    kept, dropped = drop_zero_length(rows)
    assert (kept.height, dropped) == (1, {"zero length": 1})
    assert drop_zero_length(kept)[1] == {}
    assert validate_detections(kept, where="here", allow_negative=True).height == 1


@pytest.mark.parametrize("bad", ["nan", "inf", "-inf"])
def test_zero_length_is_said_of_finite_times_only(write, bad):
    kept, dropped = drop_zero_length(table(("a", float(bad), float(bad), "x", 0.5)))
    assert (kept.height, dropped) == (1, {})
    with pytest.raises(InputError, match="must be finite.*line 2"):
        read_predictions(write("d.csv", f"recording,start_s,end_s,label,score\na,{bad},{bad},x,0.9\n"))


@pytest.mark.parametrize("writer", [write_csv, write_parquet, write_activitynet])
def test_what_is_written_is_read_back_exactly(tmp_path, writer):
    path = tmp_path / {write_csv: "d.csv", write_parquet: "d.parquet", write_activitynet: "d.json"}[writer]
    writer(table(*ROWS), path)
    found = read_predictions(path)
    assert found.detections.rows() == [ROWS[2], ROWS[0], ROWS[1]]  # by recording, then descending score
    assert (found.binned, found.dropped, found.warnings) == (False, {}, ())


def test_activitynet_result_lists_recordings_without_detections(tmp_path):
    write_activitynet(table(ROWS[0]), tmp_path / "d.json", recordings=["c", "a"])
    content = json.loads((tmp_path / "d.json").read_text())
    assert content["results"] == {"a": [{"label": "run", "segment": [1.0, 2.5], "score": 0.25}], "c": []}
    assert {"version", "external_data"} < content.keys()


def test_csv_takes_the_score_column_asked_for_and_ignores_others(write):
    path = write("d.csv", "rank_score,recording,start_s,end_s,label,score,note\n0.5,a,0,1,x,0.9,hm\n")
    assert read_predictions(path).detections["score"].to_list() == [0.9]
    assert read_predictions(path, score_column="rank_score").detections["score"].to_list() == [0.5]
    with pytest.raises(InputError, match="missing column confidence"):
        read_predictions(path, score_column="confidence")


def test_csv_errors_name_the_line(write):
    path = write("d.csv", "recording,start_s,end_s,label,score\na,0,1,x,0.9\n\na,5,4,x,0.9\n")
    with pytest.raises(InputError, match=r"d\.csv: end_s must be after start_s.* the first is line 4"):
        read_predictions(path)
    with pytest.raises(InputError, match=r"d\.csv, line 2, column start_s: expected Float64, got 'zero'"):
        read_predictions(write("d.csv", "recording,start_s,end_s,label,score\na,zero,1,x,0.9\n"))


def test_odd_rows_are_counted(write):
    text = "recording,start_s,end_s,label,score\na,-1,1,x,0.9\na,1,1,x,0.5\na,2,3,x,0.5\n"
    found = read_predictions(write("d.csv", text))
    assert found.detections.height == 2
    assert found.dropped == {"zero length": 1}
    assert found.warnings == ("1 of 2 intervals start before second 0; they are kept as they are",)


def test_rows_of_zero_length_shift_no_row_number(tmp_path):
    rows = table(("a", 1.0, 1.0, "x", 0.5), ("a", 3.0, 2.0, "x", 0.5))
    rows.write_parquet(tmp_path / "d.parquet")
    with pytest.raises(InputError, match=r"end_s must be after start_s; 1 row\(s\), the first is row 1 \(counted from"):
        read_predictions(tmp_path / "d.parquet")


def test_several_systems_need_a_choice(tmp_path):
    both = table(*ROWS[:2]).with_columns(system=pl.Series(["stack", "mean"]))
    write_parquet(both, tmp_path / "d.parquet")
    with pytest.raises(InputError, match="several systems, choose one of them: mean, stack"):
        read_predictions(tmp_path / "d.parquet")
    assert read_predictions(tmp_path / "d.parquet", system="stack").detections.rows() == [ROWS[0]]
    with pytest.raises(InputError, match="no system 'best'; found mean, stack"):
        read_predictions(tmp_path / "d.parquet", system="best")
    write_parquet(both.filter(pl.col("system") == "mean"), tmp_path / "one.parquet")
    assert read_predictions(tmp_path / "one.parquet").detections.rows() == [ROWS[1]]
    write_csv(table(ROWS[0]), tmp_path / "d.csv")
    with pytest.raises(InputError, match="no system 'stack'; found none"):
        read_predictions(tmp_path / "d.csv", system="stack")


def test_rows_without_a_system_are_a_system_of_their_own(tmp_path, write):
    path = tmp_path / "d.parquet"
    write_parquet(table(*ROWS[:2]).with_columns(system=pl.Series(["stack", None])), path)
    with pytest.raises(InputError, match="several systems, choose one of them: stack; 1 rows have none"):
        read_predictions(path)
    found = read_predictions(path, system="stack")
    assert (found.detections.rows(), found.dropped) == ([ROWS[0]], {"row without a system": 1})
    header = "recording,start_s,end_s,label,score,system\n"
    assert read_predictions(write("d.csv", header + "a,0,1,x,0.9,\n")).detections.height == 1


def test_systems_may_be_numbers(tmp_path):
    path = tmp_path / "d.parquet"
    write_parquet(table(*ROWS[:2]).with_columns(system=pl.Series([1, 2])), path)
    with pytest.raises(InputError, match="several systems, choose one of them: 1, 2"):
        read_predictions(path)
    assert read_predictions(path, system="2").detections.rows() == [ROWS[1]]
    write_parquet(table(*ROWS[:2]).with_columns(system=pl.Series([[1], [2]])), path)
    with pytest.raises(InputError, match="column system: expected names, got List"):
        read_predictions(path)


@pytest.mark.parametrize("times", [pl.Series(["0"]), pl.Series([[0]]), pl.Series([True])])
def test_times_of_another_type_are_refused(tmp_path, times):
    path = tmp_path / "d.parquet"
    pl.DataFrame({"recording": "a", "start_s": times, "end_s": [1.0], "label": "x", "score": 1.0}).write_parquet(path)
    with pytest.raises(InputError, match=r"d\.parquet, column start_s: expected Float64, got"):
        read_predictions(path)


def test_a_column_called_line_can_rank(tmp_path, write):
    text = "recording,start_s,end_s,label,score,line\na,0,1,x,0.9,0.25\n"
    assert read_predictions(write("d.csv", text)).detections["score"].to_list() == [0.9]
    assert read_predictions(write("d.csv", text), score_column="line").detections["score"].to_list() == [0.25]
    table(ROWS[0]).with_columns(line=pl.lit(0.5)).write_parquet(tmp_path / "d.parquet")
    assert read_predictions(tmp_path / "d.parquet", score_column="line").detections["score"].to_list() == [0.5]
    for name in ("label", "recording", "system"):
        with pytest.raises(InputError, match=f"column {name} holds names; a score column needs numbers"):
            read_predictions(write("d.csv", text), score_column=name)


@pytest.mark.parametrize("writer", [write_csv, write_parquet, write_activitynet])
def test_white_space_around_names_goes_in_every_format(tmp_path, writer):
    path = tmp_path / {write_csv: "d.csv", write_parquet: "d.parquet", write_activitynet: "d.json"}[writer]
    writer(table((" a", 0.0, 1.0, "run\u00a0", 0.5)), path)
    assert read_predictions(path).detections.rows() == [("a", 0.0, 1.0, "run", 0.5)]
    writer(table(("a", 0.0, 1.0, "", 0.5)), path)
    with pytest.raises(InputError, match="an empty"):
        read_predictions(path)


@pytest.mark.parametrize("writer", [write_parquet, write_activitynet])
def test_names_that_only_white_space_tells_apart_are_refused(tmp_path, writer):
    path = tmp_path / {write_parquet: "d.parquet", write_activitynet: "d.json"}[writer]
    writer(table(("a", 0.0, 1.0, "run", 0.5), ("a", 2.0, 3.0, "run ", 0.5)), path)
    with pytest.raises(InputError, match="only white space tells these labels apart: 'run', 'run '"):
        read_predictions(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (7, "expected ActivityNet results"),
        ({"results": []}, "expected ActivityNet results"),
        ({"version": "1"}, "expected ActivityNet results"),
        ({"results": {"a": {"label": "x"}}}, "recording 'a': expected a list"),
        ({"results": {"a": [{"label": "x", "segment": [1], "score": 1}]}}, "recording 'a', entry 0"),
        ({"results": {"a": [{"label": "x", "segment": [1, "b"], "score": 1}]}}, "recording 'a', entry 0"),
        ({"results": {"a": [{"label": "x", "segment": [1, 2]}]}}, "recording 'a', entry 0.*KeyError.'score'"),
        ({"results": {"a": [{"label": "x", "segment": [1, 2], "score": "high"}]}}, "score is not a number"),
        ({"results": {"a": [{"label": 7, "segment": [1, 2], "score": 1}]}}, "label is not a text"),
        ({"results": {"a": [{"label": "x", "segment": [1, 2], "score": float("nan")}]}}, "must be finite"),
    ],
)
def test_activitynet_errors_name_recording_and_entry(write, content, message):
    with pytest.raises(InputError, match=message):
        read_predictions(write("d.json", content))


def test_competition_csv(write):
    text = 'id,prediction\nr_1_0_10,"[[4, 1.0, 2.5, 0.5], [1, 0.0, 10.0, 0.25]]"\nr_1_10_20,[]\n'
    found = read_predictions(write("s.csv", text))
    assert found.binned
    assert found.detections.rows() == [("r_1", 1.0, 2.5, "eating", 0.5), ("r_1", 0.0, 10.0, "walking", 0.25)]
    named = read_predictions(write("s.csv", text), class_ids={1: "one", 4: "four"})
    assert named.detections["label"].to_list() == ["four", "one"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["r_0_10,[]", "r_0_10,[]"], "line 3: id 'r_0_10' appears more than once"),
        (["r_0_10,[]", "r_0_15,[]"], "line 3: id 'r_0_15': expected"),
        (['r_10_20,"[[1, 0.0, 5.0, 0.5]]"'], r"line 2: \[0.0, 5.0\] does not lie in the bin 10 to 20; .*not relative"),
        (['r_0_10,"[[35, 0.0, 5.0, 0.5]]"'], r"line 2: class id 35 is not one of 1\.\.34"),
        (['r_0_10,"open(1)"'], "line 2: prediction .* not a list literal"),
        (['r_0_10,"[[1, NaN, 5.0, 0.5]]"'], "line 2: .nan, 5.0. does not lie in the bin"),
        (["r_0_10,[]", 'r_10_20,"[[1, 10, 15.0, NaN]]"'], "score must be finite.* the first is line 3"),
    ],
)
def test_competition_csv_errors_name_the_line(write, lines, message):
    with pytest.raises(InputError, match=message):
        read_predictions(write("s.csv", "\n".join(["id,prediction", *lines]) + "\n"))


def test_competition_csv_in_another_order_and_with_another_column(write):
    found = read_predictions(write("s.csv", 'prediction,id\n"[[4, 1.0, 2.5, 0.5]]",r_0_10\n'))
    assert (found.binned, found.detections.rows()) == (True, [("r", 1.0, 2.5, "eating", 0.5)])
    with pytest.raises(InputError, match="expected exactly id,prediction, got 'id,prediction,Usage'"):
        read_predictions(write("s.csv", "id,prediction,Usage\nr_0_10,[],Public\n"))
    both = "id,prediction,recording,start_s,end_s,label,score\n1,x,a,0,1,run,0.5\n"
    assert read_predictions(write("d.csv", both)).detections.rows() == [("a", 0.0, 1.0, "run", 0.5)]


def test_files_that_are_no_predictions(tmp_path, write):
    with pytest.raises(MissingInputError, match="no such file of predictions"):
        read_predictions(tmp_path / "none.csv")
    with pytest.raises(InputError, match=r"must be \.parquet, \.csv or \.json, got '\.txt'"):
        read_predictions(write("d.txt", ""))
    with pytest.raises(InputError, match="not a readable parquet file"):
        read_predictions(write("d.parquet", "text"))
    with pytest.raises(InputError, match="empty file"):
        read_predictions(write("d.csv", ""))
    with pytest.raises(InputError, match="cannot be chosen"):
        read_predictions(write("d.json", {"results": {}}), score_column="rank_score")
    assert read_predictions(write("d.json", {"results": {}})).detections.is_empty()
    assert read_predictions(write("d.csv", "recording,start_s,end_s,label,score\n")).detections.is_empty()
