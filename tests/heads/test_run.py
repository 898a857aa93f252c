"""A run's heads: every group and task, done once per fingerprint, whatever the number of processes."""

import json
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from talstack.heads import run as run_module
from talstack.heads.config import HeadsConfig
from talstack.heads.crossfit import FoldPlan, cross_fit
from talstack.heads.features import read_group
from talstack.heads.quality import quality_table
from talstack.heads.run import run_heads
from talstack.heads.targets import task_targets
from talstack.io.cluster import Backend, Cluster, open_cluster
from talstack.io.errors import InputError, TalstackError
from talstack.io.extraction import FeatureSet
from talstack.io.manifest import Manifest
from talstack.io.predictions import ModelKey, models_of
from talstack.io.shard import Shard, ShardKey

MakeFeatures = Callable[..., FeatureSet]


def outcomes(features: FeatureSet, run: Path, config: HeadsConfig) -> tuple[dict[str, str], bool]:
    results, written = run_heads(features, run, config=config)
    return {str(result.key): result.outcome for result in results}, written


def test_a_run_holds_every_head_of_every_group(make_features: MakeFeatures, quick: HeadsConfig, tmp_path: Path) -> None:
    features = make_features(seen=["r0", "r1"])
    found, written = outcomes(features, tmp_path / "run", quick)
    names = [
        f"{task}-{learner}" for task in ("action", "activity", "boundary", "scene") for learner in ("gbm", "linear")
    ]
    assert list(found) == [f"{view}/rgb/{name}" for view in ("ego", "front") for name in names] and written
    oof = pl.read_parquet(tmp_path / "run" / "oof.parquet")
    assert [str(key) for key in models_of(oof)] == list(found)
    assert not oof.filter((pl.col("recording") == "r3") & (pl.col("view") == "ego")).height, "r3 has no ego clip"
    assert set(oof["recording"]) == {f"r{i}" for i in range(10)}, "seen recordings are in the table"
    sidecar = json.loads((tmp_path / "run" / "heads.json").read_text())
    assert sidecar["seen"] == ["r0", "r1"] and sidecar["segment_s"] == 0.5 and sidecar["extraction"] == "toy"
    assert sidecar["actions"] == ["wave", "jump", "never"] and sidecar["scenes"] == ["kitchen", "yard"]
    for model in sidecar["models"]:
        assert (tmp_path / "run" / model["card"]).is_file()


def test_a_second_run_does_nothing(make_features: MakeFeatures, quick: HeadsConfig, tmp_path: Path) -> None:
    features = make_features()
    outcomes(features, tmp_path, quick)
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    found, written = outcomes(features, tmp_path, quick)
    assert set(found.values()) == {"cached"} and not written
    assert stamps == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}


def refitted(found: dict[str, str]) -> set[str]:
    return {ModelKey(*name.split("/")).head for name, outcome in found.items() if outcome == "fitted"}


def test_only_heads_whose_inputs_changed_are_fitted_again(
    make_features: MakeFeatures, manifest: Manifest, relabel: Callable, quick: HeadsConfig, tmp_path: Path
) -> None:
    outcomes(make_features(), tmp_path, quick)
    found, written = outcomes(make_features(), tmp_path, replace(quick, gbm_rounds=16))
    assert refitted(found) == {"action-gbm", "activity-gbm", "boundary-gbm", "scene-gbm"} and written
    found, _ = outcomes(make_features(), tmp_path, replace(quick, gbm_rounds=16, context=(2,)))
    assert refitted(found) == {
        f"{task}-{by}" for task in ("action", "activity", "boundary") for by in ("gbm", "linear")
    }
    config = replace(quick, gbm_rounds=16, context=(2,), boundary_context=(5,))
    assert refitted(outcomes(make_features(), tmp_path, config)[0]) == {"boundary-gbm", "boundary-linear"}
    found, written = outcomes(make_features(relabel(manifest, ["r8"])), tmp_path, config)
    assert not refitted(found) and not written, "labels of the test split are no input"
    found, _ = outcomes(make_features(relabel(manifest, ["r1"])), tmp_path, config)
    assert len(refitted(found)) == 8


