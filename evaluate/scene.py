"""Accuracy of scene predictions: top-1, top-5, what is taken for what, and each scene head by itself.

Every recording has one scene. The frames are tidy and do not depend on the order of rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl

from talstack.io.errors import InputError
from talstack.io.predictions import models_of, scene_probs

CONFUSION_SCHEMA: Mapping[str, type[pl.DataType]] = {"scene": pl.String, "predicted": pl.String, "count": pl.Int64}
RECALL_SCHEMA: Mapping[str, type[pl.DataType]] = {
    "scene": pl.String,
    "num_recordings": pl.Int64,
    "num_correct": pl.Int64,
    "recall": pl.Float64,
}
MODELS_SCHEMA: Mapping[str, type[pl.DataType]] = {
    "view": pl.String,
    "modality": pl.String,
    "head": pl.String,
    "num_recordings": pl.Int64,
    "num_predicted": pl.Int64,
    "top1": pl.Float64,
    "top5": pl.Float64,
}


@dataclass(frozen=True, slots=True, eq=False)
class SceneResult:
    """Accuracy over the recordings whose scene is known, fractions from 0 to 1.

    Attributes:
        top1, top5: how often the true scene is the most probable one, or among the five most probable.
        num_recordings: recordings that were scored.
        missing: of these, the ones without a prediction; they count as wrong.
        ignored: {reason: count} of predictions that were not scored.
        confusion: (scene, predicted, count), the pairs that occur, in the order of the scene list; `predicted` is
            null for recordings without a prediction.
        recall: (scene, num_recordings, num_correct, recall), the scenes that occur, in the order of the list.
    """

    top1: float
    top5: float
    num_recordings: int
    missing: tuple[str, ...] = ()
    ignored: Mapping[str, int] | None = None
    confusion: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=CONFUSION_SCHEMA))
    recall: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=RECALL_SCHEMA))

    def to_json(self) -> dict[str, Any]:
        """Return the result as plain values."""
        return {
            "top1": self.top1,
            "top5": self.top5,
            "num_recordings": self.num_recordings,
            "missing": list(self.missing),
            "ignored": dict(self.ignored or {}),
            "confusion": self.confusion.to_dicts(),
            "recall": self.recall.to_dicts(),
        }


def evaluate_scenes(probs: pl.DataFrame, recordings: pl.DataFrame, *, scenes: Sequence[str]) -> SceneResult:
    """Return the accuracy of scene probabilities; joined on the recording, never on row order.

    Args:
        probs: `recording` and one column per scene; larger is more probable.
        recordings: the ground truth, `recording` and `scene`; a null scene is unknown and not scored.
        scenes: ordered scene list; on equal probability the earlier one is taken.

    Raises:
        InputError: a missing column, a repeated recording, a probability that is not finite, an unknown scene, or
            no recording with a known scene.
    """
    truth = recordings.filter(pl.col("scene").is_not_null()).select("recording", "scene")
    _check_scene_tables(probs, truth, scenes)
    joined = truth.join(probs.select("recording", *scenes), on="recording", how="inner").sort("recording")
    missing = truth.join(probs, on="recording", how="anti").sort("recording")
    targets = np.array([scenes.index(scene) for scene in joined["scene"]], dtype=np.int64)
    values = joined.select(scenes).to_numpy()
    share = joined.height / truth.height
    num_unknown = probs.height - joined.height
    confusion = _confusion(joined["scene"], values.argmax(axis=1), missing=missing["scene"], scenes=scenes)
    return SceneResult(
        top1=top_k_accuracy(values, targets, k=1) * share if share else 0.0,
        top5=top_k_accuracy(values, targets, k=5) * share if share else 0.0,
        num_recordings=truth.height,
        missing=tuple(missing["recording"]),
        ignored={"recording without a known scene": num_unknown} if num_unknown else {},
        confusion=confusion,
        recall=_recall(confusion),
    )


def evaluate_scene_models(table: pl.DataFrame, recordings: pl.DataFrame, *, scenes: Sequence[str]) -> pl.DataFrame:
    """Return the accuracy of every scene head of the out-of-fold table, one row per (view, modality, head).

    A view that is missing from a recording is not the head's fault: top1 and top5 are over the recordings that it
    predicts, whose number stands beside (null where there is none). Compare heads of equal `num_predicted`.

    Args:
        table: the out-of-fold table of `talstack.io.predictions`.
        recordings: `recording` and `scene` of those to score; a null scene is unknown and not scored.
        scenes: ordered scene list; on equal probability the earlier one is taken.

    Returns:
        Table of `MODELS_SCHEMA`, sorted by view, modality and head; without rows where there is no scene head.

    Raises:
        InputError: a repeated recording, an unknown scene, or no recording with a known scene.
    """
    truth = recordings.filter(pl.col("scene").is_not_null()).select("recording", "scene").sort("recording")
    _check_scene_tables(
        pl.DataFrame(schema={"recording": pl.String, **dict.fromkeys(scenes, pl.Float64)}), truth, scenes
    )
    targets = np.array([scenes.index(scene) for scene in truth["scene"]], dtype=np.int64)
    table = table.filter(pl.col("recording").is_in(truth["recording"].to_list()))
    rows = []
    for key in models_of(table, "scene"):
        probs = scene_probs(table, key, recordings=truth["recording"].to_list(), scenes=scenes)
        known = ~np.isnan(probs).any(axis=1)
        top = [top_k_accuracy(probs[known], targets[known], k=k) if known.any() else None for k in (1, 5)]
        rows.append((key.view, key.modality, key.head, truth.height, int(known.sum()), *top))
    return pl.DataFrame(rows, schema=MODELS_SCHEMA, orient="row")


def top_k_accuracy(probs: np.ndarray, targets: np.ndarray, *, k: int) -> float:
    """Return how often the target is among the k most probable classes; ties go to the lower class index.

    Args:
        probs: (n, C) float, finite.
        targets: (n,) int, class index.
        k: at least 1.

    Raises:
        InputError: shapes that do not fit, no rows, a target outside 0..C-1, or a value that is not finite.
    """
    probs, targets = np.asarray(probs, dtype=np.float64), np.asarray(targets)
    if probs.ndim != 2 or targets.shape != probs.shape[:1] or not targets.size:
        raise InputError(f"scene accuracy: expected probs (n, C) and targets (n,), got {probs.shape}, {targets.shape}")
    if not np.isfinite(probs).all() or targets.min() < 0 or targets.max() >= probs.shape[1]:
        raise InputError(f"scene accuracy: probs must be finite and targets in 0..{probs.shape[1] - 1}")
    own = np.take_along_axis(probs, targets[:, None], axis=1)
    earlier = np.arange(probs.shape[1]) < targets[:, None]
    rank = ((probs > own) | ((probs == own) & earlier)).sum(axis=1)
    return float((rank < k).mean())


def _confusion(actual: pl.Series, predicted: np.ndarray, *, missing: pl.Series, scenes: Sequence[str]) -> pl.DataFrame:
    """Return the pairs that occur, counted, in the order of the scene list; predicted is null where missing."""
    order = pl.Enum(list(scenes))
    names = [scenes[place] for place in predicted] + [None] * len(missing)
    pairs = pl.DataFrame(
        {"scene": [*actual, *missing], "predicted": names}, schema={"scene": order, "predicted": order}
    )
    counted = pairs.group_by("scene", "predicted").agg(count=pl.len()).sort("scene", "predicted", nulls_last=True)
    return counted.select(pl.col(name).cast(dtype) for name, dtype in CONFUSION_SCHEMA.items())


def _recall(confusion: pl.DataFrame) -> pl.DataFrame:
    correct = (pl.col("scene") == pl.col("predicted")).fill_null(False)
    counts = confusion.group_by("scene", maintain_order=True).agg(
        num_recordings=pl.col("count").sum(), num_correct=pl.col("count").filter(correct).sum()
    )
    recall = counts.with_columns(recall=pl.col("num_correct") / pl.col("num_recordings"))
    return recall.select(pl.col(name).cast(dtype) for name, dtype in RECALL_SCHEMA.items())


def _check_scene_tables(probs: pl.DataFrame, truth: pl.DataFrame, scenes: Sequence[str]) -> None:
    missing = [name for name in ("recording", *scenes) if name not in probs.columns]
    if missing:
        raise InputError(f"scene probabilities: missing column {missing[0]!r}; expected recording and one per scene")
    for name, table in (("scene probabilities", probs), ("recordings", truth)):
        repeated = table.filter(pl.col("recording").is_duplicated())
        if repeated.height:
            raise InputError(f"{name}: recording {repeated['recording'][0]!r} appears more than once")
    bad = probs.filter(~pl.all_horizontal(pl.col(list(scenes)).cast(pl.Float64).is_finite().fill_null(False)))
    if bad.height:
        raise InputError(f"scene probabilities: recording {bad['recording'][0]!r} has a value that is not finite")
    unknown = truth.filter(~pl.col("scene").is_in(list(scenes)))
    if unknown.height:
        raise InputError(f"recordings: {unknown['recording'][0]!r} has unknown scene {unknown['scene'][0]!r}")
    if truth.is_empty():
        raise InputError("recordings: none has a known scene, so there is no accuracy")
