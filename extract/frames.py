"""Frames of segments, in chunks that bound memory, decoded ahead of their use."""

import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from talstack.extract.layout import ViewLayout
from talstack.extract.watchdog import beat
from talstack.io.media import FrameReader


@dataclass(frozen=True, slots=True, eq=False)
class FrameChunk:
    """Frames of some segments of a view.

    Attributes:
        rows: (n,) int64 rows of the view's arrays.
        pixels: (n, F, H, W, 3) uint8 RGB.
        valid: (n,) bool; False where a frame of the segment could not be decoded.
        note: why the reader fell back or lost frames, or None.
    """

    rows: np.ndarray
    pixels: np.ndarray
    valid: np.ndarray
    note: str | None


def read_segments(
    layout: ViewLayout, *, num_frames: int, frame_size: int, segment_s: float, chunk: int
) -> Iterator[FrameChunk]:
    """Yield the frames of every segment of the layout, `chunk` segments at a time, in order.

    Every clip is opened once and read forwards.

    Raises:
        MediaError: a clip gives no frames.
    """
    for clip in layout.clips:
        times_s = clip.sample_times_s(num_frames, segment_s)
        if not len(times_s):
            continue
        with FrameReader(clip.path, size=(frame_size, frame_size)) as reader:
            for start in range(0, len(times_s), chunk):
                wanted = times_s[start : start + chunk]
                frames = reader.frames_at(wanted.reshape(-1))
                shape = (len(wanted), num_frames, frame_size, frame_size, 3)
                beat()
                valid = np.asarray(frames.valid.reshape(len(wanted), num_frames).all(axis=1))
                rows = clip.rows[start : start + chunk]
                yield FrameChunk(rows, frames.pixels.reshape(shape), valid, reader.note)


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
    finally:
        stop.set()
        thread.join()
