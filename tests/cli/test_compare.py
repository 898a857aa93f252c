"""`talstack compare` on runs and files, through the real command."""

import json
from dataclasses import replace

import polars as pl
import pytest
from click.testing import CliRunner

from talstack.cli.main import main
from talstack.io.detections import DETECTION_SCHEMA
from talstack.io.manifest import Manifest, empty_table
from talstack.io.runs import record_data

NAMES = [f"r{i}" for i in range(12)]


def detections(shift):
    return pl.DataFrame(
        [(name, 2.0 + shift, 8.0 + shift, label, 0.5) for name in NAMES for label in ("run", "sit")],
        schema=DETECTION_SCHEMA,
        orient="row",
    )


def save_run(folder, data, **systems):
    folder.mkdir()
    tables = [table.with_columns(system=pl.lit(name)) for name, table in systems.items()]
    pl.concat(tables).write_parquet(folder / "detections.parquet")
    record_data(folder, data)


@pytest.fixture
def place(tmp_path):
    recordings = pl.DataFrame(
        [(name, 20.0, None, "test") for name in NAMES],
        schema={"recording": pl.String, "duration_s": pl.Float64, "scene": pl.String, "split": pl.String},
        orient="row",
    )
    truth = detections(0.0).drop("score")
    manifest = Manifest("set", tmp_path, ("run", "sit"), (), recordings, empty_table("clips"), truth)
    manifest.save(tmp_path / "data")
    save_run(tmp_path / "good", tmp_path / "data", stack=detections(0.0), mean=detections(5.0))
    save_run(tmp_path / "bad", tmp_path / "data", stack=detections(1.0))
    return tmp_path


def run(*arguments):
    return CliRunner().invoke(main, ["compare", *map(str, arguments)])


def test_the_run_knows_its_data_and_the_better_one_wins(place):
    result = run(place / "good", place / "bad")
    assert result.exit_code == 0
    assert "A is better; average mAP A - B +66.7 [+66.7, +66.7] points, p = 0.002, 12 recordings" in result.output
    assert "0.75    │ 100.0 [100.0, 100.0] │ 0.0 [0.0, 0.0]" in result.output
    assert run(place / "bad", place / "good").output.splitlines()[-1].startswith("B is better; average mAP A - B -66.7")


def test_json_holds_everything_and_nothing_else_is_on_stdout(place):
    result = run(place / "good", place / "bad", "--json", "--preset", "thumos", "--draws", "100", "--level", "0.9")
    value = json.loads(result.stdout)
    assert (value["verdict"], value["preset"]) == ("undecided", "thumos")
    assert (value["a"]["level"], value["a"]["num_draws"]) == (0.9, 100)
    assert value["name_a"] == f"{place / 'good'} (stack)"
    assert [round(gap["estimate"], 6) for gap in value["difference"]] == [0, 0, 0, 0, 0]  # tIoU 5/7 passes all five
    assert {row["label"] for row in value["classes"]} == {"run", "sit"}


def test_two_systems_of_one_run(place):
    result = run(place / "good", place / "good", "--system-b", "mean")
    assert f"A: {place / 'good'} (stack)\nB: {place / 'good'} (mean)\n" in result.output
    assert "A is better" in result.output
    assert "undecided" in run(place / "good", place / "good").output


def test_files_need_a_ground_truth(place):
    detections(0.0).write_csv(place / "a.csv")
    detections(1.0).write_csv(place / "b.csv")
    result = run(place / "a.csv", place / "b.csv")
    assert (result.exit_code, "does not know its ground truth" in result.output) == (2, True)
    assert "A is better" in run(place / "a.csv", place / "b.csv", "--data", place / "data").output
    assert "A is better" in run(place / "good", place / "b.csv").output


def test_runs_of_different_data_are_refused(place):
    (place / "other").mkdir()
    record_data(place / "bad", place / "other")
    result = run(place / "good", place / "bad")
    assert result.exit_code == 2
    assert "name one of them with --data" in result.output


def test_a_competition_file_is_met_on_its_own_terms(place):
    rows = "".join(f'{name}_0_10,"[[1, 2.0, 8.0, 0.5], [2, 2.0, 8.0, 0.5]]"\n{name}_10_20,[]\n' for name in NAMES)
    (place / "submission.csv").write_text("id,prediction\n" + rows)
    save_run(place / "long", place / "data", stack=detections(0.04))  # the bins' grid of 0.1 s hides it
    for pair in [(place / "submission.csv", place / "long"), (place / "long", place / "submission.csv")]:
        result = run(*pair)
        assert "undecided" in result.stdout
        assert f"warning: {place / 'long'} (stack): cut into ten-second bins" in result.stderr


def test_what_readers_left_out_is_said_for_each_run(place):
    odd = pl.concat([detections(0.0), detections(0.0).head(1).with_columns(end_s="start_s")])
    odd.write_csv(place / "odd.csv")
    result = run(place / "good", place / "odd.csv")
    assert f"warning: {place / 'odd.csv'}: ignored 1: zero length" in result.stderr


def test_runs_of_different_splits_are_refused(place):
    manifest = Manifest.load(place / "data")
    halves = manifest.recordings.with_columns(
        split=pl.when(pl.col("recording") < "r4").then(pl.lit("val")).otherwise(pl.lit("test"))
    )
    replace(manifest, recordings=halves).save(place / "data")
    record = json.loads((place / "bad" / "provenance.json").read_text())
    (place / "bad" / "provenance.json").write_text(json.dumps({**record, "submit": {"split": "val"}}))
    result = run(place / "good", place / "bad")
    assert (result.exit_code, "did they predict different splits? Choose one" in result.stderr) == (2, True)
    assert run(place / "good", place / "bad", "--split", "val").exit_code == 0


def test_labels_are_not_markup(place):
    table = detections(0.0).with_columns(pl.col("label").replace({"run": "[/b]", "sit": "[red]x[/red]"}))
    table.write_csv(place / "found.csv")
    table.drop("score").write_csv(place / "truth.csv")
    result = run(place / "found.csv", place / "found.csv", "--data", place / "truth.csv")
    assert result.exit_code == 0
    assert "│ [/b] " in result.stdout and "│ [red]x[/red] " in result.stdout


def test_recordings_that_a_backbone_knows_are_told(place):
    assert "seen by the fine-tuned backbone" not in run(place / "good", place / "bad").stderr
    (place / "bad" / "heads.json").write_text('{"seen": ["r0", "r3", "elsewhere"]}')
    result = run(place / "good", place / "bad", "--json")
    assert "2 of these recordings were seen by the fine-tuned backbone; their figures are optimistic" in result.stderr
    assert json.loads(result.stdout)["seen_recordings"] == 2
