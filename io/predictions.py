"""The out-of-fold table: probabilities of every (view, modality, head) for every segment.

One long table holds everything that stage two predicts and the ensemble learns from (`SCHEMA`). A head's name is
`<task>-<learner>`: task `activity` (one class, "activity"), `action` (one class per action; the probability that
it happens in the segment, several may), `boundary` (classes of `boundary_classes`: the probability that any action
starts, or ends, in the segment and in parts of it) or `scene` (one class per scene, one row set per recording, segment
null). `fold` is the fold whose recordings the predicting model did not see in training; null marks recordings outside
the folds (test), predicted by the model refitted on all folds.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl

from talstack.io.errors import InputError

ACTIVITY = "activity"
TASKS = ("activity", "action", "boundary", "scene")
SIDES = ("start", "end")
_MOST_RUNS = 1000  # of rows of one model; with more of them the table is sorted instead
SCHEMA: dict[str, type[pl.DataType]] = {
    "recording": pl.String,
    "segment": pl.Int32,
    "fold": pl.Int32,
    "view": pl.String,
    "modality": pl.String,
    "head": pl.String,
    "class": pl.String,
    "prob": pl.Float32,
    "valid": pl.Boolean,
}


@dataclass(frozen=True, slots=True, order=True)
class ModelKey:
    """One trained head of one (view, modality); str() gives "view/modality/head"."""

    view: str
    modality: str
    head: str

    @property
    def task(self) -> str:
        """What the head predicts: activity, action, boundary or scene."""
        return self.head.split("-", 1)[0]

    @property
    def learner(self) -> str:
        """How it learns: linear, gbm, ..."""
        return self.head.split("-", 1)[1]

    def __str__(self) -> str:
        return f"{self.view}/{self.modality}/{self.head}"


@dataclass(frozen=True, slots=True)
class SegmentIndex:
    """The rows of all segments of some recordings, laid end to end.

    Attributes:
        recordings: their order.
        num_segments: how many rows each has.
    """

    recordings: tuple[str, ...]
    num_segments: tuple[int, ...]

    @property
    def num_rows(self) -> int:
        """All segments of all recordings."""
        return sum(self.num_segments)

    @property
    def row_recordings(self) -> np.ndarray:
        """Which recording every row is of, (N,) int64."""
        return np.repeat(np.arange(len(self.recordings)), self.num_segments)

    def slices(self) -> Iterator[tuple[str, slice]]:
        """Yield every recording and its rows."""
        start = 0
        for recording, count in zip(self.recordings, self.num_segments, strict=True):
            yield recording, slice(start, start + count)
            start += count

    def subset(self, recordings: Sequence[str]) -> "SegmentIndex":
        """Return the index of some of the recordings, in the order given."""
        counts = dict(zip(self.recordings, self.num_segments, strict=True))
        return SegmentIndex(tuple(recordings), tuple(counts[r] for r in recordings))

    def table(self) -> pl.DataFrame:
        """Return (recording, segment, row): one line per row of the index."""
        return pl.DataFrame(
            {
                "recording": np.repeat(np.array(self.recordings, dtype=object), self.num_segments).tolist(),
                "segment": np.concatenate(
                    [np.arange(n, dtype=np.int32) for n in self.num_segments] or [np.zeros(0, np.int32)]
                ),
                "row": np.arange(self.num_rows, dtype=np.int64),
            },
            schema={"recording": pl.String, "segment": pl.Int32, "row": pl.Int64},
        )


def segment_rows(
    key: ModelKey,
    index: SegmentIndex,
    probs: np.ndarray,
    *,
    valid: np.ndarray,
    fold: np.ndarray,
    classes: Sequence[str],
) -> pl.DataFrame:
    """Return the out-of-fold rows of one model.

    Args:
        probs: (N, C) float, N = index.num_rows.
        valid: (N,) bool; False where the model had no features to predict from.
        fold: (N,) int, -1 for null.
    """
    if probs.shape != (index.num_rows, len(classes)):
        raise InputError(f"{key}: probs have shape {probs.shape}, expected {(index.num_rows, len(classes))}")
    num_classes = len(classes)
    rows = index.table().select("recording", "segment")
    rows = rows.with_columns(
        pl.Series("fold", fold, dtype=pl.Int32).replace(-1, None),
        pl.lit(key.view).alias("view"),
        pl.lit(key.modality).alias("modality"),
        pl.lit(key.head).alias("head"),
        pl.Series("valid", valid, dtype=pl.Boolean),
    )
    repeated = rows[np.repeat(np.arange(rows.height), num_classes)]
    return repeated.with_columns(
        pl.Series("class", list(classes) * index.num_rows, dtype=pl.String),
        pl.Series("prob", probs.astype(np.float32).reshape(-1), dtype=pl.Float32),
    ).select(list(SCHEMA))


def scene_rows(
    key: ModelKey,
    recordings: Sequence[str],
    probs: np.ndarray,
    *,
    valid: np.ndarray,
    fold: np.ndarray,
    classes: Sequence[str],
) -> pl.DataFrame:
    """Return the out-of-fold rows of one scene model: one row per recording and scene, segment null.

    Args:
        probs: (R, K) float.
        valid: (R,) bool; False where the model had no features to predict from.
        fold: (R,) int, -1 for null.
    """
    index = SegmentIndex(tuple(recordings), (1,) * len(recordings))
    rows = segment_rows(key, index, probs, valid=valid, fold=fold, classes=classes)
    return rows.with_columns(pl.lit(None, dtype=pl.Int32).alias("segment"))


def read_table(path: Path) -> pl.DataFrame:
    """Return a table that lies in a parquet file; row groups side by side, ten times faster than column by column."""
    return pl.read_parquet(path, parallel="row_groups")


def folds_in(table: pl.DataFrame) -> list[tuple[str, int | None]]:
    """Return every (recording, fold) of the rows once, sorted, a null fold first."""
    changes = pl.any_horizontal(pl.col(name).ne_missing(pl.col(name).shift()) for name in ("recording", "fold"))
    pairs = table.select("recording", "fold").filter(changes)  # rows of a recording stand together, or some of them
    return list(pairs.unique().sort("recording", "fold").iter_rows())


def by_model(table: pl.DataFrame) -> dict[ModelKey, pl.DataFrame]:
    """Return every model's rows, models sorted; without a copy where the rows of a model stand together."""
    names = ["view", "modality", "head"]
    changes = pl.any_horizontal(pl.col(name).ne_missing(pl.col(name).shift()) for name in names)
    starts = table.select(changes.alias("changes"))["changes"].arg_true().to_list()
    if len(starts) > _MOST_RUNS:
        return dict(sorted((ModelKey(*key), rows) for key, rows in table.partition_by(names, as_dict=True).items()))
    parts: dict[ModelKey, list[pl.DataFrame]] = {}
    for start, end in zip(starts, [*starts, table.height][1:], strict=True):
        parts.setdefault(ModelKey(*(table[name][start] for name in names)), []).append(table[start:end])
    return {key: pl.concat(parts[key]) for key in sorted(parts)}