def test_going_back_to_earlier_settings_fits_nothing(
    make_features: MakeFeatures, quick: HeadsConfig, tmp_path: Path
) -> None:
    config = replace(quick, learners=("linear",))
    outcomes(make_features(), tmp_path, config)
    first = (tmp_path / "oof.parquet").read_bytes()
    outcomes(make_features(), tmp_path, replace(config, context=(2,)))
    found, written = outcomes(make_features(), tmp_path, config)
    assert set(found.values()) == {"cached"} and written
    assert (tmp_path / "oof.parquet").read_bytes() == first


def test_files_of_the_older_layout_are_removed(make_features: MakeFeatures, quick: HeadsConfig, tmp_path: Path) -> None:
    older = tmp_path / "heads" / "front-rgb"
    older.mkdir(parents=True)
    for name in ("action-linear.json", "action-linear.design.safetensors", "notes.txt"):
        (older / name).write_text("{}")
    outcomes(make_features(), tmp_path, replace(quick, learners=("linear",)))
    assert [path.name for path in older.iterdir() if path.is_file()] == ["notes.txt"]


def test_labels_and_scenes_of_the_test_split_change_no_file(
    make_features: MakeFeatures, manifest: Manifest, relabel: Callable, quick: HeadsConfig, tmp_path: Path
) -> None:
    config = replace(quick, gbm_rounds=5)
    outcomes(make_features(), tmp_path / "honest", config)
    outcomes(make_features(relabel(manifest, ["r8", "r9"])), tmp_path / "lied_to", config)
    files = sorted(path.relative_to(tmp_path / "honest") for path in (tmp_path / "honest").rglob("*") if path.is_file())
    assert len(files) > 40
    for file in files:
        assert (tmp_path / "honest" / file).read_bytes() == (tmp_path / "lied_to" / file).read_bytes(), file


def test_damaged_and_missing_files_are_made_again(
    make_features: MakeFeatures, quick: HeadsConfig, tmp_path: Path
) -> None:
    config = replace(quick, learners=("linear",))
    outcomes(make_features(), tmp_path, config)
    oof = (tmp_path / "oof.parquet").read_bytes()
    (part,) = (tmp_path / "heads" / "front-rgb").glob("*/action-linear.oof.parquet")
    part.write_bytes(part.read_bytes()[:-10])
    (tmp_path / "oof.parquet").write_bytes(oof[:100])
    found, written = outcomes(make_features(), tmp_path, config)
    assert [name for name, outcome in found.items() if outcome == "fitted"] == ["front/rgb/action-linear"] and written
    assert (tmp_path / "oof.parquet").read_bytes() == oof
    (tmp_path / "heads.json").unlink()
    assert outcomes(make_features(), tmp_path, config)[1]


def test_numbers_do_not_depend_on_the_number_of_processes(
    make_features: MakeFeatures, quick: HeadsConfig, tmp_path: Path
) -> None:
    config = replace(quick, tasks=("action",), gbm_rounds=5)
    for jobs in (1, 2):
        run_heads(make_features(), tmp_path / str(jobs), config=config, jobs=jobs)
    one, two = (pl.read_parquet(tmp_path / jobs / "oof.parquet") for jobs in ("1", "2"))
    assert one.equals(two)


@pytest.mark.parametrize("backend", ["dask", "ray"])
def test_a_cluster_makes_what_this_machine_makes(
    backend: Backend,
    cluster_address: Callable[[Backend], str],
    make_features: MakeFeatures,
    quick: HeadsConfig,
    tmp_path: Path,
) -> None:
    config = replace(quick, tasks=("action",), learners=("linear",))
    run_heads(make_features(), tmp_path / "here", config=config)
    with open_cluster(backend, cluster_address(backend)) as cluster:
        assert cluster.jobs == 2
        results, written = run_heads(make_features(), tmp_path / backend, config=config, cluster=cluster)
    assert written and {result.outcome for result in results} == {"fitted"}
    one, two = (pl.read_parquet(tmp_path / name / "oof.parquet") for name in ("here", backend))
    assert one.equals(two)


