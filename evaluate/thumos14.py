"""Average precision by the rules of the THUMOS14 challenge's toolkit (TH14evalkit, TH14eventdetpr.m).

They differ from ActivityNet's (`talstack.evaluate.map`): per class and recording the INSTANCES are walked, in the
order of their table; each takes the still free detection with the highest tIoU, the first by rank where two are
equal, if that tIoU is strictly greater than the threshold. A free detection that overlaps an interval of class
`Ambiguous` in its recording is ignored, every other free one is a false positive. AP is the sum of the precision at
each true positive per instance, not interpolated; mAP its mean over the classes other than `Ambiguous`.

The toolkit leaves ties in score to the order of the file. Here they are broken by recording, start and end as
everywhere, so the order of the detections never matters; published figures that rest on the order of the file need
a score without ties. The order of the instances is part of the rules and is taken from the table as given.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from talstack.evaluate.map import UNKNOWN_LABEL, MapResult, checked_tables, checked_thresholds, summarise
from talstack.evaluate.matching import (
    ROUNDING,
    Hits,
    Matched,
    Pairs,
    Ranked,
    hull_tiou,
    overlapping_pairs,
    rank_intervals,
)
from talstack.io.errors import InputError

AMBIGUOUS = "Ambiguous"


@dataclass(frozen=True, slots=True, eq=False)
class Thumos14Match:
    """Who takes whom by the toolkit's rules, n detections and K thresholds.

    Attributes:
        matched: detections, instances without `Ambiguous`, and the true positives at each threshold.
        ignored: (K, n) bool, by rank: free detections that overlap an `Ambiguous` interval.
        num_other: detections that were left out because the ground truth lacks their class.
    """

    matched: Matched
    ignored: np.ndarray
    num_other: int

    def average_precisions(self) -> np.ndarray:
        """Return the AP of every class at every threshold, (C, K) float64."""
        labels, num_classes = self.matched.detections.label, len(self.matched.classes)
        first = np.searchsorted(labels, np.arange(num_classes))
        ap = np.empty((num_classes, len(self.matched.hits)))
        for place, hits in enumerate(self.matched.hits):
            walked = np.concatenate([[0], np.cumsum(~self.ignored[place])])
            label = labels[hits.detection]
            nth = np.arange(label.size) - np.searchsorted(label, label)  # among the class's true positives
            precision = (nth + 1) / (walked[hits.detection + 1] - walked[first[label]])
            ap[:, place] = np.bincount(label, weights=precision, minlength=num_classes)
        return ap / self._num_instances()[:, None]

    def recalls(self) -> np.ndarray:
        """Return the recall of every class at every threshold, (C, K) float64; its mean is the published one."""
        labels, num_classes = self.matched.instances.label, len(self.matched.classes)
        found = [np.bincount(labels[hits.instance], minlength=num_classes) for hits in self.matched.hits]
        return np.stack(found, axis=1) / self._num_instances()[:, None]

    def _num_instances(self) -> np.ndarray:
        return np.bincount(self.matched.instances.label, minlength=len(self.matched.classes))


def evaluate_thumos14(
    detections: pl.DataFrame,
    instances: pl.DataFrame,
    *,
    tiou_thresholds: Sequence[float],
    preset: str = "custom",
    recordings: Iterable[str] | None = None,
) -> MapResult:
    """Return the mAP by the toolkit's rules; `ignored` says how many rows `Ambiguous` took out at each threshold.

    Args, Raises: as `talstack.evaluate.map.evaluate_detections`; `instances` holds the `Ambiguous` intervals too.
    """
    listed = set(instances["recording"]) if recordings is None else set(recordings)
    match = match_thumos14(detections, instances, tiou_thresholds, recordings=listed)
    ignored = {
        UNKNOWN_LABEL: match.num_other,
        f"{AMBIGUOUS} (instance)": instances.height - match.matched.instances.row.size,
    }
    for threshold, rows in zip(match.matched.thresholds.tolist(), match.ignored, strict=True):
        ignored[f"overlaps {AMBIGUOUS}, at tIoU {threshold:g}"] = int(rows.sum())
    ignored = {reason: count for reason, count in ignored.items() if count}
    result = summarise(match.matched, match.average_precisions(), preset=preset, ignored=ignored, recordings=listed)
    return replace(result, compat="thumos14")


def thumos14_outcomes(detections: pl.DataFrame, instances: pl.DataFrame, *, tiou_threshold: float) -> pl.Series:
    """Return `tp`, `fp` or `ignored` for each row, in the order of `detections`; null where the class is unknown."""
    numbered = detections.with_row_index("row")
    match = match_thumos14(detections, instances, [tiou_threshold])
    scored = numbered.filter(pl.col("label").is_in(list(match.matched.classes)))
    outcome = np.where(match.ignored[0], "ignored", "fp")
    outcome[match.matched.hits[0].detection] = "tp"
    rows = scored["row"].gather(match.matched.detections.row)
    known = pl.DataFrame({"row": rows, "outcome": pl.Series(outcome.tolist(), dtype=pl.String)})
    return numbered.join(known, on="row", how="left", maintain_order="left")["outcome"]


def match_thumos14(
    detections: pl.DataFrame,
    instances: pl.DataFrame,
    tiou_thresholds: Sequence[float],
    *,
    recordings: Iterable[str] = (),
) -> Thumos14Match:
    """Return who takes whom at each threshold; `recordings` are listed beside those that occur.

    Args, Raises: as `evaluate_thumos14`.
    """
    thresholds = checked_thresholds(tiou_thresholds)
    detections, instances = checked_tables(detections, instances)
    is_ambiguous = pl.col("label") == AMBIGUOUS
    targets, ambiguous = instances.filter(~is_ambiguous), instances.filter(is_ambiguous)
    if targets.is_empty():
        raise InputError(f"instances: the ground truth has no instance besides {AMBIGUOUS}, so mAP is undefined")
    classes = targets["label"].unique().sort()
    scored = detections.filter(pl.col("label").is_in(classes.to_list()))
    listed = pl.Series("recording", list(recordings), dtype=pl.String)
    names = pl.concat([scored["recording"], instances["recording"], listed]).unique().sort()
    ranked, truth = (rank_intervals(table, classes, names) for table in (scored, targets))
    pairs = _pairs_by_turn(ranked, truth, float(thresholds.min()))
    hits = tuple(_walk_instances(pairs, truth, threshold, ranked.row.size) for threshold in thresholds.tolist())
    ignored = np.tile(_overlaps(ranked, rank_intervals(ambiguous, pl.Series([AMBIGUOUS]), names)), (len(hits), 1))
    for place, hit in enumerate(hits):
        ignored[place, hit.detection] = False
    matched = Matched(tuple(classes), tuple(names), ranked, truth, thresholds, hits)
    return Thumos14Match(matched, ignored, detections.height - scored.height)


def _turns(instances: Ranked) -> np.ndarray:
    """Return 0, 1, 2, ... for the instances of each class and recording in the order of their table, (m,) int64."""
    order = np.lexsort((instances.row, instances.group))
    turns = np.empty(order.size, dtype=np.int64)
    turns[order] = np.arange(order.size) - np.searchsorted(instances.group, instances.group)
    return turns


def _pairs_by_turn(detections: Ranked, instances: Ranked, min_tiou: float) -> Pairs:
    """Return the pairs above `min_tiou` by the instance's turn, then instance, descending tIoU and rank."""
    pairs = overlapping_pairs(detections, instances, min_tiou * (1 - ROUNDING))
    tiou = hull_tiou(detections, instances, pairs)
    order = np.lexsort((pairs.detection, -tiou, pairs.instance, _turns(instances)[pairs.instance]))
    return Pairs(pairs.detection[order], pairs.instance[order], tiou[order])


