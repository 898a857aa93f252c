"""Out-of-fold predictions of one head, and the head refitted on every fold for all other recordings."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from talstack.heads.config import HeadsConfig
from talstack.heads.features import GroupFeatures
from talstack.heads.model import TrainedHead
from talstack.heads.targets import TaskTargets
from talstack.io.errors import InputError
from talstack.io.manifest import Manifest
from talstack.io.predictions import ModelKey, SegmentIndex, scene_rows, segment_rows


@dataclass(frozen=True, slots=True)
class FoldPlan:
    """Which recordings a head learns from, and which fold's model predicts which.

    Attributes:
        folds: {recording: fold} of the recordings that are predicted out of fold.
        learn: the recordings, all of them in `folds`, that any model may be fitted on.
        others_by: what predicts the recordings that are not in `folds`, as in `HeadsConfig`.
    """

    folds: Mapping[str, int]
    learn: frozenset[str]
    others_by: str = "refit"

    @property
    def models(self) -> tuple[int, ...]:
        """Which models a head has: one without each fold, and -1, that of all, last, where that predicts others."""
        return (*sorted(set(self.folds.values())), *([-1] if self.others_by == "refit" else []))

    @classmethod
    def of(cls, manifest: Manifest, seen: Iterable[str], config: HeadsConfig) -> "FoldPlan":
        """Return the plan of a data set.

        Raises:
            InputError: the manifest has no folds in `fit_splits`, or nothing is left to learn from.
        """
        inside = set(manifest.recordings_of(config.fit_splits))
        folds = {name: int(fold) for name, fold in manifest.folds.sort("recording").iter_rows() if name in inside}
        if len(set(folds.values())) < 2:
            raise InputError(
                f"{manifest.name}: {len(set(folds.values()))} folds among the recordings of split "
                f"{', '.join(config.fit_splits)}; need two or more: import the data set again with --folds"
            )
        learn = frozenset(folds) - (frozenset(seen) if config.fit_on == "unseen" else frozenset())
        if not learn:
            raise InputError('heads.fit_on = "unseen", but the backbone has seen every recording with a fold')
        return cls(folds, learn, config.others_by)


@dataclass(frozen=True, slots=True, eq=False)
class FoldFit:
    """One of the models of a cross-fitted head, and what it says of the recordings that are its to predict.

    Attributes:
        fold: which recordings it has not seen; -1: it is fitted on all.
        index: the segments of the whole group.
        classes: names of the probability columns.
        rows: (N,) bool, which of the group's rows it predicts, alone or with others; recordings for scenes, else
            segments.
        probs, valid: of these rows, (n, C) float32 and (n,) bool.
        head: the model; None where no training recording has labelled features.
    """

    fold: int
    index: SegmentIndex
    classes: tuple[str, ...]
    rows: np.ndarray
    probs: np.ndarray
    valid: np.ndarray
    head: TrainedHead | None


@dataclass(frozen=True, slots=True, eq=False)
class CrossFit:
    """What cross-fitting one head gave.

    Attributes:
        table: its rows of the out-of-fold table.
        heads: by fold, what predicts recordings without a fold: the one fitted on all recordings of the plan, -1, or
            the models of the folds, whose mean does; empty where no recording has labelled features.
        num_unpredicted: recordings left without a prediction because no training recording had labelled features.
    """

    table: pl.DataFrame
    heads: Mapping[int, TrainedHead]
    num_unpredicted: int


def cross_fit(
    key: ModelKey, group: GroupFeatures, targets: TaskTargets, *, plan: FoldPlan, config: HeadsConfig
) -> CrossFit:
    """Return the predictions of a head for every recording of the group, and the head itself.

    A recording with a fold is predicted by a model that saw no recording of that fold; the others by the model
    fitted on all, or by the mean of all models.
    """
    return together(
        key, [fit_fold(key, group, targets, fold=fold, plan=plan, config=config) for fold in plan.models], plan
    )


def fit_fold(
    key: ModelKey, group: GroupFeatures, targets: TaskTargets, *, fold: int, plan: FoldPlan, config: HeadsConfig
) -> FoldFit:
    """Return the model that has not seen a fold; -1 for the one of all.

    Args:
        group: all recordings; its components, where it has some, were fitted without the fold.
    """
    folds = _folds_of(group.index, plan)
    learn = np.array([name in plan.learn for name in group.recordings], dtype=bool)
    own = folds == fold
    shares = plan.others_by == "folds"
    predicted = own | (folds == -1) if shares else own
    rows = predicted if key.task == "scene" else predicted[group.row_recordings]
    probs = np.full((int(rows.sum()), len(targets.classes)), np.nan, dtype=np.float32)
    valid = np.zeros(len(probs), dtype=bool)
    head = None
    if fold == -1 or shares or own.any():
        head = TrainedHead.fit(key, group, targets, train=learn & (folds != fold), folds=folds, config=config)
    if head is not None and rows.any():
        probs, valid = head.predict_proba(group.subset(predicted))
    return FoldFit(fold, group.index, targets.classes, rows, probs, valid, head)


def together(key: ModelKey, parts: Sequence[FoldFit], plan: FoldPlan) -> CrossFit:
    """Return what the models of a plan, all of them, make together; where several predict, their mean counts."""
    index, classes = parts[0].index, parts[0].classes
    folds = _folds_of(index, plan)
    probs, valid = mean_predictions(
        [(part.rows, part.probs, part.valid) for part in sorted(parts, key=lambda part: part.fold)]
    )
    row_fold = folds if key.task == "scene" else folds[index.row_recordings]
    heads = {part.fold: part.head for part in parts if part.head is not None}
    unpredicted = np.isin(folds, [part.fold for part in parts if part.head is None])
    if -1 in plan.models:
        heads = {-1: heads[-1]} if -1 in heads else {}
    elif not heads:
        unpredicted |= folds == -1
    table = rows_of(key, index, probs, valid=valid, fold=row_fold, classes=classes)
    return CrossFit(table, heads, int(unpredicted.sum()))


def mean_predictions(parts: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean (N, C) float32 of several models' predictions, NaN where none is valid, and (N,) bool.

    Args:
        parts: of each model, which of the N rows it predicts, (N,) bool, and of these (n, C) float32 and (n,) bool.
    """
    rows, first, _ = parts[0]
    total, count = np.zeros((len(rows), first.shape[1]), dtype=np.float64), np.zeros(len(rows), dtype=np.int64)
    for rows, probs, valid in parts:
        total[np.flatnonzero(rows)[valid]] += probs[valid]
        count[np.flatnonzero(rows)[valid]] += 1
    mean = np.full(total.shape, np.nan, dtype=np.float32)
    np.divide(total, count[:, None], out=mean, where=count[:, None] > 0, casting="same_kind")
    return mean, count > 0


def rows_of(
    key: ModelKey,
    index: SegmentIndex,
    probs: np.ndarray,
    *,
    valid: np.ndarray,
    fold: np.ndarray,
    classes: tuple[str, ...],
) -> pl.DataFrame:
    """Return a head's predictions as rows of the out-of-fold table; by recording for scenes, else by segment."""
    if key.task == "scene":
        return scene_rows(key, index.recordings, probs, valid=valid, fold=fold, classes=classes)
    return segment_rows(key, index, probs, valid=valid, fold=fold, classes=classes)


def _folds_of(index: SegmentIndex, plan: FoldPlan) -> np.ndarray:
    return np.array([plan.folds.get(name, -1) for name in index.recordings], dtype=np.int64)
