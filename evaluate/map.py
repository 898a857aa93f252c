"""Mean average precision of detections, as ActivityNet defines it.

Source of the definition: activitynet/ActivityNet, Evaluation/eval_detection.py. Per class, the detections of all
recordings are walked in descending score and matched with instances (`talstack.evaluate.matching`); AP is the
area under the interpolated precision-recall curve, mAP its mean over the classes of the ground truth. The
reference leaves ties in score undefined: here they are broken by recording, then start, then end, so that the
order of rows never matters.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
import polars as pl

from talstack.evaluate.matching import Matched, match_detections
from talstack.io.detections import validate_detections, validate_instances
from talstack.io.errors import InputError

PRESETS: Mapping[str, tuple[float, ...]] = MappingProxyType(
    {
        "anet": tuple(np.linspace(0.5, 0.95, 10).tolist()),  # the ninth is 0.8999999999999999, as in the reference
        "thumos": (0.3, 0.4, 0.5, 0.6, 0.7),
        "epic": (0.1, 0.2, 0.3, 0.4, 0.5),
        "ego4d": (0.1, 0.2, 0.3, 0.4, 0.5),
        "binego360": (0.5, 0.75, 0.95),
    }
)
WEIGHTS_PER_BLOCK = 4_000_000  # bounds the working memory of a bootstrap
UNKNOWN_LABEL = "label not in ground truth"


@dataclass(frozen=True, slots=True)
class MapResult:
    """Mean average precision, fractions from 0 to 1.

    Attributes:
        preset: name of the threshold list.
        tiou: the K thresholds.
        map: mAP at each threshold, K values.
        average_map: their mean.
        ap: {class of the ground truth: K values}, classes sorted.
        num_predictions: detections that were scored.
        num_instances: instances that they were scored against.
        ignored: {reason: count} of detections that were not scored.
        instances_per_class: {class: number of instances}.
        num_unlisted: scored detections on recordings that the ground truth does not list: false positives.
        compat: whose rules were followed where they are not ActivityNet's (`talstack.evaluate.compat`).
        changed: {what was done: count} of rows that these rules changed but scored.
    """

    preset: str
    tiou: tuple[float, ...]
    map: tuple[float, ...]
    average_map: float
    ap: Mapping[str, tuple[float, ...]]
    num_predictions: int
    num_instances: int
    ignored: Mapping[str, int] = field(default_factory=dict)
    instances_per_class: Mapping[str, int] = field(default_factory=dict)
    num_unlisted: int = 0
    compat: str | None = None
    changed: Mapping[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the object that `talstack evaluate --json` prints; `compat` and `changed` where one is in force."""
        compat = {"compat": self.compat, "changed": dict(self.changed)} if self.compat is not None else {}
        return {
            "preset": self.preset,
            "tiou": list(self.tiou),
            "map": list(self.map),
            "average_map": self.average_map,
            "ap": {label: list(values) for label, values in self.ap.items()},
            "num_predictions": self.num_predictions,
            "num_instances": self.num_instances,
            "ignored": dict(self.ignored),
            **compat,
        }


def evaluate_detections(
    detections: pl.DataFrame,
    instances: pl.DataFrame,
    *,
    tiou_thresholds: Sequence[float],
    preset: str = "custom",
    recordings: Iterable[str] | None = None,
) -> MapResult:
    """Return the mAP of the detections, which does not depend on the order of rows.

    Detections of a class that the ground truth lacks are ignored with a count; detections on a recording that it
    lacks are false positives; an instance that is listed twice counts twice. All as in the reference.

    Args:
        detections: table (recording, start_s, end_s, label, score); starts may lie before 0.
        instances: table (recording, start_s, end_s, label).
        tiou_thresholds: each in (0, 1]; `PRESETS` has the usual ones.
        preset: what to call these thresholds in the result.
        recordings: all recordings of the ground truth, those without an instance too; default: those with one.

    Raises:
        InputError: a row that either table refuses, thresholds outside (0, 1], or no instance at all.
    """
    known = None if recordings is None else set(recordings)
    matched, num_ignored = match_for_map(detections, instances, tiou_thresholds, recordings=known or ())
    listed = set(instances["recording"]) if known is None else known
    ignored = {UNKNOWN_LABEL: num_ignored} if num_ignored else {}
    return summarise(matched, average_precisions(matched)[0], preset=preset, ignored=ignored, recordings=listed)


def summarise(
    matched: Matched, ap: np.ndarray, *, preset: str, ignored: Mapping[str, int], recordings: Collection[str]
) -> MapResult:
    """Return the result of a matching, C classes and K thresholds.

    Args:
        matched: detections and instances.
        ap: (C, K) float64.
        preset: what to call the thresholds.
        ignored: {reason: count} of detections that were left out before.
        recordings: all recordings of the ground truth.
    """
    counts = np.bincount(matched.instances.label, minlength=len(matched.classes))
    is_listed = np.array([name in recordings for name in matched.recordings], dtype=bool)
    return MapResult(
        preset=preset,
        tiou=tuple(matched.thresholds.tolist()),
        map=tuple(ap.mean(axis=0).tolist()),
        average_map=float(ap.mean(axis=0).mean()),
        ap={name: tuple(values) for name, values in zip(matched.classes, ap.tolist(), strict=True)},
        num_predictions=matched.detections.row.size,
        num_instances=matched.instances.row.size,
        ignored=ignored,
        instances_per_class=dict(zip(matched.classes, counts.tolist(), strict=True)),
        num_unlisted=int((~is_listed[matched.detections.recording]).sum()),
    )


