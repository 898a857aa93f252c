import json
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner

from talstack.cli.diagnose import about, command
from talstack.cli.main import main
from talstack.cli.scored import read_scored
from talstack.io.detections import DETECTION_SCHEMA
from talstack.io.errors import InputError, MissingInputError
from talstack.io.files import write_json
from talstack.io.manifest import SCHEMAS, Manifest, empty_table
from talstack.io.predictions import ModelKey, scene_rows, segment_rows
from talstack.io.runs import record_data
from talstack.io.targets import segment_index

TRUTH = "recording,start_s,end_s,label\na,0,10,run\na,30,40,sit\n"
FOUND = "recording,start_s,end_s,label,score\na,0,10,run,0.9\na,30,36,sit,0.8\na,0,10,sit,0.7\n"


def invoke(*arguments):
    return CliRunner().invoke(command, [str(argument) for argument in arguments], catch_exceptions=False)


@pytest.fixture
def files(tmp_path):
    (tmp_path / "truth.csv").write_text(TRUTH)
    (tmp_path / "found.csv").write_text(FOUND)
    return tmp_path / "found.csv", tmp_path / "truth.csv"


@pytest.fixture
def run(tmp_path):
    """Return a small run's folder, which knows its data."""
    recordings = [("a", 60.0, "gym", "test"), ("b", 20.0, "park", "val")]
    manifest = Manifest(
        "set", tmp_path, ("run", "sit"), ("park", "gym"),
        pl.DataFrame(recordings, schema=SCHEMAS["recordings"], orient="row"), empty_table("clips"),
        pl.DataFrame([("a", 5.0, 20.2, "sit"), ("b", 0.0, 9.0, "run")], schema=SCHEMAS["instances"], orient="row"),
    )  # fmt: skip
    manifest.save(tmp_path / "data")
    folder = tmp_path / "run"
    folder.mkdir()
    rows = [("stack", "a", 5.0, 20.0, "sit", 0.9), ("mean", "a", 0.0, 3.0, "sit", 0.5)]
    schema = {"system": pl.String, **DETECTION_SCHEMA}
    pl.DataFrame(rows, schema=schema, orient="row").write_parquet(folder / "detections.parquet")
    index = segment_index(manifest, 2.0)
    action = segment_rows(
        ModelKey("pano", "rgb", "action-gbm"), index, np.full((index.num_rows, 2), 0.1),
        valid=np.ones(index.num_rows, dtype=bool), fold=np.full(index.num_rows, -1), classes=manifest.actions,
    )  # fmt: skip
    scene = scene_rows(
        ModelKey("pano", "rgb", "scene-gbm"), ["a", "b"], np.array([[0.1, 0.9], [0.2, 0.8]]),
        valid=np.ones(2, dtype=bool), fold=np.full(2, -1), classes=manifest.scenes,
    )  # fmt: skip
    pl.concat([action, scene]).write_parquet(folder / "oof.parquet")
    pl.DataFrame({"recording": ["a"], "park": [0.2], "gym": [0.8]}).write_parquet(folder / "scene.parquet")
    write_json(folder / "heads.json", {"segment_s": 2.0, "seen": ["b"]})
    record_data(folder, tmp_path / "data")
    return folder


def test_a_file_prints_tables_that_are_not_cut_and_writes_nothing(files, tmp_path):
    result = invoke(*files, "--preset", "anet")
    assert result.exit_code == 0
    assert "average mAP 65.0 % (3 detections, 2 instances, 2 classes)" in result.stdout  # sit: 3 of 10 thresholds
    assert "localization errors cost most: correcting them gains +35.0 points" in result.stdout
    for heading in ("what each kind of error costs", "detections by kind at tIoU 0.5", "worst classes, 2 of 2"):
        assert heading in result.stdout
    assert "0.95" in result.stdout
    assert "…" not in result.stdout
    assert {path.name for path in tmp_path.iterdir()} == {"found.csv", "truth.csv"}


