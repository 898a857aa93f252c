"""Decoded frames of the training segments, on disk as uint8 arrays, so that an epoch decodes nothing.

FOLDER/<fingerprint>.npy     (n, draws x T, S, S, 3) uint8 of one view of one recording
FOLDER/<fingerprint>.json    what it was made from, which segments its rows are, its SHA-256; written last

A file is named by the hash of everything that decides its pixels, so that trainings on other recordings, of other
settings or of other folds share what they have in common.
"""

import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import polars as pl

from talstack.extract.config import SamplingConfig
from talstack.extract.frames import FrameChunk, PictureTask, read_segments
from talstack.extract.layout import lay_out_view
from talstack.io.config import to_dict
from talstack.io.errors import MediaError, TalstackError, WriteError
from talstack.io.files import atomic_path, canonical_json, read_json, sha256_file, sha256_text, write_json
from talstack.io.manifest import Manifest
from talstack.io.media import decoder_versions
from talstack.io.store import ClipHashes

FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True, eq=False)
class FrameCache:
    """Training frames of some (recording, view) pairs, N segments.

    Attributes:
        blocks: one (n, draws x T, S, S, 3) uint8 memory map per view of a recording.
        block, row: (N,) int64, where each segment's frames lie.
        recording, view: (N,) str, where each segment comes from.
        segment: (N,) int64, which segment of the recording.
        draws: frames there are for each frame used; they follow each other.
        skipped: views that gave nothing, and why.
    """

    blocks: tuple[np.ndarray, ...]
    block: np.ndarray
    row: np.ndarray
    recording: np.ndarray
    view: np.ndarray
    segment: np.ndarray
    draws: int
    skipped: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.row)

    @property
    def frame_shape(self) -> tuple[int, int, int, int]:
        """Return (T, S, S, 3)."""
        frames, *picture = self.blocks[0].shape[1:]
        return (frames // self.draws, *picture)

    def part(self, positions: np.ndarray) -> "FrameCache":
        """Return the segments at `positions`, (M,) int."""
        rows = {name: getattr(self, name)[positions] for name in ("block", "row", "recording", "view", "segment")}
        return replace(self, **rows)

    def read_into(self, out: np.ndarray, positions: np.ndarray, drawn: np.ndarray) -> None:
        """Copy frames of some segments into `out`, (B, T, S, S, 3) uint8.

        Args:
            positions: (B,) segments.
            drawn: (B, T) int in [0, draws), which of the frames of each part of a segment.
        """
        parts = np.arange(drawn.shape[1]) * self.draws
        for target, position, picked in zip(out, positions, drawn + parts, strict=True):
            source = self.blocks[self.block[position]][self.row[position]]
            for frame, index in zip(target, picked, strict=True):
                frame[...] = source[index]

    @property
    def middle(self) -> int:
        """Which of the frames of a part lies at its middle, or just before it where their number is even."""
        return (self.draws - 1) // 2


def build_frame_cache(
    manifest: Manifest,
    recordings: Sequence[str],
    *,
    views: Sequence[str],
    sampling: SamplingConfig,
    draws: int,
    folder: Path,
    hashes: ClipHashes,
    jobs: int = 1,
    report: Callable[[], None] = lambda: None,
) -> FrameCache:
    """Return the frames of every aligned, fully decoded segment; what is there already is not decoded again.

    Args:
        folder: where the files lie.
        hashes: content hashes of the clips and of what is there already.
        report: called after every view of a recording that is decoded.

    Raises:
        MediaError: no view gives any frames.
        WriteError: the disk has no room for them, or became full.
    """
    there = set(manifest.clips.select("recording", "view").iter_rows())
    pairs = [(r, v) for r in recordings for v in views if (r, v) in there]
    sources = [_identity(manifest, pair, sampling, draws, hashes) for pair in pairs]
    entries = [_find(pair, source, folder, hashes) for pair, source in zip(pairs, sources, strict=True)]
    missing = [number for number, entry in enumerate(entries) if not entry["whole"]]
    _check_space(manifest, [pairs[number] for number in missing], sampling, draws, folder)
    made = joblib.Parallel(n_jobs=jobs, return_as="generator")(
        joblib.delayed(_decode)(manifest, entries[number], sources[number], sampling, draws, folder)
        for number in missing
    )
    for number, entry in zip(missing, made, strict=True):
        entries[number] = entry
        report()
    if not any(entry["segments"] for entry in entries):
        reasons = [entry["skipped"] for entry in entries if entry["skipped"]]
        raise MediaError(f"no training frames in {len(pairs)} views; {'; '.join(reasons[:3]) or 'no segment is whole'}")
    return _open(entries, folder, draws)


def _check_space(
    manifest: Manifest, pairs: Sequence[tuple[str, str]], sampling: SamplingConfig, draws: int, folder: Path
) -> None:
    """Refuse to begin what the disk cannot hold; `pairs` are the views that are still to be decoded.

    Raises:
        WriteError: less is free in the folder than the frames will take.
    """
    placed = manifest.clips.drop_nulls("offset_s")  # the others have no labels and are not decoded
    wanted = pl.DataFrame(pairs, schema=["recording", "view"], orient="row")
    seconds = float(placed.join(wanted, on=["recording", "view"], how="semi")["duration_s"].sum()) if pairs else 0.0
    segment_bytes = draws * sampling.frames_per_segment * sampling.frame_size**2 * 3
    needed = int(seconds / sampling.segment_s) * segment_bytes
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise WriteError(
            f"{folder}: the decoded frames of {len(pairs)} views take about {needed / 1e9:.1f} GB, and "
            f"{free / 1e9:.1f} GB are free; write to another disk (--out), or lower finetune.draws (now {draws}), "
            "sampling.frames_per_segment, sampling.frame_size or finetune.views"
        )


def _identity(
    manifest: Manifest, pair: tuple[str, str], sampling: SamplingConfig, draws: int, hashes: ClipHashes
) -> dict[str, Any]:
    """Return everything that decides the pixels of a view of a recording."""
    recording, view = pair
    clips = manifest.clips.filter((pl.col("recording") == recording) & (pl.col("view") == view)).sort("clip")
    return {
        "format_version": FORMAT_VERSION,
        "clips": [
            [row["clip"], hashes.sha256(manifest.media_path(row["path"])), row["offset_s"]]
            for row in clips.iter_rows(named=True)
        ],
        "duration_s": manifest.duration_s(recording), "sampling": to_dict(sampling), "draws": draws,
        "resize": "squash", "decoder": decoder_versions(),
    }  # fmt: skip


def _find(pair: tuple[str, str], source: dict[str, Any], folder: Path, hashes: ClipHashes) -> dict[str, Any]:
    """Return the entry of a view: {"file", "segments", "skipped", "whole"} and where it comes from.

    `whole` says that its file is there and undamaged; a file that has not changed since is not read again for that.
    """
    name = sha256_text(canonical_json(source))[:32]
    entry = {
        "recording": pair[0],
        "view": pair[1],
        "file": f"{name}.npy",
        "segments": [],
        "skipped": "",
        "whole": False,
    }
    try:
        sidecar = read_json(folder / f"{name}.json")
        if hashes.sha256(folder / f"{name}.npy") == sidecar["sha256"]:
            return entry | {"segments": list(sidecar["segments"]), "whole": True}
    except (TalstackError, KeyError, TypeError):
        pass
    return entry


def _decode(
    manifest: Manifest,
    entry: dict[str, Any],
    source: dict[str, Any],
    sampling: SamplingConfig,
    draws: int,
    folder: Path,
) -> dict[str, Any]:
    """Decode a view into its file and return its entry, filled in."""
    path = folder / entry["file"]
    try:
        segments = _decode_view(manifest, (entry["recording"], entry["view"]), sampling, draws, path)
    except MediaError as error:  # not kept: what cannot be read today may be there tomorrow
        return entry | {"skipped": str(error)}
    write_json(path.with_suffix(".json"), {"source": source, "segments": segments, "sha256": sha256_file(path)})
    return entry | {"segments": segments}


def _decode_view(
    manifest: Manifest, pair: tuple[str, str], sampling: SamplingConfig, draws: int, path: Path
) -> list[int]:
    """Decode one view into a file; return which segments its rows are.

    Raises:
        MediaError: nothing can be read, or the clips lie at unknown times, so that no segment has a label.
    """
    recording, view = pair
    layout = lay_out_view(manifest, recording, view, segment_s=sampling.segment_s)
    if not layout.aligned:
        raise MediaError(f"{recording} {view}: clip offsets unknown, so its segments have no labels")
    num_frames = draws * sampling.frames_per_segment
    chunks = read_segments(
        layout, [PictureTask(num_frames, sampling.frame_size)], segment_s=sampling.segment_s, chunk=16
    )
    shape = (len(layout.times_s), num_frames, sampling.frame_size, sampling.frame_size, 3)
    with atomic_path(path) as temporary:
        return _fill(temporary, shape, chunks)


def _fill(path: Path, shape: tuple[int, ...], chunks: Iterable[FrameChunk]) -> list[int]:
    """Write the valid segments' frames one after the other, a chunk in memory at a time; return which they are.

    Rows at the end of the array that no segment fills are never referred to.
    """
    pixels = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    segments: list[int] = []
    for chunk in chunks:
        rows = chunk.rows[chunk.valid[0]]
        _allocate(path, pixels.offset + len(segments) * pixels[0].nbytes, len(rows) * pixels[0].nbytes)
        pixels[len(segments) : len(segments) + len(rows)] = chunk.pixels[0][0][chunk.valid[0]]
        segments += rows.tolist()
    pixels.flush()
    return segments


def _allocate(path: Path, start: int, length: int) -> None:
    """Take room for bytes of a file: a full disk is an error here, but a crash when a mapped page is written."""
    if length and hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), start, length)


def _open(entries: list[dict[str, Any]], folder: Path, draws: int) -> FrameCache:
    used = [entry for entry in entries if entry["segments"]]
    counts = [len(entry["segments"]) for entry in used]
    return FrameCache(
        tuple(np.load(folder / entry["file"], mmap_mode="r") for entry in used),
        np.repeat(np.arange(len(used)), counts),
        np.concatenate([np.arange(count) for count in counts]),
        np.repeat([entry["recording"] for entry in used], counts),
        np.repeat([entry["view"] for entry in used], counts),
        np.concatenate([np.array(entry["segments"], dtype=np.int64) for entry in used]),
        draws,
        tuple(entry["skipped"] for entry in entries if entry["skipped"]),
    )
