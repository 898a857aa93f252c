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

from talstack.evaluate.average_precision import average_precisions
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
    listed = set(instances["recording"].unique().to_list()) if known is None else known
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
    classes = pl.Enum(instances["label"].unique().sort())
    scored = detections.with_columns(pl.col("label").cast(classes, strict=False))
    if scored["label"].null_count():
        scored = scored.drop_nulls("label")
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
