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
    """

    folds: Mapping[str, int]
    learn: frozenset[str]

    @property
    def models(self) -> tuple[int, ...]:
        """Which models a head has: one without each fold, and -1, that of all, last."""
        return (*sorted(set(self.folds.values())), -1)

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
        return cls(folds, learn)


@dataclass(frozen=True, slots=True, eq=False)
class FoldFit:
    """One of the models of a cross-fitted head, and what it says of the recordings that are its to predict.

    Attributes:
        fold: which recordings it has not seen; -1: it is fitted on all, and predicts those without a fold.
        index: the segments of the whole group.
        classes: names of the probability columns.
        rows: (N,) bool, which of the group's rows it predicts; recordings for scenes, else segments.
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
        head: fitted on all recordings of the plan; None where none of them has labelled features.
        num_unpredicted: recordings left without a prediction because no training recording had labelled features.
    """

    table: pl.DataFrame
    head: TrainedHead | None
    num_unpredicted: int


def cross_fit(
    key: ModelKey, group: GroupFeatures, targets: TaskTargets, *, plan: FoldPlan, config: HeadsConfig
) -> CrossFit:
    """Return the predictions of a head for every recording of the group, and the head itself.

    A recording with a fold is predicted by a model that saw no recording of that fold; the others by the model
    fitted on all.
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
    rows = own if key.task == "scene" else own[group.row_recordings]
    probs = np.full((int(rows.sum()), len(targets.classes)), np.nan, dtype=np.float32)
    valid = np.zeros(len(probs), dtype=bool)
    head = None
    if fold == -1 or own.any():
        head = TrainedHead.fit(key, group, targets, train=learn & (folds != fold), folds=folds, config=config)
    if head is not None and rows.any():
        probs, valid = head.predict_proba(group.subset(own))
    return FoldFit(fold, group.index, targets.classes, rows, probs, valid, head)


def together(key: ModelKey, parts: Sequence[FoldFit], plan: FoldPlan) -> CrossFit:
    """Return what the models of all folds, -1 among them, make together."""
    whole = next(part for part in parts if part.fold == -1)
    folds = _folds_of(whole.index, plan)
    probs = np.full((len(whole.rows), len(whole.classes)), np.nan, dtype=np.float32)
    valid = np.zeros(len(whole.rows), dtype=bool)
    for part in parts:
        probs[part.rows], valid[part.rows] = part.probs, part.valid
    row_fold = folds if key.task == "scene" else folds[whole.index.row_recordings]
    num_unpredicted = sum(int((folds == part.fold).sum()) for part in parts if part.head is None)
    table = rows_of(key, whole.index, probs, valid=valid, fold=row_fold, classes=whole.classes)
    return CrossFit(table, whole.head, num_unpredicted)


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
