"""Accuracy of every head on the test subject of stitched UTD-MHAD, from the data and features of benchmarks/mhad.py.

Every head is decoded by itself with the same fixed settings, so that rows differ by the head alone. Median errors of
boundaries: activity curves are read where they cross one half, boundary heads at the centre of mass around their
highest part; either within 0.75 s of the true one, what is not found counts 0.75 s.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import polars as pl
from rich.table import Table

from talstack.ensemble.curves import CurveMeans, Curves
from talstack.ensemble.decode import Decoder, DecodeSettings
from talstack.ensemble.runs import threshold_runs
from talstack.ensemble.tune import TARGET_TIOU, average_map
from talstack.evaluate.segments import segment_average_precision
from talstack.heads.config import HeadsConfig
from talstack.heads.run import run_heads
from talstack.io.extraction import FeatureSet
from talstack.io.manifest import Manifest
from talstack.io.predictions import ACTIVITY, ModelKey, SegmentIndex, boundary_curves, dense_probs
from talstack.io.targets import boundary_targets, segment_index, segment_targets

SEARCH_S = 0.75
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "no context": {"context": (), "boundary_context": ()},
    "one window of 4": {"context": (4,)},
    "two neighbours, no windows": {"context": (), "boundary_context": (), "context_neighbours": 2},
    "with max and position": {
        "context_statistics": ("level", "slope", "spread", "max"), "context_position": True,
    },
    "PCA to 16": {"linear_components": 16, "gbm_components": 16},
    "PCA to 64": {"linear_components": 64, "gbm_components": 64},
    "no PCA for gbm": {"gbm_components": 0, "learners": ("gbm",)},
    "no squares": {"linear_squares": 0.0, "learners": ("linear",)},
}  # fmt: skip
COLUMNS = ("segment mAP", "interval mAP", "with boundaries", "boundary AP", "median s, activity", "median s, boundary")


def accuracy_table(run: Path, out: Path, jobs: int) -> Table:
    """Return a row per variant, (view, modality) and learner; everything on split test."""
    manifest = Manifest.load(run / "data")
    features = FeatureSet.open(manifest, run / "store")
    table = Table(title="test subject, percent and seconds")
    for column in ("settings", "features", "learner", *COLUMNS):
        table.add_column(column, justify="right" if column in COLUMNS else "left")
    for name, settings in VARIANTS.items():
        config = replace(HeadsConfig(tasks=("activity", "action", "boundary")), **settings)
        folder = out / "mhad" / name.replace(" ", "-")
        run_heads(features, folder, config=config, jobs=jobs)
        oof = pl.read_parquet(folder / "oof.parquet")
        for view, modality in features.groups:
            for learner in config.learners:
                keys = {task: ModelKey(view, modality, f"{task}-{learner}") for task in config.tasks}
                values = measure(oof, keys, features)
                row = (name, f"{view}/{modality}", learner, *(f"{value:.3f}" for value in values))
                click.echo("  ".join(row), err=True)
                table.add_row(*row)
    return table


def measure(oof: pl.DataFrame, keys: dict[str, ModelKey], features: FeatureSet) -> list[float]:
    """Return the columns of one row."""
    manifest, length_s = features.manifest, features.segment_s
    there = set(oof.filter(pl.col("view") == keys["action"].view, pl.col("valid"))["recording"])
    recordings = [name for name in manifest.recordings_of(["test"]) if name in there]
    index = segment_index(manifest, length_s, recordings)
    action = dense_probs(oof, keys["action"], index=index, classes=manifest.actions)
    activity = dense_probs(oof, keys["activity"], index=index, classes=[ACTIVITY])[:, 0]
    valid = ~np.isnan(action).any(axis=1)
    action, activity = np.where(valid[:, None], action, 1e-3), np.where(valid, activity, 1e-3)
    targets = segment_targets(manifest, index, length_s)
    curves = boundary_curves(oof, keys["boundary"], index=index, segment_s=length_s)
    sides = np.stack([curves.start, curves.end], axis=1)
    sides_targets = boundary_targets(manifest, index, length_s, parts=1)
    parts = {"start_s": np.nan_to_num(curves.start_parts), "end_s": np.nan_to_num(curves.end_parts)}
    instances = manifest.instances.filter(pl.col("recording").is_in(recordings))
    decoder = Decoder.of(manifest, length_s, manifest.recordings_of(["train", "val"]))
    found = decoder.decode(Curves(index, action, activity), DecodeSettings())
    return [
        100 * segment_average_precision(action, targets, valid)[1],
        100 * average_map(found, instances, tiou=TARGET_TIOU)[0],
        100 * average_map(moved(found, parts, index, length_s), instances, tiou=TARGET_TIOU)[0],
        100 * segment_average_precision(sides, sides_targets, valid)[1],
        float(np.median(crossing_errors_s(activity, index, instances, length_s))),
        float(np.median(boundary_errors_s(parts, index, instances, length_s))),
    ]


def nearest_boundary(mass: np.ndarray, time_s: float, part_s: float, reach_s: float) -> float:
    """Return the centre of mass, within a segment, of the highest part within reach of a time; the time if nothing."""
    times = (np.arange(len(mass)) + 0.5) * part_s
    near = np.flatnonzero(np.abs(times - time_s) <= reach_s)
    if not len(near) or not mass[near].max() > 0:
        return time_s
    peak = near[mass[near].argmax()]
    around = slice(max(peak - 2, 0), peak + 3)
    return float((mass[around] * times[around]).sum() / mass[around].sum())


def moved(detections: pl.DataFrame, parts: dict[str, np.ndarray], index: SegmentIndex, length_s: float) -> pl.DataFrame:
    """Return the detections with each end at the boundary head's best guess within one segment of it."""
    rows = dict(index.slices())
    new: dict[str, list[float]] = {side: [] for side in parts}
    for row in detections.iter_rows(named=True):
        for side, mass in parts.items():
            own = mass[rows[row["recording"]]]
            part_s = length_s / own.shape[1]
            new[side].append(nearest_boundary(own.reshape(-1), row[side], part_s, length_s))
    columns = {side: pl.Series(side, values, dtype=pl.Float64) for side, values in new.items()}
    return detections.with_columns(**columns).filter(pl.col("end_s") > pl.col("start_s"))


def boundary_errors_s(
    parts: dict[str, np.ndarray], index: SegmentIndex, instances: pl.DataFrame, length_s: float
) -> list[float]:
    rows, out = dict(index.slices()), []
    for row in instances.iter_rows(named=True):
        for side, mass in parts.items():
            own = mass[rows[row["recording"]]]
            guess = nearest_boundary(own.reshape(-1), row[side], length_s / own.shape[1], SEARCH_S)
            out.append(min(abs(guess - row[side]), SEARCH_S) if own.any() else SEARCH_S)
    return out


def crossing_errors_s(
    activity: np.ndarray, index: SegmentIndex, instances: pl.DataFrame, length_s: float
) -> list[float]:
    out = []
    for recording, rows in index.slices():
        curve = activity[rows][:, None].astype(np.float64)
        runs = threshold_runs(CurveMeans([curve], length_s), (0.5,)).intervals
        for row in instances.filter(pl.col("recording") == recording).iter_rows(named=True):
            for column, side in enumerate(("start_s", "end_s")):
                errors = np.abs(runs[:, column] - row[side])
                out.append(min(float(errors.min(initial=SEARCH_S)), SEARCH_S))
    return out
