import csv
import json
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from talstack.evaluate.diagnosis import FRAMES, diagnose, range_text, with_scenes, with_segments
from talstack.evaluate.false_positives import classify_detections, error_impact, false_positive_profile
from talstack.evaluate.map import evaluate_detections
from talstack.evaluate.sensitivity import PRESET_EDGES
from talstack.io.detections import DETECTION_SCHEMA, INSTANCE_SCHEMA, read_predictions
from talstack.io.errors import InputError
from talstack.io.ground_truth import GroundTruth, read_ground_truth
from talstack.io.manifest import SCHEMAS, Manifest, empty_table
from talstack.io.predictions import ModelKey, scene_rows, segment_rows
from talstack.io.targets import segment_index

TIOU = (0.5, 0.75)
INSTANCES = pl.DataFrame(
    [("a", 0.0, 10.0, "run"), ("a", 20.0, 30.0, "sit"), ("b", 0.0, 4.0, "run"), ("b", 40.0, 42.0, "eat")],
    schema=INSTANCE_SCHEMA,
    orient="row",
)
DETECTIONS = pl.DataFrame(
    [
        ("a", 0.0, 10.0, "run", 0.9),
        ("a", 0.0, 9.0, "run", 0.8),  # double detection
        ("a", 20.0, 26.0, "sit", 0.7),  # a hit at 0.5, a localization error at 0.75
        ("a", 20.0, 30.0, "run", 0.6),  # wrong label
        ("b", 100.0, 110.0, "run", 0.5),  # background
        ("b", 0.0, 4.0, "fly", 0.4),  # a class that the ground truth lacks
    ],
    schema=DETECTION_SCHEMA,
    orient="row",
)


@pytest.fixture
def truth():
    durations_s, scenes = {"a": 60.0, "b": 50.0, "c": 5.0}, {"a": "gym", "b": "park", "c": "moon"}
    return GroundTruth(INSTANCES, ("a", "b", "c"), {}, (), {}, durations_s, scenes, ("park", "gym", "moon", "sea"))


@pytest.fixture
def found(truth):
    return diagnose(DETECTIONS, truth, tiou_thresholds=TIOU)


def test_every_part_comes_from_its_function(found, truth):
    result = evaluate_detections(DETECTIONS, INSTANCES, tiou_thresholds=TIOU, recordings=truth.recordings)
    assert found.result == result
    assert found.classified.equals(classify_detections(DETECTIONS, INSTANCES))
    assert found.error_impact.equals(error_impact(DETECTIONS, INSTANCES, tiou_thresholds=TIOU))
    assert found.error_impact["map"].max() == pytest.approx(max(result.map))
    assert found.false_positive_profile.filter(pl.col("multiple") == 1)["count"].sum() == 3  # two runs, one sit


def test_per_class_has_every_class_of_the_ground_truth(found):
    assert found.per_class.columns == [
        "label", "num_instances", "num_detections", "ap_0.5", "ap_0.75", "average_ap",
    ]  # fmt: skip
    assert found.per_class.select("label", "num_instances", "num_detections").rows() == [
        ("eat", 1, 0),
        ("run", 2, 4),
        ("sit", 1, 1),
    ]
    assert found.per_class["average_ap"].to_list() == pytest.approx([0.0, 0.5, 0.5])
    assert found.per_class["average_ap"].mean() == pytest.approx(found.result.average_map)


def test_per_scene_scores_each_scenes_recordings_alone(found):
    assert found.per_scene.rows() == [
        ("park", 1, 2, 2, 0.0, 0.0, 0.0),
        ("gym", 1, 2, 2, 1.0, 0.5, 0.75),
        ("moon", 1, 0, 0, None, None, None),
    ]


def test_without_scenes_and_durations():
    found = diagnose(DETECTIONS, GroundTruth(INSTANCES, ("a", "b"), {}, (), {}), tiou_thresholds=TIOU)
    assert found.per_scene.is_empty()
    assert set(found.sensitivity["characteristic"]) == {"all", "length", "num_instances"}
    assert found.scene is None


def test_groups_say_what_values_they_hold(found, truth):
    length = found.sensitivity.filter(pl.col("characteristic") == "length")
    assert length["low"].min() == 2.0
    assert length["high"].max() == 10.0
    assert found.sensitivity.select("characteristic", "group").equals(
        found.false_negatives.select("characteristic", "group")
    )
    whole = found.sensitivity.row(0, named=True)
    assert (whole["characteristic"], whole["low"], whole["num_instances"]) == ("all", None, 4)
    fixed = diagnose(DETECTIONS, truth, tiou_thresholds=TIOU, edges=PRESET_EDGES["thumos"]).sensitivity
    length = fixed.filter(pl.col("characteristic") == "length")
    assert length.select("group", "low", "high").rows() == [("XS", 2.0, 2.0), ("S", 4.0, 4.0), ("M", 10.0, 10.0)]


def test_range_text():
    assert range_text("length", 2.0, 3.456) == "2–3.46 s"
    assert range_text("coverage", 0.025, 0.05) == "2.5–5 %"
    assert range_text("num_instances", 1, 1) == "1"
    assert range_text("all", None, None) == ""


def test_costliest_first(found):
    costliest = found.costliest()
    assert "tiou" not in costliest.columns
    gains = costliest["gain_corrected"].to_list()
    assert gains == sorted(gains, reverse=True)
    assert costliest["kind"][0] == "missed"  # one class is not found at all


