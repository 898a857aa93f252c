"""Choosing decode settings for the target metric on predictions that are not in-sample.

One setting after the other is tried over its candidates while the rest stay, until nothing improves; then the
starts and ends are shifted by the median error of the matched detections if that helps. Every system is tuned in
the same way, so that none is ahead by its settings.
"""

from collections.abc import Collection
from dataclasses import replace

import numpy as np
import polars as pl

from talstack.ensemble.config import EnsembleConfig
from talstack.ensemble.curves import Curves
from talstack.ensemble.decode import Decoder, DecodeSettings
from talstack.evaluate.map import evaluate_detections
from talstack.io.intervals import pairwise_tiou

TARGET_TIOU = (0.5, 0.75, 0.95)
MAX_PASSES = 3
SEARCHED = ("proposals", "margin", "contrast_weight", "smoothing_s", "nms_sigma")


def first_settings(config: EnsembleConfig) -> DecodeSettings:
    """Return the settings made of the first candidates."""
    return DecodeSettings(
        nms=config.nms,
        nms_threshold=config.nms_threshold,
        max_detections=config.max_detections,
        **{name: getattr(config, name)[0] for name in SEARCHED},
    )


def tune(
    decoder: Decoder, curves: Curves, instances: pl.DataFrame, *, config: EnsembleConfig
) -> tuple[DecodeSettings, float | None]:
    """Return the best settings and their average mAP over `TARGET_TIOU`; the first candidates
    and None without instances.

    Args:
        decoder: knows the recordings of `curves`.
        curves: predictions that are not in-sample.
        instances: ground truth; recordings that `curves` lacks are left out.
    """
    recordings = curves.index.recordings
    instances = instances.filter(pl.col("recording").is_in(list(recordings)))
    settings = first_settings(config)
    if instances.is_empty():
        return settings, None
    best = _score(decoder, curves, instances, settings)
    for _ in range(MAX_PASSES):
        before = settings
        for name in SEARCHED:
            for value in getattr(config, name):
                candidate = replace(settings, **{name: value})
                if candidate == settings:
                    continue
                score = _score(decoder, curves, instances, candidate)
                if score > best:
                    best, settings = score, candidate
        if settings == before:
            break
    start, end = boundary_bias(decoder.decode(curves, settings), instances)
    shifted = replace(settings, start_shift_s=-start, end_shift_s=-end)
    score = _score(decoder, curves, instances, shifted)
    return (shifted, score) if score > best else (settings, best)


def boundary_bias(detections: pl.DataFrame, instances: pl.DataFrame) -> tuple[float, float]:
    """Return the median of detected minus true start, and end, seconds, over instances that are found; 0 if none is.

    An instance's detection is the highest-scored one of its recording and class with tIoU >= 0.5.
    """
    errors = []
    found = detections.partition_by("recording", "label", as_dict=True)
    for key, true in instances.partition_by("recording", "label", as_dict=True).items():
        if key not in found:
            continue
        ranked = found[key].sort("score", descending=True).select("start_s", "end_s").to_numpy()
        intervals = true.select("start_s", "end_s").to_numpy()
        close = pairwise_tiou(intervals, ranked) >= 0.5
        hit = close.any(axis=1)
        errors.append(ranked[close.argmax(axis=1)[hit]] - intervals[hit])
    if not sum(len(rows) for rows in errors):
        return 0.0, 0.0
    start, end = np.median(np.concatenate(errors), axis=0)
    return float(start), float(end)


def _score(decoder: Decoder, curves: Curves, instances: pl.DataFrame, settings: DecodeSettings) -> float:
    detections = decoder.decode(curves, settings)
    return evaluate_detections(detections, instances, tiou_thresholds=TARGET_TIOU).average_map


def average_map(
    detections: pl.DataFrame, instances: pl.DataFrame, *, tiou: Collection[float]
) -> tuple[float, dict[str, float]]:
    """Return the average mAP and {threshold: mAP} over the tIoU thresholds, fractions."""
    result = evaluate_detections(detections, instances, tiou_thresholds=tuple(tiou))
    return result.average_map, {f"{t:g}": value for t, value in zip(result.tiou, result.map, strict=True)}