def test_a_cluster_s_death_names_the_head_that_it_was_at(
    make_features: MakeFeatures, quick: HeadsConfig, tmp_path: Path
) -> None:
    def die(*_: object) -> Future[object]:
        future: Future[object] = Future()
        future.set_exception(BrokenPipeError())
        return future

    toy = Cluster("toy", 2, 1, die, lambda _: None, lambda: True, deaths=(BrokenPipeError,), endings=())
    config = replace(quick, tasks=("action",), learners=("linear",), linear_components=0, gbm_components=0)
    with pytest.raises(TalstackError, match=r"(ego|front)/rgb/action-linear: the toy worker ended \(BrokenPipeError\)"):
        run_heads(make_features(), tmp_path, config=config, cluster=toy)
    with pytest.raises(TalstackError, match=r"components of (front|ego)/rgb: the toy worker ended"):
        run_heads(make_features(), tmp_path, config=replace(config, linear_components=2, gbm_components=2), cluster=toy)


def test_clips_at_an_unknown_time_teach_scenes_only(
    make_features: MakeFeatures, quick: HeadsConfig, tmp_path: Path
) -> None:
    def shape(key: ShardKey, shard: Shard) -> Shard:
        if key.view != "ego":
            return shard
        return Shard(shard.features[:7], shard.valid[:7], shard.times_s[:7], aligned=False)

    found, _ = outcomes(make_features(shape=shape), tmp_path, replace(quick, learners=("linear",)))
    assert found["ego/rgb/scene-linear"] == "fitted" and found["ego/rgb/action-linear"] == "skipped"
    oof = pl.read_parquet(tmp_path / "oof.parquet")
    assert set(oof.filter(pl.col("view") == "ego")["head"]) == {"scene-linear"}
    again, written = outcomes(make_features(shape=shape), tmp_path, replace(quick, learners=("linear",)))
    assert again["ego/rgb/action-linear"] == "skipped" and not written


def test_one_scene_or_none_means_no_scene_head(
    make_features: MakeFeatures, manifest: Manifest, quick: HeadsConfig, tmp_path: Path
) -> None:
    recordings = manifest.recordings.with_columns(pl.lit(None, dtype=pl.String).alias("scene"))
    features = make_features(replace(manifest, recordings=recordings, scenes=()))
    found, _ = outcomes(features, tmp_path, replace(quick, learners=("linear",)))
    assert not any("scene" in name for name in found)


def test_nothing_to_learn_from_is_an_error(make_features: MakeFeatures, quick: HeadsConfig, tmp_path: Path) -> None:
    features = make_features(shape=lambda key, shard: shard if key.recording in ("r8", "r9") else None)
    with pytest.raises(InputError, match="no .view, modality. has features of a recording to learn from"):
        run_heads(features, tmp_path, config=quick)


def test_quality_counts_unseen_out_of_fold_recordings(
    make_features: MakeFeatures, quick: HeadsConfig, tmp_path: Path
) -> None:
    features = make_features(seen=["r0", "r1", "r2"])
    run_heads(features, tmp_path, config=replace(quick, learners=("linear",)))
    oof = pl.read_parquet(tmp_path / "oof.parquet")
    quality = quality_table(oof, features)
    by_name = {(row["view"], row["head"]): row for row in quality.iter_rows(named=True)}
    assert by_name["front", "action-linear"]["num_recordings"] == 5
    assert by_name["ego", "action-linear"]["num_recordings"] == 4
    expected = {"action-linear": 0.7, "activity-linear": 0.6, "boundary-linear": 0.1, "scene-linear": 0.7}
    values = {name: row["value"] for name, row in by_name.items()}
    assert all(value > expected[head] for (_, head), value in values.items()), str(values)
    spoiled = oof.with_columns(
        pl.when(pl.col("recording").is_in(["r0", "r1", "r2", "r8", "r9"])).then(0.5).otherwise(pl.col("prob"))
        .cast(pl.Float32).alias("prob")
    )  # fmt: skip
    assert quality_table(spoiled, features).equals(quality)
    nothing = quality_table(oof, make_features(seen=[f"r{i}" for i in range(8)]))
    assert nothing["value"].is_null().all() and (nothing["num_recordings"] == 0).all()
    assert np.isfinite(quality["value"].to_numpy()).all()


