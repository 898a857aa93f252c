"""Recall of proposals and detections: AR@AN and Recall@kx.

AR@AN (ActivityNet's proposal task): recall of all instances, whatever their class, by the best-scored proposals of
each recording, averaged over tIoU 0.5:0.05:0.95, against the average number of proposals per recording, AN. Source:
activitynet/ActivityNet, Evaluation/eval_proposal.py.

Recall@kx (Ego4D's Moment Queries): recall of the instances of a class in a recording by the k * x best-scored
detections of that class there, x being the number of these instances. Two definitions are in use, and both are
given. As ActionFormer and OpenTAD print it (libs/utils/metrics.py of happyharrycn/actionformer_release): tIoU at
least the threshold, mean over classes. As the benchmark's own baseline does (EGO4D/episodic-memory,
MQ/Evaluation/ego4d/get_retrieval_performance.py): tIoU above the threshold, all instances together.

Neither asks that a proposal serves one instance only. Ties in score are broken by start, then end.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from talstack.evaluate.map import PRESETS, checked_tables, checked_thresholds
from talstack.evaluate.matching import ROUNDING, Ranked, hull_tiou, overlapping_pairs, rank_intervals
from talstack.io.errors import InputError

NUM_POINTS = 100  # of the AR-AN curve
SHOWN_PROPOSALS = (1, 5, 10, 100)
K_VALUES = (1, 5)
NEVER = np.iinfo(np.int64).max
INSTANCES_PER_BLOCK = 20_000  # bounds the working memory at about 20 MB


@dataclass(frozen=True, slots=True, eq=False)
class AverageRecall:
    """The curve of average recall against the average number of proposals, fractions from 0 to 1.

    Attributes:
        tiou: (K,) thresholds.
        num_proposals: (100,) average number of proposals per recording with an instance.
        recall: (K, 100) at each threshold.
        average: (100,) mean over the thresholds, AR.
        auc: area under AR by the trapezoidal rule from the first to the last point, over the last AN; it is what
            ActivityNet prints as a percentage, and stays below 1, as the curve does not start at 0.
        num_recordings: recordings with an instance.
        num_other: proposals on other recordings; they count in the budget, as in the reference.
    """

    tiou: np.ndarray
    num_proposals: np.ndarray
    recall: np.ndarray
    average: np.ndarray
    auc: float
    num_recordings: int
    num_other: int

    def at(self, num_proposals: float) -> float:
        """Return AR@AN for an average number of proposals that is a point of the curve.

        Raises:
            InputError: the curve has no such point.
        """
        place = np.flatnonzero(np.isclose(self.num_proposals, num_proposals))
        if not place.size:
            raise InputError(
                f"AR@{num_proposals}: the curve has points from {self.num_proposals[0]:g} to "
                f"{self.num_proposals[-1]:g} in {NUM_POINTS} equal steps"
            )
        return float(self.average[place[0]])

    def to_json(self) -> dict[str, Any]:
        """Return plain values; `ar` holds the usual points of the curve, as far as it reaches."""
        shown = [n for n in SHOWN_PROPOSALS if np.isclose(self.num_proposals, n).any()]
        return {
            "tiou": self.tiou.tolist(),
            "ar": {str(number): self.at(number) for number in shown},
            "auc": self.auc,
            "num_proposals": self.num_proposals.tolist(),
            "average_recall": self.average.tolist(),
            "num_recordings": self.num_recordings,
            "num_other": self.num_other,
        }


@dataclass(frozen=True, slots=True, eq=False)
class RecallAtKx:
    """Recall by the k * x best detections of a class in a recording that holds x instances of it.

    Attributes:
        tiou: (K,) thresholds.
        k: the J factors.
        per_class: {class: (K, J)}, tIoU at least the threshold.
        mean: (K, J) mean over the classes of the ground truth: ActionFormer's and OpenTAD's figure.
        pooled: (K, J) over all instances together, tIoU above the threshold: Ego4D's baseline.
    """

    tiou: np.ndarray
    k: tuple[int, ...]
    per_class: Mapping[str, np.ndarray]
    mean: np.ndarray
    pooled: np.ndarray

    def to_json(self) -> dict[str, Any]:
        """Return plain values: `mean` and `pooled` hold a value per threshold for each "kx"."""
        tables = {"mean": self.mean, "pooled": self.pooled}
        values = {name: {f"{k}x": table[:, j].tolist() for j, k in enumerate(self.k)} for name, table in tables.items()}
        return {"tiou": self.tiou.tolist(), **values}


def average_recall(
    proposals: pl.DataFrame,
    instances: pl.DataFrame,
    *,
    tiou_thresholds: Sequence[float] = PRESETS["anet"],
    max_proposals: float = 100,
) -> AverageRecall:
    """Return the AR-AN curve, which does not depend on the order of rows.

    A budget of AN proposals per recording is spent as a share of each recording's own proposals, the same for all:
    with V recordings that hold an instance and N proposals in all, a recording with n proposals keeps the best
    int(n * max_proposals * V / N), or all. Of the M kept in all and m of a recording, point j of 100 takes the best
    int(m * j / 100 * max_proposals * V / M), or all.

    Args:
        proposals: table (recording, start_s, end_s, label, score); each row is a proposal whatever its label, so a
            segment that is listed under two labels counts twice.
        instances: table (recording, start_s, end_s, label).
        tiou_thresholds: each in (0, 1].
        max_proposals: AN at the last point.

    Raises:
        InputError: a row that either table refuses, thresholds outside (0, 1], no instance, or max_proposals <= 0.
    """
    thresholds = checked_thresholds(tiou_thresholds)
    proposals, instances = checked_tables(proposals, instances)
    if not 0 < max_proposals < np.inf:
        raise InputError(f"max_proposals: expected a number above 0, got {max_proposals!r}")
    names = instances["recording"].unique().sort()
    ranked, truth = (_class_agnostic(table, names) for table in (proposals, instances))
    taken = _proposals_taken(np.bincount(ranked.recording, minlength=len(names)), proposals.height, max_proposals)
    recall = _recall_curve(ranked, truth, thresholds, taken)
    average = recall.mean(axis=0)
    budget = np.arange(1, NUM_POINTS + 1) / float(NUM_POINTS) * max_proposals
    area = float(((average[1:] + average[:-1]) / 2 * np.diff(budget)).sum() / budget[-1])
    return AverageRecall(thresholds, budget, recall, average, area, len(names), proposals.height - ranked.row.size)


def recall_at_kx(
    detections: pl.DataFrame,
    instances: pl.DataFrame,
    *,
    tiou_thresholds: Sequence[float] = PRESETS["ego4d"],
    k: Sequence[int] = K_VALUES,
) -> RecallAtKx:
    """Return Recall@kx by both definitions; the order of rows does not matter.

    Args:
        detections: table (recording, start_s, end_s, label, score).
        instances: table (recording, start_s, end_s, label).
        tiou_thresholds: each in (0, 1].
        k: factors, whole and at least 1.

    Raises:
        InputError: a row that either table refuses, thresholds outside (0, 1], no instance, or a factor below 1.
    """
    thresholds = checked_thresholds(tiou_thresholds)
    detections, instances = checked_tables(detections, instances)
    if not k or any(factor != int(factor) or factor < 1 for factor in k):
        raise InputError(f"k: expected one or more whole numbers of at least 1, got {k!r}")
    classes, names = (instances[column].unique().sort() for column in ("label", "recording"))
    known = pl.col("label").is_in(classes.to_list()) & pl.col("recording").is_in(names.to_list())
    ranked = rank_intervals(detections.filter(known), classes, names)
    truth = rank_intervals(instances, classes, names)
    best, best_hull = _best_tious(ranked, truth, k, min_tiou=float(thresholds.min()))
    is_found = best[None] >= thresholds[:, None, None]
    per_class = np.stack([is_found[:, truth.label == index].mean(axis=1) for index in range(len(classes))])
    return RecallAtKx(
        tiou=thresholds,
        k=tuple(int(factor) for factor in k),
        per_class=dict(zip(classes.to_list(), per_class, strict=True)),
        mean=per_class.mean(axis=0),
        pooled=(best_hull[None] > thresholds[:, None, None]).mean(axis=1),
    )


def _best_tious(
    detections: Ranked, truth: Ranked, k: Sequence[int], *, min_tiou: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return two (m, J): the tIoU of each instance with the best of its k * x detections, the usual one and the hull's.

    A tIoU below `min_tiou` may be given as 0.
    """
    pairs = overlapping_pairs(detections, truth, min_tiou * (1 - ROUNDING))
    place = _place_in_group(detections)[pairs.detection]
    num_wanted = np.bincount(truth.group)[truth.group]
    best = np.zeros((2, truth.row.size, len(k)))
    for j, factor in enumerate(k):
        near = place < factor * num_wanted[pairs.instance]
        for table, tiou in zip(best, (pairs.tiou, hull_tiou(detections, truth, pairs)), strict=True):
            np.maximum.at(table[:, j], pairs.instance[near], tiou[near])
    return best[0], best[1]


