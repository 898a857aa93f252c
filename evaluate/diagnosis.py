"""Why a mAP is what it is: every breakdown of one system's detections, as tidy frames in one object.

In the spirit of DETAD (Alwassel et al., ECCV 2018): which kinds of false positives there are and what each costs,
which instances are hard to find, beside per-class and per-scene figures, calibration and, for a run, its heads and
scenes. The definitions are in `talstack.evaluate.false_positives`, `.sensitivity`, `.calibration` and `.scene`.
Shares, AP and mAP are fractions from 0 to 1; nothing depends on the order of rows.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl

from talstack.evaluate.calibration import score_reliability, segment_reliability
from talstack.evaluate.false_positives import classify_detections, error_impact, false_positive_profile
from talstack.evaluate.map import MapResult, evaluate_detections
from talstack.evaluate.scene import SceneResult, evaluate_scene_models, evaluate_scenes
from talstack.evaluate.sensitivity import VALUE_COLUMNS, Edges, describe_instances, false_negatives, sensitivity
from talstack.io.files import atomic_path, write_json
from talstack.io.ground_truth import GroundTruth
from talstack.io.manifest import Manifest
from talstack.io.predictions import models_of

FRAMES = (
    "per_class",
    "per_scene",
    "false_positive_profile",
    "error_impact",
    "sensitivity",
    "false_negatives",
    "score_reliability",
    "score_calibration",
    "segment_reliability",
    "segment_calibration",
    "scene_confusion",
    "scene_recall",
    "scene_models",
)


@dataclass(frozen=True, slots=True, eq=False)
class Diagnosis:
    """What one system's detections get right and wrong; frames are None where their inputs were not given.

    Attributes:
        result: mAP and AP at each of the K thresholds.
        tiou_threshold: tIoU from which on a detection may take an instance, in `classified`,
            `false_positive_profile` and `false_negatives`.
        background_tiou: tIoU below which an overlap does not count.
        classified: the detections as `classify_detections` returns them: one row each, with kind.
        per_class: label, num_instances, num_detections, ap_<tIoU> of each threshold, average_ap.
        per_scene: scene, num_recordings, num_instances, num_classes, map_<tIoU> of each threshold, average_map; over
            the recordings of each scene alone, mAP null where they have no instance. Without rows where no scene is
            known.
        false_positive_profile: kinds in portions of G detections per class, best first; shares within the portion.
        error_impact: what each kind of error costs.
        sensitivity: normalised AP by kind of instance; `low` and `high` are the least and the greatest value that an
            instance of the group has.
        false_negatives: share of missed instances by kind of instance, with `low` and `high` too.
        score_reliability, score_calibration: curve and summary of the scores against true positives, per tIoU.
        segment_reliability, segment_calibration: curve and summary of each head's segment probabilities.
        scene_confusion, scene_recall: what scene is taken for what, and how often each is found.
        scene_models: accuracy of each scene head.
        scene: accuracy of the system's scene predictions.
    """

    result: MapResult
    tiou_threshold: float
    background_tiou: float
    classified: pl.DataFrame
    per_class: pl.DataFrame
    per_scene: pl.DataFrame
    false_positive_profile: pl.DataFrame
    error_impact: pl.DataFrame
    sensitivity: pl.DataFrame
    false_negatives: pl.DataFrame
    score_reliability: pl.DataFrame
    score_calibration: pl.DataFrame
    segment_reliability: pl.DataFrame | None = None
    segment_calibration: pl.DataFrame | None = None
    scene_confusion: pl.DataFrame | None = None
    scene_recall: pl.DataFrame | None = None
    scene_models: pl.DataFrame | None = None
    scene: SceneResult | None = None

    def frames(self) -> Iterator[tuple[str, pl.DataFrame]]:
        """Yield the name and the frame of every summary there is; `classified` is not one."""
        for name in FRAMES:
            frame: pl.DataFrame | None = getattr(self, name)
            if frame is not None:
                yield name, frame

    def costliest(self) -> pl.DataFrame:
        """Return the kinds of error by what correcting them would gain in average mAP, most first."""
        return costliest_first(self.error_impact)

    def to_json(self) -> dict[str, Any]:
        """Return everything but `classified` as plain values: {..., "frames": {name: [row, ...]}}."""
        scene = None if self.scene is None else self.scene.to_json()
        return {
            "result": self.result.to_json(),
            "tiou_threshold": self.tiou_threshold,
            "background_tiou": self.background_tiou,
            "costliest": _rows(self.costliest()),
            "scene": scene and {name: scene[name] for name in ("top1", "top5", "num_recordings", "missing", "ignored")},
            "frames": {name: _rows(frame) for name, frame in self.frames()},
        }

    def save(self, folder: Path) -> list[Path]:
        """Write diagnosis.json, a CSV per frame and classified.parquet; return the files.

        CSV, because these tables are small and made to be opened anywhere; diagnosis.json keeps their types. A CSV
        that an earlier diagnosis left there and this one has no frame for is removed.
        """
        frames = dict(self.frames())
        for name in FRAMES:
            path = folder / f"{name}.csv"
            if name not in frames:
                path.unlink(missing_ok=True)
                continue
            with atomic_path(path) as temporary:
                frames[name].write_csv(temporary)
        with atomic_path(folder / "classified.parquet") as temporary:
            self.classified.write_parquet(temporary)
        write_json(folder / "diagnosis.json", self.to_json())
        tables = [folder / f"{name}.csv" for name in frames]
        return [*tables, folder / "classified.parquet", folder / "diagnosis.json"]


def diagnose(
    detections: pl.DataFrame,
    truth: GroundTruth,
    *,
    tiou_thresholds: Sequence[float],
    preset: str = "custom",
    tiou_threshold: float = 0.5,
    background_tiou: float = 0.1,
    edges: Mapping[str, Edges] | None = None,
) -> Diagnosis:
    """Return the diagnosis of one system's detections.

    Args:
        detections: table (recording, start_s, end_s, label, score).
        truth: what happens when; its durations and scenes are used where they are known.
        tiou_thresholds: what mAP averages over; each in [background_tiou, 1].
        preset: what to call these thresholds.
        tiou_threshold: from which tIoU on a detection counts as found, for the kinds of errors.
        background_tiou: below which tIoU an overlap does not count.
        edges: of the groups of instances, as `describe_instances` takes them.

    Raises:
        InputError: a row that either table refuses, no instance at all, or a threshold outside its range.
    """
    instances, at = truth.instances, list(tiou_thresholds)
    result = evaluate_detections(detections, instances, tiou_thresholds=at, preset=preset, recordings=truth.recordings)
    classified = classify_detections(
        detections, instances, tiou_threshold=tiou_threshold, background_tiou=background_tiou
    )
    described = describe_instances(instances, truth.durations_s, edges=edges)
    ranges = group_ranges(described)
    missed = false_negatives(detections, described, tiou_threshold=tiou_threshold)
    scores = score_reliability(detections, instances, tiou_thresholds=at)
    return Diagnosis(
        result=result,
        tiou_threshold=tiou_threshold,
        background_tiou=background_tiou,
        classified=classified,
        per_class=per_class_table(result, detections),
        per_scene=per_scene_table(detections, truth, tiou_thresholds=at),
        false_positive_profile=false_positive_profile(classified, instances, cumulative=False),
        error_impact=error_impact(detections, instances, tiou_thresholds=at, background_tiou=background_tiou),
        sensitivity=_with_ranges(sensitivity(detections, described, tiou_thresholds=at), ranges),
        false_negatives=_with_ranges(missed, ranges),
        score_reliability=scores.curve,
        score_calibration=scores.summary,
    )


def with_segments(
    diagnosis: Diagnosis, table: pl.DataFrame, manifest: Manifest, *, segment_s: float, recordings: Sequence[str]
) -> Diagnosis:
    """Return the diagnosis with the calibration of every head and the accuracy of every scene head.

    Args:
        table: the out-of-fold table of `talstack.io.predictions`.
        manifest: the data set that it predicts.
        segment_s: length of a segment, seconds.
        recordings: which to look at.
    """
    segments = segment_reliability(table, manifest, segment_s=segment_s, recordings=recordings)
    known = _known_scenes(manifest, recordings)
    if known.height and models_of(table, "scene"):
        diagnosis = replace(diagnosis, scene_models=evaluate_scene_models(table, known, scenes=manifest.scenes))
    return replace(diagnosis, segment_reliability=segments.curve, segment_calibration=segments.summary)


def with_scenes(
    diagnosis: Diagnosis, probs: pl.DataFrame, manifest: Manifest, *, recordings: Sequence[str]
) -> Diagnosis:
    """Return the diagnosis with the accuracy of scene predictions; unchanged where no recording has a known scene.

    Args:
        probs: `recording` and one column per scene, as `read_scene_probs` returns.
        manifest: the data set that they predict.
        recordings: which to look at; those without a prediction count as wrong.
    """
    known = _known_scenes(manifest, recordings)
    if known.is_empty():
        return diagnosis
    scene = evaluate_scenes(probs, known, scenes=manifest.scenes)
    return replace(diagnosis, scene=scene, scene_confusion=scene.confusion, scene_recall=scene.recall)


def per_class_table(result: MapResult, detections: pl.DataFrame) -> pl.DataFrame:
    """Return label, num_instances, num_detections, ap_<tIoU> of each threshold and average_ap; sorted by label."""
    rows = [
        (label, result.instances_per_class[label], *values, sum(values) / len(values))
        for label, values in result.ap.items()
    ]
    schema: dict[str, type[pl.DataType]] = {"label": pl.String, "num_instances": pl.Int64}
    schema |= _measures(result.tiou, "ap")
    counts = detections.group_by(pl.col("label").cast(pl.String)).agg(num_detections=pl.len().cast(pl.Int64))
    table = pl.DataFrame(rows, schema=schema, orient="row").join(counts, on="label", how="left")
    counted = pl.col("num_detections").fill_null(0)
    return table.select("label", "num_instances", counted, *_measures(result.tiou, "ap")).sort("label")


def per_scene_table(detections: pl.DataFrame, truth: GroundTruth, *, tiou_thresholds: Sequence[float]) -> pl.DataFrame:
    """Return the mAP over each scene's recordings alone, in the order of the scene list.

    As mAP does, it averages over the classes that occur there, so scenes are compared on different classes.

    Returns:
        scene, num_recordings, num_instances, num_classes, map_<tIoU> of each threshold, average_map; no row for a
        scene without a recording, null mAP for one without an instance.
    """
    measures = _measures(tiou_thresholds, "map")
    rows: list[tuple[Any, ...]] = []
    for scene in truth.scene_names:
        names = [name for name in truth.recordings if truth.scenes.get(name) == scene]
        own, found = (table.filter(pl.col("recording").is_in(names)) for table in (truth.instances, detections))
        values: Sequence[float | None] = [None] * len(measures)
        if own.height:
            result = evaluate_detections(found, own, tiou_thresholds=tiou_thresholds, recordings=names)
            values = [*result.map, result.average_map]
        if names:
            rows.append((scene, len(names), own.height, own["label"].n_unique(), *values))
    counts = ((name, pl.Int64) for name in ("num_recordings", "num_instances", "num_classes"))
    return pl.DataFrame(rows, schema=[("scene", pl.String), *counts, *measures.items()], orient="row")


def costliest_first(impact: pl.DataFrame) -> pl.DataFrame:
    """Return the averages over thresholds of `error_impact`, without `tiou`, by what correcting the kind would gain."""
    average = impact.filter(pl.col("tiou").is_null()).drop("tiou")
    return average.sort(["gain_corrected", "gain_removed", "kind"], descending=[True, True, False], nulls_last=True)


def group_ranges(described: pl.DataFrame) -> pl.DataFrame:
    """Return (characteristic, group, low, high): the least and the greatest value of each group's instances.

    Args:
        described: what `describe_instances` returned.
    """
    parts = [
        described.filter(pl.col(f"{name}_group").is_not_null())
        .group_by(pl.col(f"{name}_group").cast(pl.String).alias("group"))
        .agg(low=pl.col(column).min().cast(pl.Float64), high=pl.col(column).max().cast(pl.Float64))
        .select(pl.lit(name).alias("characteristic"), "group", "low", "high")
        for name, column in VALUE_COLUMNS.items()
    ]
    return pl.concat(parts).sort("characteristic", "low")


def range_text(characteristic: str, low: float | None, high: float | None) -> str:
    """Return a group's range for people: "2.5–4.1 s", "3–8 %", "1"; empty where there is none."""
    if low is None or high is None:
        return ""
    scale, unit = {"coverage": (100.0, " %"), "length": (1.0, " s")}.get(characteristic, (1.0, ""))
    ends = [f"{scale * value:.3g}" for value in (low, high)]
    return (ends[0] if ends[0] == ends[1] else "–".join(ends)) + unit


def _with_ranges(table: pl.DataFrame, ranges: pl.DataFrame) -> pl.DataFrame:
    joined = table.join(ranges, on=["characteristic", "group"], how="left", maintain_order="left")
    return joined.select("characteristic", "group", "low", "high", pl.exclude("characteristic", "group", "low", "high"))


def _measures(thresholds: Sequence[float], name: str) -> dict[str, type[pl.DataType]]:
    return dict.fromkeys([*(f"{name}_{threshold:g}" for threshold in thresholds), f"average_{name}"], pl.Float64)


def _known_scenes(manifest: Manifest, recordings: Sequence[str]) -> pl.DataFrame:
    rows = manifest.recordings.filter(pl.col("recording").is_in(list(recordings)) & pl.col("scene").is_not_null())
    return rows.select("recording", "scene")


def _rows(frame: pl.DataFrame) -> list[dict[str, Any]]:
    numbers = pl.selectors.float()  # JSON knows neither NaN nor infinity
    return frame.with_columns(pl.when(numbers.is_finite()).then(numbers)).to_dicts()
