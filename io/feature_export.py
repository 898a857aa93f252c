"""Stored features written as files that other programs train on.

    OUT/<view>-<modality>/<recording>.npy         (S, D) float32, row i is segment i; also .npz, or one features.hdf5
    OUT/<view>-<modality>/valid/<recording>.npy   (S,) bool, which rows hold features; in .npz beside, or valid.hdf5
    OUT/<view>-<modality>/meta.json               what the rows mean, with settings for ActionFormer and OpenTAD
    OUT/<view>-<modality>/annotations.json        ActivityNet's format, on request

The other programs count in frames. A segment is given an even number of frames, so that half of it is whole, and the
rate follows: row i then lies at (i * stride + stride / 2) / fps, the middle of segment i.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np

from talstack.io.errors import InputError
from talstack.io.extraction import FeatureSet
from talstack.io.feature_files import VALID
from talstack.io.files import atomic_path, write_json
from talstack.io.ground_truth import SPLIT_NAMES
from talstack.io.manifest import Manifest

FileFormat = Literal["npy", "npz", "h5"]
Invalid = Literal["nan", "zero", "nearest"]
USUAL_FPS = 30.0
MIN_STRIDE = 8  # frames a segment is given at least: OpenTAD rounds annotations to frames


@dataclass(frozen=True, slots=True)
class ExportSummary:
    """What was written.

    Attributes:
        folder: where.
        num_rows: rows by recording.
        num_invalid: how many of them hold no features, by recording.
        without_features: recordings that have none; an unreadable extraction or none at all.
        unaligned: recordings whose clips lie at unknown offsets, so that their rows are no segments.
        feature_dim: D.
        stride_frames, fps: the clock that was made up for programs that count frames.
    """

    folder: Path
    num_rows: dict[str, int]
    num_invalid: dict[str, int]
    without_features: tuple[str, ...]
    unaligned: tuple[str, ...]
    feature_dim: int
    stride_frames: int
    fps: float


def frame_clock(segment_s: float) -> tuple[int, float]:
    """Return an even number of frames per segment and the rate at which they last `segment_s`, near 30 per second."""
    stride_frames = max(MIN_STRIDE, 2 * round(segment_s * USUAL_FPS / 2))
    return stride_frames, stride_frames / segment_s


def fill_invalid(features: np.ndarray, valid: np.ndarray, how: Invalid) -> np.ndarray:
    """Return (S, D) float32 features whose invalid rows hold NaN, zeros, or the nearest valid row (the earlier of two).

    Raises:
        InputError: no row is valid, so that none is nearest.
    """
    filled = features.astype(np.float32)
    if how != "nearest":
        filled[~valid] = np.nan if how == "nan" else 0.0
        return filled
    there = np.flatnonzero(valid)
    if not len(there):
        raise InputError("no row is valid, so there is none to fill the others from; use --invalid nan or zero")
    rows = np.arange(len(valid))
    after = np.clip(np.searchsorted(there, rows), 0, len(there) - 1)
    before = np.maximum(after - 1, 0)
    return filled[there[np.where(np.abs(there[after] - rows) < np.abs(there[before] - rows), after, before)]]


def export_features(
    features: FeatureSet, view: str, modality: str, *, out: Path, file_format: FileFormat = "npy",
    invalid: Invalid = "nearest", annotations: bool = False,
) -> ExportSummary:  # fmt: skip
    """Write one (view, modality) of every recording; return what was written.

    Raises:
        InputError: the extraction has no such features, a name that is no file name, or widths that differ.
        StoreError: a shard is damaged.
    """
    if (view, modality) not in features.groups:
        there = ", ".join("/".join(group) for group in features.groups)
        raise InputError(f"extraction {features.extraction.name!r} has no features {view}/{modality}; there: {there}")
    if not features.is_comparable(view, modality):
        raise InputError(
            f"{view}/{modality}: the features come from several networks, so their columns do not mean the same in all "
            "recordings; extract with one backbone to export them"
        )
    folder = out / f"{view}-{modality}"
    _check_name(folder.name)
    seen = _Seen()
    {"npy": _write_npy, "npz": _write_npz, "h5": _write_hdf5}[file_format](
        folder, _filled(features, view, modality, invalid=invalid, seen=seen)
    )
    rows = seen.num_rows
    if not rows:
        raise InputError(f"{view}/{modality}: every recording's clips lie at unknown offsets; nothing to export")
    without = sorted(set(features.manifest.recordings["recording"]) - set(rows) - set(seen.unaligned))
    stride_frames, fps = frame_clock(features.segment_s)
    summary = ExportSummary(
        folder, rows, seen.num_invalid, tuple(without), tuple(seen.unaligned), seen.dims.pop(), stride_frames, fps
    )  # fmt: skip
    labels = training_labels(features.manifest, tuple(rows))
    if annotations:
        write_json(folder / "annotations.json", activitynet_annotations(features.manifest, summary, labels))
    meta = _meta(features, summary, labels, file_format)
    write_json(folder / "meta.json", {"view": view, "modality": modality, "invalid_rows": invalid, **meta})
    return summary


@dataclass(slots=True)
class _Seen:
    """What has gone by while the files were written."""

    num_rows: dict[str, int] = field(default_factory=dict)
    num_invalid: dict[str, int] = field(default_factory=dict)
    unaligned: list[str] = field(default_factory=list)
    dims: set[int] = field(default_factory=set)


def _filled(
    features: FeatureSet, view: str, modality: str, *, invalid: Invalid, seen: _Seen
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yield recording, (S, D) float32 features without holes and (S,) bool mask; one shard is in memory at a time."""
    for recording in sorted(features.manifest.recordings["recording"]):
        shard = features.read(recording, view, modality)
        if shard is None:
            continue
        if not shard.aligned:
            seen.unaligned.append(recording)
            continue
        _check_name(recording)
        seen.num_rows[recording], seen.num_invalid[recording] = len(shard.valid), int((~shard.valid).sum())
        seen.dims.add(shard.features.shape[1])
        if len(seen.dims) > 1:
            raise InputError(f"{recording} {view}/{modality}: widths differ: {sorted(seen.dims)}; extract again")
        yield recording, fill_invalid(shard.features, shard.valid, invalid), shard.valid