def test_json_is_alone_on_stdout(files):
    result = invoke(*files, "--json", "--tiou", "0.7")
    value = json.loads(result.stdout)
    assert value["result"]["preset"] == "binego360"
    assert value["tiou_threshold"] == 0.7
    kinds = {row["kind"]: row["count"] for row in value["frames"]["false_positive_profile"] if row["multiple"] == 1}
    assert (kinds["true positive"], kinds["localization"]) == (1, 1)
    assert value["files"] == []


def test_out_and_plots(files, tmp_path):
    result = invoke(*files, "--out", tmp_path / "out", "--plots", "svg")
    assert (tmp_path / "out" / "diagnosis.json").is_file()
    assert (tmp_path / "out" / "error_impact.svg").is_file()
    assert f"files to {tmp_path / 'out'}" in result.stdout
    invoke(*files, "--out", tmp_path / "bare", "--plots", "none")
    assert not [path for path in (tmp_path / "bare").iterdir() if path.suffix in (".png", ".svg")]
    refused = invoke(*files, "--plots", "png")
    assert refused.exit_code == 2
    assert "needs --out" in refused.stderr


def test_edges(files):
    value = json.loads(invoke(*files, "--json", "--edges", "thumos").stdout)
    length = [row for row in value["frames"]["sensitivity"] if row["characteristic"] == "length"]
    assert [row["group"] for row in length] == ["M"]  # ten seconds, between 6 and 12


def test_a_run_needs_no_ground_truth_and_brings_its_heads_and_scenes(run):
    result = invoke(run)
    assert result.exit_code == 0
    for text in ("calibration of the heads", "pano", "scene: top-1 100.0 %", "scene recall", "scene heads"):
        assert text in result.stdout
    names = {path.name for path in (run / "diagnosis").iterdir()}
    assert {"segment_calibration.csv", "scene_models.csv", "scene_confusion.png", "diagnosis.json"} <= names
    value = json.loads(invoke(run, "--json", "--plots", "none").stdout)
    assert value["result"]["average_map"] == 1.0  # the stack's 15 of 15.2 s are above 0.95
    assert value["scene"]["top1"] == 1.0
    assert value["seen_recordings"] == 0
    other = json.loads(invoke(run, "--json", "--system", "mean").stdout)
    assert other["result"]["average_map"] == 0.0


def test_seen_recordings_are_told(run):
    result = invoke(run, "--split", "val", "--json")
    assert json.loads(result.stdout)["seen_recordings"] == 1
    assert "1 of these recordings were seen by the fine-tuned backbone" in result.stderr
    assert "ignored 1: label not in ground truth" in result.stderr


def test_a_run_against_a_csv_has_no_heads(run, files):
    value = json.loads(invoke(run, files[1], "--json", "--plots", "none").stdout)
    assert "segment_calibration" not in value["frames"]
    assert value["scene"] is None


def test_a_submission_is_compared_with_binned_instances(run, tmp_path):
    rows = 'id,prediction\na_0_10,"[[2, 5.0, 10.0, 0.9]]"\na_10_20,"[[2, 10.0, 20.0, 0.8]]"\na_20_30,[]\n'
    (tmp_path / "submission.csv").write_text(rows)
    value = json.loads(invoke(tmp_path / "submission.csv", tmp_path / "data", "--json").stdout)
    assert (value["result"]["num_instances"], value["result"]["average_map"]) == (2, 1.0)


def test_what_is_missing(files, run, tmp_path):
    with pytest.raises(InputError, match="does not know its ground truth"):
        invoke(files[0])
    (run / "provenance.json").unlink()
    with pytest.raises(MissingInputError, match="does not say which data"):
        invoke(run)


def test_the_group_has_the_command(files):
    result = CliRunner().invoke(main, ["diagnose", *map(str, files)])
    assert result.exit_code == 0
    assert CliRunner().invoke(main, ["diagnose", str(files[0])]).exit_code == 2


def test_figures_name_run_and_system_without_the_way_there(run):
    scored = read_scored(run, system="mean")
    assert about(scored, run) == "run (mean): 1 detections, 1 instances, 1 recordings"
    assert about(replace(scored, name=f"{run} (pano/rgb/gbm)"), run).startswith("run (pano/rgb/gbm): ")
