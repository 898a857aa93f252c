"""The stored features of one (view, modality) over all its recordings, laid end to end."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.special import log_softmax

from talstack.heads.reduction import Reduction
from talstack.io.errors import InputError, StoreError
from talstack.io.extraction import FeatureSet
from talstack.io.predictions import SegmentIndex
from talstack.io.shard import Shard


@dataclass(frozen=True, eq=False)
class GroupFeatures:
    """Per-segment features of the recordings that have this (view, modality).

    Attributes:
        index: the recordings and how many rows each has.
        features: (N, D) float16.
        valid: (N,) bool; other rows mean nothing.
        aligned: (R,) bool, whether a recording's rows are the segments of its grid.
        log_probs: (N, L) float32, the backbone's own log-probabilities, or (N, 0): actions with background.
        scene_log_probs: (N, K) float32 or (N, 0): scenes.
        reduction: where it is set, `features` are not the stored ones but their principal components under it, fitted
            on the recordings that the head at hand learns from.
    """

    index: SegmentIndex
    features: np.ndarray
    valid: np.ndarray
    aligned: np.ndarray
    log_probs: np.ndarray
    scene_log_probs: np.ndarray
    reduction: Reduction | None = None

    @property
    def recordings(self) -> tuple[str, ...]:
        """The recordings, in the order of the rows."""
        return self.index.recordings

    @cached_property
    def row_recordings(self) -> np.ndarray:
        """The (N,) int64 position of each row's recording in `recordings`."""
        return np.repeat(np.arange(len(self.recordings)), self.index.num_segments)

    def rows_of(self, recordings: Sequence[str]) -> np.ndarray:
        """Return which rows belong to the recordings, (N,) bool."""
        return np.asarray(np.isin(self.recordings, list(recordings))[self.row_recordings])

    def subset(self, keep: np.ndarray) -> "GroupFeatures":
        """Return the features of the recordings where `keep`, (R,) bool."""
        rows = keep[self.row_recordings]
        names = [name for name, kept in zip(self.recordings, keep, strict=True) if kept]
        return GroupFeatures(
            self.index.subset(names), self.features[rows], self.valid[rows], self.aligned[keep], self.log_probs[rows],
            self.scene_log_probs[rows], self.reduction,
        )  # fmt: skip


def read_group(features: FeatureSet, view: str, modality: str) -> GroupFeatures:
    """Return the features of every recording that has them, recordings sorted.

    Raises:
        StoreError: a shard is damaged, or its rows are not the segments of its recording.
        InputError: shards of different widths, or no shard at all.
    """
    shards = {}
    for recording in sorted(features.manifest.recordings["recording"]):
        shard = features.read(recording, view, modality)
        if shard is not None:
            _check_rows(shard, len(features.grid(recording)), f"{recording} {view}/{modality}")
            shards[recording] = shard
    if not shards:
        raise InputError(f"{view}/{modality}: no recording has these features; run `talstack extract`")
    _check_widths(shards, f"{view}/{modality}")
    return group_of(shards)


def group_of(shards: dict[str, Shard]) -> GroupFeatures:
    """Return the features of {recording: shard} with equal widths, in the order given."""
    parts = list(shards.values())
    return GroupFeatures(
        SegmentIndex(tuple(shards), tuple(len(shard.features) for shard in parts)),
        np.concatenate([shard.features for shard in parts]),
        np.concatenate([shard.valid for shard in parts]),
        np.array([shard.aligned for shard in parts], dtype=bool),
        np.concatenate([_log_probs(shard.logits, len(shard.features)) for shard in parts]),
        np.concatenate([_log_probs(shard.scene_logits, len(shard.features)) for shard in parts]),
    )


def _log_probs(logits: np.ndarray | None, num_rows: int) -> np.ndarray:
    if logits is None:
        return np.zeros((num_rows, 0), dtype=np.float32)
    return np.asarray(log_softmax(logits.astype(np.float32), axis=1))


def _check_rows(shard: Shard, num_segments: int, name: str) -> None:
    if shard.aligned and len(shard.features) != num_segments:
        raise StoreError(
            f"{name}: the shard has {len(shard.features)} rows, the recording {num_segments} segments; extract again"
        )


def _check_widths(shards: dict[str, Shard], name: str) -> None:
    first = next(iter(shards))
    expected = _widths(shards[first])
    for recording, shard in shards.items():
        if _widths(shard) != expected:
            raise InputError(
                f"{name}: {recording} has {_widths(shard)} columns (features, logits, scene logits), {first} has "
                f"{expected}; features of one modality must have one width"
            )


def _widths(shard: Shard) -> tuple[int, int, int]:
    return (
        shard.features.shape[1],
        0 if shard.logits is None else shard.logits.shape[1],
        0 if shard.scene_logits is None else shard.scene_logits.shape[1],
    )
