"""The stored features of one (view, modality) over all its recordings, laid end to end."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from talstack.heads.reduction import Reduction
from talstack.io.errors import InputError, StoreError
from talstack.io.extraction import FeatureSet
from talstack.io.members import Link, log_probs
from talstack.io.predictions import SegmentIndex
from talstack.io.shard import Shard

BLOCK_ROWS = 4096  # read at a time: 16 MB of 2048 float16 features


@dataclass(frozen=True, eq=False)
class GroupFeatures:
    """Per-segment features of the recordings that have this (view, modality).

    Attributes:
        index: the recordings and how many rows each has.
        features: (N, D) float16; where those of several networks cannot be compared, the log-probabilities.
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
        """Return the features of the recordings where `keep`, (R,) bool; of all of them the same object."""
        if keep.all():
            return self
        rows = keep[self.row_recordings]
        names = [name for name, kept in zip(self.recordings, keep, strict=True) if kept]
        return GroupFeatures(
            self.index.subset(names), self.features[rows], self.valid[rows], self.aligned[keep], self.log_probs[rows],
            self.scene_log_probs[rows], self.reduction,
        )  # fmt: skip


def read_group(features: FeatureSet, view: str, modality: str) -> GroupFeatures:
    """Return the features of every recording that has them, recordings sorted.

    They are read block by block into the finished arrays, so that no second copy of a large group is ever held. Where
    features come from several networks, only their log-probabilities are taken.

    Raises:
        StoreError: a shard is damaged, or its rows are not the segments of its recording.
        InputError: shards of different widths, or no shard at all.
    """
    names = sorted(features.manifest.recordings["recording"])
    sizes = {name: size for name in names if (size := features.num_rows(name, view, modality)) is not None}
    if not sizes:
        raise InputError(f"{view}/{modality}: no recording has these features; run `talstack extract`")
    made = _Filling(SegmentIndex(tuple(sizes), tuple(sizes.values())), f"{view}/{modality}", features.link)
    for recording, size in sizes.items():
        for start in range(0, size, BLOCK_ROWS):
            block = features.rows(recording, view, modality, start, min(start + BLOCK_ROWS, size))
            if block is not None:
                _check_rows(block, size, len(features.grid(recording)), f"{recording} {view}/{modality}")
                made.add(recording, block, start)
    features.close()
    group = made.finished()
    return group if features.is_comparable(view, modality) else log_probs_alone(group)


def log_probs_alone(group: GroupFeatures) -> GroupFeatures:
    """Return the group with its log-probabilities, of actions and of scenes, as its only features."""
    columns = np.concatenate([group.log_probs, group.scene_log_probs], axis=1).astype(np.float16)
    nothing = np.zeros((len(columns), 0), dtype=np.float32)
    return replace(group, features=columns, log_probs=nothing, scene_log_probs=nothing)


def group_of(shards: dict[str, Shard], *, link: Link = "softmax") -> GroupFeatures:
    """Return the features of {recording: shard} with equal widths, in the order given.

    Args:
        link: between the backbone's action logits and probabilities.
    """
    made = _Filling(SegmentIndex(tuple(shards), tuple(len(shard.features) for shard in shards.values())), "", link)
    for recording, shard in shards.items():
        made.add(recording, shard, 0)
    return made.finished()


class _Filling:
    """A group while its rows come; its arrays are made when the first of them show their widths."""

    def __init__(self, index: SegmentIndex, name: str, link: Link) -> None:
        self._index, self._name, self._link = index, name, link
        self._first = dict(zip(index.recordings, np.cumsum([0, *index.num_segments]).tolist(), strict=False))
        self._widths: tuple[str, tuple[int, int, int]] | None = None
        self._aligned = np.zeros(len(index.recordings), dtype=bool)

    def add(self, recording: str, block: Shard, start: int) -> None:
        """Lay rows of a recording, from `start` on, where they belong."""
        if self._widths is None:
            self._widths = (recording, _widths(block))
            number, (width, num_logits, num_scenes) = sum(self._index.num_segments), self._widths[1]
            self._features = np.zeros((number, width), dtype=np.float16)
            self._valid = np.zeros(number, dtype=bool)
            self._log_probs = np.zeros((number, num_logits), dtype=np.float32)
            self._scene_log_probs = np.zeros((number, num_scenes), dtype=np.float32)
        _check_widths(recording, block, *self._widths, name=self._name)
        rows = slice(self._first[recording] + start, self._first[recording] + start + len(block.features))
        self._features[rows], self._valid[rows] = block.features, block.valid
        self._log_probs[rows] = _log_probs(block.logits, len(block.features), self._link)
        self._scene_log_probs[rows] = _log_probs(block.scene_logits, len(block.features), "softmax")
        self._aligned[self._index.recordings.index(recording)] = block.aligned

    def finished(self) -> GroupFeatures:
        """Return the group."""
        return GroupFeatures(
            self._index, self._features, self._valid, self._aligned, self._log_probs, self._scene_log_probs
        )


def _log_probs(logits: np.ndarray | None, num_rows: int, link: Link) -> np.ndarray:
    if logits is None:
        return np.zeros((num_rows, 0), dtype=np.float32)
    return log_probs(logits.astype(np.float32), link)


def _check_rows(block: Shard, num_rows: int, num_segments: int, name: str) -> None:
    if block.aligned and num_rows != num_segments:
        raise StoreError(f"{name}: the shard has {num_rows} rows, the recording {num_segments} segments; extract again")


def _check_widths(recording: str, block: Shard, first: str, expected: tuple[int, int, int], *, name: str) -> None:
    if _widths(block) != expected:
        raise InputError(
            f"{name}: {recording} has {_widths(block)} columns (features, logits, scene logits), {first} has "
            f"{expected}; features of one modality must have one width"
        )


def _widths(shard: Shard) -> tuple[int, int, int]:
    return (
        shard.features.shape[1],
        0 if shard.logits is None else shard.logits.shape[1],
        0 if shard.scene_logits is None else shard.scene_logits.shape[1],
    )
