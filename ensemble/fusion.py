"""Weighted fusion of the detections of several models: overlapping intervals are averaged, not suppressed.

After weighted boxes fusion (Solovyev, Wang and Gabruseva, Image and Vision Computing 107, 2021), in one dimension and
for all recordings and classes at once. Clusters form around the intervals that hard suppression would keep; every
other interval joins the one that it overlaps most, if their tIoU is at least the threshold. A model speaks once in
a cluster, by its best interval. The fused interval is the mean of theirs weighted by score, its score the mean
over all models, where one that found nothing there counts 0.
"""

from collections.abc import Sequence

import numpy as np
import polars as pl

from talstack.ensemble.nms import overlapping_pairs, suppress
from talstack.io.detections import DETECTION_SCHEMA
from talstack.io.errors import InputError


def fuse_detections(
    tables: Sequence[pl.DataFrame], *, weights: Sequence[float] | None = None, threshold: float = 0.5
) -> pl.DataFrame:
    """Return the fused detections of several models, by recording, then descending score.

    Args:
        tables: one per model (recording, start_s, end_s, label, score).
        weights: how much each model counts; all alike by default.
        threshold: tIoU from which intervals are of one cluster.

    Raises:
        InputError: no table, a number of weights that is not that of the tables, or weights that are not positive.
    """
    weights = [1.0] * len(tables) if weights is None else list(weights)
    if not tables or len(weights) != len(tables) or min(weights) <= 0:
        raise InputError(f"fusion of {len(tables)} tables: expected as many weights, all positive, got {weights}")
    columns = list(DETECTION_SCHEMA)
    rows = pl.concat([table.select(*columns, pl.lit(m).alias("model")) for m, table in enumerate(tables)])
    rows = rows.with_columns(pl.struct("recording", "label").rank("dense").cast(pl.Int64).alias("group"))
    intervals = rows.select("start_s", "end_s").to_numpy()
    kept, fused, scores = fuse(
        intervals, rows["score"].to_numpy(), rows["group"].to_numpy(), rows["model"].to_numpy(),
        weights=np.asarray(weights, dtype=np.float64), threshold=threshold,
    )  # fmt: skip
    named = rows[kept].select(
        "recording", pl.Series("start_s", fused[:, 0]), pl.Series("end_s", fused[:, 1]), "label",
        pl.Series("score", scores),
    )  # fmt: skip
    return named.sort("recording", "score", descending=[False, True], maintain_order=True)


def fuse(
    intervals: np.ndarray,
    scores: np.ndarray,
    groups: np.ndarray,
    models: np.ndarray,
    *,
    weights: np.ndarray,
    threshold: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the (k,) rows that clusters formed around, their fused (k, 2) intervals and (k,) scores.

    Args:
        intervals: (n, 2) seconds.
        scores: (n,) non-negative; 0 takes no part.
        groups: (n,) int; intervals of different groups are never fused.
        models: (n,) int, position in `weights`, (M,).
    """
    weighted = scores * weights[models]
    seeds, _ = suppress(intervals, weighted, groups, method="hard", threshold=threshold)
    cluster = _clusters(intervals, groups, seeds, threshold)
    rows = np.flatnonzero((cluster >= 0) & (weighted > 0))
    # the best interval of every model in every cluster; the first in input order on ties
    rows = rows[np.lexsort((-weighted[rows], models[rows], cluster[rows]))]
    once = np.ones(len(rows), dtype=bool)
    once[1:] = (cluster[rows[1:]] != cluster[rows[:-1]]) | (models[rows[1:]] != models[rows[:-1]])
    rows = rows[once]
    total = np.bincount(cluster[rows], weights=weighted[rows], minlength=len(seeds))
    spoken = np.flatnonzero(total > 0)
    ends = [
        np.bincount(cluster[rows], weights=weighted[rows] * intervals[rows, i], minlength=len(seeds)) for i in (0, 1)
    ]
    fused = np.stack(ends, axis=1)[spoken] / total[spoken, None]
    return seeds[spoken], fused, total[spoken] / weights.sum()


def _clusters(intervals: np.ndarray, groups: np.ndarray, seeds: np.ndarray, threshold: float) -> np.ndarray:
    """Return the position in `seeds` of the cluster of each interval, (n,)."""
    cluster = np.full(len(intervals), -1)
    cluster[seeds] = np.arange(len(seeds))
    is_seed = cluster >= 0
    low, high, tiou = overlapping_pairs(intervals, groups)
    joins = (tiou >= threshold) & (is_seed[low] != is_seed[high])
    low, high, tiou = low[joins], high[joins], tiou[joins]
    seed, other = np.where(is_seed[low], low, high), np.where(is_seed[low], high, low)
    order = np.lexsort((-seed, tiou))  # the last one written stays: the highest tIoU, then the first seed
    cluster[other[order]] = cluster[seed[order]]
    return cluster
