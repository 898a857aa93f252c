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

from talstack.io.intervals import aligned_tiou

PAIRS_PER_BLOCK = 32_768  # fits the processor's cache: larger arrays take twice as long
GROUPS_PER_ROW = 4
ROUNDING = 1e-9  # relative: how far two ways to write the same tIoU may be apart
FEW_INSTANCES = 8  # of a class in a recording: all of them are measured


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
    detections, names = _name_recordings(detections, pl.concat([instances["recording"], listed]))
    ranked, truth = (rank_intervals(table, classes, names) for table in (detections, instances))
    pairs = overlapping_pairs(ranked, truth, float(thresholds.min()))
    hits = tuple(true_positives(pairs, threshold, truth.label.size) for threshold in thresholds)
    return Matched(tuple(classes), tuple(names), ranked, truth, thresholds, hits)


def _name_recordings(detections: pl.DataFrame, known: pl.Series) -> tuple[pl.DataFrame, pl.Series]:
    """Return the detections and the sorted names of all recordings, their own and the known ones.

    As a rule all are known; then the column comes back as codes of the names, which saves a second look at each.
    """
    known = known.unique().sort()
    coded = detections["recording"].cast(pl.Enum(known), strict=False)
    if coded.null_count():
        return detections, pl.concat([known, detections["recording"].cast(pl.String).unique()]).unique().sort()
    return detections.with_columns(coded), known


def rank_intervals(table: pl.DataFrame, classes: pl.Series, recordings: pl.Series) -> Ranked:
    """Return the rows by class, then descending score (where there is one), recording, start and end.

    Args:
        table: validated detections or instances.
        classes, recordings: sorted unique names; every name in the table is one of them.
    """
    label, recording = _codes(table["label"], classes), _codes(table["recording"], recordings)
    start_s, end_s = table["start_s"].to_numpy(), table["end_s"].to_numpy()
    if "score" in table.columns:
        order = _by_label_and_score(label, table["score"].to_numpy(), (end_s, start_s, recording))
    else:
        order = np.lexsort((end_s, start_s, label * len(recordings) + recording))
    label = np.repeat(np.arange(len(classes)), np.bincount(label, minlength=len(classes)))
    recording = recording[order]
    group = label * len(recordings) + recording
    return Ranked(order, label, recording, group, start_s[order], end_s[order])


def overlapping_pairs(detections: Ranked, instances: Ranked, min_tiou: float) -> Pairs:
    """Return the pairs of equal group whose tIoU is at least `min_tiou`, which must be > 0."""
    first, past = _group_slices(instances.group, detections.group)
    known = np.flatnonzero(past > first)
    first, past = first[known], past[known]
    crowded = np.flatnonzero(past - first > FEW_INSTANCES)
    first[crowded], past[crowded] = _window(detections, instances, known[crowded], min_tiou=min_tiou)
    counts = np.maximum(past - first, 0)
    total = np.concatenate([[0], np.cumsum(counts)])
    edges = np.searchsorted(total, np.arange(0, total[-1], PAIRS_PER_BLOCK), side="left")
    edges = np.unique(np.append(edges, counts.size))
    parts = [_no_pairs()]
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        rows = np.repeat(known[low:high], counts[low:high])
        partners = np.arange(rows.size) + np.repeat(first[low:high] + total[low] - total[low:high], counts[low:high])
        parts.append(_measure(detections, instances, rows, partners, min_tiou=min_tiou))
    return Pairs(*(np.concatenate([getattr(part, name) for part in parts]) for name in Pairs.__slots__))


def hull_tiou(detections: Ranked, instances: Ranked, pairs: Pairs) -> np.ndarray:
    """Return intersection / (latest end - earliest start) of overlapping pairs, (p,) float64.

    The same as the usual tIoU but for the last digits, which decide where a tIoU lies on the threshold.
    """
    start, end = detections.start_s[pairs.detection], detections.end_s[pairs.detection]
    other_start, other_end = instances.start_s[pairs.instance], instances.end_s[pairs.instance]
    overlap = np.minimum(end, other_end) - np.maximum(start, other_start)
    tiou: np.ndarray = overlap / (np.maximum(end, other_end) - np.minimum(start, other_start))
    return tiou


def true_positives(pairs: Pairs, threshold: float, num_instances: int) -> Hits:
    """Return the detections that take an instance at this threshold, and which.

    Each round, every detection that holds nothing asks for the best instance that has not yet refused it; an instance
    keeps the highest-ranked asker and refuses the others, for good, also the one that it had kept so far.
    """
    enough = pairs.tiou >= threshold
    again = np.append(False, pairs.detection[1:] == pairs.detection[:-1])[: enough.size]
    asking = np.flatnonzero(enough & ~again)
    has_next = np.append((enough & again)[1:], False)  # the same detection's next best instance will do as well
    nobody = enough.size
    kept = np.full(num_instances, nobody)  # the pair that each instance keeps; lower means a higher-ranked detection
    while asking.size:
        instance = pairs.instance[asking]
        before = kept[instance]
        np.minimum.at(kept, instance, asking)
        won = kept[instance] == asking
        displaced = before[won]
        refused = np.concatenate([asking[~won], displaced[displaced != nobody]])
        asking = refused[has_next[refused]] + 1
    is_kept = np.zeros(enough.size + 1, dtype=bool)
    is_kept[kept] = True
    kept = np.flatnonzero(is_kept[:-1])
    return Hits(pairs.detection[kept], pairs.instance[kept])


