"""`talstack submit` from a run's folder to the submission files."""

import csv
import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner

from talstack.cli.submit import command
from talstack.ensemble.decode import Decoder
from talstack.io.detections import read_predictions
from talstack.io.extraction import Extraction
from talstack.io.files import write_json, write_text
from talstack.io.folds import assign_folds
from talstack.io.manifest import SCHEMAS, Manifest
from talstack.io.predictions import SCHEMA, ModelKey, segment_rows
from talstack.io.runs import data_of
from talstack.io.targets import segment_index, segment_targets

ACTIONS, SCENES = ("pour", "wave"), ("kitchen", "yard")
SETTINGS = """
[ensemble]
shared_l2 = [1.0]
class_l2 = [30.0]
weighted_rounds = 4
proposals = ["class"]
smoothing_s = [0.0]
margin = [0.2]
contrast_weight = [1.0]
nms_sigma = [0.5]
combiners = []
stacker = "logistic"
"""


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Return a folder with data/, run/ as heads leave it, and config.toml."""
    rng = np.random.default_rng(0)
    recordings = [(f"r{i}", 25.0, SCENES[i % 2], "test" if i > 5 else "train") for i in range(8)]
    instances = [
        (name, 10.0 * k + 2.0 + i % 3, 10.0 * k + 5.0 + i % 3, ACTIONS[(i + k) % 2])
        for i, (name, *_) in enumerate(recordings)
        for k in range(2)
    ]
    manifest = Manifest(
        name="little",
        media_root=tmp_path,
        actions=ACTIONS,
        scenes=SCENES,
        recordings=pl.DataFrame(recordings, schema=SCHEMAS["recordings"], orient="row"),
        clips=pl.DataFrame(schema=SCHEMAS["clips"]),
        instances=pl.DataFrame(instances, schema=SCHEMAS["instances"], orient="row"),
    )
    manifest = manifest.with_folds(assign_folds(manifest, 3))
    manifest.save(tmp_path / "data")
    index = segment_index(manifest, 1.0)
    fold_of = dict(manifest.folds.iter_rows())
    fold = np.repeat([fold_of.get(name, -1) for name in index.recordings], index.num_segments)
    targets = segment_targets(manifest, index, 1.0)
    parts = []
    for view in ("pano", "ego"):
        probs = 1 / (1 + np.exp(-(4.0 * targets - 2.0 + rng.normal(0, 1, targets.shape))))
        for head, values, classes in (
            ("action-gbm", probs, ACTIONS),
            ("activity-gbm", probs.max(axis=1, keepdims=True), ["activity"]),
        ):
            valid = np.ones(index.num_rows, dtype=bool)
            parts.append(
                segment_rows(ModelKey(view, "rgb", head), index, values, valid=valid, fold=fold, classes=classes)
            )
    scenes = [
        (name, None, fold_of.get(name), "pano", "rgb", "scene-gbm", s, 0.9 if s == scene else 0.1, True)
        for name, _, scene, _ in recordings
        for s in SCENES
    ]
    table = pl.concat([*parts, pl.DataFrame(scenes, schema=SCHEMA, orient="row")])
    (tmp_path / "run").mkdir()
    table.write_parquet(tmp_path / "run" / "oof.parquet")
    write_heads(tmp_path)
    write_text(tmp_path / "config.toml", SETTINGS)
    return tmp_path


def write_heads(folder: Path, **changes) -> None:
    record = {
        "format_version": 1, "dataset": "little", "segment_s": 1.0, "seen": [], "extraction": "little",
        "actions": list(ACTIONS), "scenes": list(SCENES), "config": {}, "models": {}, "fingerprint": "abc",
    }  # fmt: skip
    write_json(folder / "run" / "heads.json", record | changes)


def submit(folder: Path, *options: str, out: str = "run/submission.csv"):
    arguments = [str(folder / "data"), "--run", str(folder / "run"), "--config", str(folder / "config.toml")]
    return CliRunner().invoke(command, [*arguments, "--jobs", "1", "--out", str(folder / out), *options])


def test_competition_files_and_table(folders: Path) -> None:
    result = submit(folders)
    assert result.exit_code == 0, result.output
    assert "ego/rgb/action-gbm" in result.stdout
    assert result.stdout.index("(best single)") < result.stdout.index("stack")
    assert "scene top-1: 100.0 % of 2 recordings" in result.stdout
    found = read_predictions(
        folders / "run" / "submission.csv", class_ids=dict(enumerate(ACTIONS, start=1))
    ).detections  # fmt: skip
    assert set(found["recording"]) == {"r6", "r7"}
    rows = list(csv.reader((folders / "run" / "submission.csv").open()))
    assert len(rows) == 1 + 2 * 3  # two recordings of three ten-second bins
    scenes = list(csv.reader((folders / "run" / "scene_submission.csv").open()))
    assert scenes[0] == ["id", "0", "1"]
    assert [row[0] for row in scenes[1:]] == ["r6", "r7"]
    assert json.loads((folders / "run" / "detections.json").read_text())["results"].keys() == {"r6", "r7"}
    provenance = json.loads((folders / "run" / "provenance.json").read_text())
    assert provenance["heads"]["fingerprint"] == "abc"
    assert provenance["versions"]["numpy"] == np.__version__
    assert provenance["submit"]["split"] == "test"
    assert data_of(folders / "run") == folders / "data"


def test_second_call_writes_nothing_and_says_so(folders: Path) -> None:
    submit(folders)
    stamps = {path: path.stat().st_mtime_ns for path in (folders / "run").rglob("*") if path.is_file()}
    result = submit(folders)
    assert "nothing done" in result.stdout
    assert "wrote" not in result.stdout
    assert "stack" in result.stdout  # the table is still shown
    assert stamps == {path: path.stat().st_mtime_ns for path in (folders / "run").rglob("*") if path.is_file()}
    changed = submit(folders, "--system", "mean")
    assert f"wrote {folders / 'run' / 'submission.csv'}" in changed.stdout


def test_json_is_one_object_on_stdout(folders: Path) -> None:
    result = submit(folders, "--json", "--format", "activitynet", out="out.json")
    value = json.loads(result.stdout)
    assert value["cached"] is False
    assert set(value["metrics"]["detections"]) == {"stack", "mean", "weighted", "single"}
    assert str(folders / "out.json") in value["files"]
    assert not (folders / "run" / "scene_submission.csv").exists()


def test_plain_csv_of_another_system(folders: Path) -> None:
    submit(folders, "--format", "csv", "--system", "pano/rgb/action-gbm", out="out.csv")
    table = pl.read_parquet(folders / "run" / "detections.parquet")
    expected = table.filter(pl.col("system") == "pano/rgb/action-gbm")
    assert pl.read_csv(folders / "out.csv").height == expected.height > 0


def test_a_system_that_finds_nothing_gets_an_empty_submission(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Decoder.decode
    monkeypatch.setattr(Decoder, "decode", lambda *arguments: real(*arguments).clear())
    assert submit(folders, "--format", "csv").exit_code == 0
    assert (folders / "run" / "submission.csv").read_text().splitlines() == ["recording,start_s,end_s,label,score"]


def test_without_a_settings_file_the_run_s_own_hold(folders: Path) -> None:
    (folders / "run" / "config.toml").write_bytes((folders / "config.toml").read_bytes())
    data, out = str(folders / "data"), str(folders / "out.csv")
    arguments = [data, "--run", str(folders / "run"), "--jobs", "1", "--out", out, "--format", "csv"]
    assert CliRunner().invoke(command, arguments).exit_code == 0
    again = submit(folders, "--format", "csv", out="out.csv")
    assert "nothing done" in again.output, "the same settings, named or not"


def test_folder_of_chapters_is_written_once(folders: Path) -> None:
    result = submit(folders, "--format", "vtt", "--min-score", "0.01", out="chapters")
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in (folders / "chapters").iterdir()) == ["r6.vtt", "r7.vtt"]
    text = (folders / "chapters" / "r6.vtt").read_text()
    assert text.startswith("WEBVTT\n\n1 score ")
    assert "pour" in text
    assert "nothing done" in submit(folders, "--format", "vtt", "--min-score", "0.01", out="chapters").stdout
    assert submit(folders, "--format", "vtt", "--min-score", "2", out="chapters").exit_code == 0
    assert (folders / "chapters" / "r6.vtt").read_text() == "WEBVTT\n"


def test_unknown_system_lists_those_there(folders: Path) -> None:
    result = submit(folders, "--system", "oracle")
    assert "no system 'oracle'" in str(result.exception)
    assert "ego/rgb/action-gbm, mean, pano/rgb/action-gbm, stack, weighted" in str(result.exception)


def test_seen_recordings_are_refused_or_marked(folders: Path) -> None:
    write_heads(folders, seen=["r6"])
    assert "--allow-seen" in str(submit(folders).exception)
    result = submit(folders, "--allow-seen")
    assert "OPTIMISTIC: the backbone was fine-tuned on 1 of these recordings" in result.stdout


def test_split_without_annotations_still_gets_its_submission(folders: Path) -> None:
    manifest = Manifest.load(folders / "data")
    test = pl.col("split") == "test"
    bare = Manifest(
        name=manifest.name, media_root=manifest.media_root, actions=ACTIONS, scenes=SCENES,
        recordings=manifest.recordings.with_columns(scene=pl.when(~test).then(pl.col("scene"))),
        clips=manifest.clips, instances=manifest.instances.filter(~pl.col("recording").is_in(["r6", "r7"])),
        folds=manifest.folds,
    )  # fmt: skip
    bare.save(folders / "data")
    result = submit(folders)
    assert "no annotations to score against" in result.stdout
    assert (folders / "run" / "submission.csv").is_file()
    assert not (folders / "run" / "metrics.json").exists()


def test_store_with_another_extraction_is_refused(folders: Path) -> None:
    store = folders / "store"
    Extraction("little", 1.0, {}, ("pano", "ego"), seen=()).save(store)
    assert submit(folders, "--store", str(store)).exit_code == 0
    Extraction("little", 1.0, {}, ("pano", "ego"), seen=("r6",)).save(store)
    result = submit(folders, "--store", str(store))
    assert "trained on another extraction" in str(result.exception)


def test_run_without_heads_says_what_to_run(folders: Path) -> None:
    (folders / "run" / "heads.json").unlink()
    assert "run `talstack heads` first" in str(submit(folders).exception)
    store = folders / "store"
    assert "run `talstack heads` first" in str(submit(folders, "--store", str(store)).exception)
