"""Pictures out of a clip by PyAV, frame after frame, and their scaling.

Every decoder has `read(times_s)`, which returns the pictures and the stamps of the frames shown at ascending times,
NaN where there is none. Times are seconds on the clip's clock. All scale with the same filter, so an undamaged clip
gives the same pixels from each.
"""

from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import av
import av.filter
import numpy as np
from av.error import FFmpegError
from av.video.frame import VideoFrame

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
        size: tuple[int, int],
        period_s: float,
        strict: bool = False,
        num_threads: int = 1,
    ) -> None:
        self._path, self._start, self._size, self._period_s = path, start, size, period_s
        self._strict, self._num_threads = strict, num_threads
        self._scaler = PictureScaler(size, start.quarter_turns)
        self._container: Any = None
        self._shown: tuple[float, VideoFrame] | None = None
        self._picture: np.ndarray | None = None
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

    def read(self, times_s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return (n, H, W, 3) uint8 pictures and (n,) float64 stamps of the frames shown, NaN where there is none."""
        pixels = np.zeros((len(times_s), *self._size, 3), dtype=np.uint8)
        shown_s = np.full(len(times_s), np.nan)
        for row, time_s in enumerate(times_s):
            self._advance(float(time_s))
            # before the first frame the first one answers, within one period
            current = self._shown or self._next
            if current is None or current[0] > time_s + max(EPSILON_S, self._period_s):
                continue
            pixels[row], shown_s[row] = self._draw(current), current[0]
        return pixels, shown_s

    def _advance(self, time_s: float) -> None:
        if self._shown is not None and time_s + EPSILON_S < self._shown[0]:
            self._restart()
        while self._next is not None and self._next[0] <= time_s + EPSILON_S:
            self._shown, self._picture = self._next, None
            self._next = next(self._frames, None)

    def _draw(self, current: tuple[float, VideoFrame]) -> np.ndarray:
        if self._picture is None or self._shown is None:
            self._picture = self._scaler.draw(current[1])
        return self._picture

    def close(self) -> None:
        """Close the file and let go of the decoder and its pictures."""
        if self._container is not None:
            # the generator and this object refer to each other: without this they wait for the garbage collector
            self._frames.close()
            self._shown = self._next = self._picture = None
            self._container.close()
            self._container = None


class PictureScaler:
    """Turns decoded frames upright and scales them, with the filters that decord uses."""

    def __init__(self, size: tuple[int, int], quarter_turns: int) -> None:
        self._size, self._quarter_turns = size, quarter_turns
        self._graph: Any = None
        self._made_for: tuple[Any, ...] = ()

    def draw(self, frame: VideoFrame) -> np.ndarray:
        """Return the (H, W, 3) uint8 RGB picture."""
        kind = (frame.format.name, frame.width, frame.height, frame.colorspace, frame.color_range)
        if kind != self._made_for:
            self._graph, self._made_for = self._make_graph(frame), kind
        self._graph.push(frame)
        return np.asarray(self._graph.pull().to_ndarray(), dtype=np.uint8)

    def _make_graph(self, frame: VideoFrame) -> Any:
        height, width = self._size
        turns: tuple[tuple[str, str], ...] = (
            (), (("transpose", "2"),), (("transpose", "1"), ("transpose", "1")), (("transpose", "1"),),
        )[self._quarter_turns]  # fmt: skip
        graph = av.filter.Graph()
        graph.threads = 1
        source = graph.add_buffer(
            width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base
        )
        steps = (*turns, ("scale", f"{width}:{height}"), ("format", "rgb24"))
        nodes = [source, *(graph.add(name, arguments) for name, arguments in steps), graph.add("buffersink")]
        graph.link_nodes(*nodes)
        graph.configure()
        return graph
