"""Scene submissions: what the check finds in them."""

import re

import polars as pl
import pytest

from talstack.io.manifest import SCHEMAS, Manifest, empty_table
from talstack.io.submission_check import check_submission
from talstack.io.submission_findings import KINDS

RECORDINGS = [("r_x", 25.0, "b", "test"), ("s", 10.0, "a", "test"), ("t", 30.0, "a", "train"), ("007", 9.0, "a", "val")]
SCENES = "id,0,1,2\nr_x,0.1,0.7,0.2\ns,0,0,1\n"


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


def test_a_good_scene_file_by_name(check):
    result = check(SCENES, "scene")
    assert (result.findings, result.num_rows, result.num_left_out) == ((), 2, 0)
    assert result.usable.rows(named=True) == [
        {"recording": "r_x", "a": 0.1, "b": 0.7, "c": 0.2},
        {"recording": "s", "a": 0.0, "b": 0.0, "c": 1.0},
    ]


@pytest.mark.parametrize(
    ("row", "column", "kind", "message"),
    [
        ("s,0.5,x,0.5", "1", "not a number", "got 'x'; expected a probability of scene 'b'"),
        ("s,0.5,,0.5", "1", "not a number", "the value is empty"),
        ('s,0.5,"0,5",0', "1", "not a number", "decimal point, not a comma"),
        ("s,0.5,nan,0.5", "1", "value not finite", "got nan"),
        ("s,0.5,inf,0.5", "1", "value not finite", "got inf"),
        ("s,0.5,-0.1,0.6", "1", "negative value", "got -0.1"),
        ("s,0,0.0,0", None, "all zeros", "no scene is named"),
        ("s,0.5,0.2,0.1", None, "sum is not 1", "sum to 0.8"),
        ("s,0.4,0.4,0.2", None, "tie at the top", "2 scenes share the highest value 0.4"),
        ("s,0.5,0.5", None, "number of fields", "has 3 fields, the header 4"),
        ('s,"0.5,0.2,0.3', None, "unclosed quote", "no partner"),
    ],
)
def test_one_bad_scene_row(check, row, column, kind, message):
    result = check(SCENES.replace("s,0,0,1", row), "scene")
    (found,) = result.findings
    assert (found.line, found.column, found.kind, found.severity) == (3, column, kind, KINDS[kind])
    assert re.search(message, found.message)
    assert result.usable["recording"].to_list() == (["r_x", "s"] if found.severity == "warning" else ["r_x"])


@pytest.mark.parametrize("row", ["s,0.333,0.334,0.333", "s,0.33,0.34,0.32", "s,1e-300,0.4,0.6"])
def test_rounded_probabilities_are_fine(check, row):
    assert check(SCENES.replace("s,0,0,1", row), "scene").findings == ()


def test_scene_ids(check):
    result = check("id,0,1,2\ns,0,0,1\ns,0,1,0\nt,0,0,1\nq,0,0,1\n", "scene")
    assert [(found.line, found.kind) for found in result.findings] == [
        (None, "missing rows"), (2, "repeated id"), (3, "repeated id"), (4, "other split"), (5, "unknown recording"),
    ]  # fmt: skip
    assert (result.missing, result.usable.height) == (("r_x",), 0)


@pytest.mark.parametrize(
    ("header", "message", "num_usable"),
    [
        ("id,1,0,2", "another order", 2),
        ("id,a,b,c", "the scenes' names", 2),
        ("id,0,1,2,3", "further columns: '3'", 0),
        ("id,0,1", "got 3 columns; missing: 2", 0),
        ("name,x,y,z", "got 4 columns; missing: id, 0, 1, 2", 2),
        ("id,prediction", "header of the action track.*--track tal", 0),
    ],
)
def test_scene_headers(check, header, message, num_usable):
    result = check(SCENES.replace("id,0,1,2", header), "scene")
    found = next(item for item in result.findings if item.kind == "header")
    assert found.line == 1
    assert re.search(message, found.message)
    assert result.usable.height == num_usable
    if header == "id,1,0,2":
        assert result.usable.row(0) == ("r_x", 0.7, 0.1, 0.2)


def test_a_scene_file_without_header(check):
    result = check(SCENES.split("\n", 1)[1], "scene")
    assert [found.message.split(":")[0] for found in result.findings] == ["there is no header"]
    assert (result.num_rows, result.usable.height, result.num_left_out) == (2, 2, 0)
