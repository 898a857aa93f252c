"""Why detections are wrong: false positives by kind, their profile, and the mAP that each kind costs.

Kinds and profile are DETAD's (`talstack.evaluate.error_kinds` has the definitions and the source), and so is the
gain when all of a kind are removed. The gain when they are corrected instead is TIDE's (Bolya, Foley, Hays, Hoffman:
TIDE: A General Toolbox for Identifying Object Detection Errors, ECCV 2020; dbolya/tide, tidecv/errors).
"""

from collections.abc import Sequence

import numpy as np
import polars as pl

from talstack.evaluate.average_precision import areas_under_precision, false_before_hits, precision_at_hits
from talstack.evaluate.error_kinds import (
    CONFUSION,
    KINDS,
    LOCALIZATION,
    TRUE_POSITIVE,
    WRONG_LABEL,
    Case,
    Precedence,
    Verdict,
    decide_kinds,
    prepare_case,
)
from talstack.evaluate.matching import rank_intervals
from talstack.io.detections import DETECTION_SCHEMA
from talstack.io.errors import InputError

MISSED = "missed"
IMPACT_KINDS = (*KINDS[1:], MISSED)
MAPS = ("map", "map_if_removed", "map_if_corrected")
CORRECTABLE = (WRONG_LABEL, LOCALIZATION, CONFUSION)


def classify_detections(
    detections: pl.DataFrame,
    instances: pl.DataFrame,
    *,
    tiou_threshold: float = 0.5,
    background_tiou: float = 0.1,
    precedence: Precedence = "own label",
) -> pl.DataFrame:
    """Return the detections, in their order, each with its kind and the instance that decides it.

    Columns added: kind (Enum of `KINDS`), tiou (float64, with the instance that decides), instance (int64, row of
    `instances`), instance_label (String), rank (int64, from 1, within the label by descending score; ties as in
    `talstack.evaluate.map`). The instance that decides is the one taken, for a true positive; the one overlapped
    most of the label or labels in question, for a false positive; the one overlapped most of all, for a background
    detection. Where a detection overlaps nothing, instance and instance_label are null and tiou is 0. A detection
    whose label the ground truth lacks is wrong label, confusion or background.

    Args:
        detections: table (recording, start_s, end_s, label, score), seconds.
        instances: table (recording, start_s, end_s, label), seconds.
        tiou_threshold: from which tIoU on a detection may take an instance, in (0, 1].
        background_tiou: below which tIoU an overlap does not count, in (0, tiou_threshold].
        precedence: "own label", or "overlap" as in DETAD's program; see `talstack.evaluate.error_kinds`.

    Raises:
        InputError: a row that either table refuses, no instance at all, or an argument outside its range.
    """
    case = prepare_case(detections, instances, [tiou_threshold], background_tiou=background_tiou)
    verdict = decide_kinds(case, 0, precedence=precedence)
    instance, places = pl.Series("instance", verdict.instance), pl.int_range(case.instances.height, eager=True)
    return case.detections.with_columns(
        pl.Series("kind", verdict.kind).replace_strict(list(range(len(KINDS))), KINDS, return_dtype=pl.Enum(KINDS)),
        pl.Series("tiou", verdict.tiou),
        instance.replace_strict(places, case.instances["row"], default=None),
        instance.replace_strict(places, case.instances["label"], default=None).alias("instance_label"),
        pl.Series("rank", _ranks(case.detections)),
    )


