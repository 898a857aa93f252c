"""What a task's heads predict, and classes that the training rows cannot teach.

A task has the same classes in every fold. A class that is constant on the training rows, such as one that no training
recording has, is not learned: it gets a small constant probability.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from talstack.heads.features import GroupFeatures
from talstack.heads.solver import Link
from talstack.io.manifest import Manifest
from talstack.io.predictions import ACTIVITY, boundary_classes
from talstack.io.targets import boundary_targets, scene_targets, segment_targets

Task = Literal["activity", "action", "boundary", "scene"]
BOUNDARY_PARTS = 2  # equal parts of a segment that a boundary may fall into; 4 are no more exact


@dataclass(frozen=True, slots=True, eq=False)
class TaskTargets:
    """The labels of one task over a group.

    Attributes:
        classes: names of the columns.
        link: softmax where exactly one class holds, sigmoid where any number may.
        values: (N, C) bool by segment, or (R, C) by recording for scenes.
        known: (N,) or (R,) bool; a recording without a scene has no label.
        segment_s: length of a segment, seconds.
    """

    classes: tuple[str, ...]
    link: Link
    values: np.ndarray
    known: np.ndarray
    segment_s: float


def task_targets(task: str, manifest: Manifest, group: GroupFeatures, segment_s: float) -> TaskTargets:
    """Return the task's labels; but for scenes the group's rows must be those of the segment grid."""
    if task == "scene":
        scenes = scene_targets(manifest, list(group.recordings))
        values = scenes[:, None] == np.arange(len(manifest.scenes))
        return TaskTargets(manifest.scenes, "softmax", values, scenes >= 0, segment_s)
    known = np.ones(group.index.num_rows, dtype=bool)
    if task == "boundary":
        parts = boundary_targets(manifest, group.index, segment_s, parts=BOUNDARY_PARTS)
        sides = parts.reshape(len(parts), 2, BOUNDARY_PARTS).any(axis=2)
        values = np.concatenate([sides, parts], axis=1)
        return TaskTargets(boundary_classes(BOUNDARY_PARTS), "sigmoid", values, known, segment_s)
    actions = segment_targets(manifest, group.index, segment_s)
    if task == "action":
        return TaskTargets(manifest.actions, "sigmoid", actions, known, segment_s)
    return TaskTargets((ACTIVITY,), "sigmoid", np.asarray(actions.any(axis=1, keepdims=True)), known, segment_s)


@dataclass(frozen=True, slots=True, eq=False)
class ClassColumns:
    """Which classes can be learned from some training rows.

    Attributes:
        learned: (C,) bool, classes that are neither absent from nor throughout the training rows.
        constant: (C,) float64, the probability given to each of the others.
    """

    learned: np.ndarray
    constant: np.ndarray

    @classmethod
    def of(cls, targets: np.ndarray) -> "ClassColumns":
        """Return the columns of (N, C) bool training targets."""
        count = targets.sum(axis=0)
        # half a pseudo-count: rarer than anything that was seen, yet not impossible
        return cls((count > 0) & (count < len(targets)), (count + 0.5) / (len(targets) + 1.0))

    def expand(self, probs: np.ndarray, link: Link) -> np.ndarray:
        """Return all columns, (N, C) float32, of the (N, learned) probabilities; under softmax they sum to one."""
        out = np.empty((len(probs), len(self.learned)), dtype=np.float32)
        out[:, ~self.learned] = self.constant[~self.learned]
        out[:, self.learned] = probs
        if link == "softmax":
            out /= out.sum(axis=1, keepdims=True)
        return out
