"""Pictures out of a clip by PyAV, frame after frame.

Every decoder has `read(times_s, wanted)`, which returns the drawings and the stamps of the frames shown at ascending
times, NaN where there is none. Times are seconds on the clip's clock. All scale with the same filter, so an undamaged
clip gives the same pixels from each.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from av.error import FFmpegError
from av.video.frame import VideoFrame

from talstack.io.painting import Canvas, Painter
from talstack.io.picture_crop import Drawing
from talstack.io.streams import ClipStart, decoded, decoded_strictly, needed_video, open_media, stamp_s

# a time this close before a frame's stamp still belongs to it: absorbs rounding of times computed elsewhere
EPSILON_S = 1e-3


class DamageError(Exception):
    """Something is wrong with the clip's data; the message says what. Never leaves io: the reader then tolerates it."""


class PyAVFrames:
    """Pictures by decoding from the start; holds two frames at a time.

    It skips what cannot be decoded, with one thread, or, `strict`, stops at the first thing that is wrong.
    """

    def __init__(
        self,
        path: Path,
        start: ClipStart,
        *,
        drawings: Sequence[Drawing],
        period_s: float,
        strict: bool = False,
        num_threads: int = 1,
        progress: Callable[[], None] = lambda: None,
    ) -> None:
        """Open the clip; `progress` is called at every frame."""
        self._path, self._start, self._drawings, self._period_s = path, start, tuple(drawings), period_s
        self._strict, self._num_threads, self._progress = strict, num_threads, progress
        self._painter = Painter(self._drawings, start.quarter_turns)
        self._container: Any = None
        self._shown: tuple[float, VideoFrame] | None = None
        self._restart()

    def _restart(self) -> None:
        self.close()
        self._container = open_media(self._path)
        self._frames = self._stamped_frames()
        self._next: tuple[float, VideoFrame] | None = self._first()

    def _first(self) -> tuple[float, VideoFrame] | None:
        return next(self._frames, None)

    def _stamped_frames(self) -> Generator[tuple[float, VideoFrame], None, None]:
        stream = needed_video(self._container, self._path)
        last_s = -np.inf
        try:
            for frame in self._decoded(stream):
                self._progress()
                at_s = stamp_s(frame, stream, self._container)
                # a frame without a time follows its predecessor; one that runs backwards has no place on the clock
                at_s = last_s + self._period_s if at_s is None else at_s - self._start.zero_s
                if at_s > last_s and np.isfinite(at_s):
                    last_s = at_s
                    yield at_s, frame
        except FFmpegError as error:
            after = "at the start" if np.isinf(last_s) else f"after {last_s:.3f} s"
            raise DamageError(f"damaged {after}: {error.strerror}") from error

    def _decoded(self, stream: Any) -> Iterator[Any]:
        if self._strict:
            return decoded_strictly(self._container, stream, num_threads=self._num_threads)
        return decoded(self._container, stream)

    def read(self, times_s: np.ndarray, wanted: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
        """Return the drawings and the (n,) float64 stamps of the frames shown, NaN where there is none.

        Args:
            times_s: (n,) ascending.
            wanted: (n, K) bool, which of the K drawings to make of each.

        Returns:
            Per drawing (its number wanted, H, W, 3) uint8, zero where there is no frame; the stamps.
        """
        canvas = Canvas(self._drawings, wanted)
        shown_s = np.full(len(times_s), np.nan)
        for row, time_s in enumerate(times_s):
            self._advance(float(time_s))
            # before the first frame the first one answers, within one period
            current = self._shown or self._next
            if current is None or current[0] > time_s + max(EPSILON_S, self._period_s):
                continue
            canvas.put(row, current[1], self._painter)
            shown_s[row] = current[0]
        return canvas.pixels, shown_s

    def _advance(self, time_s: float) -> None:
        if self._shown is not None and time_s + EPSILON_S < self._shown[0]:
            self._restart()
        while self._next is not None and self._next[0] <= time_s + EPSILON_S:
            self._shown = self._next
            self._next = next(self._frames, None)

    def close(self) -> None:
        """Close the file and let go of the decoder and its pictures."""
        if self._container is not None:
            # the generator and this object refer to each other: without this they wait for the garbage collector
            self._frames.close()
            self._shown = self._next = None
            self._painter.forget()
            self._container.close()
            self._container = None