def test_order_of_rows_does_not_matter(found, truth):
    shuffled = GroundTruth(
        INSTANCES.reverse(), truth.recordings, {}, (), {}, truth.durations_s, truth.scenes, truth.scene_names
    )
    again = diagnose(DETECTIONS.sample(fraction=1, shuffle=True, seed=3), shuffled, tiou_thresholds=TIOU)
    assert again.to_json() == found.to_json()


def test_thresholds_reach_the_kinds(truth):
    strict = diagnose(DETECTIONS, truth, tiou_thresholds=TIOU, tiou_threshold=0.75)
    kinds = dict(strict.classified["kind"].cast(pl.String).value_counts().iter_rows())
    assert (kinds["true positive"], kinds["localization"]) == (1, 1)
    with pytest.raises(InputError, match="threshold"):
        diagnose(DETECTIONS, truth, tiou_thresholds=(0.0,))


def test_no_detection_at_all(truth):
    found = diagnose(DETECTIONS.clear(), truth, tiou_thresholds=TIOU)
    assert found.result.average_map == 0.0
    assert found.score_reliability.is_empty()
    assert found.false_negatives["share"].to_list() == [1.0] * found.false_negatives.height
    json.dumps(found.to_json(), allow_nan=False)


def test_save_writes_what_there_is_and_removes_what_is_no_more(found, tmp_path):
    (tmp_path / "scene_models.csv").write_text("old")
    (tmp_path / "mine.csv").write_text("stays")
    files = found.save(tmp_path)
    names = {name for name, _ in found.frames()}
    assert names == set(FRAMES[:8])
    assert {path.name for path in files} == {f"{n}.csv" for n in names} | {"classified.parquet", "diagnosis.json"}
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in files} | {"mine.csv"}
    with open(tmp_path / "per_class.csv", newline="") as file:
        assert next(csv.DictReader(file))["label"] == "eat"
    saved = json.loads((tmp_path / "diagnosis.json").read_text())
    assert saved == json.loads(json.dumps(found.to_json()))
    assert saved["frames"]["per_scene"][2]["average_map"] is None
    assert pl.read_parquet(tmp_path / "classified.parquet").equals(found.classified)


@pytest.fixture
def manifest(tmp_path):
    recordings = [("a", 60.0, "gym", "test"), ("b", 50.0, "park", "test"), ("c", 5.0, None, "test")]
    return Manifest(
        "set", tmp_path, ("run", "sit", "eat"), ("park", "gym"),
        pl.DataFrame(recordings, schema=SCHEMAS["recordings"], orient="row"), empty_table("clips"), INSTANCES,
    )  # fmt: skip


def test_heads_and_scenes_of_a_run(found, manifest):
    index = segment_index(manifest, 5.0)
    rows = index.num_rows
    fold = np.full(rows, -1)
    action = segment_rows(
        ModelKey("pano", "rgb", "action-gbm"), index, np.full((rows, 3), 0.1), valid=np.ones(rows, dtype=bool),
        fold=fold, classes=manifest.actions,
    )  # fmt: skip
    scene = scene_rows(
        ModelKey("pano", "rgb", "scene-gbm"), ["a", "b"], np.array([[0.1, 0.9], [0.2, 0.8]]),
        valid=np.ones(2, dtype=bool), fold=np.full(2, -1), classes=manifest.scenes,
    )  # fmt: skip
    more = with_segments(found, pl.concat([action, scene]), manifest, segment_s=5.0, recordings=["a", "b", "c"])
    assert more.segment_calibration["count"].to_list() == [3 * rows] * 2
    assert more.scene_models.select("num_recordings", "top1").rows() == [(2, 0.5)]
    probs = pl.DataFrame({"recording": ["a", "b", "c"], "park": [0.0, 1.0, 0.5], "gym": [1.0, 0.0, 0.5]})
    more = with_scenes(more, probs, manifest, recordings=["a", "b", "c"])
    assert (more.scene.top1, more.scene_recall["recall"].to_list()) == (1.0, [1.0, 1.0])
    assert [name for name, _ in more.frames()] == list(FRAMES)
    assert more.to_json()["scene"]["num_recordings"] == 2
    assert with_scenes(found, probs, manifest, recordings=["c"]) is found  # its scene is not known


def test_tied_scores_of_real_data_in_any_order(shared_data):
    folder = shared_data / "conformance" / "activitynet"
    detections = read_predictions(folder / "predictions_ties.csv").detections
    truth = read_ground_truth(folder / "ground_truth.json")
    found = diagnose(detections, truth, tiou_thresholds=(0.5, 0.95))
    shuffled = replace(truth, instances=truth.instances.sample(fraction=1, shuffle=True, seed=1))
    again = diagnose(detections.sample(fraction=1, shuffle=True, seed=2), shuffled, tiou_thresholds=(0.5, 0.95))
    assert again.to_json() == found.to_json()
    assert found.error_impact.filter(pl.col("tiou").is_null())["map"].to_list() == pytest.approx(
        [found.result.average_map] * 6, abs=1e-12
    )


def test_infinite_figures_become_null_in_json(truth):
    huge = DETECTIONS.with_columns(score=pl.lit(1.7e308))
    value = diagnose(huge, truth, tiou_thresholds=TIOU).to_json()
    json.dumps(value, allow_nan=False)
    assert any(row["mean_prob"] is None for row in value["frames"]["score_reliability"])


def test_labels_may_be_categorical():
    categorical = INSTANCES.with_columns(pl.col("label").cast(pl.Categorical))
    plain, other = (
        false_positive_profile(classify_detections(DETECTIONS, table), table) for table in (INSTANCES, categorical)
    )
    assert plain.equals(other)
