"""Accuracy of scene predictions: top-1 and top-5, one scene per recording."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from talstack.io.errors import InputError


@dataclass(frozen=True, slots=True)
class SceneResult:
    """Accuracy over the recordings whose scene is known, fractions from 0 to 1.

    Attributes:
        top1, top5: how often the true scene is the most probable one, or among the five most probable.
        num_recordings: recordings that were scored.
        missing: of these, the ones without a prediction; they count as wrong.
        ignored: {reason: count} of predictions that were not scored.
    """

    top1: float
    top5: float
    num_recordings: int
    missing: tuple[str, ...] = ()
    ignored: Mapping[str, int] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the result as plain values."""
        return {
            "top1": self.top1,
            "top5": self.top5,
            "num_recordings": self.num_recordings,
            "missing": list(self.missing),
            "ignored": dict(self.ignored or {}),
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
    missing = truth.join(probs, on="recording", how="anti")["recording"].sort().to_list()
    targets = np.array([scenes.index(scene) for scene in joined["scene"]], dtype=np.int64)
    values = joined.select(scenes).to_numpy()
    share = joined.height / truth.height
    num_unknown = probs.height - joined.height
    return SceneResult(
        top1=top_k_accuracy(values, targets, k=1) * share if share else 0.0,
        top5=top_k_accuracy(values, targets, k=5) * share if share else 0.0,
        num_recordings=truth.height,
        missing=tuple(missing),
        ignored={"scene not in ground truth": num_unknown} if num_unknown else {},
    )


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