def match_for_map(
    detections: pl.DataFrame,
    instances: pl.DataFrame,
    tiou_thresholds: Sequence[float],
    *,
    recordings: Iterable[str] = (),
) -> tuple[Matched, int]:
    """Return the matched detections and how many were left out because the ground truth lacks their class.

    Args, Raises: as `evaluate_detections`.
    """
    thresholds = checked_thresholds(tiou_thresholds)
    detections, instances = checked_tables(detections, instances)
    scored = detections.filter(pl.col("label").is_in(instances["label"].unique().to_list()))
    return match_detections(scored, instances, thresholds, recordings=recordings), detections.height - scored.height


def checked_tables(detections: pl.DataFrame, instances: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return both tables with their schema's columns; refuse bad rows and a ground truth without an instance."""
    detections = validate_detections(detections, where="detections", allow_negative=True)
    instances = validate_instances(instances, where="instances", allow_negative=True)
    if instances.is_empty():
        raise InputError("instances: the ground truth has no instance, so mAP is undefined; is it the right split?")
    return detections, instances


def checked_thresholds(tiou_thresholds: Sequence[float]) -> np.ndarray:
    """Return the thresholds as (K,) float64; refuse any outside (0, 1]."""
    thresholds = np.asarray(tiou_thresholds, dtype=np.float64)
    if thresholds.ndim != 1 or not thresholds.size or not ((thresholds > 0) & (thresholds <= 1)).all():
        raise InputError(f"tIoU thresholds must be one or more numbers in (0, 1], got {tiou_thresholds!r}")
    return thresholds


def average_precisions(matched: Matched, weights: np.ndarray | None = None) -> np.ndarray:
    """Return the AP of every class at every threshold, for one or several weightings of the recordings.

    A recording of weight w counts as w recordings with the same detections and instances. Recall only rises at a
    true positive and precision only falls between two of them, so the area under the interpolated curve is the
    weighted sum over true positives of the best precision from there on, per instance.

    Args:
        matched: detections and instances, C classes, R recordings, K thresholds.
        weights: (B, R) >= 0, one row per weighting; default: one row of ones.

    Returns:
        (B, C, K) float64; NaN for a class without an instance of positive weight.
    """
    if weights is None:
        return _plain_average_precisions(matched)[None]
    weights = np.asarray(weights, dtype=np.float64)
    classes = np.arange(len(matched.classes))
    first, past = (np.searchsorted(matched.detections.label, classes, side=side) for side in ("left", "right"))
    ap = np.empty((len(weights), classes.size, len(matched.hits)))
    for index in classes:
        recording = matched.detections.recording[first[index] : past[index]]
        positions = [_between(hits.detection, first[index], past[index]) for hits in matched.hits]
        count = weights[:, matched.instances.recording[matched.instances.label == index]].sum(axis=1)
        rows_per_block = max(1, WEIGHTS_PER_BLOCK // max(1, recording.size))
        for low in range(0, len(weights), rows_per_block):
            block = slice(low, low + rows_per_block)
            ap[block, index] = _interpolated_ap(weights[block], recording, positions, count[block])
    return ap


def _plain_average_precisions(matched: Matched) -> np.ndarray:
    """Return (C, K): the APs without weights, all classes at once."""
    labels, num_classes = matched.detections.label, len(matched.classes)
    first = np.searchsorted(labels, np.arange(num_classes))
    count = np.bincount(matched.instances.label, minlength=num_classes)
    ap = np.empty((num_classes, len(matched.hits)))
    for place, hits in enumerate(matched.hits):
        label = labels[hits.detection]
        nth = np.arange(label.size) - np.searchsorted(label, label)  # among the class's true positives
        key = np.empty(label.size, dtype=np.complex128)  # ordered by its real part first: classes stay apart
        key.real, key.imag = -label, (nth + 1) / (hits.detection - first[label] + 1)
        best = np.maximum.accumulate(key[::-1])[::-1].imag
        ap[:, place] = np.bincount(label, weights=best, minlength=num_classes) / count
    return ap


def _between(ascending: np.ndarray, first: int, past: int) -> np.ndarray:
    """Return the values in [first, past), counted from `first`."""
    low, high = np.searchsorted(ascending, (first, past))
    return ascending[low:high] - first


def _interpolated_ap(
    weights: np.ndarray, recording: np.ndarray, positions: Sequence[np.ndarray], count: np.ndarray
) -> np.ndarray:
    """Return (B, K): the AP of one class.

    Args:
        weights: (B, R).
        recording: (n,) recording of each detection of the class, by rank.
        positions: ranks of the true positives, ascending, one array per threshold.
        count: (B,) weight of the class's instances.
    """
    weight = weights[:, recording]
    walked = np.cumsum(weight, axis=1)
    ap = np.empty((len(weights), len(positions)))
    with np.errstate(invalid="ignore", divide="ignore"):
        for place, ranks in enumerate(positions):
            gained = weight[:, ranks]
            precision = np.nan_to_num(np.cumsum(gained, axis=1) / walked[:, ranks], nan=0.0)
            best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
            ap[:, place] = (best * gained).sum(axis=1) / count
    return ap