def _proposals_taken(counts: np.ndarray, num_all: int, max_proposals: float) -> np.ndarray:
    """Return (R, 100) int64: how many of each recording's proposals are looked at, for each point of the curve.

    Args:
        counts: (R,) proposals of each recording with an instance.
        num_all: all proposals, those on other recordings too.
        max_proposals: AN at the last point.
    """
    budget = max_proposals * float(counts.size)
    kept = np.minimum((counts * (budget / max(num_all, 1))).astype(np.int64), counts)
    share = np.arange(1, NUM_POINTS + 1) / float(NUM_POINTS) * (budget / max(int(kept.sum()), 1))
    return np.minimum((kept[:, None] * share).astype(np.int64), kept[:, None])


def _class_agnostic(table: pl.DataFrame, names: pl.Series) -> Ranked:
    """Return the rows on these recordings by descending score (where there is one); all of one class."""
    rows = table.filter(pl.col("recording").is_in(names.to_list())).with_columns(label=pl.lit("proposal"))
    return rank_intervals(rows, pl.Series(["proposal"]), names)


def _place_in_group(ranked: Ranked) -> np.ndarray:
    """Return 0, 1, 2, ... for the rows of each class and recording, best first, (n,) int64."""
    order = np.argsort(ranked.group, kind="stable")
    group = ranked.group[order]
    place = np.empty(order.size, dtype=np.int64)
    place[order] = np.arange(order.size) - np.searchsorted(group, group)
    return place