def test_components_are_made_once_and_shared(
    make_features: MakeFeatures, quick: HeadsConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    outcomes(make_features(), run, quick)
    made = {path: path.stat().st_mtime_ns for path in run.glob("heads/*/components/*")}
    assert len(made) == 2 * 2 * 5, "two files for each of two groups and of four folds and all"
    monkeypatch.setattr("talstack.heads.inputs.read_group", lambda *_: pytest.fail("the stored features were read"))
    monkeypatch.setattr("talstack.heads.components.read_group", lambda *_: pytest.fail("the stored features were read"))
    found, _ = outcomes(make_features(), run, replace(quick, linear_l2=(0.02,), context=(2,)))
    assert refitted(found) and made == {path: path.stat().st_mtime_ns for path in run.glob("heads/*/components/*")}


def test_damaged_components_are_made_again(make_features: MakeFeatures, quick: HeadsConfig, tmp_path: Path) -> None:
    config = replace(quick, learners=("linear",), tasks=("action",))
    outcomes(make_features(), tmp_path, config)
    files = sorted(tmp_path.glob("heads/*/components/*.safetensors"))
    content = files[0].read_bytes()
    files[0].write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    outcomes(make_features(), tmp_path, replace(config, linear_l2=(0.02,)))
    assert files[0].read_bytes() == content


def test_heads_on_shared_components_equal_heads_on_the_features(
    make_features: MakeFeatures, quick: HeadsConfig, tmp_path: Path
) -> None:
    config = replace(quick, learners=("linear",), tasks=("action", "scene"))
    outcomes(make_features(), tmp_path / "shared", config)
    features = make_features()
    group = read_group(features, "front", "rgb")
    key = ModelKey("front", "rgb", "action-linear")
    targets = task_targets("action", features.manifest, group, features.segment_s)
    alone = cross_fit(key, group, targets, plan=FoldPlan.of(features.manifest, (), config), config=config).table
    shared = pl.read_parquet(tmp_path / "shared" / "oof.parquet").filter(
        (pl.col("view") == "front") & (pl.col("head") == "action-linear")
    )
    np.testing.assert_allclose(shared["prob"], alone["prob"], atol=5e-3)


def test_death_of_a_process_is_told_with_what_is_left_and_what_is_done_is_kept(
    make_features: MakeFeatures, quick: HeadsConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(quick, learners=("linear",))
    work = run_module._numbered

    def dies(number: int, job: run_module.HeadJob, *given: Any) -> Any:
        if job.key.head == "scene-linear":
            time.sleep(3)  # until others are done
            os.kill(os.getpid(), signal.SIGKILL)
        return work(number, job, *given)

    done: list[str] = []
    with monkeypatch.context() as patched:
        patched.setattr(run_module, "_numbered", dies)
        with pytest.raises(TalstackError, match=r"fitting .*front/rgb/scene-linear.*: a process died.*fewer --jobs"):
            run_heads(
                make_features(), tmp_path, config=config, jobs=2, report=lambda result: done.append(str(result.key))
            )
    assert done and not any("scene" in name for name in done)
    found, _ = outcomes(make_features(), tmp_path, config)
    assert {name for name, outcome in found.items() if outcome == "cached"} >= set(done)