def models_of(table: pl.DataFrame, task: str | None = None) -> list[ModelKey]:
    """Return the models in the table, sorted; of one task where given."""
    return [key for key in by_model(table) if task is None or key.task == task]


def dense_probs(table: pl.DataFrame, key: ModelKey, *, index: SegmentIndex, classes: Sequence[str]) -> np.ndarray:
    """Return one model's probabilities, (N, C) float32; NaN where it has no valid prediction."""
    rows = table.filter(
        (pl.col("view") == key.view)
        & (pl.col("modality") == key.modality)
        & (pl.col("head") == key.head)
        & pl.col("valid")
    ).select(
        pl.col("recording").cast(pl.Enum(index.recordings), strict=False).to_physical(),
        "segment",
        pl.col("class").cast(pl.Enum(list(classes)), strict=False).to_physical(),
        "prob",
    )
    rows = rows.drop_nulls()
    counts = np.array(index.num_segments, dtype=np.int64)
    recording, segment, column = (rows[name].to_numpy().astype(np.int64) for name in ("recording", "segment", "class"))
    inside = segment < counts[recording]
    dense = np.full((index.num_rows, len(classes)), np.nan, dtype=np.float32)
    places = (np.cumsum(counts) - counts)[recording] + segment
    dense[places[inside], column[inside]] = rows["prob"].to_numpy()[inside]
    return dense


