import json

import polars as pl
import pytest
from click.testing import CliRunner

from talstack.cli.evaluate import command
from talstack.io.errors import InputError
from talstack.io.manifest import SCHEMAS, Manifest, empty_table

TRUTH = "recording,start_s,end_s,label\na,0,10,run\na,30,40,sit\n"
HEADER = "recording,start_s,end_s,label,score\n"


@pytest.fixture
def run(tmp_path):
    (tmp_path / "truth.csv").write_text(TRUTH)

    def invoke(predictions, *options, truth="truth.csv", name="found.csv"):
        (tmp_path / name).write_text(predictions)
        arguments = [str(tmp_path / name), str(tmp_path / truth), *options]
        return CliRunner().invoke(command, arguments, catch_exceptions=False)

    return invoke


def test_json_is_alone_on_stdout_and_warnings_are_on_stderr(run):
    result = run(HEADER + "a,0,10,run,1\na,0,10,fly,1\nz,0,9,run,0.1\na,5,5,run,1\n", "--preset", "binego360", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout) == {
        "preset": "binego360",
        "tiou": [0.5, 0.75, 0.95],
        "map": [0.5, 0.5, 0.5],
        "average_map": 0.5,
        "ap": {"run": [1.0, 1.0, 1.0], "sit": [0.0, 0.0, 0.0]},
        "num_predictions": 2,
        "num_instances": 2,
        "ignored": {"zero length": 1, "label not in ground truth": 1},
    }
    assert "ignored 1: label not in ground truth" in result.stderr
    assert "1 predictions are on recordings that the ground truth does not list" in result.stderr


def test_table(run):
    result = run(HEADER + "a,0,10,run,1\n", "--preset", "anet")
    assert "50.00" in result.stdout
    assert "average" in result.stdout
    assert "sit" not in result.stdout
    assert result.stderr == ""
    assert "sit" in run(HEADER + "a,0,10,run,1\n", "--preset", "anet", "--per-class").stdout
    assert "no prediction to score" in run(HEADER, "--preset", "anet").stderr


def test_score_column(run):
    rows = "recording,start_s,end_s,label,score,other\na,0,10,run,1,0\na,50,60,run,0,1\n"
    first = run(rows, "--preset", "thumos", "--json")
    other = run(rows, "--preset", "thumos", "--json", "--score-column", "other")
    assert [json.loads(r.stdout)["ap"]["run"][0] for r in (first, other)] == [1.0, 0.5]


def test_a_data_folder_and_a_submission_scored_in_bins(run, tmp_path):
    recordings = [("a", 60.0, None, "test"), ("b", 60.0, None, "val")]
    manifest = Manifest(
        "set", tmp_path, ("run", "sit"), (),
        pl.DataFrame(recordings, schema=SCHEMAS["recordings"], orient="row"), empty_table("clips"),
        pl.DataFrame([("a", 5.0, 20.2, "sit"), ("b", 0.0, 9.0, "run")], schema=SCHEMAS["instances"], orient="row"),
    )  # fmt: skip
    manifest.save(tmp_path / "data")
    submission = 'id,prediction\na_0_10,"[[2, 5.0, 10.0, 0.9]]"\na_10_20,"[[2, 10.0, 20.0, 0.8]]"\na_20_30,[]\n'
    result = run(submission, "--preset", "binego360", "--json", truth="data")
    scored = json.loads(result.stdout)
    assert scored["ap"] == {"sit": [1.0, 1.0, 1.0]}
    assert (scored["num_predictions"], scored["num_instances"]) == (2, 2)  # the piece of 0.2 s is not an instance
    other = run(HEADER + "b,0,9,run,1\n", "--preset", "binego360", "--json", "--split", "val", truth="data")
    assert json.loads(other.stdout)["average_map"] == 1.0


def test_bad_input_reaches_the_group_as_an_input_error(run):
    with pytest.raises(InputError, match="the first is line 2"):
        run(HEADER + "a,nan,10,run,1\n", "--preset", "anet")
    assert run(HEADER).exit_code == 2  # no preset: click's own usage error


