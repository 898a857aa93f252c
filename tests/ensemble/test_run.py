"""The whole second half of stage two on a run's folder."""

import json
from dataclasses import replace

import polars as pl
import pytest

from talstack.ensemble.config import COMBINERS, EnsembleConfig
from talstack.ensemble.run import run_ensemble
from talstack.ensemble.stack import Stack
from talstack.ensemble.stacker import Stacker
from talstack.evaluate.map import evaluate_detections
from talstack.io.detections import DETECTION_SCHEMA, validate_detections
from talstack.io.errors import InputError, LeakError, MissingInputError
from talstack.io.manifest import SCHEMAS, Manifest

QUICK = EnsembleConfig(
    shared_l2=(1.0,), class_l2=(30.0,), weighted_rounds=6, proposals=("class",), smoothing_s=(0.0,), margin=(0.2,),
    contrast_weight=(1.0,), nms_sigma=(0.5,), smoothing_power=(0.0,), gap_s=(0.0,), hmm=(False,), score=("plain",),
    refine=(False,), combiners=(), stacker="logistic",
)  # fmt: skip
SYSTEMS = ["mean", "stack", "weighted"]
SINGLES = ["ego/rgb/action-linear", "pano/rgb/action-linear", "third/rgb/action-linear"]


def test_every_system_is_decoded_and_scored_and_the_stack_wins(world, write_run) -> None:
    manifest, _ = world
    run = write_run()
    result = run_ensemble(manifest, run, config=QUICK)
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics == result.metrics
    scores = metrics["detections"]
    assert sorted(scores) == sorted(["single", *SYSTEMS])
    assert sorted(scores["single"]) == SINGLES
    assert list(scores["stack"]["map"]) == ["0.5", "0.75", "0.95"]
    best_single = max(row["average_map"] for row in scores["single"].values())
    assert scores["stack"]["average_map"] > max(best_single, scores["mean"]["average_map"])
    assert scores["weighted"]["average_map"] > best_single
    assert metrics["scene"]["top1"] == 1.0
    assert (metrics["split"], metrics["num_recordings"], metrics["seen_recordings"]) == ("test", 4, 0)


def test_tables_hold_what_the_metrics_say(world, write_run) -> None:
    manifest, _ = world
    run = write_run()
    result = run_ensemble(manifest, run, config=QUICK)
    table = pl.read_parquet(run / "detections.parquet")
    assert sorted(table["system"].unique()) == sorted([*SINGLES, *SYSTEMS])
    assert set(table["recording"]) <= set(manifest.recordings_of(["test"]))
    test = manifest.instances.filter(pl.col("recording").is_in(manifest.recordings_of(["test"])))
    for system in ("stack", "mean"):
        rows = table.filter(pl.col("system") == system).select(list(DETECTION_SCHEMA))
        validate_detections(rows, where="test")
        score = evaluate_detections(rows, test, tiou_thresholds=(0.5, 0.75, 0.95)).average_map
        assert score == pytest.approx(result.metrics["detections"][system]["average_map"])
    scenes = pl.read_parquet(run / "scene.parquet")
    assert scenes.columns == ["recording", *manifest.scenes]
    assert scenes["recording"].to_list() == manifest.recordings_of(["test"])
    stacker = Stacker.load(run / "stack")
    assert [str(key) for key in stacker.models] == SINGLES
    assert sorted(json.loads((run / "stack" / "decode.json").read_text())) == sorted([*SINGLES, *SYSTEMS])
    assert sum(json.loads((run / "stack" / "weights.json").read_text()).values()) == pytest.approx(1.0)


def test_further_combiners_are_scored_beside_them(world, write_run) -> None:
    manifest, _ = world
    run = write_run()
    scores = run_ensemble(manifest, run, config=replace(QUICK, combiners=COMBINERS)).metrics["detections"]
    assert sorted(scores) == sorted(["single", *SYSTEMS, *COMBINERS])
    best_single = max(row["average_map"] for row in scores["single"].values())
    assert all(scores[name]["average_map"] > best_single for name in COMBINERS)
    weights = json.loads((run / "stack" / "weights_of_combiners.json").read_text())
    assert sorted(weights) == ["weighted", "weighted_by_class", "weighted_direct"]
    by_class = weights["weighted_by_class"]
    for action in manifest.actions:
        assert sum(by_class[model][action] for model in SINGLES) == pytest.approx(1.0)
    # only ego sees a jump
    assert by_class["ego/rgb/action-linear"]["jump"] > weights["weighted_direct"]["ego/rgb/action-linear"]


