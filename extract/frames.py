"""Pictures of segments for several shards at once, in chunks that bound memory, decoded ahead of their use.

Every clip is read once, forwards, and every frame decoded once, whatever number of shards needs it.
"""

import queue
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from talstack.extract.derived_views import Piece
from talstack.extract.layout import ClipSegments, ViewLayout
from talstack.extract.pieces import ClipPiece, open_piece
from talstack.extract.rgbdiff import difference_times_s
from talstack.extract.watchdog import beat
from talstack.io.media import FrameReader, Pictures


@dataclass(frozen=True, slots=True)
class PictureTask:
    """What one shard needs of every segment.

    Attributes:
        num_frames: T moments, at the middles of T equal parts.
        frame_size: width and height of the pictures, pixels.
        motion: six frames around each moment instead of one (`talstack.extract.rgbdiff`).
        piece: which piece of the picture.
    """

    num_frames: int
    frame_size: int
    motion: bool = False
    piece: Piece = Piece()

    def times_s(self, clip: ClipSegments, segment_s: float) -> np.ndarray:
        """Return the times of the frames on the clip's clock, (n, T) or (n, T, 6) float64 seconds."""
        times_s = clip.sample_times_s(self.num_frames, segment_s)
        return difference_times_s(times_s, end_s=clip.end_s) if self.motion else times_s


@dataclass(frozen=True, slots=True, eq=False)
class FrameChunk:
    """Pictures of n segments of a view.

    Attributes:
        rows: (n,) int64 rows of the view's arrays.
        pixels: per task, per camera: (n, T, S, S, 3) or (n, T, 6, S, S, 3) uint8 RGB.
        valid: per task (n,) bool; False where a frame of the segment is missing or was concealed.
        notes: per task, what is wrong with frames or was found out about the clip.
        decode_s: processor time that reading them took, seconds.
    """

    rows: np.ndarray
    pixels: tuple[list[np.ndarray], ...]
    valid: tuple[np.ndarray, ...]
    notes: tuple[tuple[str, ...], ...]
    decode_s: float = field(default=0.0)


def read_segments(
    layout: ViewLayout, tasks: Sequence[PictureTask], *, segment_s: float, chunk: int, fast: bool = False
) -> Iterator[FrameChunk]:
    """Yield the pictures of every segment of the layout, `chunk` segments at a time, in order.

    Args:
        layout: where the segments lie in the clips.
        tasks: what to draw.
        segment_s: length of a segment, seconds.
        chunk: segments that are held at once.
        fast: let neighbouring frames stand for costly ones, up to half a sampling period away; see FrameReader.

    Raises:
        MediaError: a clip gives no frames.
    """
    fast_within_s = segment_s / max(task.num_frames for task in tasks) / 2 if fast else None
    for clip in layout.clips:
        if not len(clip.rows):
            continue
        started = time.thread_time()
        pieces = [
            open_piece(task.piece, clip.path, frame_size=task.frame_size, picture=clip.picture, end_s=clip.end_s)
            for task in tasks
        ]
        drawings = list(dict.fromkeys(piece.drawing for piece in pieces))
        times_s = [task.times_s(clip, segment_s) for task in tasks]
        with FrameReader(clip.path, drawings=drawings, fast_within_s=fast_within_s) as reader:
            for start in range(0, len(clip.rows), chunk):
                part = slice(start, start + chunk)
                made = _read_part(reader, drawings, pieces, [times[part] for times in times_s])
                beat()
                spent_s, started = time.thread_time() - started, time.thread_time()
                yield FrameChunk(clip.rows[part], *made, spent_s)


def _read_part(
    reader: FrameReader, drawings: list, pieces: list[ClipPiece], times_s: list[np.ndarray]
) -> tuple[tuple[list[np.ndarray], ...], tuple[np.ndarray, ...], tuple[tuple[str, ...], ...]]:
    """Return pixels, validity and notes of a few segments, per task."""
    moments = np.unique(np.concatenate([times.ravel() for times in times_s]))
    places = [np.searchsorted(moments, times) for times in times_s]
    wanted = np.zeros((len(moments), len(drawings)), dtype=bool)
    for piece, place in zip(pieces, places, strict=True):
        wanted[place, drawings.index(piece.drawing)] = True
    found = reader.pictures_at(moments, wanted)
    pixels, valid, notes = [], [], []
    for piece, place in zip(pieces, places, strict=True):
        column = drawings.index(piece.drawing)
        row = np.cumsum(wanted[:, column]) - 1  # only the wanted moments have a picture
        views = [view[row[place]] for view in piece.views(found.pixels[column])]
        whole = (found.valid & ~found.concealed)[place]
        pixels.append(views)
        valid.append(np.asarray(whole.reshape(len(place), -1).all(axis=1)))
        damage = _damage(reader.note, found, np.unique(place), moments)
        notes.append(tuple(note for note in (piece.note, damage) if note))
    return tuple(pixels), tuple(valid), tuple(notes)


def _damage(note: str | None, found: Pictures, used: np.ndarray, moments: np.ndarray) -> str | None:
    parts = [note] if note else []
    for what, are in (("not decoded", ~found.valid[used]), ("concealed by the decoder", found.concealed[used])):
        if are.any():
            first_s, last_s = moments[used][are][[0, -1]]
            parts.append(f"{are.sum()} of {len(are)} frames {what} at {first_s:.1f}-{last_s:.1f} s")
    return "; ".join(parts) or None


def read_ahead(chunks: Iterator[FrameChunk], *, depth: int = 2) -> Iterator[FrameChunk]:
    """Yield the chunks while a thread decodes the next ones; at most `depth` wait in memory.

    An exception of the reading thread is raised here; leaving the loop early stops the thread.
    """
    waiting: queue.Queue[FrameChunk | BaseException | None] = queue.Queue(maxsize=depth)
    stop = threading.Event()

    def offer(item: FrameChunk | BaseException | None) -> bool:
        while not stop.is_set():
            try:
                waiting.put(item, timeout=0.2)
                return True
            except queue.Full:
                continue
        return False

    def decode() -> None:
        try:
            for chunk in chunks:
                if not offer(chunk):
                    return
            offer(None)
        except BaseException as error:  # handed over whole: raised again in the caller's thread
            offer(error)

    thread = threading.Thread(target=decode, daemon=True, name="decode")
    thread.start()
    try:
        while (item := waiting.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
            beat()
    finally:
        stop.set()
        thread.join()
