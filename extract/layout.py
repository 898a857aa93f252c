"""Where the segments of one (recording, view) lie in its clips.

Clips with a known offset fill the recording's grid; a view whose clips are all at unknown offsets gets one grid
per clip, end to end, and is marked as not aligned.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from talstack.io.errors import MediaError
from talstack.io.grid import SegmentGrid
from talstack.io.manifest import Manifest
from talstack.io.media import probe


@dataclass(frozen=True, slots=True)
class ClipSegments:
    """The segments that one clip fills.

    Attributes:
        path: the media file.
        rows: (n,) int64 rows of the view's arrays.
        start_s: (n,) float64 start of each segment on the clip's clock, seconds; may lie up to half a segment
            before the clip's first frame.
        end_s: the last time on the clip's clock that has a frame of its own, seconds.
        picture: height and width of its pictures, pixels; zeros without picture.
    """

    path: Path
    rows: np.ndarray
    start_s: np.ndarray
    end_s: float
    picture: tuple[int, int] = (0, 0)

    def sample_times_s(self, num_frames: int, segment_s: float) -> np.ndarray:
        """Return (n, F) float64 times on the clip's clock, at the middles of F equal parts, kept within the clip."""
        parts = (np.arange(num_frames) + 0.5) / num_frames * segment_s
        return np.clip(self.start_s[:, None] + parts[None, :], 0.0, self.end_s)


@dataclass(frozen=True, slots=True)
class ViewLayout:
    """The rows of one (recording, view), and the clips that fill them.

    Attributes:
        times_s: (R,) float64 middle of each row's segment: on the recording's clock, or, where `aligned` is
            False, on the clip's.
        aligned: whether row i is segment i of the recording.
        clips: what fills the rows; rows that no clip covers stay empty.
        notes: clips that were left out, and why.
    """

    times_s: np.ndarray
    aligned: bool
    clips: tuple[ClipSegments, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Opened:
    """A clip that can be read: what the manifest and the file say of it, seconds and pixels."""

    path: Path
    offset_s: float | None
    duration_s: float
    last_s: float
    picture: tuple[int, int]


def lay_out_view(manifest: Manifest, recording: str, view: str, *, segment_s: float) -> ViewLayout:
    """Return the layout of one view of a recording.

    Raises:
        MediaError: none of its clips can be opened; the message gives each one's reason.
    """
    rows = manifest.clips.filter((pl.col("recording") == recording) & (pl.col("view") == view)).sort("clip")
    opened, notes = [], []
    for row in rows.iter_rows(named=True):
        path = manifest.media_path(row["path"])
        try:
            info = probe(path)
        except MediaError as error:
            notes.append(str(error))
            continue
        last_s = max(0.0, info.duration_s - 1.0 / info.fps) if info.fps > 0 else info.duration_s
        opened.append(_Opened(path, row["offset_s"], info.duration_s, last_s, (info.height, info.width)))
    if not opened:
        raise MediaError(f"{recording} {view}: no clip can be read: {'; '.join(notes) or 'no clips'}")
    placed = [clip for clip in opened if clip.offset_s is not None]
    if not placed:
        return _own_clocks(opened, segment_s, notes)
    lost = [clip.path.name for clip in opened if clip.offset_s is None]
    notes += [f"{name}: offset unknown, left out beside aligned clips" for name in lost]
    grid = SegmentGrid(manifest.duration_s(recording), segment_s)
    clips = [_on_grid(grid, clip) for clip in placed]
    return ViewLayout(grid.centres_s, True, tuple(clips), tuple(notes))


def _on_grid(grid: SegmentGrid, clip: _Opened) -> ClipSegments:
    offset_s = clip.offset_s or 0.0
    covered_s = grid.coverage(np.array([[offset_s, offset_s + clip.duration_s]]))[0] * grid.segment_s
    inside_s = np.minimum(grid.edges_s[:, 1], grid.duration_s) - grid.edges_s[:, 0]
    # half of what the recording has of the segment is enough, so a recording shorter than L keeps its one row
    rows = np.flatnonzero(covered_s >= 0.5 * inside_s - 1e-6)
    return ClipSegments(clip.path, rows, grid.edges_s[rows, 0] - offset_s, clip.last_s, clip.picture)


def _own_clocks(opened: list[_Opened], segment_s: float, notes: list[str]) -> ViewLayout:
    clips, times, start = [], [], 0
    for clip in opened:
        grid = SegmentGrid(max(clip.duration_s, 1e-3), segment_s)
        rows = np.arange(start, start + len(grid))
        clips.append(ClipSegments(clip.path, rows, grid.edges_s[:, 0], clip.last_s, clip.picture))
        times.append(grid.centres_s)
        start += len(grid)
    return ViewLayout(np.concatenate(times), False, tuple(clips), (*notes, "clip offsets unknown: own clocks"))