def test_boosted_stack_is_saved_and_a_later_logistic_one_replaces_it(world, write_run) -> None:
    manifest, _ = world
    run = write_run()
    result = run_ensemble(manifest, run, config=replace(QUICK, stacker="gbm", gbm_rounds=(20, 40)))
    assert result.record["stacker"]["kind"] == "gbm"
    stack = Stack.load(run / "stack")
    assert stack.boosted is not None
    assert stack.boosted.num_rounds == result.record["stacker"]["num_rounds"]
    assert (
        run_ensemble(manifest, run, config=QUICK).metrics["detections"]["stack"]
        != result.metrics["detections"]["stack"]
    )
    assert not (run / "stack" / "boosted.json").exists()


def test_second_call_does_nothing_and_a_change_is_noticed(world, write_run) -> None:
    manifest, table = world
    run = write_run()
    first = run_ensemble(manifest, run, config=QUICK)
    stamps = {path: path.stat().st_mtime_ns for path in sorted(run.rglob("*")) if path.is_file()}
    second = run_ensemble(manifest, run, config=QUICK)
    assert (first.cached, second.cached) == (False, True)
    assert second.metrics == first.metrics
    assert second.record == first.record
    assert stamps == {path: path.stat().st_mtime_ns for path in sorted(run.rglob("*")) if path.is_file()}
    assert not run_ensemble(manifest, run, config=replace(QUICK, nms_sigma=(0.4,))).cached
    assert not run_ensemble(manifest, run, config=QUICK, split="val").cached
    assert not run_ensemble(manifest, run, config=QUICK).cached
    (run / "scene.parquet").unlink()
    assert not run_ensemble(manifest, run, config=QUICK).cached
    table.with_columns(pl.col("prob") * 0.9).write_parquet(run / "oof.parquet")
    assert not run_ensemble(manifest, run, config=QUICK).cached
    fewer = replace(manifest, instances=manifest.instances[1:])
    assert not run_ensemble(fewer, run, config=QUICK).cached


def test_same_inputs_same_detections(world, write_run) -> None:
    manifest, _ = world
    one, two = write_run(name="one"), write_run(name="two")
    run_ensemble(manifest, one, config=QUICK)
    run_ensemble(manifest, two, config=QUICK, jobs=2)
    assert (one / "detections.parquet").read_bytes() == (two / "detections.parquet").read_bytes()


def test_seen_recordings_are_refused_unless_asked_for(world, write_run) -> None:
    manifest, _ = world
    run = write_run(seen=("rec10", "rec00"))
    with pytest.raises(LeakError, match="1 of 4 recordings of split 'test' were seen.*rec10.*--allow-seen"):
        run_ensemble(manifest, run, config=QUICK)
    assert not (run / "metrics.json").exists()
    result = run_ensemble(manifest, run, config=QUICK, allow_seen=True)
    assert result.metrics["seen_recordings"] == 1
    assert "rec00" not in result.record["learned_from"]


def test_recordings_of_the_split_are_not_learned_from(world, write_run) -> None:
    manifest, _ = world
    result = run_ensemble(manifest, write_run(), config=QUICK, split="val")
    assert result.record["recordings"] == ["rec08", "rec09"]
    assert result.record["learned_from"] == manifest.recordings_of(["train"])


def test_nothing_unseen_left_is_refused(world, write_run) -> None:
    manifest, _ = world
    run = write_run(seen=tuple(manifest.recordings_of(["train", "val"])))
    with pytest.raises(LeakError, match="0 recordings to learn from.*holdout_folds"):
        run_ensemble(manifest, run, config=QUICK)


def test_wrong_answers_for_test_recordings_change_nothing_but_the_scores(world, write_run) -> None:
    manifest, _ = world
    honest, lied_to = write_run(name="honest"), write_run(name="lied_to")
    test = pl.col("recording").is_in(manifest.recordings_of(["test"]))
    scene = pl.when(test).then(pl.lit("yard")).otherwise("scene").alias("scene")
    label = pl.when(test).then(pl.lit("jump")).otherwise("label").alias("label")
    end_s = pl.when(test).then(pl.col("end_s") + 0.7).otherwise("end_s").alias("end_s")
    wrong = replace(
        manifest,
        instances=manifest.instances.with_columns(label, end_s),
        recordings=manifest.recordings.with_columns(scene),
    )
    config = replace(QUICK, stacker="gbm", gbm_rounds=(20,), combiners=COMBINERS)
    results = [run_ensemble(data, run, config=config) for data, run in ((manifest, honest), (wrong, lied_to))]
    files = sorted(path.relative_to(honest) for path in honest.rglob("*") if path.is_file())
    assert len(files) >= 10
    for file in files:
        if file.name not in ("metrics.json", "ensemble.json"):
            assert (honest / file).read_bytes() == (lied_to / file).read_bytes(), file
    one, two = ({**result.record, "fingerprint": ""} for result in results)
    assert one == two
    assert results[0].metrics["scene"] != results[1].metrics["scene"], "the answers are another exam's"


