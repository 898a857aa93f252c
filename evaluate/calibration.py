"""Are the numbers probabilities? Reliability curves and calibration errors of scores and segment probabilities.

A reliability curve groups predictions by probability and compares, per bin, the mean probability with the
frequency of the event (DeGroot and Fienberg, 1983). The expected calibration error is the mean gap weighted by
bin size, the maximum one the widest gap (Naeini et al., AAAI 2015; Guo et al., ICML 2017); both depend on the
bins, so two binnings stand side by side: `equal_width` (Guo's, (low, high], 0 in the first) and `equal_mass`
(edges at quantiles; equal values share a bin). The Brier score (1950) needs no bins.

Values outside [0, 1] cannot be probabilities: their curve has equal-mass bins only, and the errors are null with
a reason. All frames are independent of row order, to the last bit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import polars as pl

from talstack.evaluate.map import match_for_map
from talstack.io.errors import InputError
from talstack.io.manifest import Manifest
from talstack.io.predictions import ACTIVITY, by_model, dense_probs
from talstack.io.targets import segment_index, segment_targets

NUM_BINS = 10
BINNINGS = ("equal_width", "equal_mass")
NO_PREDICTION = "no prediction"
NOT_PROBABILITIES = "values outside [0, 1] are no probabilities"

CURVE_SCHEMA: Mapping[str, type[pl.DataType]] = {
    "binning": pl.String,
    "bin": pl.Int64,
    "low": pl.Float64,
    "high": pl.Float64,
    "count": pl.Int64,
    "mean_prob": pl.Float64,
    "frequency": pl.Float64,
}
SUMMARY_SCHEMA: Mapping[str, type[pl.DataType]] = {
    "binning": pl.String,
    "count": pl.Int64,
    "mean_prob": pl.Float64,
    "frequency": pl.Float64,
    "ece": pl.Float64,
    "mce": pl.Float64,
    "brier": pl.Float64,
    "reason": pl.String,
}


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """Reliability curves of one or several sources of probabilities.

    Attributes:
        curve: the source's columns, then `CURVE_SCHEMA`: one row per bin that is not empty; `frequency` is how
            often the event happens there.
        summary: the source's columns, then `SUMMARY_SCHEMA`: one row per source and binning; ece, mce and brier
            are null where `reason` says why.
    """

    curve: pl.DataFrame
    summary: pl.DataFrame


def reliability(probs: np.ndarray, outcomes: np.ndarray, *, num_bins: int = NUM_BINS) -> Calibration:
    """Return the reliability curve and the calibration errors, with equal-width and with equal-mass bins.

    Args:
        probs: (n,) float, finite; what was said to be the probability of the event.
        outcomes: (n,) bool, whether it happened.
        num_bins: at least 1; equal values share a bin, so there may be fewer of equal mass.

    Raises:
        InputError: shapes that do not fit, a value that is not finite, or num_bins < 1.
    """
    probs, outcomes = _checked(probs, outcomes, num_bins)
    if not probs.size:
        return _joined([_unknown(binning, 0, NO_PREDICTION) for binning in BINNINGS])
    if probs[0] >= 0 and probs[-1] <= 1:
        return _joined([_measured(probs, outcomes, binning, num_bins) for binning in BINNINGS])
    shown = _measured(probs, outcomes, "equal_mass", num_bins)
    nulls = [pl.lit(None, dtype=pl.Float64).alias(name) for name in ("ece", "mce", "brier")]
    summary = shown.summary.with_columns(*nulls, reason=pl.lit(NOT_PROBABILITIES))
    return _joined([_unknown("equal_width", probs.size, NOT_PROBABILITIES), Calibration(shown.curve, summary)])


def score_reliability(
    detections: pl.DataFrame,
    instances: pl.DataFrame,
    *,
    tiou_thresholds: Sequence[float],
    num_bins: int = NUM_BINS,
) -> Calibration:
    """Return how well detection scores state the probability of a true positive, at each tIoU.

    Detections of a class that the ground truth lacks are left out, as mAP leaves them out.

    Args:
        detections: table (recording, start_s, end_s, label, score).
        instances: table (recording, start_s, end_s, label), at least one row.
        tiou_thresholds: each in (0, 1].
        num_bins: of each curve.

    Returns:
        Frames with `tiou` first.

    Raises:
        InputError: a row that either table refuses, or a threshold outside (0, 1].
    """
    matched, _ = match_for_map(detections, instances, tiou_thresholds)
    scored = detections.filter(pl.col("label").is_in(list(matched.classes)))
    scores = scored["score"].cast(pl.Float64).to_numpy()[matched.detections.row]
    parts = []
    for tiou, hits in zip(matched.thresholds.tolist(), matched.hits, strict=True):
        outcomes = np.zeros(scores.size, dtype=bool)
        outcomes[hits.detection] = True
        parts.append(_labelled(reliability(scores, outcomes, num_bins=num_bins), tiou=tiou))
    return _joined(parts)


def segment_reliability(
    table: pl.DataFrame,
    manifest: Manifest,
    *,
    segment_s: float,
    recordings: Sequence[str],
    num_bins: int = NUM_BINS,
) -> Calibration:
    """Return how well each activity and action head states probabilities, over all its classes and segments.

    Every (segment, class) with a valid prediction is one event: "this class happens in this segment", as
    `segment_targets` says; for an activity head, "any class does". Most of them do not happen, so an action head
    of many classes has a small error by nature: compare heads with each other, and with `frequency`.

    Args:
        table: the out-of-fold table of `talstack.io.predictions`.
        manifest: the data set it predicts.
        segment_s: length of a segment, seconds.
        recordings: which to take.
        num_bins: of each curve.

    Returns:
        Frames with (view, modality, head) first, sorted by them.
    """
    index = segment_index(manifest, segment_s, sorted(set(recordings)))
    actions = segment_targets(manifest, index, segment_s)
    activity = actions.sum(axis=1, keepdims=True) > 0
    parts = []
    for key, rows in by_model(table).items():
        if key.task not in ("activity", "action"):
            continue
        classes = [ACTIVITY] if key.task == "activity" else list(manifest.actions)
        happens = activity if key.task == "activity" else actions
        probs = dense_probs(rows, key, index=index, classes=classes).astype(np.float64)
        known = ~np.isnan(probs)
        found = reliability(probs[known], happens[known], num_bins=num_bins)
        parts.append(_labelled(found, **asdict(key)))
    return _joined(parts) if parts else _no_models()


def _checked(probs: np.ndarray, outcomes: np.ndarray, num_bins: int) -> tuple[np.ndarray, np.ndarray]:
    """Return both as float64 in ascending order of the first: sums then never depend on row order."""
    probs, outcomes = np.asarray(probs, dtype=np.float64), np.asarray(outcomes)
    if probs.ndim != 1 or outcomes.shape != probs.shape or outcomes.dtype != bool:
        raise InputError(
            f"reliability: expected probs (n,) and outcomes (n,) bool, got {probs.shape}, {outcomes.shape} "
            f"{outcomes.dtype}"
        )
    if not np.isfinite(probs).all():
        raise InputError(f"reliability: {int((~np.isfinite(probs)).sum())} of {probs.size} values are not finite")
    if num_bins < 1:
        raise InputError(f"reliability: num_bins must be at least 1, got {num_bins}")
    order = np.lexsort((outcomes, probs))
    return probs[order], outcomes[order].astype(np.float64)


def _edges(ascending: np.ndarray, binning: str, num_bins: int) -> np.ndarray:
    """Return the bins' edges, ascending; the first equal-mass bin is one point where the lowest value fills it."""
    if binning == "equal_width":
        return np.linspace(0.0, 1.0, num_bins + 1)
    ranks = np.ceil(np.arange(1, num_bins + 1) * ascending.size / num_bins).astype(np.int64) - 1
    return np.concatenate([ascending[:1], np.unique(ascending[np.maximum(ranks, 0)])])