def _check_name(name: str) -> None:
    if Path(name).name != name or name.startswith(".") or "\\" in name:
        raise InputError(f"{name!r}: not usable as a file name; rename the recording, view or modality")


def _write_npy(folder: Path, shards: Iterator[tuple[str, np.ndarray, np.ndarray]]) -> None:
    for recording, values, valid in shards:
        for path, array in ((folder / f"{recording}.npy", values), (folder / VALID / f"{recording}.npy", valid)):
            with atomic_path(path) as temporary:
                np.save(temporary, array)


def _write_npz(folder: Path, shards: Iterator[tuple[str, np.ndarray, np.ndarray]]) -> None:
    for recording, values, valid in shards:
        with atomic_path(folder / f"{recording}.npz") as temporary:
            np.savez(temporary, feats=values, valid=valid)  # OpenTAD reads "feats"


def _write_hdf5(folder: Path, shards: Iterator[tuple[str, np.ndarray, np.ndarray]]) -> None:
    with (
        atomic_path(folder / "features.hdf5") as features_path,
        atomic_path(folder / f"{VALID}.hdf5") as valid_path,
        h5py.File(features_path, "w") as features_file,
        h5py.File(valid_path, "w") as valid_file,
    ):
        for recording, values, valid in shards:
            features_file.create_dataset(recording, data=values, track_times=False)
            valid_file.create_dataset(recording, data=valid, track_times=False)


