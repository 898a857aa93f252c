"""`talstack tune` on a run of the ensemble's synthetic world, and `submit` after it."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner

from talstack.cli.main import main
from talstack.ensemble.config import EnsembleConfig
from talstack.ensemble.run import ENSEMBLES, run_ensemble
from talstack.ensemble.tune import first_settings
from talstack.ensemble.tuned_file import load_tuned, save_tuned
from talstack.io.errors import InputError
from talstack.io.files import write_json
from talstack.io.folds import assign_folds
from talstack.io.manifest import SCHEMAS, Manifest
from talstack.io.predictions import ModelKey, segment_rows
from talstack.io.targets import segment_index

CONFIG = """
[ensemble]
shared_l2 = [1.0]
class_l2 = [30.0]
weighted_rounds = 4
score = ["plain"]
refine = [false]
hmm = [false]
proposals = ["activity", "class"]
smoothing_s = [0.0]
gap_s = [0.0]
margin = [0.2]
contrast_weight = [1.0]
nms_sigma = [0.5]
"""
KNOWN = {"a": [(3.0, 8.0), (20.0, 24.0)], "b": [(6.0, 11.0), (22.0, 27.0)]}  # they overlap: class runs are better
RECORDINGS = tuple(f"r{number}" for number in range(8))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Return a run's folder whose heads see both actions well, with its data beside it."""
    rows = [(n, s + 0.1 * i, e + 0.1 * i, k) for i, n in enumerate(RECORDINGS) for k, v in KNOWN.items() for s, e in v]
    manifest = Manifest(
        name="small",
        media_root=tmp_path,
        actions=tuple(KNOWN),
        scenes=(),
        recordings=pl.DataFrame(
            [(name, 30.0, None, "test" if name in RECORDINGS[6:] else "train") for name in RECORDINGS],
            schema=SCHEMAS["recordings"],
            orient="row",
        ),
        clips=pl.DataFrame(schema=SCHEMAS["clips"]),
        instances=pl.DataFrame(rows, schema=SCHEMAS["instances"], orient="row"),
    )
    manifest = manifest.with_folds(assign_folds(manifest, 3))
    manifest.save(tmp_path / "data")
    index, rng = segment_index(manifest, 0.5), np.random.default_rng(0)
    logit = np.full((index.num_rows, len(KNOWN)), -9.0)
    for name, where in index.slices():
        centres = (np.arange(where.stop - where.start) + 0.5) * 0.5
        for recording, start, end, label in rows:
            if recording == name:
                column = logit[where, manifest.actions.index(label)]
                np.maximum(column, 8 * np.minimum(centres - start, end - centres), out=column)
    probs = 1 / (1 + np.exp(-np.clip(logit + rng.normal(size=logit.shape), -9, 9)))
    folds = dict(manifest.folds.iter_rows())
    fold = np.repeat([folds.get(name, -1) for name in index.recordings], index.num_segments)
    key = ModelKey("front", "rgb", "action-linear")
    folder = tmp_path / "run"
    folder.mkdir()
    valid = np.ones(index.num_rows, dtype=bool)
    segment_rows(key, index, probs, valid=valid, fold=fold, classes=manifest.actions).write_parquet(
        folder / "oof.parquet"
    )
    record = {
        "format_version": 1,
        "dataset": "small",
        "segment_s": 0.5,
        "seen": [],
        "actions": list(KNOWN),
        "scenes": [],
    }
    write_json(folder / "heads.json", record)
    (folder / "config.toml").write_text(CONFIG)
    return folder


def tune(run: Path, *options: str) -> dict:
    outcome = CliRunner().invoke(main, ["tune", str(run), "--data", str(run.parent / "data"), "--json", *options])
    assert outcome.exit_code == 0, outcome.output
    return json.loads(outcome.stdout)["systems"]


def test_tuned_settings_are_written_and_submit_uses_them(run) -> None:
    systems = tune(run)
    assert set(systems) == {*ENSEMBLES, "front/rgb/action-linear"}
    mean = systems["mean"]
    assert mean["changed"] == {"proposals": "class"}
    assert mean["first_average_map"] < mean["nested_average_map"] <= mean["average_map"]
    written = json.loads((run / "tuned.json").read_text())["systems"]["mean"]
    assert written["settings"]["proposals"] == "class"
    data, out = run.parent / "data", run.parent / "detections.csv"
    arguments = ["submit", str(data), "--run", str(run), "--config", str(run / "config.toml"), "--format", "csv"]
    outcome = CliRunner().invoke(main, [*arguments, "--out", str(out), "--json"])
    assert outcome.exit_code == 0, outcome.output
    record = json.loads((run / "stack" / "ensemble.json").read_text())
    assert record["settings_from"] == "tuned.json"
    decoded = json.loads((run / "stack" / "decode.json").read_text())
    assert decoded["mean"]["settings"]["proposals"] == "class"


def test_settings_in_the_file_win_over_a_search_and_a_change_is_noticed(run) -> None:
    manifest = Manifest.load(run.parent / "data")
    config = EnsembleConfig(shared_l2=(1.0,), class_l2=(30.0,), score=("plain",), refine=(False,), hmm=(False,))
    before = run_ensemble(manifest, run, config=config)
    assert before.record["settings_from"] == "submit"
    from talstack.ensemble.heads_run import HeadsRun
    from talstack.ensemble.tuned_file import tuning_basis

    basis = tuning_basis(manifest, HeadsRun.load(run, manifest), config, before.record["learned_from"])
    odd = replace(first_settings(config), max_detections=1)
    save_tuned(run, basis, {name: {"settings": odd} for name in before.record["tuned_average_map"]})
    after = run_ensemble(manifest, run, config=config)
    assert not after.cached
    table = pl.read_parquet(run / "detections.parquet").filter(pl.col("system") == "mean")
    assert table.height == 2  # one per test recording
    assert run_ensemble(manifest, run, config=config).cached
    other = run_ensemble(manifest, run, config=replace(config, nms_sigma=(0.4,)))
    assert other.record["settings_from"] == "submit"
    assert any("tuned.json was tuned with other settings" in text for text in other.record["warnings"])


def test_table_says_what_was_changed(run) -> None:
    outcome = CliRunner().invoke(main, ["tune", str(run), "--data", str(run.parent / "data"), "--no-nested"])
    assert outcome.exit_code == 0, outcome.output
    assert "proposals = class" in outcome.stdout
    assert "tuned.json" in outcome.stdout


def test_damaged_file_and_runs_without_heads_are_named(run, tmp_path) -> None:
    write_json(
        run / "tuned.json", {"format_version": 1, "basis": "x", "systems": {"mean": {"settings": {"margin": 1}}}}
    )
    with pytest.raises(InputError, match=r"tuned\.json: not what `talstack tune` writes.*tune again"):
        load_tuned(run, "x")
    empty = tmp_path / "empty"
    empty.mkdir()
    outcome = CliRunner().invoke(main, ["tune", str(empty), "--data", str(run.parent / "data")])
    assert outcome.exit_code == 2
    assert "run `talstack heads` first" in outcome.output
    outcome = CliRunner().invoke(main, ["tune", str(run)])
    assert outcome.exit_code == 2
    assert "does not say which data folder it was made from" in outcome.output
