"""What the ensemble learns from: the out-of-fold table as dense arrays over the segments of some recordings.

A model is an action head of one (view, modality), named by its `ModelKey`; the activity head of the same learner
goes with it. NaN marks what a model could not predict.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from talstack.io.errors import InputError
from talstack.io.predictions import ACTIVITY, ModelKey, SegmentIndex, by_model, dense_probs, scene_probs
from talstack.io.view_names import split_view


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """Probabilities of M models over N segments, C actions and K scenes.

    Attributes:
        index: which recordings and segments the N rows are.
        models: the M action heads.
        actions, scenes: class names in column order.
        action_probs: (M, N, C) float32; NaN where a model has no prediction.
        activity_probs: (M, N) float32, the probability of any action; NaN as above.
        scene_probs: (R, K) float32 by recording of the index, the mean of its scene heads; NaN where it has none.
    """

    index: SegmentIndex
    models: tuple[ModelKey, ...]
    actions: tuple[str, ...]
    scenes: tuple[str, ...]
    action_probs: np.ndarray
    activity_probs: np.ndarray
    scene_probs: np.ndarray

    @classmethod
    def of(
        cls, table: pl.DataFrame, index: SegmentIndex, *, actions: Sequence[str], scenes: Sequence[str]
    ) -> "Evidence":
        """Return the evidence that an out-of-fold table holds on the recordings of `index`.

        Raises:
            InputError: the table has no action head.
        """
        parts = by_model(table)
        models = tuple(key for key in parts if key.task == "action")
        if not models:
            raise InputError("the out-of-fold table has no action head; run `talstack heads` again")
        recordings = index.recordings
        action = np.stack([dense_probs(parts[key], key, index=index, classes=actions) for key in models])
        activity = np.stack([_activity(parts, key, index) for key in models])
        # a learner without an activity head: some action happens at least as surely as the likeliest one
        activity = np.where(np.isnan(activity), action.max(axis=2), activity)
        scene = [
            scene_probs(rows, key, recordings=recordings, scenes=scenes)
            for key, rows in parts.items()
            if key.task == "scene"
        ] or [np.full((len(recordings), len(scenes)), np.nan, dtype=np.float32)]
        return cls(index, models, tuple(actions), tuple(scenes), action, activity, _mean_scene(np.stack(scene)))

    @property
    def present(self) -> np.ndarray:
        """Return which model predicts which segment, (M, N) bool."""
        return ~np.isnan(self.action_probs).any(axis=2)

    def subset(self, recordings: Sequence[str]) -> "Evidence":
        """Return the evidence on some of the recordings, in the order given."""
        rows = dict(self.index.slices())
        order = {name: i for i, name in enumerate(self.index.recordings)}
        keep = np.concatenate([np.arange(rows[r].start, rows[r].stop) for r in recordings] or [np.zeros(0, int)])
        return replace(
            self,
            index=self.index.subset(recordings),
            action_probs=self.action_probs[:, keep],
            activity_probs=self.activity_probs[:, keep],
            scene_probs=self.scene_probs[[order[r] for r in recordings]],
        )

    def with_models(self, models: Sequence[ModelKey]) -> "Evidence":
        """Return the evidence of exactly these models; NaN throughout for one that is not here."""
        have = {key: i for i, key in enumerate(self.models)}
        action = np.full((len(models), *self.action_probs.shape[1:]), np.nan, dtype=np.float32)
        activity = np.full((len(models), self.index.num_rows), np.nan, dtype=np.float32)
        for row, key in enumerate(models):
            if key in have:
                action[row], activity[row] = self.action_probs[have[key]], self.activity_probs[have[key]]
        return replace(self, models=tuple(models), action_probs=action, activity_probs=activity)

    def without_views(self, views: Sequence[str]) -> "Evidence":
        """Return the evidence as if these views, and so their pieces, had not been filmed."""
        gone = np.array([key.view in views or split_view(key.view)[0] in views for key in self.models])
        action, activity = self.action_probs.copy(), self.activity_probs.copy()
        action[gone], activity[gone] = np.nan, np.nan
        return replace(self, action_probs=action, activity_probs=activity)

    def segment_recordings(self) -> np.ndarray:
        """Return the position in `index.recordings` that each row belongs to, (N,) int64."""
        return np.repeat(np.arange(len(self.index.recordings)), self.index.num_segments)


def _activity(parts: Mapping[ModelKey, pl.DataFrame], key: ModelKey, index: SegmentIndex) -> np.ndarray:
    activity_key = ModelKey(key.view, key.modality, f"{ACTIVITY}-{key.learner}")
    if activity_key not in parts:
        return np.full(index.num_rows, np.nan, dtype=np.float32)
    return dense_probs(parts[activity_key], activity_key, index=index, classes=[ACTIVITY])[:, 0]


def _mean_scene(probs: np.ndarray) -> np.ndarray:
    """Return the mean (R, K) over the (H, R, K) heads that have a prediction, summing to one; NaN where none has."""
    present = ~np.isnan(probs).any(axis=2, keepdims=True)
    total = np.where(present, probs, 0.0).sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = total / total.sum(axis=1, keepdims=True)
    return np.where(present.any(axis=0), mean, np.nan).astype(np.float32)
