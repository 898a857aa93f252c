import json

import polars as pl
import pytest
from click.testing import CliRunner

from talstack.cli.evaluate import command
from talstack.cli.validate import command as validate_command
from talstack.io.errors import InputError
from talstack.io.manifest import SCHEMAS, Manifest, empty_table
from talstack.io.runs import record_data

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


@pytest.fixture
def finished_run(tmp_path):
    """Return a run's folder that knows its data: six recordings, two scenes, one of them taken for the other."""
    names = [f"r{i}" for i in range(6)]
    scenes = ["yard"] * 3 + ["kitchen"] * 3
    recordings = pl.DataFrame(
        {"recording": names, "duration_s": [20.0] * 6, "scene": scenes, "split": ["val"] * 6},
        schema=SCHEMAS["recordings"],
    )
    rows = [(name, 2.0, 8.0, "run") for name in names]
    truth = pl.DataFrame(rows, schema=SCHEMAS["instances"], orient="row")
    manifest = Manifest("set", tmp_path, ("run",), ("kitchen", "yard"), recordings, empty_table("clips"), truth)
    manifest.save(tmp_path / "data")
    folder = tmp_path / "first"
    folder.mkdir()
    found = truth.with_columns(score=pl.lit(0.5), system=pl.lit("stack"))
    late = found.with_columns(pl.col("start_s", "end_s") + 5.0, system=pl.lit("mean"))
    pl.concat([found.head(4), late]).write_parquet(folder / "detections.parquet")
    probs = {"recording": names, "kitchen": [0.9, 0.1, 0.1, 0.9, 0.9, 0.9], "yard": [0.1, 0.9, 0.9, 0.1, 0.1, 0.1]}
    pl.DataFrame(probs).write_parquet(folder / "scene.parquet")
    record_data(folder, tmp_path / "data")
    record = json.loads((folder / "provenance.json").read_text())
    (folder / "provenance.json").write_text(json.dumps({**record, "submit": {"split": "val"}}))
    return folder


def invoke(*arguments):
    return CliRunner().invoke(command, [str(part) for part in arguments], catch_exceptions=False)


def test_a_run_knows_its_data_its_split_and_its_best_system(finished_run):
    result = invoke(finished_run, "--preset", "binego360", "--json")
    assert json.loads(result.stdout)["average_map"] == pytest.approx(4 / 6)
    result = invoke(finished_run, "--preset", "binego360", "--json", "--system", "mean")
    assert json.loads(result.stdout)["average_map"] == 0.0


def test_bootstrap_gives_intervals_that_hold_the_score_and_depend_on_the_seed_alone(finished_run):
    options = (finished_run, "--preset", "binego360", "--bootstrap", "200")
    first, again, other = (
        json.loads(invoke(*options, "--seed", str(seed), "--json").stdout)["bootstrap"] for seed in (1, 1, 2)
    )
    assert first == again != {**other, "seed": 1}
    assert (first["num_draws"], first["num_recordings"], first["level"], first["seed"]) == (200, 6, 0.95, 1)
    assert first["average_map"]["low"] < first["average_map"]["estimate"] == pytest.approx(4 / 6)
    table = invoke(*options).stdout
    assert "95 % interval" in table and "200 draws of 6 recordings" in table
    assert "95 % interval" not in invoke(finished_run, "--preset", "binego360").stdout


def test_bootstrap_and_recall_refuse_the_rules_of_others(finished_run):
    for option in (["--bootstrap", "200"], ["--recall"]):
        result = invoke(finished_run, "--preset", "anet", "--compat", "opentad", *option)
        assert (result.exit_code, "run them without --compat" in result.stderr) == (2, True)


def test_scene_track_of_a_run_and_of_a_submission(finished_run, tmp_path):
    value = json.loads(invoke(finished_run, "--track", "scene", "--json").stdout)
    assert (value["top1"], value["top5"], value["num_recordings"]) == (pytest.approx(5 / 6), 1.0, 6)
    assert {"scene": "yard", "predicted": "kitchen", "count": 1} in value["confusion"]
    table = invoke(finished_run, "--track", "scene").stdout
    assert "top-1 83.33 %, top-5 100.00 % of 6 recordings" in table
    assert "kitchen (1)" in table
    (tmp_path / "scene.csv").write_text("id,0,1\nr0,1,0\nr1,0,1\n")
    result = invoke(tmp_path / "scene.csv", tmp_path / "data", "--split", "val", "--track", "scene", "--json")
    assert json.loads(result.stdout)["top1"] == pytest.approx(1 / 6)
    assert "4 recordings have no prediction and count as wrong" in result.stderr


