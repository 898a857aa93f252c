"""The kind of every detection: true positive, or one of five kinds of false positive.

The kinds are those of DETAD (Alwassel, Caba Heilbron, Escorcia, Ghanem: Diagnosing Error in Temporal Action
Detectors, ECCV 2018; HumamAlwassel/DETAD, src/action_detector_diagnosis.py). At a tIoU threshold a and a background
threshold b (there 0.1) a detection is, whichever comes first:

1. true positive: it takes an instance, by the evaluator's own matching;
2. double detection: tIoU >= a with an instance of its label, which a better detection has taken;
3. wrong label: tIoU >= a with an instance of another label;
4. localization: b <= tIoU < a with an instance of its label;
5. confusion: b <= tIoU < a with an instance of another label;
6. background: tIoU < b with every instance.

So an instance of the detection's own label goes before one of another label at the same level, however large the
overlap with the other. DETAD's program looks only at the one instance that the detection overlaps most, whatever
its label; where instances of different labels overlap, it calls double detections "wrong label" and localization
errors "confusion", or "wrong label" where the other instance is overlapped by a or more. Precedence "overlap" gives
its kinds; with equal overlap the own label wins, there the first row does.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import polars as pl

from talstack.evaluate.map import match_for_map
from talstack.evaluate.matching import Matched, Ranked, overlapping_pairs, rank_intervals
from talstack.io.detections import INSTANCE_SCHEMA, validate_detections, validate_instances
from talstack.io.errors import InputError
from talstack.io.intervals import aligned_tiou

KINDS = ("true positive", "double detection", "wrong label", "localization", "confusion", "background")
TRUE_POSITIVE, DOUBLE, WRONG_LABEL, LOCALIZATION, CONFUSION, BACKGROUND = range(len(KINDS))
DETECTIONS_PER_BLOCK = 20_000  # bounds the pairs that are held at once
ANY_OVERLAP = float(np.nextafter(0.0, 1.0))

Precedence = Literal["own label", "overlap"]


@dataclass(frozen=True, slots=True, eq=False)
class Overlaps:
    """What each of n detections overlaps most: an instance of its own label, and one of any other label.

    Attributes:
        own_tiou, other_tiou: (n,) float64; 0 where there is none.
        own, other: (n,) int64, row of the instance; -1 where there is none.
    """

    own_tiou: np.ndarray
    own: np.ndarray
    other_tiou: np.ndarray
    other: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """Detections and instances, matched and measured; n detections, m instances.

    Attributes:
        detections: validated, in the order given.
        instances: validated and sorted by all columns, with `row`, where each was before.
        matched: of the detections whose label the instances have, at all thresholds.
        scored: (s,) row of each detection that was matched.
        overlaps: of all detections; instances are rows of the sorted table.
        label, instance_label: (n,) and (m,) int64, index in `matched.classes`; -1 where it is not among them.
        background_tiou: below which tIoU an overlap does not count.
    """

    detections: pl.DataFrame
    instances: pl.DataFrame
    matched: Matched
    scored: np.ndarray
    overlaps: Overlaps
    label: np.ndarray
    instance_label: np.ndarray
    background_tiou: float

    def taken(self, place: int) -> np.ndarray:
        """Return the instance that each detection takes at the threshold at `place`, (n,) int64; -1: none."""
        hits = self.matched.hits[place]
        taken = np.full(self.detections.height, -1)
        taken[self.scored[self.matched.detections.row[hits.detection]]] = self.matched.instances.row[hits.instance]
        return taken


@dataclass(frozen=True, slots=True, eq=False)
class Verdict:
    """The kind of each of n detections at one threshold, and the instance that decides it.

    Attributes:
        kind: (n,) int64, index in `KINDS`.
        tiou: (n,) float64, with that instance.
        instance: (n,) int64, row of the sorted instances; -1: none.
    """

    kind: np.ndarray
    tiou: np.ndarray
    instance: np.ndarray


def prepare_case(
    detections: pl.DataFrame, instances: pl.DataFrame, tiou_thresholds: Sequence[float], *, background_tiou: float
) -> Case:
    """Return the detections and instances, matched at every threshold and measured against each other.

    Raises:
        InputError: a row that either table refuses, no instance at all, a threshold outside (0, 1], or a background
            threshold outside (0, lowest threshold].
    """
    detections = validate_detections(detections, where="detections", allow_negative=True)
    instances = validate_instances(instances, where="instances", allow_negative=True)
    # sorted, label included: which of several instances decides does not depend on the order of rows
    instances = instances.with_columns(pl.int_range(pl.len(), dtype=pl.Int64).alias("row")).sort(list(INSTANCE_SCHEMA))
    matched, _ = match_for_map(detections, instances.drop("row"), tiou_thresholds)
    lowest = float(matched.thresholds.min())
    if not 0 < background_tiou <= lowest:
        raise InputError(
            f"background tIoU must be above 0 and at most {lowest}, the lowest threshold; got {background_tiou}"
        )
    label, instance_label = (codes(table["label"], matched.classes) for table in (detections, instances))
    overlaps = _best_overlaps(detections, instances, label=label, instance_label=instance_label)
    scored = np.flatnonzero(label >= 0)
    return Case(detections, instances, matched, scored, overlaps, label, instance_label, background_tiou)


def decide_kinds(case: Case, place: int, *, precedence: Precedence) -> Verdict:
    """Return the kind of every detection at the threshold at `place`.

    Raises:
        InputError: an unknown precedence.
    """
    if precedence not in get_args(Precedence):
        raise InputError(f"precedence must be one of {', '.join(get_args(Precedence))}; got {precedence!r}")
    threshold, background = case.matched.thresholds[place], case.background_tiou
    taken, overlaps = case.taken(place), case.overlaps
    own, other = overlaps.own_tiou, overlaps.other_tiou
    own_is_best = own >= other
    if precedence == "overlap":
        own, other = np.where(own_is_best, own, 0.0), np.where(own_is_best, 0.0, other)
    kind = np.select(
        [taken >= 0, own >= threshold, other >= threshold, own >= background, other >= background],
        [TRUE_POSITIVE, DOUBLE, WRONG_LABEL, LOCALIZATION, CONFUSION],
        BACKGROUND,
    )
    by_own = (kind == DOUBLE) | (kind == LOCALIZATION) | ((kind == BACKGROUND) & own_is_best)
    tiou = np.where(by_own, overlaps.own_tiou, overlaps.other_tiou)
    hits = np.flatnonzero(taken >= 0)
    tiou[hits] = _tiou(case, hits, taken[hits])
    return Verdict(kind, tiou, np.where(taken >= 0, taken, np.where(by_own, overlaps.own, overlaps.other)))


def codes(names: pl.Series, known: Sequence[str]) -> np.ndarray:
    """Return the index of each name among the known ones, (n,) int64; -1 where it is not one of them."""
    return names.replace_strict(list(known), list(range(len(known))), default=-1, return_dtype=pl.Int64).to_numpy()


def _best_overlaps(
    detections: pl.DataFrame, instances: pl.DataFrame, *, label: np.ndarray, instance_label: np.ndarray
) -> Overlaps:
    """Return what each detection overlaps most; with equal tIoU, the first in the order of the instances."""
    names = pl.concat([detections["recording"], instances["recording"]]).unique().sort()
    ranked, truth = (
        rank_intervals(table.with_columns(pl.lit("").alias("label")), pl.Series([""]), names)
        for table in (detections, instances)
    )
    found = {same: (np.zeros(label.size), np.full(label.size, -1)) for same in (True, False)}
    for low in range(0, label.size, DETECTIONS_PER_BLOCK):
        block = Ranked(*(getattr(ranked, name)[low : low + DETECTIONS_PER_BLOCK] for name in Ranked.__slots__))
        pairs = overlapping_pairs(block, truth, ANY_OVERLAP)
        detection, instance = block.row[pairs.detection], truth.row[pairs.instance]
        is_own = label[detection] == instance_label[instance]
        for same, (best_tiou, best) in found.items():
            chosen = np.flatnonzero(is_own == same)
            rows = detection[chosen]
            first = chosen[np.append(True, rows[1:] != rows[:-1])[: rows.size]]  # pairs come by descending tIoU
            best_tiou[detection[first]], best[detection[first]] = pairs.tiou[first], instance[first]
    return Overlaps(*found[True], *found[False])


def _tiou(case: Case, rows: np.ndarray, partners: np.ndarray) -> np.ndarray:
    """Return the tIoU of each detection with its partner among the instances, (len(rows),) float64."""
    names = ("start_s", "end_s")
    start, end = (case.detections[name].to_numpy()[rows] for name in names)
    other_start, other_end = (case.instances[name].to_numpy()[partners] for name in names)
    return aligned_tiou((start, end), (other_start, other_end))
