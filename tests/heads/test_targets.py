"""Labels by task, and classes that cannot be learned."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from talstack.heads.features import GroupFeatures
from talstack.heads.targets import ClassColumns, task_targets
from talstack.io.manifest import Manifest


def test_activity_is_any_action_and_scenes_are_by_recording(manifest: Manifest, group: GroupFeatures) -> None:
    action, activity = (task_targets(task, manifest, group, 0.5) for task in ("action", "activity"))
    assert action.classes == manifest.actions and activity.classes == ("activity",)
    np.testing.assert_array_equal(activity.values[:, 0], action.values.any(axis=1))
    recordings = manifest.recordings.with_columns(
        pl.when(pl.col("recording") == "r2").then(None).otherwise(pl.col("scene")).alias("scene")
    )
    scene = task_targets("scene", replace(manifest, recordings=recordings), group, 0.5)
    assert scene.link == "softmax" and scene.values.shape == (10, 2)
    assert scene.known.tolist() == [name != "r2" for name in group.recordings]


def test_classes_without_examples_get_a_small_constant_probability() -> None:
    targets = np.zeros((9, 3), dtype=bool)
    targets[:4, 0], targets[:, 2] = True, True
    columns = ClassColumns.of(targets)
    assert columns.learned.tolist() == [True, False, False]
    probs = columns.expand(np.full((2, 1), 0.3), "sigmoid")
    np.testing.assert_allclose(probs, [[0.3, 0.05, 0.95]] * 2, rtol=1e-6)
    shared = columns.expand(np.full((2, 1), 1.0), "softmax")
    assert shared.sum(axis=1) == pytest.approx([1.0, 1.0]) and (shared > 0).all()
