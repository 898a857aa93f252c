import math
import re

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from talstack.io.errors import InputError, MissingInputError
from talstack.io.manifest import SCHEMAS, Manifest, empty_table
from talstack.io.submission_check import check_submission
from talstack.io.submission_findings import KINDS

RECORDINGS = [("r_x", 25.0, "b", "test"), ("s", 10.0, "a", "test"), ("t", 30.0, "a", "train"), ("007", 9.0, "a", "val")]
GOOD = {"r_x_0_10": "[]", "r_x_10_20": "[]", "r_x_20_30": "[]", "s_0_10": "[]"}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    recordings = pl.DataFrame(RECORDINGS, schema=SCHEMAS["recordings"], orient="row")
    return Manifest(
        "set", tmp_path_factory.mktemp("media"), ("run", "sit", "eat"), ("a", "b", "c"), recordings,
        empty_table("clips"), empty_table("instances"),
    )  # fmt: skip


@pytest.fixture(scope="module")
def check(manifest, tmp_path_factory):
    path = tmp_path_factory.mktemp("check") / "s.csv"

    def run(content, track="tal", split="test"):
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return check_submission(path, manifest, track=track, split=split)

    return run


def csv_of(rows, header="id,prediction"):
    lines = [f'{name},"{text}"' for name, text in rows.items()]
    return "\n".join([header, *lines]) + "\n"


def with_row(name, text):
    """Return a good file but for one row, and that row's line."""
    rows = GOOD | {name: text}
    return csv_of(rows), list(rows).index(name) + 2


def places(result):
    return [(found.line, found.column, found.entry, found.kind) for found in result.findings]


def test_a_good_file_and_its_detections(check):
    text, _ = with_row("r_x_20_30", "[[2, 20.0, 23.1, 9e-1], (1, 2.05e1, 24, 1e-300),]")
    result = check(text)
    assert result.findings == ()
    assert (result.num_rows, result.num_entries, result.num_left_out, result.missing) == (4, 2, 0, ())
    assert result.usable.rows() == [("r_x", 20.0, 23.1, "sit", 0.9), ("r_x", 20.5, 24.0, "run", 1e-300)]


