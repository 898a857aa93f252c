"""What `talstack evaluate` does with every kind of file: file content -> exit code and message."""

import io
import json

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner

from talstack.cli.main import main

TRUTH = "recording,start_s,end_s,label\na,0,10,walking\na,30,40,eating\n"
HEADER = "recording,start_s,end_s,label,score\n"
ROW = "a,0,10,walking,0.5\n"
ENTRY = {"segment": [0, 10], "label": "walking", "score": 0.5}
RECORD = {"video_id": "a", "t_start": 0, "t_end": 10, "label": "walking", "score": 0.5}


@pytest.fixture
def run(tmp_path):
    def invoke(name, content, truth=TRUTH, truth_name="truth.csv"):
        for path, value in ((tmp_path / truth_name, truth), (tmp_path / name, content)):
            raw = value if isinstance(value, str | bytes) else json.dumps(value)
            path.write_bytes(raw if isinstance(raw, bytes) else raw.encode())
        files = [str(tmp_path / name), str(tmp_path / truth_name)]
        return CliRunner().invoke(main, ["evaluate", *files, "--preset", "binego360", "--json"])

    return invoke


def parquet(**columns):
    table = {"recording": ["a"], "start_s": [0.0], "end_s": [10.0], "label": ["walking"], "score": [0.5], **columns}
    buffer = io.BytesIO()
    pl.DataFrame({name: values for name, values in table.items() if values is not None}).write_parquet(buffer)
    return buffer.getvalue()


def results(*entries):
    return {"results": {"a": list(entries)}}


def changed(base, **values):
    return {key: value for key, value in {**base, **values}.items() if value is not ...}


def assert_scored(result, average_map):
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["average_map"] == pytest.approx(average_map)


ACCEPTED = {
    "plain CSV": ("d.csv", HEADER + ROW),
    "Windows line ends": ("d.csv", (HEADER + ROW).replace("\n", "\r\n")),
    "byte order mark": ("d.csv", b"\xef\xbb\xbf" + (HEADER + ROW).encode()),
    "quoted and blank-padded header": ("d.csv", '"recording", start_s ,end_s,"label",score\n' + ROW),
    "byte order mark and quotes": ("d.csv", b'\xef\xbb\xbf"recording",start_s,end_s,label,score\r\na,0,10,walking,0.5'),
    "blank lines": ("d.csv", HEADER + "\n" + ROW + "\n\n"),
    "further columns": ("d.csv", "n,recording,start_s,end_s,label,score\n1," + ROW),
    "competition CSV": ("d.csv", 'id,prediction\na_0_10,"[[1, 0.0, 10.0, 0.5]]"\n'),
    "competition CSV of Windows": ("d.csv", b'\xef\xbb\xbfid,prediction\r\na_0_10,"[[1, 0.0, 10.0, 0.5]]"\r\n'),
    "ActivityNet": ("d.json", {"version": "VERSION 1.3", "results": {"a": [ENTRY]}, "external_data": {}}),
    "ActivityNet with a byte order mark": ("d.json", b"\xef\xbb\xbf" + json.dumps(results(ENTRY)).encode()),
    "OpenTAD": ("d.json", results(ENTRY)),
    "Ego4D challenge": ("d.json", {"challenge": "mq", "detect_results": {"a": [ENTRY]}, "retrieve_results": {}}),
    "records": ("d.json", [RECORD]),
    "records with class ids": ("d.json", [changed(RECORD, label=1)]),
    "parquet": ("d.parquet", parquet()),
    "parquet with whole-number times": ("d.parquet", parquet(start_s=[0], end_s=[10], score=[1])),
    "parquet with 32-bit floats": ("d.parquet", parquet(score=np.float32([0.5]), end_s=np.float32([10]))),
    "parquet with categories": ("d.parquet", parquet(label=pl.Series(["walking"], dtype=pl.Categorical))),
}


@pytest.mark.parametrize("form", ACCEPTED)
def test_accepted_forms_say_nothing_and_score_the_same(run, form):
    result = run(*ACCEPTED[form])
    assert_scored(result, 0.5)
    assert result.stderr == ""


