"""Which detection takes which instance: greedy matching by score, over all classes and recordings at once.

Per class and recording, detections are walked in descending score; each takes the instance it overlaps most among
those not yet taken, if their tIoU is at least the threshold (so it may fall through to its second-best).

The walk is sequential only on paper. All instances agree on which of two detections they prefer, the one ranked
higher, so its outcome is the only stable matching between detections (which prefer the higher tIoU) and
instances; deferred acceptance (Gale and Shapley, 1962) finds it in a few rounds of array operations.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import polars as pl

PAIRS_PER_BLOCK = 2_000_000  # bounds the working memory at about 100 bytes a pair


@dataclass(frozen=True, slots=True, eq=False)
class Ranked:
    """Intervals in the order that matching wants; all arrays (n,).

    Attributes:
        row: row of the table that each comes from, int64.
        label: class index, int64, ascending.
        recording: recording index, int64.
        group: one number per (class, recording), int64.
        start_s, end_s: seconds, float64.
    """

    row: np.ndarray
    label: np.ndarray
    recording: np.ndarray
    group: np.ndarray
    start_s: np.ndarray
    end_s: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class Pairs:
    """(detection, instance) pairs of one class and recording; all arrays (p,).

    Sorted by detection, then descending tIoU, then instance.
    """

    detection: np.ndarray
    instance: np.ndarray
    tiou: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class Hits:
    """The true positives at one threshold; both arrays (h,) int64 and aligned.

    Attributes:
        detection: positions in the ranked detections, ascending.
        instance: positions in the ranked instances, each at most once.
    """

    detection: np.ndarray
    instance: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class Matched:
    """Which detection takes which instance, at each of K thresholds.

    Attributes:
        classes: names behind `label`, sorted; those of the ground truth.
        recordings: names behind `recording`, sorted; those of both tables and all that were listed.
        detections, instances: in the order of `rank_intervals`.
        thresholds: (K,) float64.
        hits: one entry per threshold.
    """

    classes: tuple[str, ...]
    recordings: tuple[str, ...]
    detections: Ranked
    instances: Ranked
    thresholds: np.ndarray
    hits: tuple[Hits, ...]


def match_detections(
    detections: pl.DataFrame, instances: pl.DataFrame, thresholds: np.ndarray, *, recordings: Iterable[str] = ()
) -> Matched:
    """Return who takes whom at each threshold; which depends neither on the order of rows nor on other recordings.

    Args:
        detections: validated table (recording, start_s, end_s, label, score); every label occurs in `instances`.
        instances: validated table (recording, start_s, end_s, label).
        thresholds: (K,) float64, tIoU in (0, 1].
        recordings: names to list beside those that occur.
    """
    classes = instances["label"].unique().sort()
    listed = pl.Series("recording", list(recordings), dtype=pl.String)
    names = pl.concat([detections["recording"], instances["recording"], listed]).unique().sort()
    ranked, truth = (rank_intervals(table, classes, names) for table in (detections, instances))
    pairs = overlapping_pairs(ranked, truth, float(thresholds.min()))
    hits = tuple(true_positives(pairs, threshold, truth.label.size) for threshold in thresholds)
    return Matched(tuple(classes), tuple(names), ranked, truth, thresholds, hits)


def rank_intervals(table: pl.DataFrame, classes: pl.Series, recordings: pl.Series) -> Ranked:
    """Return the rows by class, then descending score (where there is one), recording, start and end.

    Args:
        table: validated detections or instances.
        classes, recordings: sorted unique names; every name in the table is one of them.
    """
    label, recording = _codes(table["label"], classes), _codes(table["recording"], recordings)
    start_s, end_s = table["start_s"].to_numpy(), table["end_s"].to_numpy()
    score = [-table["score"].to_numpy()] if "score" in table.columns else []
    order = np.lexsort((end_s, start_s, recording, *score, label))
    group = label * len(recordings) + recording
    return Ranked(order, label[order], recording[order], group[order], start_s[order], end_s[order])


def overlapping_pairs(detections: Ranked, instances: Ranked, min_tiou: float) -> Pairs:
    """Return the pairs of equal group whose tIoU is at least `min_tiou`, which must be > 0.

    Instances are sorted by start within their group, so those that overlap a detection lie between the first one
    by which the group has reached past the detection's start and the first one that begins at or after its end.
    """
    reach_s = np.maximum.accumulate(_keys(instances.group, instances.end_s))
    first = np.searchsorted(reach_s, _keys(detections.group, detections.start_s), side="right")
    begin_s = _keys(instances.group, instances.start_s)
    past = np.searchsorted(begin_s, _keys(detections.group, detections.end_s), side="left")
    counts = np.maximum(past - first, 0)
    total = np.concatenate([[0], np.cumsum(counts)])
    edges = np.searchsorted(total, np.arange(0, total[-1], PAIRS_PER_BLOCK), side="left")
    edges = np.unique(np.append(edges, counts.size))
    parts = [_no_pairs()]
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        rows = np.repeat(np.arange(low, high), counts[low:high])
        nth = np.arange(rows.size) + total[low] - total[rows]  # 0, 1, 2, ... within each detection
        parts.append(_measure(detections, instances, rows, first[rows] + nth, min_tiou=min_tiou))
    return Pairs(*(np.concatenate([getattr(part, name) for part in parts]) for name in Pairs.__slots__))


def true_positives(pairs: Pairs, threshold: float, num_instances: int) -> Hits:
    """Return the detections that take an instance at this threshold, and which.

    Each round, every detection still in play asks for the best instance that has not yet refused it; an instance
    keeps the highest-ranked asker and refuses the others, for good.
    """
    eligible = pairs.tiou >= threshold
    detection, instance = pairs.detection[eligible], pairs.instance[eligible]
    is_last = np.append(detection[1:] != detection[:-1], True)[: detection.size]
    asking = np.flatnonzero(np.append(True, is_last[:-1])[: detection.size])  # each detection's first pair
    while True:
        keeper = np.full(num_instances, np.iinfo(np.int64).max)
        np.minimum.at(keeper, instance[asking], detection[asking])
        refused = keeper[instance[asking]] != detection[asking]
        if not refused.any():
            return Hits(detection[asking], instance[asking])
        in_play = ~(refused & is_last[asking])
        asking = (asking + refused)[in_play]


def _codes(names: pl.Series, known: pl.Series) -> np.ndarray:
    return names.cast(pl.Enum(known)).to_physical().to_numpy().astype(np.int64)


def _keys(group: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Return numbers that compare by group, then by value: numpy orders complex numbers so, and exactly."""
    keys = np.empty(group.shape, dtype=np.complex128)
    keys.real, keys.imag = group, value
    return keys


def _no_pairs() -> Pairs:
    return Pairs(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64), np.empty(0))


def _measure(
    detections: Ranked, instances: Ranked, rows: np.ndarray, partners: np.ndarray, *, min_tiou: float
) -> Pairs:
    """Return the pairs (rows[i], partners[i]) with enough tIoU; no epsilon in the denominator."""
    start, end = detections.start_s[rows], detections.end_s[rows]
    other_start, other_end = instances.start_s[partners], instances.end_s[partners]
    overlap = np.maximum(np.minimum(end, other_end) - np.maximum(start, other_start), 0.0)
    tiou = overlap / ((end - start) + (other_end - other_start) - overlap)
    enough = tiou >= min_tiou
    rows, partners, tiou = rows[enough], partners[enough], tiou[enough]
    order = np.lexsort((-tiou, rows))  # stable: equal tIoU stays in the order of the instances
    return Pairs(rows[order], partners[order], tiou[order])