def false_positive_profile(
    classified: pl.DataFrame, instances: pl.DataFrame, *, multiples: int = 10, cumulative: bool = True
) -> pl.DataFrame:
    """Return how the best detections divide into kinds: (multiple int64, kind, count int64, share float64).

    Of each label with G instances the best k * G detections are counted, k = 1 .. multiples; detections of a label
    without an instance are not. Shares are of all detections counted for that k; 0 where there is none. All kinds
    and multiples have a row.

    Args:
        classified: what `classify_detections` returned.
        instances: the table it was given.
        multiples: the largest k; DETAD: 10.
        cumulative: False counts for k only those ranked beyond (k - 1) * G, which is what DETAD's plot shows.

    Raises:
        InputError: `multiples` below 1, or a missing column.
    """
    _check_profile(classified, multiples)
    sizes = instances.group_by(pl.col("label").cast(pl.String)).agg(pl.len().cast(pl.Int64).alias("size"))
    counts = (
        classified.select("label", "kind", "rank")
        .join(sizes, on="label", how="inner")
        .group_by(((pl.col("rank") - 1) // pl.col("size") + 1).alias("multiple"), "kind")
        .agg(pl.len().cast(pl.Int64).alias("count"))
    )
    grid = pl.DataFrame({"multiple": range(1, multiples + 1)}, schema={"multiple": pl.Int64}).join(
        pl.DataFrame({"kind": KINDS}, schema={"kind": pl.Enum(KINDS)}), how="cross"
    )
    table = grid.join(counts, on=["multiple", "kind"], how="left").with_columns(pl.col("count").fill_null(0))
    table = table.sort("multiple", "kind")
    if cumulative:
        table = table.with_columns(pl.col("count").cum_sum().over("kind"))
    total = pl.col("count").sum().over("multiple")
    return table.with_columns(pl.when(total > 0).then(pl.col("count") / total).otherwise(0.0).alias("share"))


def error_impact(
    detections: pl.DataFrame,
    instances: pl.DataFrame,
    *,
    tiou_thresholds: Sequence[float],
    background_tiou: float = 0.1,
    precedence: Precedence = "own label",
) -> pl.DataFrame:
    """Return what each kind of error costs: one row per kind and threshold, and one (tiou null) for their average.

    Columns: kind (Enum of `IMPACT_KINDS`), tiou, count, map, map_if_removed, gain_removed, map_if_corrected,
    gain_corrected; numbers float64, mAP as the evaluator defines it, gains in the same unit. No gain is negative,
    and none by correction is below the one by removal.

    Removed, as in DETAD (there of the best 10 G detections of a label, by a normalised AP; here of all detections,
    by the evaluator's): all detections of the kind at that threshold are taken out. They take no instance, so
    nothing else changes.

    Corrected, as in TIDE: the detection keeps its score and gets the interval of the instance that decides its kind
    (localization), that instance's label (wrong label), or both (confusion, which TIDE removes). Where the instance
    is taken, by a true positive or by a better corrected detection, it is removed instead; so are all double
    detections and background detections.

    Missed are the instances that no detection takes and none could be corrected to take. There is nothing to remove
    (null); corrected, as in TIDE, they need not be found: they are taken out of the ground truth. A class left
    without an instance counts 1 if it has no detection, 0 if it has some (TIDE leaves the first out of the mean).

    Args, Raises: as `classify_detections`; each threshold at least `background_tiou` and at most 1.
    """
    case = prepare_case(detections, instances, tiou_thresholds, background_tiou=background_tiou)
    by_score = _by_score(case)
    rows: list[tuple[str, float, int, float, float | None, float]] = []
    for place, threshold in enumerate(case.matched.thresholds.tolist()):
        verdict = decide_kinds(case, place, precedence=precedence)
        is_hit = verdict.kind == TRUE_POSITIVE
        aps = _aps(case, by_score, label=case.label, is_hit=is_hit)
        before = float(aps.mean())
        for code, kind in enumerate(KINDS[1:], start=1):
            chosen = verdict.kind == code
            removed = _aps(case, by_score[~chosen[by_score]], label=case.label, is_hit=is_hit)
            corrected = _aps_if_corrected(case, by_score, verdict, code) if code in CORRECTABLE else removed
            rows.append((kind, threshold, int(chosen.sum()), before, float(removed.mean()), float(corrected.mean())))
        reached = verdict.instance[is_hit | np.isin(verdict.kind, CORRECTABLE)]
        is_missed = ~np.isin(np.arange(case.instances.height), reached)
        found = float(_aps_if_found(case, aps, is_missed).mean())
        rows.append((MISSED, threshold, int(is_missed.sum()), before, None, found))
    return _impact_table(rows)


def _impact_table(rows: list[tuple[str, float, int, float, float | None, float]]) -> pl.DataFrame:
    numbers = dict.fromkeys(("tiou", "count", *MAPS), pl.Float64)
    table = pl.DataFrame(rows, schema={"kind": pl.Enum(IMPACT_KINDS), **numbers}, orient="row")
    average = table.group_by("kind").agg(pl.col("count", *MAPS).mean()).with_columns(tiou=pl.lit(None, pl.Float64))
    table = pl.concat([table, average.select(table.columns)]).sort("tiou", "kind", nulls_last=True)
    return table.select(
        *("kind", "tiou", "count", "map"),
        *("map_if_removed", (pl.col("map_if_removed") - pl.col("map")).alias("gain_removed")),
        *("map_if_corrected", (pl.col("map_if_corrected") - pl.col("map")).alias("gain_corrected")),
    )


def _check_profile(classified: pl.DataFrame, multiples: int) -> None:
    if multiples < 1:
        raise InputError(f"false positive profile: multiples must be 1 or more, got {multiples}")
    for name in ("label", "kind", "rank"):
        if name not in classified.columns:
            raise InputError(f"false positive profile: no column {name!r}; pass what classify_detections returns")


def _ranks(detections: pl.DataFrame) -> np.ndarray:
    """Return each detection's rank within its label, from 1, (n,) int64."""
    names = (detections[name].unique().sort() for name in ("label", "recording"))
    ranked = rank_intervals(detections, *names)
    ranks = np.empty(detections.height, dtype=np.int64)
    ranks[ranked.row] = np.arange(1, detections.height + 1) - np.searchsorted(ranked.label, ranked.label)
    return ranks


def _by_score(case: Case) -> np.ndarray:
    """Return all rows, (n,) int64, by descending score; ties as the evaluator breaks them, then by label."""
    table = case.detections.select(pl.int_range(pl.len(), dtype=pl.Int64).alias("place"), *DETECTION_SCHEMA)
    order = ["score", "recording", "start_s", "end_s", "label"]
    # equal rows stay in their order, as in matching: the one that takes an instance comes first
    return table.sort(order, descending=[True, False, False, False, False], maintain_order=True)["place"].to_numpy()


def _aps(case: Case, rows: np.ndarray, *, label: np.ndarray, is_hit: np.ndarray) -> np.ndarray:
    """Return the AP of every class, (C,) float64, of some detections under the labels and outcomes given.

    Args:
        case: where they come from; n detections.
        rows: those that count, by descending score.
        label: (n,) int64, class index; -1 does not count.
        is_hit: (n,) bool, which of them take an instance.
    """
    rows = rows[label[rows] >= 0]
    rows = rows[np.argsort(label[rows], kind="stable")]
    num_instances = np.bincount(case.instance_label, minlength=len(case.matched.classes))
    places = np.flatnonzero(is_hit[rows])
    hit_label = label[rows[places]]
    first = np.searchsorted(label[rows], np.arange(num_instances.size))
    false_before = false_before_hits(hit_label, places, first=first)
    precision = precision_at_hits(hit_label, false_before, num_instances=num_instances)
    return areas_under_precision(hit_label, precision, num_instances=num_instances)


def _aps_if_corrected(case: Case, by_score: np.ndarray, verdict: Verdict, code: int) -> np.ndarray:
    """Return the AP of every class once the detections of one kind take the instance that decides their kind."""
    is_hit, chosen = verdict.kind == TRUE_POSITIVE, verdict.kind == code
    is_free = ~np.isin(verdict.instance, verdict.instance[is_hit])
    candidates = by_score[(chosen & is_free)[by_score]]
    _, first = np.unique(verdict.instance[candidates], return_index=True)
    winners = candidates[first]
    keep, label = ~chosen, case.label.copy()
    keep[winners] = is_hit[winners] = True
    label[winners] = case.instance_label[verdict.instance[winners]]
    return _aps(case, by_score[keep[by_score]], label=label, is_hit=is_hit)


def _aps_if_found(case: Case, aps: np.ndarray, is_missed: np.ndarray) -> np.ndarray:
    """Return the AP of every class, `aps` so far, with the missed instances taken out of the ground truth."""
    before = np.bincount(case.instance_label, minlength=aps.size)
    after = np.bincount(case.instance_label[~is_missed], minlength=aps.size)
    num_detections = np.bincount(case.label[case.scored], minlength=aps.size)
    return np.where(after > 0, aps * before / np.maximum(after, 1), num_detections == 0)
