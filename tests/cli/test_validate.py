import json

import polars as pl
import pytest
from click.testing import CliRunner

from talstack.cli.main import main
from talstack.cli.validate import command
from talstack.io.manifest import SCHEMAS, Manifest, empty_table

GOOD = 'id,prediction\na_0_10,"[[1, 1.0, 5.0, 0.9]]"\na_10_20,"[[2, 15.0, 20.0, 0.8]]"\na_20_30,"[]"\nb_0_10,"[]"\n'
SCENES = "id,0,1\na,0.9,0.1\nb,0.8,0.2\n"


@pytest.fixture
def run(tmp_path):
    recordings = [("a", 25.0, "park", "test"), ("b", 9.0, "street", "test"), ("c", 9.0, None, "val")]
    manifest = Manifest(
        "set", tmp_path, ("run", "sit"), ("park", "street"),
        pl.DataFrame(recordings, schema=SCHEMAS["recordings"], orient="row"), empty_table("clips"),
        pl.DataFrame([("a", 1.0, 5.0, "run"), ("a", 15.0, 20.4, "sit")], schema=SCHEMAS["instances"], orient="row"),
    )  # fmt: skip
    manifest.save(tmp_path / "data")

    def invoke(content, *options, track="tal", data="data", file="s.csv"):
        if content is not None:
            (tmp_path / file).write_text(content)
        arguments = ["validate", str(tmp_path / file), "--track", track, "--data", str(tmp_path / data), *options]
        return CliRunner().invoke(main, arguments, catch_exceptions=False)

    return invoke


def test_a_good_file(run):
    result = run(GOOD)
    assert result.exit_code == 0
    assert result.stdout.endswith("s.csv: 4 rows, 2 entries, split test: nothing to object to\n")
    assert "mAP" not in result.stdout
    assert run(SCENES, track="scene").exit_code == 0


def test_warnings_do_not_fail_the_command(run):
    result = run(GOOD.replace("0.9", "1.9"))
    assert result.exit_code == 0
    assert "warning: score outside 0 to 1\n  line 2, column prediction, entry 1: [1, 1.0, 5.0, 1.9] a " in result.stdout
    assert "0 errors, 1 warnings" in result.stdout


def test_errors_are_counted_by_kind_with_the_first_examples(run):
    bad = GOOD.replace("[]", "[[9, 1, 2, 0.5], [8, 1, 2, 0.5], [7, 1, 2, 0.5], [0, 1, 2, 0.5]]")
    result = run(bad)
    assert result.exit_code == 1
    assert "unknown class" in result.stdout
    assert "  line 4, column prediction, entry 3: [7, 1.0, 2.0, 0.5] there is no class 7" in result.stdout
    assert "entry 4: [0" not in result.stdout
    assert "... and 5 more; --all lists them" in result.stdout
    full = run(bad, "--all").stdout
    assert "line 5, column prediction, entry 4: [0, 1.0, 2.0, 0.5] class 0 is background" in full
    assert "--all" not in full


def test_json_holds_everything_and_is_alone_on_stdout(run):
    result = run('id,prediction\na_0_10,"[[1, 1, 5, NaN]]"\n', "--json", "--score")
    assert result.exit_code == 1
    printed = json.loads(result.stdout)
    assert printed["missing"] == ["a_10_20", "a_20_30", "b_0_10"]
    assert (printed["num_rows"], printed["num_entries"], printed["num_left_out"]) == (1, 1, 1)
    assert (printed["num_errors"], printed["num_warnings"], printed["track"], printed["split"]) == (3, 0, "tal", "test")
    assert printed["kinds"] == [
        {"kind": "missing rows", "severity": "error", "count": 2},
        {"kind": "score not finite", "severity": "error", "count": 1},
    ]
    assert printed["findings"][-1] == {
        "line": 2, "column": "prediction", "entry": 1, "severity": "error", "kind": "score not finite",
        "message": "[1, 1.0, 5.0, NaN] the score must be a finite number",
    }  # fmt: skip
    assert printed["score"]["average_map"] == 0.0
    assert json.loads(run(GOOD, "--json").stdout)["score"] is None


def test_score_in_bins_leaves_out_what_carries_an_error(run):
    scored = json.loads(run(GOOD, "--score", "--json").stdout)["score"]
    assert (scored["average_map"], scored["num_instances"], scored["left_out"]) == (1.0, 2, 0)  # 0.4 s are no piece
    bad = GOOD.replace("[[1, 1.0, 5.0, 0.9]]", "[[2, 0.0, 0.4, 1.0], [1, 1.0, 5.04, 0.9], [9, 1.0, 5.0, 1.0]]")
    scored = json.loads(run(bad, "--score", "--json").stdout)["score"]
    assert (scored["map"], scored["left_out"]) == ([1.0, 1.0, 1.0], 2)
    shown = run(bad, "--score").stdout
    assert "mAP in ten-second bins: 100.00 % on average (100.00 at 0.5, 100.00 at 0.75, 100.00 at 0.95)" in shown
    assert "2 entries against 2 instances; 2 entries with errors left out" in shown


def test_score_of_scenes(run):
    shown = run(SCENES, "--score", track="scene")
    assert shown.exit_code == 0
    assert "top-1 50.00 %, top-5 100.00 % of 2 recordings; 0 rows with errors left out" in shown.stdout
    bad = json.loads(run(SCENES.replace("0.9", "x"), "--score", "--json", track="scene").stdout)["score"]
    assert bad == {"top1": 0.0, "top5": 0.5, "num_recordings": 2, "missing": ["a"], "left_out": 1}
    assert json.loads(run("id,0,1\n", "--score", "--json", track="scene").stdout)["score"]["top1"] == 0.0


def test_no_annotations_no_score(run):
    for track, content in (("tal", 'id,prediction\nc_0_10,"[]"\n'), ("scene", "id,0,1\nc,0,1\n")):
        result = run(content, "--score", "--split", "val", "--json", track=track)
        assert (result.exit_code, json.loads(result.stdout)["score"]) == (0, None)
        assert "split 'val' has no annotations" in result.stderr


def test_exit_code_2_where_nothing_can_be_checked(run):
    for result, message in (
        (run(None, file="none.csv"), "no such submission file"),
        (run(GOOD, data="nowhere"), "not a talstack data folder"),
        (run(GOOD, "--split", "testing"), "expected one of train, val, test"),
        (run(GOOD, "--split", "train"), "no recording is in split 'train'"),
        (run(GOOD, track="video"), "'video' is not one of"),
    ):
        assert result.exit_code == 2
        assert message in result.stderr


def test_rubbish_ends_in_a_finding(run):
    assert run("").exit_code == 1
    assert "error: empty file\n  file: the file is empty" in run("").stdout
    assert json.loads(run("{}", "--json", "--score").stdout)["kinds"][0]["kind"] == "not a CSV file"


def test_the_command_is_one_of_the_group():
    assert main.commands["validate"] is command
