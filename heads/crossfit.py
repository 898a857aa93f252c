"""Out-of-fold predictions of one head, and the head refitted on every fold for all other recordings."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl

from talstack.heads.config import HeadsConfig
from talstack.heads.features import GroupFeatures
from talstack.heads.model import TrainedHead
from talstack.heads.targets import TaskTargets
from talstack.io.errors import InputError
from talstack.io.manifest import Manifest
from talstack.io.predictions import ModelKey, scene_rows, segment_rows


@dataclass(frozen=True, slots=True)
class FoldPlan:
    """Which recordings a head learns from, and which fold's model predicts which.

    Attributes:
        folds: {recording: fold} of the recordings that are predicted out of fold.
        learn: the recordings, all of them in `folds`, that any model may be fitted on.
    """

    folds: Mapping[str, int]
    learn: frozenset[str]

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
    key: ModelKey,
    group: GroupFeatures,
    targets: TaskTargets,
    *,
    plan: FoldPlan,
    config: HeadsConfig,
    group_without: Callable[[int], GroupFeatures] | None = None,
) -> CrossFit:
    """Return the predictions of a head for every recording of the group, and the head itself.

    A recording with a fold is predicted by a model that saw no recording of that fold; the others by the model
    fitted on all.

    Args:
        group_without: the group with the components fitted without a fold (-1: on all) in place of its features.
    """
    names = group.recordings
    fold = np.array([plan.folds.get(name, -1) for name in names], dtype=np.int64)
    learn = np.array([name in plan.learn for name in names], dtype=bool)
    pooled = key.task == "scene"
    row_fold = fold if pooled else fold[group.row_recordings]
    probs = np.full((len(row_fold), len(targets.classes)), np.nan, dtype=np.float32)
    valid = np.zeros(len(row_fold), dtype=bool)
    num_unpredicted, head = 0, None
    for number in (*sorted(set(fold) - {-1}), -1):
        source = group if group_without is None else group_without(number)
        head = TrainedHead.fit(key, source, targets, train=learn & (fold != number), folds=fold, config=config)
        rows = row_fold == number
        if head is None:
            num_unpredicted += int((fold == number).sum())
        elif rows.any():
            probs[rows], valid[rows] = head.predict_proba(source.subset(fold == number))
    return CrossFit(
        rows_of(key, group, probs, valid=valid, fold=row_fold, classes=targets.classes), head, num_unpredicted
    )


def rows_of(
    key: ModelKey,
    group: GroupFeatures,
    probs: np.ndarray,
    *,
    valid: np.ndarray,
    fold: np.ndarray,
    classes: tuple[str, ...],
) -> pl.DataFrame:
    """Return a head's predictions as rows of the out-of-fold table; by recording for scenes, else by segment."""
    if key.task == "scene":
        return scene_rows(key, group.recordings, probs, valid=valid, fold=fold, classes=classes)
    return segment_rows(key, group.index, probs, valid=valid, fold=fold, classes=classes)