@pytest.mark.parametrize(
    "text",
    [
        "\ufeff" + csv_of(GOOD),
        csv_of(GOOD).replace("\n", "\r\n"),
        csv_of(GOOD).replace("\n", "   \n"),
        csv_of(GOOD).replace('"', ""),
        csv_of(GOOD).replace("\n", "\n\n"),
        csv_of(GOOD).rstrip("\n"),
        csv_of(GOOD | {"s_0_10": "[[1, 0.0, 5.0, 0.5],\n [2, 0.0, 5.0, 0.4]]"}),
        csv_of(GOOD | {"s_0_10": "[[1, 0, 5, 0.5], [1, 2, 6, 0.4], [1, 2, 6, 0.3]]"}),
    ],
    ids=["bom", "crlf", "trailing", "unquoted", "blank lines", "no last newline", "line break in a list", "overlap"],
)
def test_what_is_fine(check, text):
    assert check(text).findings == ()


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("[[0, 20, 25, 0.5]]", "unknown class", "class 0 is background"),
        ("[[4, 20, 25, 0.5]]", "unknown class", r"there is no class 4; expected one of 1\.\.3"),
        ("[[1.5, 20, 25, 0.5]]", "unknown class", "class id 1.5 is not a whole number"),
        ("[[NaN, 20, 25, 0.5]]", "unknown class", "NaN is not a whole number"),
        ("[[1, NaN, 25, 0.5]]", "time not finite", "finite seconds"),
        ("[[1, 20, 1e999, 0.5]]", "time not finite", "finite seconds"),
        ("[[1, 25, 25, 0.5]]", "end not after start", "end must be after start"),
        ("[[1, 25, 22, 0.5]]", "end not after start", "end must be after start"),
        ("[[1, 2, 5.5, 0.5]]", "outside the bin", "relative to the bin; add 20"),
        ("[[1, 12, 15, 0.5]]", "outside the bin", "another bin; move it to the row r_x_10_20"),
        ("[[1, 19.9, 25, 0.5]]", "outside the bin", "reaches over the bin's edge"),
        ("[[1, 21000, 22500, 0.5]]", "outside the bin", "seem to be milliseconds"),
        ("[[1, 630, 660, 0.5]]", "outside the bin", r"frame numbers \(30 per second"),
        ("[[1, -3, -1, 0.5]]", "outside the bin", "expected seconds on the recording's clock"),
        ("[[1, 20.1, 20.5, 0.5]]", "too short", "0.4 s long; pieces under 0.5 s"),
        ("[[1, 20.05001, 20.5499, 0.5]]", "too short", "0.5 s long; pieces under 0.5 s"),
        ("[[1, 20.55, 21.35, 0.5]]", "off the 0.1 s grid", "rounded to 0.1 s"),
        ("[[1, 25.2, 27, 0.5]]", "after the recording's end", "recording's end at 25.0 s"),
        ("[[1, 20, 25, NaN]]", "score not finite", "finite number"),
        ("[[1, 20, 25, -Infinity]]", "score not finite", "finite number"),
        ("[[1, 20, 25, -0.1]]", "score outside 0 to 1", "only the order counts"),
        ("[[1, 20, 25, 1.5]]", "score outside 0 to 1", "only the order counts"),
        ("[[1, 20, 25]]", "malformed entry", r"\[1, 20, 25\]: expected four numbers"),
        ("[[1, 20, 25, '0.5']]", "malformed entry", "expected four numbers"),
        ("[[1, 20, 25, True]]", "malformed entry", "expected four numbers"),
        ("[7]", "not a list", "a single entry needs a list around it"),
        ("[1, 20, 25, 0.5]", "not a list", "a single entry needs a list around it"),
        ("", "not a list", r"empty; a bin with nothing is \[\]"),
        ("{}", "not a list", "expected a list, got dict"),
        ("__import__('os').abort()", "not a list", "not a list literal"),
        ("[" * 100_000, "not a list", "not a list literal"),
        ("'[[1, 20, 25, 0.5]]'", "not a list", "in quotes of its own"),
        ("[[1, np.float64(20.0), 25, 0.5]]", "not a list", "numpy's own notation"),
        ("[[1. 20. 25. 0.5]]", "not a list", "without commas"),
    ],
)  # fmt: skip
def test_one_bad_entry_is_found_where_it_is(check, text, kind, message):
    content, line = with_row("r_x_20_30", text)
    result = check(content)
    first = result.findings[0]
    entry = None if kind == "not a list" else 1
    assert (first.line, first.column, first.entry, first.kind) == (line, "prediction", entry, kind)
    assert all(found.line == line for found in result.findings)
    assert re.search(message, first.message)
    assert first.severity == KINDS[kind]
    assert result.usable.height == (first.severity == "warning")


def test_a_broken_entry_hides_no_other(check):
    content, line = with_row(
        "s_0_10", "[[0, 1, 2, 0.9], [1, 2], [1, 3, 4, nan], [9, 3, 4, 0.5], [1, 3, 2, 0.4], [1, 0, 1,"
    )
    assert [place for place in places(check(content)) if place[2]] == [
        (line, "prediction", 1, "unknown class"),
        (line, "prediction", 2, "malformed entry"),
        (line, "prediction", 3, "score not finite"),
        (line, "prediction", 4, "unknown class"),
        (line, "prediction", 5, "end not after start"),
    ]


def test_rounding_that_makes_a_piece_too_short(check):
    content, line = with_row("s_0_10", "[[1, 1.15, 1.65, 0.9], [1, 2.04, 2.58, 0.8]]")
    result = check(content)
    assert places(result) == [
        (line, "prediction", 1, "too short"),
        (line, "prediction", 1, "off the 0.1 s grid"),
        (line, "prediction", 2, "off the 0.1 s grid"),
    ]
    assert "is 0.4 s long after rounding" in result.findings[0].message
    assert result.usable.select("start_s", "end_s").rows() == [(2.0, 2.6)]


