"""Per-segment labels from intervals: what heads, backbone and stacker learn from."""

import numpy as np
import polars as pl

from talstack.io.grid import SegmentGrid
from talstack.io.intervals import merge_intervals
from talstack.io.manifest import Manifest
from talstack.io.predictions import SegmentIndex


def segment_index(manifest: Manifest, segment_s: float, recordings: list[str] | None = None) -> SegmentIndex:
    """Return the rows of all segments of the recordings (default: all, sorted)."""
    names = manifest.recordings["recording"].sort().to_list() if recordings is None else recordings
    counts = tuple(len(SegmentGrid(manifest.duration_s(name), segment_s)) for name in names)
    return SegmentIndex(tuple(names), counts)


def segment_targets(manifest: Manifest, index: SegmentIndex, segment_s: float) -> np.ndarray:
    """Return which actions each segment carries, (N, C) bool; columns follow `manifest.actions`.

    An instance labels every segment that it covers by half or more, and always the one it covers most, so that an
    action shorter than half a segment is not lost. A segment without any label is background.
    """
    targets = np.zeros((index.num_rows, len(manifest.actions)), dtype=bool)
    columns = {label: i for i, label in enumerate(manifest.actions)}
    by_recording = {key[0]: rows for key, rows in manifest.instances.partition_by("recording", as_dict=True).items()}
    for recording, rows in index.slices():
        instances = by_recording.get(recording)
        if instances is None:
            continue
        grid = SegmentGrid(manifest.duration_s(recording), segment_s)
        coverage = grid.coverage(instances.select("start_s", "end_s").to_numpy())
        labelled = coverage >= 0.5
        labelled[np.arange(len(coverage)), coverage.argmax(axis=1)] = True
        labelled &= coverage > 0  # an instance beyond the last segment labels nothing
        block = targets[rows]
        for label, mask in zip(instances["label"], labelled, strict=True):
            block[mask, columns[label]] = True
    return targets


def segment_shares(manifest: Manifest, index: SegmentIndex, segment_s: float) -> np.ndarray:
    """Return the share of each segment that each action covers, (N, C + 1) float64 in [0, 1].

    Column 0 is the share that no action covers. Actions may overlap, so a row may add up to more than one. Instances
    of one action that overlap count once. Of a segment that passes the recording's end, only the recorded part
    counts.
    """
    shares = np.zeros((index.num_rows, len(manifest.actions) + 1))
    by_recording = {key[0]: rows for key, rows in manifest.instances.partition_by("recording", as_dict=True).items()}
    for recording, rows in index.slices():
        duration_s = manifest.duration_s(recording)
        grid = SegmentGrid(duration_s, segment_s)
        recorded = np.minimum(duration_s - grid.edges_s[:, 0], segment_s) / segment_s
        instances = by_recording.get(recording, manifest.instances.clear())
        labels, intervals = instances["label"].to_numpy(), instances.select("start_s", "end_s").to_numpy()
        intervals = np.minimum(intervals, duration_s)
        block = shares[rows]
        block[:, 0] = 1 - grid.coverage(merge_intervals(intervals)).sum(axis=0) / recorded
        for column, label in enumerate(manifest.actions, start=1):
            block[:, column] = grid.coverage(merge_intervals(intervals[labels == label])).sum(axis=0) / recorded
    return np.clip(shares, 0.0, 1.0)


def boundary_targets(manifest: Manifest, index: SegmentIndex, segment_s: float, *, parts: int) -> np.ndarray:
    """Return where an action, whichever, starts and ends, (N, 2 * parts) bool.

    Column k: an instance starts in the k-th of `parts` equal parts of the segment; column parts + k: one ends there.
    A part is [from, to) for starts and (from, to] for ends. What lies beyond the last segment counts as its last part.
    """
    by_recording = {key[0]: rows for key, rows in manifest.instances.partition_by("recording", as_dict=True).items()}
    targets = np.zeros((index.num_rows, 2, parts), dtype=bool)
    for recording, rows in index.slices():
        instances = by_recording.get(recording)
        if instances is None or rows.stop == rows.start:
            continue
        start, end = instances.select("start_s", "end_s").to_numpy().T / (segment_s / parts)
        # 1e-6 absorbs the rounding of seconds / part
        places = np.stack([np.floor(start + 1e-6), np.ceil(end - 1e-6) - 1]).astype(np.int64)
        segment, part = np.divmod(np.clip(places, 0, (rows.stop - rows.start) * parts - 1), parts)
        block = targets[rows]
        for side in range(2):
            block[segment[side], side, part[side]] = True
    return targets.reshape(index.num_rows, 2 * parts)


def scene_targets(manifest: Manifest, recordings: list[str]) -> np.ndarray:
    """Return the scene index of every recording, (R,) int64; -1 where it has none."""
    columns = {scene: i for i, scene in enumerate(manifest.scenes)}
    scenes = dict(manifest.recordings.select("recording", pl.col("scene")).iter_rows())
    return np.array([columns.get(scenes[name], -1) for name in recordings], dtype=np.int64)
