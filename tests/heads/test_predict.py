"""`talstack predict`: a finished run applied to other recordings gives what the run itself gave there."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner, Result
from polars.testing import assert_frame_equal

from talstack.cli.main import main
from talstack.ensemble.config import EnsembleConfig
from talstack.ensemble.predict import Prediction
from talstack.ensemble.predict import predict as predict_table
from talstack.ensemble.run import run_ensemble
from talstack.heads.apply import apply_heads
from talstack.heads.config import HeadsConfig
from talstack.heads.run import run_heads
from talstack.io.detections import DETECTION_SCHEMA, read_predictions
from talstack.io.errors import InputError, MissingInputError, ModelError
from talstack.io.extraction import Extraction, FeatureSet
from talstack.io.files import read_json, write_json
from talstack.io.manifest import Manifest, empty_table
from talstack.io.members import Member

SEGMENT_S = 0.5
ENSEMBLE = EnsembleConfig(
    shared_l2=(1.0,), class_l2=(30.0,), weighted_rounds=4, gbm_rounds=(20,), proposals=("both",), smoothing_s=(0.0,),
    margin=(0.2,), contrast_weight=(1.0,), nms_sigma=(0.5,), combiners=("weighted_by_class", "vote"),
)  # fmt: skip


@pytest.fixture
def run(
    make_features: Callable[..., FeatureSet], manifest: Manifest, quick: HeadsConfig, tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:  # fmt: skip
    """Return a run whose test recordings are r8 and r9; it is made once, and a copy of it for every test."""
    features, made = make_features(), tmp_path_factory.getbasetemp() / "finished-run"
    if not made.exists():
        run_heads(features, tmp_path / "made", config=quick)
        run_ensemble(manifest, tmp_path / "made", config=ENSEMBLE)
        (tmp_path / "made").rename(made)
    return Path(shutil.copytree(made, tmp_path / "run"))


@pytest.fixture
def others(manifest: Manifest) -> Manifest:
    """Return the recordings of split test as a data set of their own: another name, no classes, folds or labels."""
    names = pl.col("recording").is_in(manifest.recordings_of(["test"]))
    return replace(
        manifest, name="visitors", actions=(), scenes=(), instances=empty_table("instances"),
        folds=empty_table("folds"), clips=manifest.clips.filter(names),
        recordings=manifest.recordings.filter(names).with_columns(
            scene=pl.lit(None, dtype=pl.String), split=pl.lit("train")
        ),
    )  # fmt: skip


def opened(manifest: Manifest, run: Path) -> FeatureSet:
    return FeatureSet.open(manifest, run.parent / "store", "toy")


def predict(run: Path, features: FeatureSet, system: str = "stack") -> Prediction:
    return predict_table(run, apply_heads(run, features), features.manifest, system=system)


def of_run(run: Path, system: str) -> pl.DataFrame:
    table = pl.read_parquet(run / "detections.parquet")
    return table.filter(pl.col("system") == system).select(DETECTION_SCHEMA.keys())


def same(found: pl.DataFrame, expected: pl.DataFrame) -> bool:
    """Return whether they are equal but for the rounding of products of fewer rows, which flat curves magnify."""
    keys = ["recording", "label", "start_s", "end_s"]
    found, expected = found.sort(keys), expected.sort(keys)
    if not found.select(keys[:2]).equals(expected.select(keys[:2])):
        return False
    return all(np.abs(found[name] - expected[name]).max() < 2e-3 for name in ("start_s", "end_s", "score"))


def test_every_system_predicts_unlabelled_recordings_as_the_run_did(run: Path, others: Manifest) -> None:
    systems = pl.read_parquet(run / "detections.parquet")["system"].unique().to_list()
    assert {"stack", "mean", "weighted", "weighted_by_class", "vote", "ego/rgb/action-linear"} <= set(systems)
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    for system in systems:
        found = predict(run, opened(others, run), system=system)
        assert found.detections.height > 4, system
        assert same(found.detections, of_run(run, system)), system
        assert found.warnings == ()
    assert_frame_equal(found.scenes, pl.read_parquet(run / "scene.parquet"), abs_tol=1e-6)
    assert before == {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}


def test_the_rows_of_the_heads_are_those_of_the_table(run: Path, others: Manifest) -> None:
    rows = apply_heads(run, opened(others, run))
    table = pl.read_parquet(run / "oof.parquet").filter(pl.col("recording").is_in(["r8", "r9"]))
    keys = [name for name in rows.columns if name not in ("prob", "valid")]
    rows, table = rows.sort(keys), table.sort(keys)
    assert rows.select(*keys, "valid").equals(table.select(*keys, "valid"))
    assert np.allclose(rows["prob"], table["prob"], atol=1e-6)


def test_a_view_that_is_missing_degrades_and_is_named(run: Path, others: Manifest) -> None:
    alone = replace(others, clips=others.clips.filter(pl.col("view") == "front"))
    found = predict(run, opened(alone, run))
    assert found.detections.height > 4
    assert not same(found.detections, of_run(run, "stack"))
    assert len(found.warnings) == 1
    assert "ego/rgb/action-linear" in found.warnings[0]


def test_recordings_that_the_run_learned_from_are_named(run: Path, manifest: Manifest) -> None:
    found = predict(run, opened(manifest, run))
    assert "learned from 8 of these recordings" in found.warnings[0]


def test_what_does_not_fit_is_refused(run: Path, others: Manifest) -> None:
    with pytest.raises(InputError, match="no system 'best'; there: ego/rgb"):
        predict(run, opened(others, run), system="best")
    record = read_json(run / "heads.json")
    changed = [[view, modality, "0" * 64] for view, modality, _ in record["recipes"]]
    write_json(run / "heads.json", {**record, "recipes": changed})
    with pytest.raises(InputError, match="ego/rgb, front/rgb: made otherwise than the features"):
        predict(run, opened(others, run))
    write_json(run / "heads.json", {name: value for name, value in record.items() if name != "recipes"})
    with pytest.raises(InputError, match="run `talstack heads`"):
        predict(run, opened(others, run))
    write_json(run / "heads.json", {**record, "models": [{**m, "view": "roof"} for m in record["models"]]})
    with pytest.raises(InputError, match="heads know roof/rgb; the recordings have ego/rgb, front/rgb"):
        predict(run, opened(others, run))


@pytest.mark.parametrize("name", ["heads.json", "stack/ensemble.json", "stack/decode.json", "stack/durations.json"])
def test_an_unfinished_run_says_what_to_run(run: Path, others: Manifest, name: str) -> None:
    (run / name).unlink()
    with pytest.raises(MissingInputError, match="run `talstack heads`.* first"):
        predict(run, opened(others, run))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("stack/decode.json", []),
        ("stack/decode.json", {"stack": {}}),
        ("stack/durations.json", {"limits_s": [["x", 1]]}),
        ("stack/durations.json", {"limits_s": [[0, 1]]}),
    ],
)
def test_a_damaged_run_is_refused(run: Path, others: Manifest, name: str, content: object) -> None:
    write_json(run / name, content)
    with pytest.raises(ModelError, match="damaged|not what talstack writes"):
        predict(run, opened(others, run))


@pytest.mark.parametrize("content", [[], {}, {"models": []}])
def test_a_record_of_heads_that_is_none_is_refused(run: Path, others: Manifest, content: object) -> None:
    write_json(run / "heads.json", content)
    with pytest.raises(ModelError, match="heads.json: not what talstack writes"):
        predict(run, opened(others, run))


def test_damaged_weights_are_refused(run: Path, others: Manifest) -> None:
    record = read_json(run / "stack" / "weights_of_combiners.json")
    write_json(run / "stack" / "weights_of_combiners.json", {**record, "weighted": ["x"]})
    with pytest.raises(ModelError, match="damaged weights of weighted"):
        predict(run, opened(others, run), system="weighted")


def test_a_recording_without_any_features_is_named(run: Path, others: Manifest, tmp_path: Path) -> None:
    for shard in (tmp_path / "store").rglob("*.h5"):
        if "r9" in str(shard):
            shard.unlink()
    found = predict(run, opened(others, run))
    assert set(found.detections["recording"]) == {"r8"}
    assert any("no model predicts 1 recordings" in warning and "r9" in warning for warning in found.warnings)


def talstack(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["predict", *map(str, arguments)])


@pytest.mark.parametrize("format_", ["csv", "activitynet", "parquet", "binego360"])
def test_the_command_writes_every_format(run: Path, others: Manifest, tmp_path: Path, format_: str) -> None:
    others.save(tmp_path / "others")
    arguments = (tmp_path / "others", "--store", tmp_path / "store", "--run", run, "--extraction", "toy")
    result = talstack(
        *arguments, "--format", format_, "--out", tmp_path / "found", "--scenes", tmp_path / "s.csv", "--json"
    )
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["files"] == [str(tmp_path / "found"), str(tmp_path / "s.csv")]
    assert pl.read_csv(tmp_path / "s.csv").columns == ["recording", "kitchen", "yard"]
    if format_ in ("csv", "activitynet"):
        shutil.copy(tmp_path / "found", tmp_path / f"found.{'json' if format_ == 'activitynet' else 'csv'}")
        path = next(tmp_path.glob("found.*"))
        assert same(read_predictions(path).detections, of_run(run, "stack"))
        assert report["detections"] == of_run(run, "stack").height


def test_the_command_lists_what_is_still_to_be_extracted(run: Path, others: Manifest, tmp_path: Path) -> None:
    shard = next(path for path in (tmp_path / "store").rglob("*.h5") if "r8" in str(path))
    shard.unlink()
    others.save(tmp_path / "others")
    result = talstack(
        tmp_path / "others", "--store", tmp_path / "store", "--run", run, "--extraction", "toy", "--format", "vtt",
        "--out", tmp_path / "vtt",
    )  # fmt: skip
    assert result.exit_code == 1
    assert "missing: r8 " in result.stderr
    assert sorted(path.name for path in (tmp_path / "vtt").iterdir()) == ["r8.vtt", "r9.vtt"]


def test_features_are_the_same_where_all_that_makes_them_is() -> None:
    recipes = {"rgb": {"kind": "rgb", "size": 64}, "audio": {"kind": "audio"}}
    one = Extraction("a", SEGMENT_S, recipes, ("ego",))
    assert one.recipe_hash("ego", "rgb") == replace(one, name="b", views=("front",)).recipe_hash("front", "rgb")
    member = Member("fold0", backbone={"weights": "1"})
    changed = [
        replace(one, segment_s=2 * SEGMENT_S), replace(one, recipes={**recipes, "rgb": {"kind": "rgb", "size": 32}}),
        replace(one, link="sigmoid"), replace(one, members=(member,)),
        replace(one, members=(replace(member, backbone={"weights": "2"}),)), replace(one, derived={"ego": {"yaw": 90}}),
    ]  # fmt: skip
    hashes = {one.recipe_hash("ego", "rgb"), *(other.recipe_hash("ego", "rgb") for other in changed)}
    assert len(hashes) == 1 + len(changed)
    assert {other.recipe_hash("ego", "audio") for other in changed[3:]} == {one.recipe_hash("ego", "audio")}


def test_models_of_the_folds_predict_others_as_they_did_in_the_run(
    make_features: Callable[..., FeatureSet], manifest: Manifest, others: Manifest, quick: HeadsConfig, tmp_path: Path
) -> None:
    """On the stored features, and on components, of which each fold's models have their own."""
    for name, config in {
        "stored": (stored := replace(quick, others_by="folds", linear_components=0, gbm_components=0)),
        "components": replace(quick, others_by="folds", linear_components=4, gbm_components=3),
    }.items():
        run = tmp_path / name
        results, _ = run_heads(make_features(), run, config=config)
        assert {result.outcome for result in results} == {"fitted"}
        known = pl.read_parquet(run / "oof.parquet").filter(pl.col("fold").is_null())
        found = apply_heads(run, opened(others, run))
        assert_frame_equal(found.drop("fold"), known.drop("fold"), check_row_order=False, abs_tol=2e-3)
        assert {result.outcome for result in run_heads(make_features(), run, config=config)[0]} == {"cached"}
        refit = replace(config, others_by="refit")
        assert {result.outcome for result in run_heads(make_features(), run / "b", config=refit)[0]} == {"fitted"}
        assert not set(path.parent.name for path in run.glob("heads/*/*/*.json")) & {
            path.parent.name for path in run.glob("b/heads/*/*/*.json") if path.parent.name != "components"
        }, "another setting is another fingerprint"
    card = next((tmp_path / "stored").glob("heads/*/*/action-linear.fold1.json"))
    card.write_text(card.read_text().replace("temperature", "temperatura"))
    with pytest.raises(ModelError, match="fold1.json: damaged"):
        apply_heads(tmp_path / "stored", opened(others, tmp_path / "stored"))
    results, _ = run_heads(make_features(), tmp_path / "stored", config=stored)
    assert [str(result.key) for result in results if result.outcome == "fitted"] == [
        f"{view}/rgb/action-linear" for view in ("ego", "front") if f"{view}-rgb" == card.parent.parent.name
    ]
