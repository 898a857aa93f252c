"""The whole path on a small rendered data set, through the commands that a user types."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from click.testing import CliRunner, Result

from talstack.cli.main import main

SETTINGS = """
[sampling]
frames_per_segment = 4
frame_size = 32
[finetune]
arch = "resnet18_narrow"
imagenet = false
holdout_folds = 1
epochs = 2
[heads]
gbm_rounds = 20
"""


def talstack(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == code, f"{arguments}: {result.output}{result.exception!r}"
    return result


def test_help_names_every_command_and_a_bad_input_ends_with_code_2(tmp_path: Path) -> None:
    listed = talstack("--help").output
    for command in ("init", "demo-data", "import", "finetune", "extract", "heads", "submit", "predict", "evaluate"):
        assert command in listed
        assert len(talstack(command, "--help").output) > 200
    result = talstack("extract", tmp_path, "--store", tmp_path / "s", code=2)
    assert "make one with `talstack import`" in result.stderr
    assert result.stdout == ""


def test_init_writes_settings_that_read_back_as_the_defaults(tmp_path: Path) -> None:
    from talstack.cli.config import Config, load_config

    talstack("init", tmp_path / "t.toml")
    assert load_config(tmp_path / "t.toml") == Config()
    assert "is there already" in talstack("init", tmp_path / "t.toml", code=2).stderr
    (tmp_path / "t.toml").write_text("[finetune]\nepoch = 3\n")
    result = talstack("finetune", tmp_path, "--out", tmp_path, "--config", tmp_path / "t.toml", code=2)
    assert "unknown key 'epoch'" in result.stderr


@pytest.mark.parametrize("text", ["0/2", "3/2", "x", "1"])
def test_shard_must_be_i_of_n(tmp_path: Path, text: str) -> None:
    from talstack.demo.write import write_demo
    from talstack.io.import_binego360 import import_binego360

    if not (tmp_path / "data").exists():
        write_demo(tmp_path / "sample", num_recordings=6, duration_s=8.0)
        import_binego360(tmp_path / "sample").save(tmp_path / "data")
    result = talstack(
        "extract", tmp_path / "data", "--store", tmp_path / "s", "--modality", "audio", "--shard", text, code=2
    )
    assert "expected i/n" in result.stderr


@pytest.mark.slow
def test_from_video_to_scored_submission(tmp_path: Path) -> None:
    config = tmp_path / "t.toml"
    config.write_text(SETTINGS)
    data, store, run = tmp_path / "data", tmp_path / "store", tmp_path / "run"
    talstack("demo-data", tmp_path / "sample", "--recordings", 12, "--duration", 14, "--jobs", 2)
    talstack("import", "binego360", tmp_path / "sample", "--out", data, "--folds", 3)
    talstack("finetune", data, "--out", tmp_path / "bb", "--config", config)
    steps = [
        ("extract", data, "--store", store, "--backbone", tmp_path / "bb", "--config", config, "--jobs", 1),
        ("heads", data, "--store", store, "--run", run, "--config", config, "--jobs", 1),
        ("submit", data, "--store", store, "--run", run, "--config", config, "--out", run / "submission.csv"),
    ]
    for step in steps:
        talstack(*step)
    files = sorted(path for path in [*run.rglob("*"), *store.rglob("*")] if path.is_file())
    stamps = {path: path.stat().st_mtime_ns for path in files if path.name != "raw.json"}
    rows = json.loads(talstack(*steps[0], "--json").stdout)["shards"]
    assert {row["outcome"] for row in rows} == {"cached"}
    for step in steps:
        talstack(*step)
    again = [
        path.name
        for path, stamp in stamps.items()
        if path.suffix in {".parquet", ".h5"} and path.stat().st_mtime_ns != stamp
    ]
    assert again == [], "a second run wrote features or tables again"

    metrics = json.loads((run / "metrics.json").read_text())
    assert set(metrics["detections"]) >= {"stack", "mean", "weighted", "single"}
    assert set(metrics["detections"]["stack"]["map"]) == {"0.5", "0.75", "0.95"}
    singles = {(view, modality) for view, modality, _ in (key.split("/") for key in metrics["detections"]["single"])}
    assert singles == {(v, m) for v in ("monocular", "panoramic", "third_person") for m in ("audio", "rgb")}
    assert 0 <= metrics["scene"]["top1"] <= 1
    test = pl.read_parquet(data / "recordings.parquet").filter(pl.col("split") == "test")["recording"].to_list()
    with open(run / "submission.csv", newline="") as file:
        ids = [row["id"] for row in csv.DictReader(file)]
    assert ids == [f"{recording}_{start}_{start + 10}" for recording in sorted(test) for start in (0, 10)]
    for name in ("detections.json", "scene_submission.csv", "provenance.json", "config.toml"):
        assert (run / name).is_file()
    scored = talstack(
        "evaluate", run / "detections.parquet", data, "--preset", "binego360", "--system", "stack", "--json"
    ).stdout
    assert json.loads(scored)["average_map"] == pytest.approx(metrics["detections"]["stack"]["average_map"])
    seen = json.loads((tmp_path / "bb" / "card.json").read_text())["seen"]
    assert not set(seen) & set(test)
    refused = talstack(*steps[2][:-2], "--split", "train", "--out", run / "train.csv", code=2)
    assert "seen" in refused.stderr


@pytest.mark.slow
def test_the_installed_command_starts_outside_the_repository() -> None:
    command = Path(sys.executable).with_name("talstack")
    out = subprocess.run([command, "--version"], capture_output=True, text=True, check=True, cwd="/")
    assert "talstack" in out.stdout