def _measured(probs: np.ndarray, outcomes: np.ndarray, binning: str, num_bins: int) -> Calibration:
    """Return curve and errors of one binning; bins are (low, high], the first one [low, high]."""
    edges = _edges(probs, binning, num_bins)
    place = np.searchsorted(edges[1:-1], probs, side="left")
    count = np.bincount(place, minlength=edges.size - 1)
    used = np.flatnonzero(count)
    mean_prob, frequency = (np.bincount(place, v, count.size)[used] / count[used] for v in (probs, outcomes))
    gap = np.abs(frequency - mean_prob)
    curve = {
        "binning": [binning] * used.size,
        "bin": used,
        "low": edges[:-1][used],
        "high": edges[1:][used],
        "count": count[used],
        "mean_prob": mean_prob,
        "frequency": frequency,
    }
    with np.errstate(over="ignore"):  # of huge scores, whose errors are not shown anyway
        summary = {
            "binning": binning,
            "count": probs.size,
            "mean_prob": float(probs.mean()),
            "frequency": float(outcomes.mean()),
            "ece": float((count[used] * gap).sum() / probs.size),
            "mce": float(gap.max()),
            "brier": float(np.square(probs - outcomes).mean()),
            "reason": None,
        }
    return Calibration(pl.DataFrame(curve, schema=CURVE_SCHEMA), pl.DataFrame([summary], schema=SUMMARY_SCHEMA))


def _unknown(binning: str, count: int, reason: str) -> Calibration:
    summary = {"binning": binning, "count": count, "reason": reason}
    return Calibration(pl.DataFrame(schema=CURVE_SCHEMA), pl.DataFrame([summary], schema=SUMMARY_SCHEMA))


def _labelled(found: Calibration, **source: str | float) -> Calibration:
    """Return the frames with the source's columns in front."""
    columns = [pl.lit(value).alias(name) for name, value in source.items()]
    return Calibration(found.curve.select(*columns, pl.all()), found.summary.select(*columns, pl.all()))


def _joined(parts: Sequence[Calibration]) -> Calibration:
    return Calibration(pl.concat(part.curve for part in parts), pl.concat(part.summary for part in parts))


def _no_models() -> Calibration:
    names = dict.fromkeys(("view", "modality", "head"), pl.String)
    return Calibration(pl.DataFrame(schema={**names, **CURVE_SCHEMA}), pl.DataFrame(schema={**names, **SUMMARY_SCHEMA}))