def _recall_curve(proposals: Ranked, truth: Ranked, thresholds: np.ndarray, taken: np.ndarray) -> np.ndarray:
    """Return (K, P): the share of instances that the first `taken` proposals of their recording find.

    Args:
        proposals, truth: as `_class_agnostic` gives them.
        thresholds: (K,).
        taken: (R, P) proposals per recording at each point.
    """
    place = _place_in_group(proposals)
    used = np.flatnonzero(place < taken.max(axis=1, initial=0)[proposals.recording])
    pairs = overlapping_pairs(_rows(proposals, used), truth, float(thresholds.min()))
    first = np.full((thresholds.size, truth.row.size), NEVER)
    for k, threshold in enumerate(thresholds):
        enough = pairs.tiou >= threshold
        np.minimum.at(first[k], pairs.instance[enough], place[used][pairs.detection[enough]])
    found = np.zeros((thresholds.size, taken.shape[1]))
    for low in range(0, truth.row.size, INSTANCES_PER_BLOCK):
        block = slice(low, low + INSTANCES_PER_BLOCK)
        limit = taken[truth.recording[block]]
        for k in range(thresholds.size):
            found[k] += (first[k, block, None] < limit).sum(axis=0)
    return found / truth.row.size


def _rows(ranked: Ranked, rows: np.ndarray) -> Ranked:
    return Ranked(*(getattr(ranked, name)[rows] for name in Ranked.__slots__))