def test_scene_track_needs_a_ground_truth_with_scenes(run, tmp_path):
    (tmp_path / "scene.csv").write_text("id,0,1\na,1,0\n")
    with pytest.raises(InputError, match="knows no scene of these recordings"):
        invoke(tmp_path / "scene.csv", tmp_path / "truth.csv", "--track", "scene")
    with pytest.raises(InputError, match="does not know its ground truth"):
        invoke(tmp_path / "scene.csv", "--track", "scene")


def test_scene_track_refuses_options_that_mean_nothing_to_it(finished_run):
    result = invoke(finished_run, "--track", "scene", "--preset", "anet", "--recall")
    assert (result.exit_code, "--preset, --recall: not for --track scene" in result.stderr) == (2, True)


def test_a_seen_recording_is_said(finished_run):
    (finished_run / "heads.json").write_text('{"seen": ["r0", "r1", "other"]}')
    result = invoke(finished_run, "--preset", "anet", "--json")
    assert "2 of these recordings were seen by the fine-tuned backbone" in result.stderr
    assert json.loads(result.stdout)["seen_recordings"] == 2
    (finished_run / "heads.json").write_text('{"seen": null}')
    with pytest.raises(InputError, match="expected an object with a list `seen`"):
        invoke(finished_run, "--preset", "anet")


def test_a_class_ambiguous_is_said_unless_the_rules_know_it(run, tmp_path):
    truth = "recording,start_s,end_s,label\na,0,10,run\na,30,40,Ambiguous\n"
    (tmp_path / "other.csv").write_text(truth)
    (plain, toolkit) = (
        run(HEADER + "a,0,10,run,1\n", "--preset", "thumos", *options, truth="other.csv")
        for options in ([], ["--compat", "thumos14"])
    )
    assert "the ground truth has a class Ambiguous" in plain.stderr
    assert "has a class Ambiguous" not in toolkit.stderr


def test_labels_are_not_markup(run, tmp_path):
    (tmp_path / "other.csv").write_text("recording,start_s,end_s,label\na,0,10,[/b]\n")
    result = run(HEADER + "a,0,10,[/b],1\n", "--preset", "anet", "--per-class", truth="other.csv")
    assert (result.exit_code, "│ [/b] " in result.stdout) == (0, True)


@pytest.fixture
def competition(tmp_path):
    """Return a function that scores a competition file against instances, with evaluate and with validate."""

    def score(rows, *instances, duration_s=20.0):
        recordings = pl.DataFrame([("a", duration_s, None, "test")], schema=SCHEMAS["recordings"], orient="row")
        truth = pl.DataFrame(instances, schema=SCHEMAS["instances"], orient="row")
        manifest = Manifest("set", tmp_path, ("run", "sit"), (), recordings, empty_table("clips"), truth)
        manifest.save(tmp_path / "data")
        (tmp_path / "file.csv").write_text("id,prediction\n" + "".join(f'{name},"{text}"\n' for name, text in rows))
        data = tmp_path / "data"
        result = invoke(tmp_path / "file.csv", data, "--preset", "binego360", "--json")
        options = [str(tmp_path / "file.csv"), "--track", "tal", "--data", str(data), "--score", "--json"]
        checked = CliRunner().invoke(validate_command, options, catch_exceptions=False)
        return json.loads(result.stdout), json.loads(checked.stdout)["score"]

    return score


def test_a_competition_file_scores_the_same_in_evaluate_and_validate(competition):
    rows = [("a_0_10", "[[1, 1.0, 1.3, 0.95], [1, 1.04, 3.96, 0.9]]"), ("a_10_20", "[[1, 10.04, 12.04, 0.9]]")]
    ours, checked = competition(rows, ("a", 1.0, 4.0, "run"), ("a", 9.7, 12.0, "run"))
    assert ours["average_map"] == checked["average_map"] == 1.0
    assert ours["ignored"]["piece under half a second"] == 1


def test_instances_that_no_bin_can_hold_are_counted(competition):
    instances = [("a", -3.0, 4.0, "run"), ("a", 5.0, 5.3, "sit"), ("a", 28.0, 33.0, "run"), ("a", -9.0, -2.0, "run")]
    ours, checked = competition([("a_0_10", "[[1, 0, 4, 0.5]]"), ("a_10_20", "[]")], *instances)
    assert ours["average_map"] == checked["average_map"] == 1.0
    for value in (ours, checked):
        assert value["ignored"]["outside the recording's bins (instance)"] == 2
        assert value["ignored"]["piece under half a second (instance)"] == 1


def test_times_that_are_no_seconds_do_not_fill_the_memory(run):
    with pytest.raises(InputError, match="past 1000000 ten-second bins; are its times in seconds"):
        run(HEADER + "a,0,1e11,run,1\n", "--preset", "binego360", "--compat", "x360")