def scene_probs(table: pl.DataFrame, key: ModelKey, *, recordings: Sequence[str], scenes: Sequence[str]) -> np.ndarray:
    """Return one scene head's probabilities, (R, K) float32; NaN where it has no valid prediction."""
    rows = table.filter(
        (pl.col("view") == key.view)
        & (pl.col("modality") == key.modality)
        & (pl.col("head") == key.head)
        & pl.col("valid")
    )
    order = {recording: i for i, recording in enumerate(recordings)}
    columns = {name: i for i, name in enumerate(scenes)}
    dense = np.full((len(recordings), len(scenes)), np.nan, dtype=np.float32)
    for recording, scene, prob in rows.select("recording", "class", "prob").iter_rows():
        if recording in order and scene in columns:
            dense[order[recording], columns[scene]] = prob
    return dense


class BoundaryCurves(NamedTuple):
    """Where actions begin and end, whichever they are; NaN where the model has no valid prediction.

    Attributes:
        start, end: (N,) float32, the probability that an action starts / ends in the segment.
        start_offset_s, end_offset_s: (N,) float32, where in the segment it does if it does, on average, seconds from
            the segment's start.
        start_parts, end_parts: (N, K) float32, `start` and `end` shared out over the segment's K equal parts. Laid end
            to end, part k of segment i covers [(i + k / K) * segment_s, (i + (k + 1) / K) * segment_s); the centre of
            mass of a peak, one segment to either side, is the best single guess at a boundary.
    """

    start: np.ndarray
    end: np.ndarray
    start_offset_s: np.ndarray
    end_offset_s: np.ndarray
    start_parts: np.ndarray
    end_parts: np.ndarray


def boundary_classes(parts: int) -> tuple[str, ...]:
    """Return the classes of a boundary head: start and end, then each in the first to last part of a segment."""
    return (*SIDES, *(f"{side} {part + 1}/{parts}" for side in SIDES for part in range(parts)))


def boundary_curves(table: pl.DataFrame, key: ModelKey, *, index: SegmentIndex, segment_s: float) -> BoundaryCurves:
    """Return what one boundary head says about the segments of the index.

    Raises:
        InputError: the table has no predictions of this model, or its classes are not those of a boundary head.
    """
    own = table.filter(
        (pl.col("view") == key.view) & (pl.col("modality") == key.modality) & (pl.col("head") == key.head)
    )
    names = own["class"].unique().to_list()
    parts = len(names) // 2 - 1
    if parts < 1 or set(names) != set(boundary_classes(parts)):
        raise InputError(f"{key}: classes {sorted(names)[:4]} are not those of a boundary head; run `talstack heads`")
    probs = dense_probs(own, key, index=index, classes=boundary_classes(parts))
    shares = probs[:, 2:].reshape(-1, 2, parts)
    shares = shares / np.maximum(shares.sum(axis=2, keepdims=True), 1e-9)
    centres_s = (np.arange(parts, dtype=np.float32) + 0.5) / parts * np.float32(segment_s)
    offset_s, mass = shares @ centres_s, shares * probs[:, :2, None]
    return BoundaryCurves(probs[:, 0], probs[:, 1], offset_s[:, 0], offset_s[:, 1], mass[:, 0], mass[:, 1])
