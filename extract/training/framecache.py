"""Decoded frames of the training segments, on disk as one uint8 array, so that an epoch decodes nothing."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import joblib
import numpy as np

from talstack.extract.config import SamplingConfig
from talstack.extract.frames import FrameChunk, PictureTask, read_segments
from talstack.extract.layout import lay_out_view
from talstack.io.errors import MediaError
from talstack.io.files import atomic_path, canonical_json, read_json, sha256_text, write_json
from talstack.io.manifest import Manifest

OVERSAMPLING = 2  # frames kept per frame used, so that training can draw at random within each part


@dataclass(frozen=True, slots=True, eq=False)
class FrameCache:
    """Training frames of some (recording, view) pairs.

    Attributes:
        blocks: one (n, F, H, W, 3) uint8 memory map per view of a recording, F = OVERSAMPLING x T.
        block, row: (N,) int64, where each segment's frames lie.
        recording, view: (N,) str, where each segment comes from.
        segment: (N,) int64, which segment of the recording.
        skipped: views that gave nothing, and why.
    """

    blocks: tuple[np.ndarray, ...]
    block: np.ndarray
    row: np.ndarray
    recording: np.ndarray
    view: np.ndarray
    segment: np.ndarray
    skipped: tuple[str, ...]

    def frames(self, position: int) -> np.ndarray:
        """Return the (F, H, W, 3) uint8 frames of one training segment."""
        return np.asarray(self.blocks[self.block[position]][self.row[position]])


def build_frame_cache(
    manifest: Manifest,
    recordings: Sequence[str],
    *,
    views: Sequence[str],
    sampling: SamplingConfig,
    folder: Path,
    source_hashes: Sequence[str],
    jobs: int = 1,
    report: Callable[[], None] = lambda: None,
) -> FrameCache:
    """Return the frames of every aligned, fully decoded segment; made once per (sources, sampling).

    Args:
        folder: where the cache lies, named by the hash of what decides its content.
        source_hashes: content hashes of the clips.
    """
    pairs = [(r, v) for r in recordings for v in views if _has_view(manifest, r, v)]
    what = canonical_json([pairs, list(source_hashes), repr(sampling), OVERSAMPLING])
    folder = folder / sha256_text(what)[:16]
    index_file = folder / "index.json"
    if not index_file.is_file():
        blocks = joblib.Parallel(n_jobs=jobs, return_as="generator")(
            joblib.delayed(_decode_view)(manifest, pair, sampling, folder) for pair in pairs
        )
        index = []
        for block in blocks:
            index.append(block)
            report()
        _check_any(index)  # before it is kept: what cannot be read today may be there tomorrow
        write_json(index_file, index)
    return _open(read_json(index_file), folder)


def _has_view(manifest: Manifest, recording: str, view: str) -> bool:
    clips = manifest.clips
    return clips.filter((clips["recording"] == recording) & (clips["view"] == view)).height > 0


def _decode_view(manifest: Manifest, pair: tuple[str, str], sampling: SamplingConfig, folder: Path) -> dict[str, Any]:
    """Decode one view into a file of its own; return its entry of the index."""
    recording, view = pair
    entry: dict[str, Any] = {"recording": recording, "view": view, "segments": [], "file": "", "skipped": ""}
    num_frames = OVERSAMPLING * sampling.frames_per_segment
    try:
        layout = lay_out_view(manifest, recording, view, segment_s=sampling.segment_s)
        if not layout.aligned:
            return entry | {"skipped": f"{recording} {view}: clip offsets unknown, so its segments have no labels"}
        task = PictureTask(num_frames, sampling.frame_size)
        chunks = read_segments(layout, [task], segment_s=sampling.segment_s, chunk=16)
        name = sha256_text(f"{recording}/{view}")[:24] + ".npy"
        shape = (len(layout.times_s), num_frames, sampling.frame_size, sampling.frame_size, 3)
        with atomic_path(folder / name) as temporary:
            segments = _fill(temporary, shape, chunks)
    except MediaError as error:
        return entry | {"skipped": str(error)}
    return entry | {"segments": segments, "file": name}


def _fill(path: Path, shape: tuple[int, ...], chunks: Iterable[FrameChunk]) -> list[int]:
    """Write the valid segments' frames one after the other, a chunk in memory at a time; return which they are.

    Rows at the end of the array that no segment fills are never referred to.
    """
    pixels = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    segments: list[int] = []
    for chunk in chunks:
        rows = chunk.rows[chunk.valid[0]]
        pixels[len(segments) : len(segments) + len(rows)] = chunk.pixels[0][0][chunk.valid[0]]
        segments += rows.tolist()
    pixels.flush()
    return segments


def _check_any(index: list[dict[str, Any]]) -> None:
    if not any(entry["segments"] for entry in index):
        reasons = [entry["skipped"] for entry in index if entry["skipped"]]
        raise MediaError(f"no training frames in {len(index)} views; {'; '.join(reasons[:3]) or 'no segment is whole'}")


def _open(index: list[dict[str, Any]], folder: Path) -> FrameCache:
    used = [entry for entry in index if entry["segments"]]
    counts = [len(entry["segments"]) for entry in used]
    return FrameCache(
        tuple(np.load(folder / entry["file"], mmap_mode="r") for entry in used),
        np.repeat(np.arange(len(used)), counts),
        np.concatenate([np.arange(count) for count in counts]),
        np.repeat([entry["recording"] for entry in used], counts),
        np.repeat([entry["view"] for entry in used], counts),
        np.concatenate([np.array(entry["segments"], dtype=np.int64) for entry in used]),
        tuple(entry["skipped"] for entry in index if entry["skipped"]),
    )