def _walk_instances(pairs: Pairs, instances: Ranked, threshold: float, num_detections: int) -> Hits:
    """Return the true positives: all instances whose turn it is choose at once, as they share no detection."""
    enough = pairs.tiou > threshold
    detection, instance = pairs.detection[enough], pairs.instance[enough]
    turn = _turns(instances)[instance]
    edges = np.append(np.flatnonzero(np.append(True, turn[1:] != turn[:-1])[: turn.size]), turn.size)
    is_free = np.ones(num_detections, dtype=bool)
    taken = [np.empty(0, dtype=np.int64)]
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        free = low + np.flatnonzero(is_free[detection[low:high]])
        chosen = free[np.append(True, instance[free][1:] != instance[free][:-1])[: free.size]]
        is_free[detection[chosen]] = False
        taken.append(chosen)
    rows = np.concatenate(taken)
    rows = rows[np.argsort(detection[rows])]
    return Hits(detection[rows], instance[rows])


def _overlaps(detections: Ranked, intervals: Ranked) -> np.ndarray:
    """Return whether each detection overlaps any interval of its recording, whatever its class; (n,) bool."""
    by_recording = replace(detections, group=detections.recording)
    pairs = overlapping_pairs(by_recording, replace(intervals, group=intervals.recording), float(np.finfo(float).tiny))
    touched = np.zeros(detections.row.size, dtype=bool)
    touched[pairs.detection] = True
    return touched