def training_labels(manifest: Manifest, recordings: Sequence[str]) -> tuple[str, ...]:
    """Return the classes that happen in these recordings, in the data set's order.

    ActionFormer counts the classes that its annotations name, so ids must have no gaps.
    """
    there = manifest.instances.filter(manifest.instances["recording"].is_in(list(recordings)))["label"]
    used = set(there)
    return tuple(label for label in manifest.actions if label in used)


def activitynet_annotations(manifest: Manifest, summary: ExportSummary, labels: Sequence[str]) -> dict[str, Any]:
    """Return the annotations of the exported recordings as ActivityNet's JSON, with label_id, fps and frame.

    Recordings of split train without an instance are left out: ActionFormer cannot train on them.
    """
    database: dict[str, Any] = {}
    columns = manifest.recordings.sort("recording").select("recording", "duration_s", "split")
    for recording, duration_s, split in columns.iter_rows():
        if recording not in summary.num_rows:
            continue
        found = manifest.instances.filter(manifest.instances["recording"] == recording).sort("start_s", "end_s")
        instances = [
            {"label": label, "label_id": labels.index(label), "segment": [start_s, end_s]}
            for start_s, end_s, label in found.select("start_s", "end_s", "label").iter_rows()
        ]
        if split == "train" and not instances:
            continue
        database[recording] = {
            "subset": SPLIT_NAMES[split],
            "duration": duration_s,
            "fps": summary.fps,
            "frame": max(1, round(duration_s * summary.fps)),
            "annotations": instances,
        }
    return {"version": "talstack", "database": database}


def _meta(
    features: FeatureSet, summary: ExportSummary, labels: Sequence[str], file_format: FileFormat
) -> dict[str, Any]:
    clock = f"--stride {summary.stride_frames} --fps {summary.fps!r} --window {summary.stride_frames}"
    return {
        "extraction": features.extraction.name,
        "segment_s": features.segment_s,
        "feature_dim": summary.feature_dim,
        "rows_per_s": 1.0 / features.segment_s,
        "stride_frames": summary.stride_frames,
        "window_frames": summary.stride_frames,
        "fps": summary.fps,
        "labels": list(labels),
        "rows": summary.num_rows,
        "rows_without_features": summary.num_invalid,
        "recordings_without_features": list(summary.without_features),
        "recordings_unaligned": list(summary.unaligned),
        "talstack_cache_import": clock,
        "actionformer": _actionformer_lines(summary, len(labels), file_format),
        "opentad": _opentad_lines(summary),
    }


def _actionformer_lines(summary: ExportSummary, num_classes: int, file_format: FileFormat) -> list[str]:
    """Return the lines of ActionFormer's configuration that say what the features are.

    Its loader "anet" reads any set in ActivityNet's format, and HDF5 by the name's ending .hdf5; "thumos" would drop
    the class with label_id 4.
    """
    where = summary.folder.name + ("/features.hdf5" if file_format == "h5" else "")
    return [
        "dataset_name: anet",
        f"train_split: ['{SPLIT_NAMES['train']}']",
        f"val_split: ['{SPLIT_NAMES['val']}']",
        "dataset: {",
        "  json_file: annotations.json,",
        f"  feat_folder: {where},",
        "  file_prefix: ~,",
        f"  file_ext: .{file_format},",
        f"  num_classes: {num_classes},",
        f"  input_dim: {summary.feature_dim},",
        f"  feat_stride: {summary.stride_frames},",
        f"  num_frames: {summary.stride_frames},",
        f"  default_fps: {summary.fps!r},",
        "}",
    ]


def _opentad_lines(summary: ExportSummary) -> list[str]:
    """Return the arguments of OpenTAD's AnetPaddingDataset; snippet_stride is feature_stride times sample_stride."""
    return [
        'ann_file="annotations.json",',
        f'data_path="{summary.folder.name}",',
        f"feature_stride={summary.stride_frames},",
        "sample_stride=1,",
        f"offset_frames={summary.stride_frames // 2},",
        f"fps={summary.fps!r},",
        f"in_channels={summary.feature_dim},",
    ]
