"""`talstack ablate` as a user runs it: what is fitted, what is reused, what the table says."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner

from talstack.cli.main import main
from talstack.ensemble import run as ensemble_run
from talstack.heads import run as heads_run
from talstack.io import decord_frames
from talstack.io.extraction import Extraction, shard_keys
from talstack.io.folds import assign_folds
from talstack.io.grid import SegmentGrid
from talstack.io.manifest import SCHEMAS, Manifest
from talstack.io.shard import Shard
from talstack.io.store import ClipHashes, FeatureStore
from talstack.io.targets import segment_index, segment_targets

CONFIG = """
[heads]
tasks = ["activity", "action", "scene"]
context = [1]
linear_l2 = [0.01]
linear_components = 8
gbm_rounds = 5
[ensemble]
shared_l2 = [1.0]
class_l2 = [30.0]
weighted_rounds = 4
proposals = ["class"]
smoothing_s = [0.0]
margin = [0.2]
contrast_weight = [1.0]
nms_sigma = [0.5]
score = ["plain"]
refine = [false]
hmm = [false]
combiners = []
stacker = "logistic"
"""
BASE = 'data = "data"\nstore = "store"\n[base]\nconfig = "c.toml"\n'
ACTIONS, SCENES = ("wave", "jump"), ("in", "out")
SPLITS = ["train"] * 6 + ["val"] * 3 + ["test"] * 2


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """Return a folder with data/, store/ and c.toml: one view that shows the actions, one that shows noise."""
    make_world(tmp_path, SPLITS)
    return tmp_path


def make_world(folder: Path, splits: list[str]) -> None:
    names = [f"r{i:02d}" for i in range(len(splits))]
    manifest = Manifest(
        name="toy", media_root=folder, actions=ACTIONS, scenes=SCENES,
        recordings=pl.DataFrame(
            [(name, 24.0, SCENES[i % 2], splits[i]) for i, name in enumerate(names)],
            schema=SCHEMAS["recordings"], orient="row",
        ),
        clips=pl.DataFrame(
            [
                (name, view, f"{name}_{view}", f"{name}_{view}.mp4", 0.0, 24.0, 30.0, 8, 8, False)
                for name in names
                for view in ("front", "ego")
            ],
            schema=SCHEMAS["clips"], orient="row",
        ),
        instances=pl.DataFrame(
            [
                (name, at + i % 3, at + i % 3 + 3.0, ACTIONS[(i + k) % 2])
                for i, name in enumerate(names)
                for k, at in enumerate((2.0, 9.0, 16.0))
            ],
            schema=SCHEMAS["instances"], orient="row",
        ),
    )  # fmt: skip
    manifest = manifest.with_folds(assign_folds(manifest, 3))
    manifest.save(folder / "data")
    for name, noise in (("toy", 0.5), ("noisy", 2.0)):
        write_store(
            folder, manifest, Extraction(name, 1.0, {"rgb": {"kind": "rgb", "of": name}}, ("ego", "front")), noise
        )
    (folder / "c.toml").write_text(CONFIG)


def write_store(folder: Path, manifest: Manifest, extraction: Extraction, noise: float) -> None:
    store = FeatureStore(folder / "store")
    extraction.save(store.root)
    rng = np.random.default_rng(0)
    for key in shard_keys(manifest, extraction, ClipHashes(store.root)):
        targets = segment_targets(manifest, segment_index(manifest, 1.0, [key.recording]), 1.0)
        features = rng.normal(0, noise, (24, 4))
        features[:, :2] += 2 * targets * (key.view == "front")
        store.write(key, Shard(features.astype(np.float16), np.ones(24, dtype=bool), SegmentGrid(24.0, 1.0).centres_s))


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """Return lists that grow: heads that are fitted, and splits that ensembles are fitted for."""
    counted: dict[str, list[str]] = {"heads": [], "ensembles": []}
    fit_model, run_ensemble = heads_run.fit_model, ensemble_run.run_ensemble

    def count_head(job, features, config, fold):
        if fold == -1:  # a head's last
            counted["heads"].append(str(job.key))
        return fit_model(job, features, config, fold)

    def count_ensemble(*arguments, **options):
        result = run_ensemble(*arguments, **options)
        counted["ensembles"] += [] if result.cached else [options["split"]]
        return result

    monkeypatch.setattr(heads_run, "fit_model", count_head)
    monkeypatch.setattr(ensemble_run, "run_ensemble", count_ensemble)
    return counted


def ablate(folder: Path, grid: str, *options: str, code: int = 0, head: str = BASE):
    (folder / "grid.toml").write_text(head + grid)
    arguments = ["ablate", str(folder / "grid.toml"), "--run", str(folder / "run"), "--jobs", "1", "--draws", "100"]
    result = CliRunner().invoke(main, [*arguments, *options])
    assert result.exit_code == code, result.output
    return result


def rows_of(folder: Path, grid: str, *options: str) -> dict[str, dict]:
    value = json.loads(ablate(folder, grid, "--json", *options).stdout)
    return {row["variant"]: row for row in value["rows"]}


FOUR = """
[grid]
"heads.learners" = [["linear"]]
"heads.context" = [[1, 2]]
"ensemble.weighted_rounds" = [2]
"extract.views" = [["ego"]]
"""


def test_a_second_call_fits_nothing_and_opens_no_media(
    world: Path, fits: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    cold = ablate(world, FOUR)
    # 2 views x 3 tasks x 2 learners, and the action and activity heads again for the other context
    assert len(fits["heads"]) == 12 + 8 and len(fits["ensembles"]) == 5
    stamps = {path: path.stat().st_mtime_ns for path in (world / "run" / "heads").rglob("*") if path.is_file()}
    fits["heads"].clear(), fits["ensembles"].clear()

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a media file is opened")

    monkeypatch.setattr(av, "open", refuse)
    monkeypatch.setattr(decord_frames, "load_decord", refuse)
    warm = ablate(world, FOUR)
    assert fits == {"heads": [], "ensembles": []}
    assert stamps == {path: path.stat().st_mtime_ns for path in (world / "run" / "heads").rglob("*") if path.is_file()}
    assert "nothing to fit, all 20 heads are up to date" in warm.stdout
    assert cold.stdout.split("run:")[0] == warm.stdout.split("run:")[0], "the same table"


def test_a_cluster_fits_the_heads_and_the_table_is_the_same(
    world: Path, fits: dict[str, list[str]], cluster_address: Callable[[str], str]
) -> None:
    grid = '[grid]\n"heads.context" = [[1, 2]]\n'
    here = rows_of(world, grid)
    assert fits["heads"]
    shutil.rmtree(world / "run")
    fits["heads"].clear()
    there = rows_of(world, grid, "--backend", "dask", "--scheduler", cluster_address("dask"))
    assert not fits["heads"], "none of them in this process"
    for row in (*here.values(), *there.values()):
        row.pop("fit_seconds")
    assert there == here and len(here) == 2
    assert "needs --scheduler ADDRESS" in ablate(world, grid, "--backend", "dask", code=2).stderr


def test_one_changed_setting_fits_what_depends_on_it_alone(world: Path, fits: dict[str, list[str]]) -> None:
    ablate(world, FOUR)
    for lists in fits.values():
        lists.clear()
    ablate(world, FOUR + '"heads.gbm_rounds" = [6]\n')
    assert len(fits["heads"]) == 6 and all(name.endswith("-gbm") for name in fits["heads"])
    assert len(fits["ensembles"]) == 1
    for lists in fits.values():
        lists.clear()
    ablate(world, FOUR + '"ensemble.nms_threshold" = [0.4]\n')
    assert not fits["heads"] and len(fits["ensembles"]) == 1
    ablate(world, FOUR + '"ensemble.system" = ["mean", "weighted"]\n')
    assert not fits["heads"] and len(fits["ensembles"]) == 1, "another system of the same ensemble is there already"


def test_an_interrupted_ablation_goes_on(
    world: Path, fits: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    counting = heads_run.fit_model

    def stop_at_fifth(*arguments):
        if len(fits["heads"]) == 4:
            raise KeyboardInterrupt
        return counting(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(heads_run, "fit_model", stop_at_fifth)
        ablate(world, FOUR, code=1)
    cut_off = list(fits["heads"])
    ablate(world, FOUR)
    assert len(cut_off) == 4 and len(fits["heads"]) == 20
    (next((world / "run" / "ablation").glob("*/ablation.json"))).unlink()
    before = len(fits["ensembles"])
    ablate(world, FOUR)
    assert len(fits["heads"]) == 20 and len(fits["ensembles"]) == before, "its parts were done"


def test_dry_run_counts_and_fits_nothing(world: Path, fits: dict[str, list[str]]) -> None:
    text = ablate(world, FOUR, "--dry-run").stdout
    assert "5 variants, scored on 3 recordings of split val: 20 heads would be fitted, 0 are there; 5 ensembles" in text
    assert 'extract.views = ["ego"]: 6 heads, 6 to be fitted' in text
    assert not fits["heads"] and not (world / "run").exists()
    ablate(world, '[grid]\n"heads.learners" = [["linear"]]\n')
    counts = json.loads(ablate(world, FOUR, "--dry-run", "--json").stdout)
    assert (counts["heads_fitted"], counts["heads_cached"], counts["ensembles_cached"]) == (8, 12, 2)


def test_heads_of_the_run_are_reused_and_it_knows_data_store_and_settings(
    world: Path, fits: dict[str, list[str]]
) -> None:
    heads = ["heads", str(world / "data"), "--store", str(world / "store"), "--run", str(world / "run")]
    CliRunner().invoke(main, [*heads, "--config", str(world / "c.toml"), "--jobs", "1"])
    assert len(fits["heads"]) == 12
    result = ablate(world, '[grid]\n"extract.views" = [["front"]]\n"heads.gbm_rounds" = [5]\n', head="")
    assert len(fits["heads"]) == 12
    assert "1 variants have the settings of an earlier one" in result.stderr


def test_scores_are_those_of_heads_and_submit(world: Path) -> None:
    rows = rows_of(world, '[grid]\n"ensemble.system" = ["weighted", "front/rgb/action-gbm"]\n')
    arguments = [str(world / "data"), "--run", str(world / "run"), "--config", str(world / "c.toml"), "--jobs", "1"]
    CliRunner().invoke(main, ["heads", *arguments, "--store", str(world / "store")])
    CliRunner().invoke(main, ["submit", *arguments, "--split", "val", "--out", str(world / "s.csv")])
    metrics = json.loads((world / "run" / "metrics.json").read_text())["detections"]
    assert rows["base"]["average_map"] == pytest.approx(metrics["stack"]["average_map"], abs=1e-9)
    assert rows['ensemble.system = "weighted"']["average_map"] == pytest.approx(metrics["weighted"]["average_map"])
    single = rows['ensemble.system = "front/rgb/action-gbm"']
    assert single["average_map"] == pytest.approx(metrics["single"]["front/rgb/action-gbm"]["average_map"])


def test_table_is_ranked_and_written_as_parquet_csv_and_markdown(world: Path) -> None:
    rows = rows_of(world, '[[variant]]\nname = "blind"\nextract.views = ["ego"]\n')
    assert [(name, row["rank"]) for name, row in rows.items()] == [("base", 1), ("blind", 2)]
    blind = rows["blind"]
    assert blind["difference"] == pytest.approx(blind["average_map"] - rows["base"]["average_map"])
    assert blind["difference_low"] <= blind["difference"] <= blind["difference_high"] < 0 == blind["share_better"]
    assert rows["base"]["difference"] is None and rows["base"]["fit_seconds"] > 0
    assert (rows["base"]["num_heads"], blind["num_heads"]) == (12, 6)
    folder = world / "run" / "ablation"
    table = pl.read_parquet(folder / "grid.parquet")
    assert table.to_dicts() == list(rows.values())
    assert pl.read_csv(folder / "grid.csv")["variant"].to_list() == ["base", "blind"]
    markdown = (folder / "grid.md").read_text()
    assert "| 2 | blind |" in markdown and "| (reference) |" in markdown
    assert len(re.findall(r"\n\|", markdown)) == 4


def test_folder_of_a_variant_can_be_compared_as_a_run(world: Path) -> None:
    rows = rows_of(world, '[grid]\n"extract.views" = [["ego"]]\n')
    folders = [str(world / "run" / "ablation" / row["folder"]) for row in rows.values()]
    result = CliRunner().invoke(main, ["compare", *folders, "--json"])
    found = json.loads(result.stdout)
    assert found["verdict"] == "a"
    assert found["average_difference"]["estimate"] == pytest.approx(-list(rows.values())[1]["difference"])


def test_without_val_each_training_recording_is_predicted_without_its_fold(tmp_path: Path) -> None:
    make_world(tmp_path, ["train"] * 9 + ["test"] * 2)
    grid = '[grid]\n"extract.views" = [["ego"]]\n"ensemble.system" = ["single"]\n'
    value = json.loads(ablate(tmp_path, grid, "--json").stdout)
    assert value["split"] == "oof" and value["num_recordings"] == 9
    assert value["rows"][-1]["variant"] == 'extract.views = ["ego"]'
    by_name = {row["variant"]: tmp_path / "run" / "ablation" / row["folder"] for row in value["rows"]}
    records = [json.loads(path.read_text()) for path in by_name["base"].glob("fold-*/stack/ensemble.json")]
    assert len(records) == 3
    for record in records:
        assert len(record["recordings"]) == 3 and not set(record["recordings"]) & set(record["learned_from"])
    assert {name for record in records for name in record["recordings"]} == {f"r{i:02d}" for i in range(9)}


def test_extractions_are_compared_with_each_other(world: Path, fits: dict[str, list[str]]) -> None:
    rows = rows_of(world, '[grid]\nextraction = ["noisy"]\n')
    assert rows["base"]["average_map"] > rows['extraction = "noisy"']["average_map"]
    assert len(fits["heads"]) == 24


def test_choosing_on_test_warns(world: Path) -> None:
    grid = '[grid]\n"ensemble.system" = ["mean"]\n'
    result = ablate(world, grid, "--split", "test")
    assert "optimistic; choose on val or oof" in result.stderr
    assert "2 recordings of split test" in result.stdout


def test_missing_features_are_listed(world: Path) -> None:
    for shard in (world / "store").glob("*/r01/*ego*.h5"):
        shard.unlink()
    result = ablate(world, '[grid]\n"ensemble.system" = ["mean"]\n', code=1)
    assert "missing: r01 ego/rgb: not extracted yet; run `talstack extract`" in result.stderr
    assert "base" in result.stdout, "what is there is compared all the same"
    front = '[base]\nconfig = "c.toml"\n"extract.views" = ["front"]\n[grid]\n"ensemble.system" = ["mean"]\n'
    assert not ablate(world, front, head='data = "data"\nstore = "store"\n').stderr.count("missing")


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ('[grid]\n"heads.contxt" = [[1]]\n', "[grid]: unknown key 'heads.contxt'; did you mean 'heads.context'?"),
        ('[grids]\n"heads.context" = [[1]]\n', "unknown key 'grids'; did you mean 'grid'?"),
        ('[grid]\n"heads.context" = []\n', "heads.context: expected a list of one or more values to try, got []"),
        ('[grid]\n"heads.seed" = 3\n', "heads.seed: expected a list of one or more values to try, got 3"),
        ('[grid]\n"heads.context" = [1, 2]\n', "expected a list, got 1; a setting that is a list itself needs a list"),
        ('[grid]\n"heads.gbm_rounds" = ["many"]\n', "heads.gbm_rounds: expected int, got 'many'"),
        ('[grid]\n"heads.context" = [[0]]\n', "heads.context: expected ascending counts of segments from 1, got [0]"),
        ('[grid]\n"sampling.segment_s" = [0.5]\n', "changes the features themselves, and ablate extracts none"),
        ('[grid]\n"extract.views" = [["frnt"]]\n', "no features of view 'frnt'; there: ego, front; did you mean"),
        ('[grid]\n"extract.modalities" = [["audio"]]\n', "no features of modality 'audio'; there: rgb"),
        ('[grid]\n"heads.tasks" = [["scene"]]\n', "heads.tasks without 'action': nothing to make detections of"),
        ('[grid]\nextraction = ["other"]\n', "no extraction named 'other' (there: noisy, toy)"),
        ('[grid]\n"ensemble.system" = ["stak"]\n', "no system 'stak'; there: "),
        ("[grid]\n", "nothing to compare: give [grid] lists of values, or add a [[variant]]"),
        ('[[variant]]\nname = "x"\n', "[[variant]] 1: changes nothing"),
        ('[[variant]]\nname = 3\n"heads.seed" = 1\n', "[[variant]] 1: name: expected a text, got 3"),
        ('[[variant]]\nname = "base"\n"heads.seed" = 1\n', "two variants are called 'base'"),
        ("[grid\n", "not valid TOML"),
    ],
)  # fmt: skip
def test_bad_grids_are_refused(grid: str, message: str, world: Path) -> None:
    (world / "c.toml").write_text(
        CONFIG.replace('tasks = ["activity", "action", "scene"]', 'learners = ["linear"]\ntasks = ["action"]')
    )
    assert message in ablate(world, grid, code=2).stderr


def test_a_run_that_knows_no_data_says_what_to_name(world: Path) -> None:
    result = ablate(world, '[grid]\n"heads.seed" = [1]\n', code=2, head="")
    assert "does not say which data folder it was made from" in result.stderr


def prune(folder: Path, *options: str, code: int = 0) -> dict:
    result = CliRunner().invoke(main, ["prune", str(folder / "run"), "--older-than", "0", "--json", *options])
    assert result.exit_code == code, result.output
    return json.loads(result.stdout) if not code else {"error": result.stderr}


def test_prune_removes_what_neither_the_run_nor_an_ablation_uses(world: Path, fits: dict[str, list[str]]) -> None:
    run = world / "run"
    assert "nothing says what is in use" in prune(world, code=2)["error"]
    for penalty in (0.1, 0.2):
        (world / "heads.toml").write_text(f"[heads]\nlearners = ['linear']\nlinear_l2 = [{penalty}]\n")
        arguments = ["heads", str(world / "data"), "--store", str(world / "store"), "--run", str(run), "--jobs", "1"]
        result = CliRunner().invoke(main, [*arguments, "--config", str(world / "heads.toml")])
        assert result.exit_code == 0, result.output
    current = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    ablate(world, '[grid]\n"heads.learners" = [["linear"]]\n')
    ablated = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()} - current
    found = prune(world)
    assert found["dry_run"] and found["by_reason"]["heads of other settings"]["count"] == 8
    assert set(found["by_reason"]) == {"heads of other settings"} and found["leftovers"][0]["size_bytes"] > 100
    assert {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()} == current | ablated
    young = CliRunner().invoke(main, ["prune", str(run), "--delete"])
    assert young.stdout.endswith("removed 0 leftovers, 0 B\n") and "kept: 8" in young.stderr
    assert prune(world, "--delete")["leftovers"] == found["leftovers"] and prune(world)["leftovers"] == []
    fits["heads"].clear()
    ablate(world, '[grid]\n"heads.learners" = [["linear"]]\n')
    assert not fits["heads"], "what an ablation uses is kept"
    prune(world, "--ablations", "--delete")
    left = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    assert not any(path.startswith("ablation/") and path.endswith("heads.json") for path in left), left
    result = CliRunner().invoke(main, [*arguments, "--config", str(world / "heads.toml")])
    assert "nothing to do" in result.output, "the run's own heads are all there"
