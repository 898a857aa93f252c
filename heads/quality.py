"""How good each head is on out-of-fold segments: a quick look before there are intervals."""

import numpy as np
import polars as pl

from talstack.evaluate.scene import top_k_accuracy
from talstack.evaluate.segments import segment_average_precision
from talstack.io.extraction import FeatureSet
from talstack.io.predictions import ACTIVITY, ModelKey, boundary_curves, by_model, dense_probs, scene_probs
from talstack.io.targets import boundary_targets, scene_targets, segment_index, segment_targets

METRICS = {"activity": "AP", "action": "mean AP", "boundary": "mean AP", "scene": "top-1"}
SCHEMA: dict[str, type[pl.DataType]] = {
    "view": pl.String,
    "modality": pl.String,
    "head": pl.String,
    "metric": pl.String,
    "value": pl.Float64,
    "num_recordings": pl.Int64,
}


def quality_table(oof: pl.DataFrame, features: FeatureSet) -> pl.DataFrame:
    """Return one row per head, scored on out-of-fold recordings that the backbone has not seen.

    `value` is a fraction from 0 to 1 (AP of any action, mean AP over the actions that occur, or over start and end, or
    the share of scenes that are right), null where nothing can be scored.
    """
    counts = pl.col("fold").is_not_null() & pl.col("valid") & ~pl.col("recording").is_in(features.seen)
    rows = []
    for key, own in by_model(oof).items():
        own = own.filter(counts)
        recordings = sorted(own["recording"].unique())
        value = _value(own, key, features, recordings) if recordings else None
        rows.append((key.view, key.modality, key.head, METRICS[key.task], value, len(recordings)))
    return pl.DataFrame(rows, schema=SCHEMA, orient="row")


def _value(own: pl.DataFrame, key: ModelKey, features: FeatureSet, recordings: list[str]) -> float | None:
    manifest = features.manifest
    if key.task == "scene":
        scenes = scene_targets(manifest, recordings)
        probs = scene_probs(own, key, recordings=recordings, scenes=manifest.scenes)
        known = scenes >= 0
        return top_k_accuracy(probs[known], scenes[known], k=1) if known.any() else None
    index = segment_index(manifest, features.segment_s, recordings)
    if key.task == "boundary":
        curves = boundary_curves(own, key, index=index, segment_s=features.segment_s)
        sides = boundary_targets(manifest, index, features.segment_s, parts=1)
        return _mean_ap(np.stack([curves.start, curves.end], axis=1), sides)
    targets = segment_targets(manifest, index, features.segment_s)
    classes = list(manifest.actions)
    if key.task == "activity":
        targets, classes = np.any(targets, axis=1, keepdims=True), [ACTIVITY]
    return _mean_ap(dense_probs(own, key, index=index, classes=classes), targets)


def _mean_ap(probs: np.ndarray, targets: np.ndarray) -> float | None:
    valid = ~np.isnan(probs).any(axis=1)
    return segment_average_precision(probs, targets, valid)[1] if targets[valid].any() else None