def test_duplicates_order_and_number_of_entries(check):
    content, line = with_row("s_0_10", "[[1, 0, 5, 0.5], [1, 0, 5, 0.5], [2, 0, 5, 0.5], [1, 0, 5, 0.6]]")
    result = check(content)
    assert places(result) == [
        (line, "prediction", None, "not in descending score"),
        (line, "prediction", 2, "exact duplicate"),
    ]
    assert "entry 4 is the first to rise" in result.findings[0].message
    assert (result.num_errors, result.usable.height) == (0, 4)
    many = ", ".join(f"[1, 0, 5, {1 - i / 4000}]" for i in range(1001))
    assert places(check(csv_of(GOOD | {"s_0_10": f"[{many}]"}))) == [(line, "prediction", None, "very many entries")]


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("r_x_0_20", "malformed id", "of a ten-second bin"),
        ("r_x_0.0_10.0", "malformed id", "of a ten-second bin"),
        ("r_x", "malformed id", "of a ten-second bin"),
        ("r_" + "9" * 5000 + "_10", "malformed id", "of a ten-second bin"),
        ("1.2E+05", "malformed id", "a spreadsheet seems to have rewritten it"),
        ("5-Mar", "malformed id", "a spreadsheet seems to have rewritten it"),
        ("z_0_10", "unknown recording", "no recording 'z'"),
        ("7_0_10", "unknown recording", "is it '007', changed by a spreadsheet"),
        ("t_0_10", "other split", "in split 'train', not in 'test'"),
        ("r_x_30_40", "bin outside the recording", "25.000 s long, its last bin is 20_30"),
    ],
)
def test_ids(check, name, kind, message):
    content, line = with_row(name, "[]")
    result = check(content)
    assert places(result) == [(line, "id", None, kind)]
    assert re.search(message, result.findings[0].message)


def test_entries_of_a_row_with_a_bad_id_are_checked_and_left_out(check):
    content, line = with_row("t_0_10", "[[1, 0, 5, 0.5], [9, 0, 5, 0.5], [1, 20, 25, 0.4]]")
    result = check(content)
    assert places(result)[1:] == [(line, "prediction", 2, "unknown class"), (line, "prediction", 3, "outside the bin")]
    assert (result.num_entries, result.num_left_out) == (3, 3)


def test_repeated_ids_name_each_other_and_none_is_scored(check):
    result = check(csv_of(GOOD | {"s_0_10": "[[1, 0, 5, 0.5]]"}) + 's_0_10,"[[2, 0, 5, 0.5]]"\n')
    assert places(result) == [(5, "id", None, "repeated id"), (6, "id", None, "repeated id")]
    assert "is on 2 lines: 5, 6" in result.findings[0].message
    assert result.usable.is_empty()


def test_missing_rows_are_counted_by_recording_and_all_listed(check):
    result = check("id,prediction\nr_x_10_20,[]\n")
    assert [found.message for found in result.findings] == [
        "recording 'r_x': 2 of 3 rows are missing: r_x_0_10, r_x_20_30",
        "recording 's': all of 1 rows are missing: s_0_10",
    ]
    assert result.missing == ("r_x_0_10", "r_x_20_30", "s_0_10")
    assert len(check("id,prediction\n").missing) == 4
    assert check("id,prediction\n007_0_10,[]\n", split="val").findings == ()


@pytest.mark.parametrize(
    ("content", "line", "kind", "message"),
    [
        ("", None, "empty file", "empty"),
        (" \n\n", None, "empty file", "empty"),
        (b"PK\x03\x04rest", None, "not a CSV file", "a zip archive or an Excel workbook"),
        (b"PAR1rest", None, "not a CSV file", "a parquet table"),
        (b"id,prediction\n\x00\x01\x80", 2, "not a CSV file", "zero byte"),
        ('[{"video_id": "r", "t_start": 1, "t_end": 2, "label": "run"}]', 1, "not a CSV file", "is JSON.*the CSV"),
    ],
)  # fmt: skip
def test_what_is_no_table_is_one_finding(check, content, line, kind, message):
    for track in ("tal", "scene"):
        (found,) = check(content, track).findings
        assert (found.line, found.kind) == (line, kind)
        assert re.search(message, found.message)