def test_own_thresholds(run):
    rows = HEADER + "a,0,6,run,1\n"
    result = json.loads(run(rows, "--tiou", "0.3:0.7:0.1", "--json").stdout)
    assert (result["preset"], result["tiou"]) == ("custom", [0.3, 0.4, 0.5, 0.6, 0.7])
    assert result["ap"]["run"] == [1.0, 1.0, 1.0, 1.0, 0.0]
    repeated = json.loads(run(rows, "--tiou", "0.75", "--tiou", "0.5,0.125", "--json").stdout)
    assert repeated["tiou"] == [0.125, 0.5, 0.75]
    assert "0.125" in run(rows, "--tiou", "0.125").stdout


@pytest.mark.parametrize(
    "options",
    [
        ("--tiou", "0.5", "--preset", "anet"),
        ("--tiou", "0"),
        ("--tiou", "1.2"),
        ("--tiou", "half"),
        ("--tiou", "nan"),
        ("--tiou", "0.3:0.7"),
        ("--tiou", "0.5:0.05:0.95"),  # first:step:last, as other tools write it
        ("--tiou", "0.1:0.1:0.5"),
        ("--tiou", "0.3:0.7:0.15"),
        ("--preset", "anet", "--compat", "thumos14", "--recall"),
        ("--preset", "anet", "--compat", "voc"),
    ],
)
def test_wrong_options_are_usage_errors(run, options):
    result = run(HEADER, *options)
    assert result.exit_code == 2
    assert result.stdout == ""


def test_compat_in_json_and_on_stderr(run, tmp_path):
    (tmp_path / "twice.csv").write_text(TRUTH + "a,0,10.0005,run\na,60,70,Ambiguous\n")
    rows = HEADER + "a,0.001,10,run,1\na,60,70,sit,0.5\n"
    results = {}
    for name in ("actionformer", "opentad", "x360", "thumos14"):
        result = run(rows, "--preset", "thumos", "--compat", name, "--json", truth="twice.csv")
        results[name] = json.loads(result.stdout)
        assert results[name]["compat"] == name
    assert results["opentad"]["changed"] == {"rounded to 0.01 s or to 0.0001 in score": 1}
    assert results["thumos14"]["ignored"]["overlaps Ambiguous, at tIoU 0.5"] == 1
    plain = run(rows, "--preset", "thumos", "--json", truth="twice.csv")
    assert "compat" not in json.loads(plain.stdout)
    ap = {name: results[name]["ap"]["run"] for name in results}
    assert [ap[name] for name in ("actionformer", "opentad", "x360", "thumos14")] == [[1.0] * 5] * 3 + [[0.5] * 5]
    assert json.loads(plain.stdout)["ap"]["run"] == [0.5] * 5
    table = run(rows, "--preset", "thumos", "--compat", "opentad", truth="twice.csv")
    assert "rules of opentad" in table.stdout
    assert "changed 1 by --compat opentad: rounded" in table.stderr
    assert "ignored 1: duplicate within 0.001 s (instance)" in table.stderr


def test_recall_in_json_and_as_a_table(run):
    rows = HEADER + "a,0,10,run,0.5\na,30,35,sit,0.9\n"
    value = json.loads(run(rows, "--tiou", "0.5,0.6", "--recall", "--json").stdout)["recall"]
    assert value["recall_at_kx"] == {
        "tiou": [0.5, 0.6],
        "mean": {"1x": [1.0, 0.5], "5x": [1.0, 0.5]},
        "pooled": {"1x": [0.5, 0.5], "5x": [0.5, 0.5]},
    }
    assert value["average_recall"]["ar"] == {"1": 0.05, "5": 0.55, "10": 0.55, "100": 0.55}
    assert value["average_recall"]["tiou"][0] == 0.5
    shown = run(rows, "--preset", "ego4d", "--recall").stdout
    assert "AR@100" in shown
    assert "Recall@5x" in shown
    assert "Recall" not in run(rows, "--preset", "ego4d").stdout


def test_names_in_help_are_those_of_the_evaluators(run):
    from talstack.cli import evaluate
    from talstack.evaluate.compat import COMPAT
    from talstack.evaluate.map import PRESETS

    assert evaluate.COMPAT == COMPAT
    assert tuple(PRESETS) == evaluate.PRESETS
