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
from talstack.io.picture_crop import Drawing


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
        strip = _Strip(drawings, pieces, [task.times_s(clip, segment_s) for task in tasks], chunk)
        with FrameReader(clip.path, drawings=drawings, fast_within_s=fast_within_s, progress=beat) as reader:
            for number, found in enumerate(strip.read(reader)):
                made = strip.cut(number, found, note=reader.note)
                del found  # or it would stay in memory beside the next one
                beat()
                spent_s, started = time.thread_time() - started, time.thread_time()
                yield FrameChunk(clip.rows[strip.parts[number]], *made, spent_s)


class _Strip:
    """The moments of a clip at which pictures are needed, ascending, each once, and the stretches that chunks use.

    Stretches of neighbouring chunks may overlap (rgbdiff looks back and ahead); what they share is read once and kept,
    since going back in a clip may mean to decode it from its beginning.

    Attributes:
        parts: which segments each chunk holds.
    """

    def __init__(self, drawings: list[Drawing], pieces: list[ClipPiece], times_s: list[np.ndarray], chunk: int) -> None:
        self._drawings, self._pieces = drawings, pieces
        self._moments_s = np.unique(np.concatenate([times.ravel() for times in times_s]))
        self._places = [np.searchsorted(self._moments_s, times) for times in times_s]
        self._wanted = np.zeros((len(self._moments_s), len(drawings)), dtype=bool)
        for piece, place in zip(pieces, self._places, strict=True):
            self._wanted[place, drawings.index(piece.drawing)] = True
        self.parts = [slice(start, start + chunk) for start in range(0, len(times_s[0]), chunk)]
        self._stretches = [
            (min(int(place[part].min()) for place in self._places), 1 + max(int(p[part].max()) for p in self._places))
            for part in self.parts
        ]

    def read(self, reader: FrameReader) -> Iterator[Pictures]:
        """Yield the pictures of every chunk's stretch."""
        kept: Pictures | None = None
        read_to = 0
        for number, (first, past) in enumerate(self._stretches):
            new = slice(max(first, read_to), max(past, read_to))
            found = reader.pictures_at(self._moments_s[new], self._wanted[new])
            found = found if kept is None else _joined(kept, found)
            read_to = new.stop
            following = self._stretches[number + 1][0] if number + 1 < len(self._stretches) else read_to
            gone = self._wanted[first:following].sum(axis=0)
            kept = _without_first(found, following - first, gone) if following < read_to else None
            yield found
            del found

    def cut(
        self, number: int, found: Pictures, *, note: str | None
    ) -> tuple[tuple[list[np.ndarray], ...], tuple[np.ndarray, ...], tuple[tuple[str, ...], ...]]:
        """Return pixels, validity and notes of one chunk's segments, per task."""
        first, part = self._stretches[number][0], self.parts[number]
        length = len(found.valid)
        pixels, valid, notes = [], [], []
        for piece, places in zip(self._pieces, self._places, strict=True):
            column, place = self._drawings.index(piece.drawing), places[part] - first
            # only the wanted moments have a picture
            row = np.cumsum(self._wanted[first : first + length, column]) - 1
            views = [view[row[place]] for view in piece.views(found.pixels[column])]
            whole = (found.valid & ~found.concealed)[place]
            pixels.append(views)
            valid.append(np.asarray(whole.reshape(len(place), -1).all(axis=1)))
            damage = _damage(note, found, np.unique(place), self._moments_s[first : first + length])
            notes.append(tuple(note for note in (piece.note, damage) if note))
        return tuple(pixels), tuple(valid), tuple(notes)


def _joined(before: Pictures, after: Pictures) -> Pictures:
    return Pictures(
        tuple(np.concatenate(both) for both in zip(before.pixels, after.pixels, strict=True)),
        *(np.concatenate([getattr(before, name), getattr(after, name)]) for name in ("valid", "concealed", "times_s")),
    )


def _without_first(found: Pictures, count: int, drawn: np.ndarray) -> Pictures:
    """Return a copy without the first `count` moments, of which so many had each of the drawings."""
    return Pictures(
        tuple(pixels[gone:].copy() for pixels, gone in zip(found.pixels, drawn, strict=True)),
        *(getattr(found, name)[count:].copy() for name in ("valid", "concealed", "times_s")),
    )


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