MARKED = GOOD | {"s_0_10": "[[1, 0.0, 5.0, 0.5]]"}
PLAIN = csv_of(MARKED)
SPLIT_ROW = [(5, "prediction", "number of fields")]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (csv_of(MARKED, header="ID, Prediction"), [(1, None, "header")]),
        (csv_of(MARKED, header="id,text"), [(1, None, "header")]),
        (csv_of(MARKED, header="id,0"), [(1, None, "header")]),
        (PLAIN.split("\n", 1)[1], [(1, None, "header")]),
        ("id,prediction,x\n" + "".join(f'{name},"{text}",1\n' for name, text in MARKED.items()),
         [(1, None, "header"), (1, "x", "header")]),
        ("prediction,id\n" + "".join(f'"{text}",{name}\n' for name, text in MARKED.items()), [(1, None, "header")]),
        (PLAIN.replace(',"', ';"').replace("id,", "id;"), [(1, None, "separator")]),
        (PLAIN.replace(',"', '\t"').replace("id,", "id\t"), [(1, None, "separator")]),
        (PLAIN.encode("utf-16"), [(None, None, "encoding")]),
        (PLAIN.encode() + b"\xff_0_10,[]\n", [(6, None, "encoding"), (6, "id", "unknown recording")]),
        (PLAIN.replace("\ns_0_10", "\n s_0_10"), [(5, "id", "white space in id")]),
        (PLAIN.replace('r_x_0_10,"[]"', 'r_x_0_10,"[]'), [(2, "prediction", "unclosed quote")]),
        (PLAIN.replace('r_x_0_10,"[]"', "r_x_0_10"),
         [(2, "prediction", "not a list"), (2, "prediction", "number of fields")]),
    ],
)  # fmt: skip
def test_a_file_in_the_wrong_dress_is_still_read(check, content, expected):
    result = check(content)
    assert [(found.line, found.column, found.kind) for found in result.findings] == expected
    assert result.missing == ()
    assert result.usable.rows() == [("s", 0.0, 5.0, "run", 0.5)]


@pytest.mark.parametrize("wrong", [",[[1, 0.0, 5.0, 0.5]]", ",'[[1, 0.0, 5.0, 0.5]]'", ', "[[1, 0.0, 5.0, 0.5]]"'])
def test_a_list_without_double_quotes_is_split_by_its_commas(check, wrong):
    content = PLAIN.replace(',"[[1, 0.0, 5.0, 0.5]]"', wrong)
    result = check(content)
    assert [(found.line, found.column, found.kind) for found in result.findings] == SPLIT_ROW
    assert "the line has 5 fields, expected 2: the list must stand in double quotes" in result.findings[0].message
    assert (result.num_entries, result.usable.height) == (1, 0)
    bad = check(content.replace("0.5]]", "NaN]]"))
    assert {found.kind for found in bad.findings} == {"number of fields", "score not finite"}


def test_an_open_quote_does_not_swallow_the_rows_below(check):
    result = check(PLAIN.replace('r_x_0_10,"[]"', 'r_x_0_10,"[]').replace("0.5]]", "NaN]]"))
    assert [found.kind for found in result.findings] == ["unclosed quote", "score not finite"]
    assert (result.num_rows, result.missing) == (4, ())


def reference_kinds(number, low_s):
    """Return the kinds of finding of one entry of four numbers in a bin of recording r_x, one rule after another."""
    class_id, start, end, score = number
    kinds = set()
    if class_id not in (1, 2, 3):
        kinds.add("unknown class")
    if not math.isfinite(score):
        kinds.add("score not finite")
    elif not 0 <= score <= 1:
        kinds.add("score outside 0 to 1")
    if not (math.isfinite(start) and math.isfinite(end)):
        return kinds | {"time not finite"}
    if end <= start:
        return kinds | {"end not after start"}
    if start < low_s or end > low_s + 10:
        return kinds | {"outside the bin"}
    if end - start < 0.5 - 1e-9:
        kinds.add("too short")
    if start > 25.1:
        kinds.add("after the recording's end")
    return kinds


