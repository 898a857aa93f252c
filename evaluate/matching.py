"""Which detection takes which instance: greedy matching by score, over all classes and recordings at once.

Per class and recording, detections are walked in descending score; each takes the instance it overlaps most among
those not yet taken, if their tIoU is at least the threshold (so it may fall through to its second-best).

The walk is sequential only on paper. All instances agree on which of two detections they prefer, the one ranked
higher, so its outcome is the only stable matching between detections (which prefer the higher tIoU) and
instances; deferred acceptance (Gale and Shapley, 1962) finds it in a few rounds of array operations.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl

PAIRS_PER_BLOCK = 2_000_000  # bounds the working memory at about 100 bytes a pair


@dataclass(frozen=True, slots=True, eq=False)
class Ranked:
    """Intervals in the order that matching wants; all arrays (n,).

    Attributes:
        label: class index, int64, ascending.
        group: one number per (class, recording), int64.
        start_s, end_s: seconds, float64.
    """

    label: np.ndarray
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
    return Ranked(label[order], group[order], start_s[order], end_s[order])


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


def true_positives(pairs: Pairs, threshold: float, num_instances: int) -> np.ndarray:
    """Return the rows of the detections that take an instance at this threshold, ascending int64.

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
            return detection[asking]
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