def _by_label_and_score(label: np.ndarray, score: np.ndarray, tie_breakers: tuple[np.ndarray, ...]) -> np.ndarray:
    """Return the order by label, then descending score, then the breakers, of which the last comes first.

    One sort of 64-bit integers in place of one `lexsort` over all of them, in a seventh of the time: label, the upper
    bits of the score and the row's number share a word. Rows that agree in label and upper bits are sorted again by
    the whole score and the breakers. Stable: equal rows stay in their order, on which
    `talstack.evaluate.false_positives` relies.
    """
    if not label.size:
        return np.empty(0, dtype=np.int64)
    label_bits, row_bits = int(label.max()).bit_length(), (label.size - 1).bit_length()
    score_bits = 64 - label_bits - row_bits
    words = _descending(score) >> np.uint64(64 - score_bits) << np.uint64(row_bits)
    words |= np.arange(label.size, dtype=np.uint64)
    if label_bits:
        words |= label.astype(np.uint64) << np.uint64(64 - label_bits)
    words.sort()
    order = (words & np.uint64((1 << row_bits) - 1)).astype(np.int64)
    words >>= np.uint64(row_bits)
    same = words[1:] == words[:-1]
    if same.any():
        tied = np.flatnonzero(np.append(same, False) | np.append(False, same))
        rows, run = order[tied], np.append(0, np.cumsum(~same))[tied]
        order[tied] = rows[np.lexsort((*(key[rows] for key in tie_breakers), -score[rows], run))]
    return order


def _descending(score: np.ndarray) -> np.ndarray:
    """Return uint64 that ascend as the scores descend: the bits of the negated score, those of negatives flipped."""
    bits: np.ndarray = (0.0 - score).view(np.int64)  # minus zero becomes zero
    bits ^= (bits >> 63) & np.iinfo(np.int64).max
    return bits.view(np.uint64) ^ np.uint64(1 << 63)


def _group_slices(ascending: np.ndarray, group: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return [first, past) in the ascending groups for each of the others; empty where a group does not occur."""
    num_groups = int(ascending.max(initial=-1)) + 1
    if num_groups > GROUPS_PER_ROW * (ascending.size + group.size):  # a table of them would be large, and mostly empty
        return np.searchsorted(ascending, group, side="left"), np.searchsorted(ascending, group, side="right")
    past = np.append(np.cumsum(np.bincount(ascending, minlength=num_groups)), ascending.size)
    place = np.minimum(group, num_groups)
    return np.append(0, past)[place], past[place]


def _window(
    detections: Ranked, instances: Ranked, rows: np.ndarray, *, min_tiou: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return [first, past) among the instances, sorted by start in their group, with enough tIoU to those detections.

    An instance overlaps only from where its group has reached past the detection's start. With length L and tIoU t
    the union is at most L / t and the overlap at least L * t, so its start lies between end - L / t and end - L * t.
    """
    group, start_s, end_s = detections.group[rows], detections.start_s[rows], detections.end_s[rows]
    tiou = min_tiou * (1 - 1e-9)  # room for rounding, here and in the measured tIoU
    slack_s = 1e-12 * (np.abs(start_s) + np.abs(end_s))
    length_s = end_s - start_s
    begin = _keys(instances.group, instances.start_s)
    reach = np.maximum.accumulate(_keys(instances.group, instances.end_s))
    with np.errstate(over="ignore"):  # a threshold next to 0 sets no such bound
        furthest_s = end_s - length_s / tiou - slack_s
    first = np.searchsorted(begin, _keys(group, furthest_s), side="left")
    reached = np.searchsorted(reach, _keys(group, start_s), side="right")
    past = np.searchsorted(begin, _keys(group, end_s - length_s * tiou + slack_s), side="right")
    return np.maximum(first, reached), past


def _codes(names: pl.Series, known: pl.Series) -> np.ndarray:
    return names.cast(pl.Enum(known)).to_physical().to_numpy().astype(np.int64)  # free where it is that enum already


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
    """Return the pairs (rows[i], partners[i]) with enough tIoU."""
    start_s, end_s = detections.start_s[rows], detections.end_s[rows]
    other_start_s, other_end_s = instances.start_s[partners], instances.end_s[partners]
    meet = np.flatnonzero((other_start_s < end_s) & (start_s < other_end_s))  # as a rule the smaller part
    tiou = aligned_tiou((start_s[meet], end_s[meet]), (other_start_s[meet], other_end_s[meet]))
    enough = tiou >= min_tiou
    rows, partners, tiou = rows[meet[enough]], partners[meet[enough]], tiou[enough]
    again = rows[1:] == rows[:-1]
    shared = np.flatnonzero(np.append(again, False) | np.append(False, again)) if rows.size else rows
    order = shared[np.lexsort((-tiou[shared], rows[shared]))]  # stable: equal tIoU stays in the order of instances
    partners[shared], tiou[shared] = partners[order], tiou[order]
    return Pairs(rows, partners, tiou)