grid = st.integers(-20, 320).map(lambda tenths: tenths / 10)
odd = st.sampled_from([math.nan, math.inf, -math.inf])
numbers = st.tuples(
    st.one_of(st.sampled_from([1.0, 2.0, 3.0]), st.sampled_from([0.0, -1.0, 4.0, 1.5, math.nan])),
    st.one_of(grid, grid, grid, odd), st.one_of(grid, grid, grid, odd),
    st.one_of(st.floats(0, 1), st.floats(0, 1), odd, st.floats(-2, 2)),
)  # fmt: skip


@settings(deadline=None)
@given(st.lists(st.lists(numbers, max_size=6), min_size=3, max_size=3))
def test_rules_agree_with_one_entry_at_a_time(check, bins):
    def text(entries):
        shown = [[f"{number!r}".replace("nan", "NaN").replace("inf", "Infinity") for number in e] for e in entries]
        return "[" + ", ".join(f"[{', '.join(entry)}]" for entry in shown) + "]"

    names = [f"r_x_{low}_{low + 10}" for low in (0, 10, 20)]
    result = check(csv_of(GOOD | {name: text(entries) for name, entries in zip(names, bins, strict=True)}))
    found = {(f.line, f.entry, f.kind) for f in result.findings if f.entry and f.kind != "exact duplicate"}
    expected = {
        (line, place, kind)
        for line, entries in enumerate(bins, start=2)
        for place, entry in enumerate(entries, start=1)
        for kind in reference_kinds(entry, 10.0 * (line - 2))
    }
    assert found == expected
    bad = {(line, entry) for line, entry, kind in found if KINDS[kind] == "error"}
    assert result.num_left_out == len(bad)


@settings(deadline=None)
@given(st.permutations(range(7)))
def test_the_order_of_rows_does_not_matter(check, order):
    lines = [
        'r_x_0_10,"[[1, 0, 5, 0.5], [9, 0, 5, 0.4]]"', 'r_x_10_20,"[[2, 12, 15, 0.5]]"', 'r_x_10_20,"[[2, 12, 15, 1]]"',
        't_0_10,"[]"', 's_0_10,"[[3, 0, 5, nan]"', 'r_x_30_40,"[[3, 31, 35, 0.1]]"', "s_0_20,[]",
    ]  # fmt: skip
    straight, shuffled = (check("\n".join(["id,prediction", *rows])) for rows in (lines, [lines[i] for i in order]))
    assert straight.counts() == shuffled.counts()
    assert straight.missing == shuffled.missing == ("r_x_20_30",)
    assert straight.usable.rows() == shuffled.usable.rows() == [("r_x", 0.0, 5.0, "run", 0.5)]


def test_what_cannot_be_checked_at_all(manifest, tmp_path):
    path = tmp_path / "s.csv"
    with pytest.raises(MissingInputError, match="no such submission file"):
        check_submission(path, manifest, track="tal")
    path.write_text(csv_of(GOOD))
    with pytest.raises(InputError, match="track 'video'; expected one of tal, scene"):
        check_submission(path, manifest, track="video")
    with pytest.raises(InputError, match="split 'testing'; expected one of"):
        check_submission(path, manifest, track="tal", split="testing")
    rows = manifest.recordings.filter(split="train").with_columns(scene=pl.lit(None, pl.String))
    bare = Manifest(
        "bare", tmp_path, ("run",), (), rows, empty_table("clips"), empty_table("instances"),
    )  # fmt: skip
    with pytest.raises(InputError, match="no recording is in split 'test'; its recordings are in train"):
        check_submission(path, bare, track="tal")
    with pytest.raises(InputError, match="has no scenes to check against"):
        check_submission(path, bare, track="scene", split="train")


def test_lines_that_end_with_a_carriage_return_alone_are_refused_as_evaluate_refuses_them(check):
    (found,) = check(csv_of(GOOD).replace("\n", "\r")).findings
    assert (found.line, found.kind, found.severity) == (1, "encoding", "error")
    assert "carriage return alone" in found.message
    head, *rows = csv_of(GOOD).splitlines()
    assert [found.line for found in check(f"{head}\n" + "\r".join(rows) + "\n").findings] == [2]
    quoted, _ = with_row("s_0_10", "[\r[1, 0.0, 5.0, 0.5]]")  # within quotes it is white space
    assert check(quoted).findings == ()
    assert check(csv_of(GOOD).replace("\n", "\r\n")).findings == ()