def test_false_answers_for_test_recordings_change_no_detection(world, write_run) -> None:
    manifest, _ = world
    honest, blind = write_run(name="honest"), write_run(name="blind")
    run_ensemble(manifest, honest, config=QUICK)
    test = pl.col("recording").is_in(manifest.recordings_of(["test"]))
    without = replace(
        manifest,
        instances=manifest.instances.filter(~test),
        recordings=manifest.recordings.with_columns(scene=pl.when(~test).then(pl.col("scene"))),
    )
    result = run_ensemble(without, blind, config=QUICK)
    assert (honest / "detections.parquet").read_bytes() == (blind / "detections.parquet").read_bytes()
    assert result.metrics is None
    assert not (blind / "metrics.json").exists()
    assert run_ensemble(without, blind, config=QUICK).cached


def test_scores_of_an_older_run_do_not_stay_behind(world, write_run) -> None:
    manifest, _ = world
    run = write_run()
    run_ensemble(manifest, run, config=QUICK)
    test = pl.col("recording").is_in(manifest.recordings_of(["test"]))
    bare = replace(
        manifest,
        instances=manifest.instances.filter(~test),
        recordings=manifest.recordings.with_columns(scene=pl.when(~test).then(pl.col("scene"))),
    )
    run_ensemble(bare, run, config=QUICK)
    assert not (run / "metrics.json").exists()


def test_recording_without_any_view_is_reported(world, write_run) -> None:
    manifest, table = world
    gone = table.with_columns(valid=pl.col("valid") & (pl.col("recording") != "rec12"))
    run = write_run(table=gone)
    result = run_ensemble(manifest, run, config=QUICK)
    assert any("no model predicts 1 recordings" in text and "rec12" in text for text in result.record["warnings"])
    assert any("no scene head predicts 1 recordings" in text for text in result.record["warnings"])
    assert pl.read_parquet(run / "scene.parquet").filter(pl.col("recording") == "rec12").row(0)[1:] == (0.5, 0.5)
    assert result.metrics["num_recordings"] == 4


def test_view_that_cannot_be_learned_from_is_reported(world, write_run) -> None:
    manifest, table = world
    late = table.with_columns(valid=pl.col("valid") & ((pl.col("view") != "ego") | pl.col("fold").is_null()))
    result = run_ensemble(manifest, write_run(table=late), config=QUICK)
    assert any(text.startswith("ego/rgb/action-linear predicts none") for text in result.record["warnings"])
    assert result.metrics["detections"]["stack"]["average_map"] > 0


def test_wrong_or_missing_files_are_named(world, write_run, tmp_path) -> None:
    manifest, table = world
    with pytest.raises(MissingInputError, match=r"heads\.json: no such file; run `talstack heads` first"):
        run_ensemble(manifest, tmp_path / "empty", config=QUICK)
    run = write_run()
    with pytest.raises(InputError, match="no recording is in split 'val'"):
        all_train = manifest.recordings.with_columns(split=pl.lit("train"))
        run_ensemble(replace(manifest, recordings=all_train), run, config=QUICK, split="val")
    with pytest.raises(InputError, match="split 'exam'; expected one of train, val, test"):
        run_ensemble(manifest, run, config=QUICK, split="exam")
    with pytest.raises(InputError, match="made for dataset 'synthetic', the data set has 'other'"):
        run_ensemble(replace(manifest, name="other"), run, config=QUICK)
    with pytest.raises(InputError, match="made for actions"):
        more = replace(manifest, actions=(*manifest.actions, "sing"))
        run_ensemble(more, run, config=QUICK)
    table.drop("valid").write_parquet(run / "oof.parquet")
    with pytest.raises(InputError, match="oof.parquet: expected columns"):
        run_ensemble(manifest, run, config=QUICK)
    (run / "oof.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match="not a readable parquet file"):
        run_ensemble(manifest, run, config=QUICK)


def test_folds_table_is_not_needed(world, write_run) -> None:
    manifest, _ = world
    without: Manifest = manifest.with_folds(pl.DataFrame(schema=SCHEMAS["folds"]))
    assert run_ensemble(without, write_run(), config=QUICK).metrics is not None
