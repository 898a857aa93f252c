"""Training frames with their targets, row by row."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np

from talstack.extract.training.config import FinetuneConfig
from talstack.extract.training.framecache import FrameCache
from talstack.extract.training.targets import segment_targets_of
from talstack.io.errors import InputError
from talstack.io.manifest import Manifest
from talstack.io.targets import scene_targets, segment_index, segment_targets


@dataclass(frozen=True, slots=True, eq=False)
class TrainingSet:
    """Cached frames of N segments with what they are to be recognised as.

    Attributes:
        frames: N segments.
        targets: (N, C + 1) float32 for the loss, background first.
        labels: (N, C) bool, which actions a segment carries, for metrics.
        scenes: (N, K) float32, one 1 in a row, none where the recording has no scene.
        panoramic: (N,) bool, whether a view is a panorama that can be turned.
    """

    frames: FrameCache
    targets: np.ndarray
    labels: np.ndarray
    scenes: np.ndarray
    panoramic: np.ndarray

    def __len__(self) -> int:
        return len(self.targets)

    @classmethod
    def of(
        cls,
        manifest: Manifest,
        frames: FrameCache,
        recordings: Sequence[str],
        *,
        segment_s: float,
        config: FinetuneConfig,
        panoramas: Collection[str],
    ) -> "TrainingSet":
        """Return the frames with the targets of their segments.

        Args:
            recordings: all that `frames` may come from.
            panoramas: views that are equirectangular panoramas.
        """
        index = segment_index(manifest, segment_s, list(recordings))
        first_row = {recording: rows.start for recording, rows in index.slices()}
        rows = np.array([first_row[r] for r in frames.recording]) + frames.segment
        exclusive = config.loss == "softmax"
        targets = segment_targets_of(manifest, index, segment_s, kind=config.targets, exclusive=exclusive)
        scene_of = dict(zip(recordings, scene_targets(manifest, list(recordings)), strict=True))
        scene = np.array([scene_of[r] for r in frames.recording])
        scenes = np.zeros((len(rows), max(1, len(manifest.scenes))), dtype=np.float32)
        scenes[np.flatnonzero(scene >= 0), scene[scene >= 0]] = 1
        labels = segment_targets(manifest, index, segment_s)[rows]
        return cls(frames, targets[rows], labels, scenes, np.isin(frames.view, sorted(panoramas)))

    def of_actions(self, *, exclusive: bool) -> "TrainingSet":
        """Return the segments that carry an action, with no share left to background.

        Args:
            exclusive: rows sum to one again.

        Raises:
            InputError: there are none.
        """
        kept = np.flatnonzero(self.labels.any(axis=1))
        if not kept.size:
            raise InputError("fine-tuning without background: no segment carries an action")
        targets = self.targets[kept].copy()
        targets[:, 0] = 0
        if exclusive:
            targets /= targets.sum(axis=1, keepdims=True)
        return replace(
            self, frames=self.frames.part(kept), targets=targets, labels=self.labels[kept],
            scenes=self.scenes[kept], panoramic=self.panoramic[kept],
        )  # fmt: skip
