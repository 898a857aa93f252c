"""Scores by the rules of other evaluators, by name, for figures that can be held against theirs.

`actionformer`: happyharrycn/actionformer_release, libs/utils/metrics.py.
`opentad`: sming256/OpenTAD, opentad/evaluations/builder.py and mAP.py, opentad/cores/test_engine.py.
`x360`: what x360dataset/x360dataset-kit, run/TemporalAction/libs/utils/metrics.py, does to intervals before it matches
them, then matched as usual. `x360-repeats`: all of that evaluator, which does not remember taken instances, so that
repeated hits are true positives and AP may exceed 1. The competition itself scores by the usual rules.
`thumos14`: the THUMOS14 challenge's toolkit, in `talstack.evaluate.thumos14`.

All rest on ActivityNet's definition (`talstack.evaluate.map`) otherwise, and ties in score are broken as there. A
reader of files leaves out rows of zero length before any of this; the others would keep such a prediction as a false
positive. Not followed: where class ids of the ground truth have gaps, ActionFormer's evaluator can take a
predicted class that is not in the ground truth for another one.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import numpy as np
import polars as pl

from talstack.evaluate.average_precision import average_precisions
from talstack.evaluate.map import (
    UNKNOWN_LABEL,
    MapResult,
    checked_tables,
    checked_thresholds,
    summarise,
)
from talstack.evaluate.matching import Hits, Matched, Pairs, match_detections, overlapping_pairs
from talstack.evaluate.thumos14 import evaluate_thumos14
from talstack.io.bins import BIN_S, MIN_PIECE_S, cut_into_bins
from talstack.io.errors import InputError

TOLERANCE_S = 1e-3  # within which ActionFormer and OpenTAD take two instances for one
X360_MIN_S = 0.2  # the kit leaves out predictions that are not longer
X360_SNAP_S = 0.1  # `post_thr` of the kit's TriDet, the competition's baseline; ActionFormer 0.7, TemporalMaxer 0.8
NEAR_HALF = 1e-6  # how near to a half a decimal must be for binary rounding to be in doubt


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """Both tables as another evaluator would see them.

    Attributes:
        detections: as `DETECTION_SCHEMA`, but an interval may have become one of zero length.
        instances: as `INSTANCE_SCHEMA`.
        ignored: {reason: count} of rows left out.
        changed: {what was done: count} of rows that were changed.
        pieces: {recording: names of its pieces}, where recordings were cut into pieces that are scored alone.
    """

    detections: pl.DataFrame
    instances: pl.DataFrame
    ignored: Mapping[str, int] = field(default_factory=dict)
    changed: Mapping[str, int] = field(default_factory=dict)
    pieces: Mapping[str, Collection[str]] = field(default_factory=dict)


def evaluate_compat(
    name: str,
    detections: pl.DataFrame,
    instances: pl.DataFrame,
    *,
    tiou_thresholds: Sequence[float],
    preset: str = "custom",
    recordings: Iterable[str] | None = None,
) -> MapResult:
    """Return the mAP by the rules of another evaluator.

    The order of rows does not matter, with one exception: `thumos14` walks the instances in their order. (Of several
    instances that count as one, ActionFormer and OpenTAD keep the first in the file; here it is the earliest.)

    Args:
        name: one of `COMPAT`.
        detections, instances, tiou_thresholds, preset, recordings: as `evaluate_detections`.

    Raises:
        InputError: an unknown name, whatever `evaluate_detections` refuses, or no instance that the rules keep.
    """
    if name not in COMPAT:
        raise InputError(f"compat {name!r}: expected one of {', '.join(COMPAT)}")
    if name == "thumos14":
        return evaluate_thumos14(
            detections, instances, tiou_thresholds=tiou_thresholds, preset=preset, recordings=recordings
        )
    thresholds = checked_thresholds(tiou_thresholds)
    detections, instances = checked_tables(detections, instances)
    listed = set(instances["recording"]) if recordings is None else set(recordings)
    prepared = PREPARATIONS[name](detections, instances)
    if prepared.instances.is_empty():
        raise InputError(f"instances: the rules of {name} leave no instance ({dict(prepared.ignored)})")
    if prepared.pieces:
        listed = {piece for recording in listed for piece in prepared.pieces.get(recording, ())}
    match = _match_repeatedly if name == "x360-repeats" else match_detections
    return replace(_score(prepared, thresholds, match, preset=preset, recordings=listed), compat=name)


def prepare_actionformer(detections: pl.DataFrame, instances: pl.DataFrame) -> Prepared:
    """Return both as ActionFormer scores them: no instance under 1e-3 s, none within 1e-3 s of one kept before.

    Source: happyharrycn/actionformer_release, libs/utils/metrics.py, remove_duplicate_annotations: an instance is
    dropped if end - start < 1e-3, or if an instance of the same recording and label, earlier (there in the file, here
    in time) and itself kept, has both its start and its end within 1e-3 s, limits included.
    """
    kept = instances.filter(pl.col("end_s") - pl.col("start_s") >= TOLERANCE_S)
    short = {f"shorter than {TOLERANCE_S:g} s (instance)": instances.height - kept.height}
    return _without_duplicates(detections, kept, ignored=short)


def prepare_opentad(detections: pl.DataFrame, instances: pl.DataFrame) -> Prepared:
    """Return both as OpenTAD scores them: no duplicates, times of detections to 0.01 s, scores to 0.0001.

    Source: sming256/OpenTAD, opentad/evaluations/builder.py, remove_duplicate_annotations (as ActionFormer's, but
    only length <= 0 is dropped, which no checked table holds), and opentad/cores/test_engine.py, which rounds with
    Python's `round` before it evaluates; the ground truth is not rounded. A detection that this leaves without
    length stays, overlaps nothing, and is a false positive (mAP.py divides by at least 1e-8).
    """
    times = {name: round_decimals(detections[name].to_numpy(), 2) for name in ("start_s", "end_s")}
    rounded = detections.with_columns(
        **{name: pl.Series(values) for name, values in times.items()},
        score=pl.Series(round_decimals(detections["score"].to_numpy(), 4)),
    )
    names = ("start_s", "end_s", "score")
    is_moved = np.any([detections[name].to_numpy() != rounded[name].to_numpy() for name in names], axis=0)
    changed = {
        "rounded to 0.01 s or to 0.0001 in score": int(is_moved.sum()),
        "zero length after rounding, a false positive": int((rounded["start_s"] == rounded["end_s"]).sum()),
    }
    return replace(_without_duplicates(rounded, instances, ignored={}), changed=changed)


def prepare_x360(detections: pl.DataFrame, instances: pl.DataFrame) -> Prepared:
    """Return both as the 360+x kit scores them: ten-second pieces, each a recording of its own, times 0 to 10 s.

    Source: x360dataset/x360dataset-kit, run/TemporalAction/libs/utils/metrics.py. Instances: ActionFormer's rules.
    Detections of at most 0.2 s are left out; times of both are rounded to 0.01 s and clipped to the piece; then the
    starts of DETECTIONS below 0.1 s become 0 and their ends above 9.9 s become 10. Instances are not snapped. (The
    limit is `post_thr` in run/TemporalAction/configs: 0.1 for TriDet.)

    The kit's models see one piece at a time, so this is meant for detections within pieces, as in a competition file.
    Whatever crosses an edge is cut there as the competition cuts, without its rounding to 0.1 s. A file whose times
    are rounded to 0.1 s holds nothing to snap.
    """
    long_enough = detections.filter(pl.col("end_s") - pl.col("start_s") > X360_MIN_S)
    found, crossing = _clip_at_zero(long_enough), _crosses_an_edge(_clip_at_zero(long_enough))
    cut, num_short = _cut(found.filter(crossing))
    targets = _clip_at_zero(instances).filter(pl.col("end_s") > pl.col("start_s"))
    pieces, num_short_targets = _cut(targets)
    found, truth = _on_piece_clock(pl.concat([found.filter(~crossing), cut])), _on_piece_clock(pieces)
    names = pl.concat([table.select("of", "recording") for table in (found, truth)]).unique().group_by("of").all()
    kept = prepare_actionformer(found.drop("of"), truth.drop("of"))
    found, num_snapped = _round_and_snap(kept.detections)
    ignored = {
        f"not longer than {X360_MIN_S:g} s": detections.height - long_enough.height,
        f"piece under {MIN_PIECE_S:g} s": num_short,
        f"piece under {MIN_PIECE_S:g} s (instance)": num_short_targets,
        "before second 0 (instance)": instances.height - targets.height,
        **kept.ignored,
    }
    changed = {"cut at the edges of pieces": int(crossing.sum()), "snapped to an edge of the piece": num_snapped}
    return Prepared(found, _rounded(kept.instances), ignored, changed, dict(names.iter_rows()))


PREPARATIONS: Mapping[str, Callable[[pl.DataFrame, pl.DataFrame], Prepared]] = MappingProxyType(
    {
        "actionformer": prepare_actionformer,
        "opentad": prepare_opentad,
        "x360": prepare_x360,
        "x360-repeats": prepare_x360,
    }
)
COMPAT = (*PREPARATIONS, "thumos14")


def round_decimals(values: np.ndarray, decimals: int) -> np.ndarray:
    """Return the values rounded as Python's `round(value, decimals)` does, (n,) float64.

    numpy multiplies first, which moves a value such as 1.115 across the half; those near a half are few.
    """
    scaled = values * 10.0**decimals
    rounded = np.rint(scaled) / 10.0**decimals
    doubtful = np.abs(scaled - np.floor(scaled) - 0.5) < NEAR_HALF + np.abs(scaled) * 1e-12
    rounded[doubtful] = [round(value, decimals) for value in values[doubtful].tolist()]
    return rounded


def is_first_of_duplicates(instances: pl.DataFrame) -> np.ndarray:
    """Return which rows stay where an instance within `TOLERANCE_S` of a row kept before is dropped, (n,) bool."""
    keys = ["recording", "label"]
    rows = instances.with_row_index("row").unique([*keys, "start_s", "end_s"], keep="first", maintain_order=True)
    rows = rows.sort(*keys, "start_s", "row")
    same = pl.all_horizontal(pl.col(name) == pl.col(name).shift() for name in keys)
    near = same & (pl.col("start_s") - pl.col("start_s").shift() <= TOLERANCE_S)
    rows = rows.with_columns(cluster=(~near.fill_null(False)).cum_sum())
    is_kept = np.zeros(instances.height, dtype=bool)
    is_kept[rows.filter(pl.len().over("cluster") == 1)["row"].to_numpy()] = True
    crowded = rows.filter(pl.len().over("cluster") > 1)
    for _, cluster in crowded.group_by("cluster"):
        is_kept[_walk_cluster(cluster.sort("start_s", "end_s"))] = True
    return is_kept


def _walk_cluster(cluster: pl.DataFrame) -> list[int]:
    """Return the rows that stay of starts that lie so near that each may be a duplicate, walked by start and end."""
    kept: list[tuple[int, float, float]] = []
    for row, start, end in cluster.select("row", "start_s", "end_s").iter_rows():
        if not any(abs(start - low) <= TOLERANCE_S and abs(end - high) <= TOLERANCE_S for _, low, high in kept):
            kept.append((row, start, end))
    return [row for row, _, _ in kept]


def _without_duplicates(detections: pl.DataFrame, instances: pl.DataFrame, *, ignored: Mapping[str, int]) -> Prepared:
    kept = instances.filter(pl.Series(is_first_of_duplicates(instances), dtype=pl.Boolean))
    duplicates = {f"duplicate within {TOLERANCE_S:g} s (instance)": instances.height - kept.height}
    return Prepared(detections, kept, ignored={**ignored, **duplicates})


def _clip_at_zero(table: pl.DataFrame) -> pl.DataFrame:
    return table.with_columns(pl.col("start_s", "end_s").clip(lower_bound=0.0))


def _crosses_an_edge(table: pl.DataFrame) -> pl.Series:
    """Return whether each interval reaches past the ten-second bin that it starts in, (n,) bool."""
    past = (np.floor(table["start_s"].to_numpy() / BIN_S) + 1) * BIN_S
    return pl.Series(table["end_s"].to_numpy() > past, dtype=pl.Boolean)


def _cut(table: pl.DataFrame) -> tuple[pl.DataFrame, int]:
    """Return the intervals cut into ten-second bins, and how many pieces were too short for the competition."""
    first, past = np.floor(table["start_s"].to_numpy() / BIN_S), np.ceil(table["end_s"].to_numpy() / BIN_S)
    pieces = cut_into_bins(table)
    return pieces, int((past - first).sum()) - pieces.height


def _on_piece_clock(table: pl.DataFrame) -> pl.DataFrame:
    """Return the table with recordings named `<recording>_<bin start>_<bin end>`, formerly `of`, times from there."""
    low = pl.Series(np.floor(table["start_s"].to_numpy() / BIN_S) * BIN_S)
    name = pl.format("{}_{}_{}", "of", low.cast(pl.Int64), (low + BIN_S).cast(pl.Int64))
    return table.with_columns(pl.col("start_s", "end_s") - low, of="recording").with_columns(recording=name)


def _rounded(table: pl.DataFrame) -> pl.DataFrame:
    """Return the table with times to 0.01 s, by numpy as in the kit, within 0 to 10 s."""
    times = {name: np.clip(np.round(table[name].to_numpy(), 2), 0.0, BIN_S) for name in ("start_s", "end_s")}
    return table.with_columns(**{name: pl.Series(values) for name, values in times.items()})


def _round_and_snap(detections: pl.DataFrame) -> tuple[pl.DataFrame, int]:
    """Return the detections rounded, then with ends near an edge of the piece on it, and how many that moved."""
    rounded = _rounded(detections)
    snapped = rounded.with_columns(
        start_s=pl.when(pl.col("start_s") < X360_SNAP_S).then(0.0).otherwise(pl.col("start_s")),
        end_s=pl.when(pl.col("end_s") > BIN_S - X360_SNAP_S).then(BIN_S).otherwise(pl.col("end_s")),
    )
    moved = (rounded["start_s"] != snapped["start_s"]) | (rounded["end_s"] != snapped["end_s"])
    return snapped, int(moved.sum())


def _score(
    prepared: Prepared,
    thresholds: np.ndarray,
    match: Callable[..., Matched],
    *,
    preset: str,
    recordings: Collection[str],
) -> MapResult:
    """Return the mAP of prepared tables; what was left out or changed is counted."""
    classes = prepared.instances["label"].unique().to_list()
    scored = prepared.detections.filter(pl.col("label").is_in(classes))
    matched = match(scored, prepared.instances, thresholds, recordings=recordings)
    ignored = {**prepared.ignored, UNKNOWN_LABEL: prepared.detections.height - scored.height}
    counts = {reason: count for reason, count in ignored.items() if count}
    result = summarise(matched, average_precisions(matched)[0], preset=preset, ignored=counts, recordings=recordings)
    repeated = _count_repeats(matched)
    return replace(result, changed={what: n for what, n in {**prepared.changed, **repeated}.items() if n})


def _match_repeatedly(
    detections: pl.DataFrame, instances: pl.DataFrame, thresholds: np.ndarray, *, recordings: Iterable[str]
) -> Matched:
    """Return every detection with enough tIoU to any instance as a true positive, as the 360+x kit counts.

    Its evaluator has lost ActionFormer's record of taken instances: a second detection of the same instance is no
    false positive, and recall and AP may exceed 1.
    """
    matched = match_detections(detections, instances, thresholds, recordings=recordings)
    pairs = overlapping_pairs(matched.detections, matched.instances, float(thresholds.min()))
    return replace(matched, hits=tuple(_first_pairs(pairs, threshold) for threshold in thresholds.tolist()))


def _first_pairs(pairs: Pairs, threshold: float) -> Hits:
    """Return each detection's best pair, where its tIoU is at least the threshold."""
    is_first = np.append(True, pairs.detection[1:] != pairs.detection[:-1])[: pairs.detection.size]
    best = is_first & (pairs.tiou >= threshold)
    return Hits(pairs.detection[best], pairs.instance[best])


def _count_repeats(matched: Matched) -> dict[str, int]:
    """Return {text: count} of true positives beyond the first of each instance, at the lowest threshold."""
    hits = matched.hits[int(np.argmin(matched.thresholds))]
    count = hits.instance.size - np.unique(hits.instance).size
    return {f"repeated hits that count as true positives, at tIoU {matched.thresholds.min():g}": count}