COUNTED = {
    "no row": ("d.csv", HEADER, 0.0, "there is no prediction to score"),
    "empty results": ("d.json", {"results": {}}, 0.0, "there is no prediction to score"),
    "no record": ("d.json", [], 0.0, "there is no prediction to score"),
    "zero length": ("d.csv", HEADER + ROW + "a,5,5,walking,0.9\n", 0.5, "ignored 1: zero length"),
    "zero length in JSON": (
        "d.json", results(ENTRY, changed(ENTRY, segment=[5, 5])), 0.5, "ignored 1: zero length"
    ),
    "negative time": (
        "d.csv", HEADER + ROW + "a,-5,-1,walking,0.1\n", 0.5, "1 of 2 intervals start before second 0"
    ),
    "unknown recording": (
        "d.csv", HEADER + ROW + "z,0,10,walking,0.9\n", 0.25, "1 predictions are on recordings that the ground truth"
    ),
    "unknown label": (
        "d.csv", HEADER + ROW + "a,0,10,flying,0.9\n", 0.5, "ignored 1: label not in ground truth"
    ),
    "labels as numbers are texts": ("d.csv", HEADER + "a,0,10,1,0.9\n", 0.0, "ignored 1: label not in ground truth"),
    "exact duplicates": (
        "d.csv", HEADER + 3 * ROW + "a,0,10,walking,0.4\n", 0.5, "2 of 4 rows repeat another one exactly; they are kept"
    ),
    "records without scores": (
        "d.json", [changed(RECORD, score=...), changed(RECORD, score=..., t_start=50, t_end=60)], 0.5,
        "no entry has a score, so every score is 1.0 and the ranking",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", COUNTED)
def test_what_is_odd_is_counted(run, case):
    name, content, average_map, warning = COUNTED[case]
    result = run(name, content)
    assert_scored(result, average_map)
    assert warning in result.stderr


def test_duplicates_are_scored_as_they_stand(run):
    twice = HEADER + ROW + ROW + "a,30,40,eating,0.9\n"
    result = run("d.csv", twice, truth=TRUTH + "a,0,10,walking\n")
    assert_scored(result, 1.0)  # the instance that is listed twice is found twice
    assert "ground truth: 1 of 3 rows repeat another one exactly; an instance that is listed twice" in result.stderr
    assert_scored(run("d.csv", HEADER + ROW, truth=TRUTH + "a,0,10,walking\n"), 0.25)


REFUSED = {
    "NaN score": ("d.csv", HEADER + ROW + "a,0,10,walking,nan\n", "must be finite; 1 row(s), the first is line 3"),
    "infinite score": ("d.csv", HEADER + "a,0,10,walking,-inf\n", "must be finite; 1 row(s), the first is line 2"),
    "NaN time": ("d.csv", HEADER + "a,NaN,10,walking,0.5\n", "must be finite; 1 row(s), the first is line 2"),
    "infinite time": ("d.csv", HEADER + "a,0,inf,walking,0.5\n", "must be finite; 1 row(s), the first is line 2"),
    "end before start": ("d.csv", HEADER + ROW + "a,10,0,walking,0.5\n", "end_s must be after start_s; 1 row(s)"),
    "empty score": ("d.csv", HEADER + "a,0,10,walking,\n", "line 2, column score: expected Float64, got an empty"),
    "empty label": ("d.csv", HEADER + "a,0,10,,0.5\n", "line 2, column label: expected String, got an empty"),
    "text for a time": ("d.csv", HEADER + "a,zero,10,walking,1\n", "line 2, column start_s: expected Float64"),
    "too few fields": ("d.csv", HEADER + "a,0,10\n", "line 2, column label: expected String, got an empty"),
    "too many fields": ("d.csv", HEADER + ROW + "a,0,10,walking,0.5,6\n", "line 3: 6 fields where the header has 5"),
    "empty file": ("d.csv", "", "empty file; expected a header with recording, start_s, end_s, label"),
    "blank file": ("d.csv", "\n\n", "d.csv: "),
    "no header": ("d.csv", ROW, "missing column recording, start_s, end_s, label, score"),
    "semicolons": ("d.csv", (HEADER + ROW).replace(",", ";"),
                   "header 'recording;start_s;end_s;label;score' is parted by semicolons; expected commas"),
    "semicolons and decimal commas": (
        "d.csv", HEADER.replace(",", ";") + "a;0,5;10,5;walking;0,5\n", "parted by semicolons"
    ),
    "tabs": ("d.csv", (HEADER + ROW).replace(",", "\t"), "parted by tabs"),
    "a column twice": ("d.csv", HEADER.strip() + ",score\n" + ROW.strip() + ",0.7\n", "column score stands twice"),
    "UTF-16": ("d.csv", (HEADER + ROW).encode("utf-16"), "not a text file, although its name says CSV"),
    "binary": ("d.csv", bytes(range(256)) * 20, "not a text file, although its name says CSV"),
    "binary without zeros": ("d.csv", bytes(range(128, 256)) * 20, "d.csv, line 1: byte 0x80 is not UTF-8"),
    "parquet named CSV": ("d.csv", parquet(), "not a text file, although its name says CSV"),
    "another suffix": ("d.txt", HEADER + ROW, "predictions must be .parquet, .csv or .json, got '.txt'"),
    "competition CSV, time outside the bin": (
        "d.csv", 'id,prediction\na_10_20,"[[1, 0.0, 10.0, 0.5]]"\n', "line 2: [0.0, 10.0] does not lie in the bin 10"
    ),
    "truncated JSON": ("d.json", json.dumps(results(ENTRY))[:-9], "not valid JSON, line 1 column"),
    "binary JSON": ("d.json", bytes(range(256)), "byte 0x80 at offset 128 is not UTF-8"),
    "Latin-1": (
        "d.csv", (HEADER + ROW + "a,0,10,caf\xe9,1\n").encode("latin-1"), "d.csv, line 3: byte 0xe9 is not UTF-8"
    ),
    "old Macintosh line ends": ("d.csv", (HEADER + ROW).replace("\n", "\r"), "end with a carriage return alone"),
    "NaN for both times": ("d.csv", HEADER + ROW + "a,nan,nan,walking,0.5\n", "must be finite; 1 row(s), the first is"),
    "times without end": ("d.csv", HEADER + "a,-1.7e308,1.7e308,walking,1\n", "must lie within 1e+12 seconds of 0"),
    "huge id": ("d.csv", f"id,prediction\na_{400 * '9'}0_{399 * '9'}10,[]\n", "line 2: id 'a_999"),
    "huge digits in JSON": ("d.json", f'{{"results": {5000 * "9"}}}', "a number that cannot be read"),
    "half a character in JSON": ("d.json", '{"results": {"a\\ud800": []}}', "half a character"),
    "a key twice in JSON": (
        "d.json", '{"results": {"a": [{"segment": [0, 10], "label": "x", "score": 1, "score": 0}]}}',
        "'score' stands there twice in one object",
    ),
    "parquet, times as text": ("d.parquet", parquet(start_s=["0"]), "column start_s: expected Float64, got String"),
    "empty JSON": ("d.json", "", "not valid JSON, line 1 column 1"),
    "deep JSON": ("d.json", "[" * 100_000, "nested too deeply"),
    "JSON of another kind": ("d.json", {"detections": []}, "expected ActivityNet results"),
    "a recording twice": (
        "d.json", '{"results": {"a": [%s], "a": [%s]}}' % (2 * (json.dumps(ENTRY),)), "'a' stands there twice"
    ),
    "NaN score in JSON": (
        "d.json", results(ENTRY, changed(ENTRY, score=float("nan"))),
        "recording 'a', entry 1: times and score must be finite",
    ),
    "huge time in JSON": ("d.json", '{"results": {"a": [{"segment": [0, 1e999], "label": "x", "score": 1}]}}',
                          "recording 'a', entry 0: times and score must be finite"),
    "huge whole number in JSON": (
        "d.json", results(changed(ENTRY, segment=[0, 10**400])), "recording 'a', entry 0: expected segment"
    ),
    "end before start in JSON": (
        "d.json", results(ENTRY, changed(ENTRY, segment=[9, 3])), "recording 'a', entry 1: end_s must be after start_s"
    ),
    "null time in JSON": ("d.json", results(changed(ENTRY, segment=[None, 3])), "recording 'a', entry 0: expected"),
    "null score in JSON": ("d.json", results(changed(ENTRY, score=None)), "entry 0: score is not a number"),
    "label as a number in JSON": ("d.json", results(changed(ENTRY, label=3)), "entry 0: label is not a text"),
    "three times in JSON": (
        "d.json", results(changed(ENTRY, segment=[1]), changed(ENTRY, segment=[1, 2, 3])), "recording 'a', entry 0"
    ),
    "record without an end": ("d.json", [RECORD, changed(RECORD, t_end=...)], "entry 1: expected t_start, t_end"),
    "record with an unknown class id": ("d.json", [changed(RECORD, label=35)], "entry 0: class id 35 is not one of 1"),
    "records with and without scores": ("d.json", [RECORD, changed(RECORD, score=...)], "entry 1: expected t_start"),
    "record of no object": ("d.json", [[1, 2]], "entry 0: expected t_start, t_end"),
    "binary parquet": ("d.parquet", bytes(range(256)), "not a readable parquet file"),
    "empty parquet file": ("d.parquet", b"", "not a readable parquet file"),
    "truncated parquet": ("d.parquet", parquet()[:-20], "not a readable parquet file"),
    "parquet, scores as text": ("d.parquet", parquet(score=["0.5"]), "column score: expected Float64, got String"),
    "parquet, labels as numbers": ("d.parquet", parquet(label=[1]), "column label: expected String, got Int64"),
    "parquet, null": ("d.parquet", parquet(end_s=pl.Series([None], dtype=pl.Float64)), "an empty value"),
    "parquet, no recording": ("d.parquet", parquet(recording=None), "missing column recording; found start_s"),
    "ground truth for predictions": ("d.csv", TRUTH, "Is this the ground truth? talstack evaluate takes PREDICTIONS"),
    "ground truth in parquet": ("d.parquet", parquet(score=None), "Is this the ground truth?"),
    "annotations for predictions": ("d.json", {"database": {}}, "Are the two files swapped?"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_bad_predictions_end_in_one_clear_line(run, case):
    name, content, message = REFUSED[case]
    result = run(name, content)
    assert (result.exit_code, result.stdout) == (2, ""), result.output
    assert result.stderr.startswith("error: ")
    assert name in result.stderr
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


ANNOTATIONS = [{"segment": [0, 10], "label": "walking"}, {"segment": [30, 40], "label": "eating"}]
BAD_TRUTH = {
    "no instance": ("t.csv", TRUTH.splitlines()[0] + "\n", "the ground truth has no instance"),
    "empty file": ("t.csv", "", "t.csv: empty file; expected a header with recording"),
    "empty JSON database": ("t.json", {"database": {}}, "the ground truth has no instance"),
    "NaN time": ("t.csv", TRUTH + "a,nan,3,eating\n", "must be finite; 1 row(s), the first is line 4"),
    "end before start": ("t.csv", TRUTH + "a,4,3,eating\n", "end_s must be after start_s; 1 row(s), the first is line"),
    "Latin-1": ("t.csv", (TRUTH + "a,1,2,caf\xe9\n").encode("latin-1"), "line 4: byte 0xe9 is not UTF-8"),
    "a submission of another order": ("t.csv", "prediction,id\n[],a_0_10\n", "Are the two files swapped?"),
    "a subset that is no text": ("t.json", {"database": {"a": {"subset": [1]}}}, "subset must be a text"),
    "semicolons": ("t.csv", TRUTH.replace(",", ";"), "parted by semicolons"),
    "end before start in JSON": (
        "t.json", {"database": {"a": {"annotations": [{"segment": [3, 1], "label": "x"}]}}},
        "recording 'a', entry 0: end_s must be after start_s",
    ),
    "a recording twice": (
        "t.json", '{"database": {"a": {"annotations": []}, "a": {"annotations": []}}}', "'a' stands there twice"
    ),
    "truncated JSON": ("t.json", '{"database": {"a"', "not valid JSON, line 1 column"),
    "results": ("t.json", results(ENTRY), "holds predictions, not ground truth. Are the two files swapped?"),
    "records with scores": ("t.json", [RECORD], "holds predictions, not ground truth. Are the two files swapped?"),
    "a submission": ("t.csv", "id,prediction\na_0_10,[]\n", "Are the two files swapped?"),
    "parquet": ("t.parquet", parquet(), "Is it a file of predictions?"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_TRUTH)
def test_bad_ground_truth_ends_in_one_clear_line(run, case):
    name, content, message = BAD_TRUTH[case]
    result = run("d.csv", HEADER + ROW, truth=content, truth_name=name)
    assert (result.exit_code, result.stdout) == (2, ""), result.output
    assert result.stderr.startswith("error: ")
    assert message in result.stderr


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.json", [changed(RECORD, score=...), {"video_id": "a", "t_start": 30, "t_end": 40, "label": 4}]),
        ("t.json", {"database": {"a": {"subset": "test", "annotations": ANNOTATIONS}}}),
        ("t.csv", b"\xef\xbb\xbf" + TRUTH.replace("\n", "\r\n").encode()),
    ],
)
def test_accepted_ground_truth(run, name, content):
    result = run("d.csv", HEADER + ROW, truth=content, truth_name=name)
    assert_scored(result, 0.5)
    assert result.stderr == ""


def test_both_files_swapped(run):
    result = run("d.csv", TRUTH, truth=HEADER + ROW)
    assert result.exit_code == 2
    assert "Is this the ground truth?" in result.stderr


def test_scores_in_the_ground_truth_are_suspicious(run):
    result = run("d.csv", HEADER + ROW, truth=HEADER + ROW + "a,30,40,eating,0.5\n")
    assert_scored(result, 0.5)
    assert "ground truth: there are scores, which are not used. Is it a file of predictions?" in result.stderr


def test_a_folder_of_predictions(run, tmp_path):
    (tmp_path / "truth.csv").write_text(TRUTH)
    arguments = ["evaluate", str(tmp_path), str(tmp_path / "truth.csv"), "--preset", "anet"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert "a folder, but no run's: expected detections.parquet or scene.parquet in it" in result.stderr


def test_the_order_of_rows_changes_neither_score_nor_warnings(run):
    rows = [ROW, ROW, "a,-1,10,eating,0.5\n", "a,30,40,eating,0.5\n", "z,0,10,walking,0.5\n", "a,2,2,eating,0.1\n"]
    first, second = (run("d.csv", HEADER + "".join(part)) for part in (rows, rows[::-1]))
    assert first.exit_code == 0
    assert (first.stdout, first.stderr) == (second.stdout, second.stderr)
