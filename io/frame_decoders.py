"""The two ways of getting pictures out of a clip: decord, and PyAV where decord cannot be relied on.

Both have `read(times_s)`, which returns the pictures and the stamps of the frames shown at ascending times, NaN
where there is none. Times are seconds on the clip's clock. Both scale with the same filter, so an undamaged clip
gives the same pixels from either.
"""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import av
import av.filter
import numpy as np
from av.video.frame import VideoFrame

from talstack.io.errors import MediaError
from talstack.io.picture_crop import PictureCrop
from talstack.io.streams import ClipStart, PacketIndex, decoded, open_media, stamp_s, video_stream

# a time this close before a frame's stamp still belongs to it: absorbs rounding of times computed elsewhere
EPSILON_S = 1e-3


class DecordUnusableError(Exception):
    """Decord cannot serve this clip; the message says why. Never leaves io: the reader then turns to PyAV."""


@cache
def load_decord() -> Any:
    """Return the decord module with its log silenced.

    Raises:
        DecordUnusableError: it is not installed or does not load.
    """
    try:
        import decord  # noqa: PLC0415 - 0.1 s, and not every command reads video
    except (ImportError, OSError) as error:
        raise DecordUnusableError(f"decord does not load: {error}") from error
    decord.logging.set_level(decord.logging.QUIET)
    return decord


class DecordFrames:
    """Pictures by decord, which seeks by counting frames; only for clips where that is right."""

    def __init__(self, path: Path, index: PacketIndex, *, size: tuple[int, int], num_threads: int) -> None:
        if index.obstacle:
            raise DecordUnusableError(index.obstacle)
        module = load_decord()
        self._index, self._size = index, size
        self._errors = (
            module.DECORDError,
            module._ffi.base.DECORDLimitReachedError,
            RuntimeError,
            AssertionError,
            IndexError,
            ValueError,
        )
        self._reader: Any = None
        self._reader = self._guard(lambda: self._open(module, path, num_threads))

    def _open(self, module: Any, path: Path, num_threads: int) -> Any:
        height, width = self._size
        # fault_tol: raise as soon as one frame would be replaced by a copy of its neighbour (0 means never)
        reader = module.VideoReader(
            str(path.absolute()), width=width, height=height, num_threads=num_threads, fault_tol=1e-6
        )
        stamps_s = reader.get_frame_timestamp(list(range(len(reader))))[:, 0]
        if len(stamps_s) != len(self._index.stamps_s) or not np.allclose(
            stamps_s, self._index.stamps_s - self._index.stamps_s[0], atol=2e-3
        ):
            raise DecordUnusableError("decord and PyAV find different timestamps")
        return reader

    def _guard(self, action: Any) -> Any:
        try:
            return action()
        except self._errors as error:
            first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
            # without the time of day, which would make every run's notes differ
            raise DecordUnusableError(re.sub(r".*\.cc:\d+: ", "decord: ", first_line)) from error

    def read(self, times_s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return (n, H, W, 3) uint8 pictures and (n,) float64 stamps of the frames shown at the times.

        Raises:
            DecordUnusableError: a frame could not be decoded.
        """
        stamps_s = self._index.stamps_s
        owner = np.clip(np.searchsorted(stamps_s, times_s + EPSILON_S, side="right") - 1, 0, None)
        wanted, position = np.unique(owner, return_inverse=True)
        batch = self._guard(lambda: self._reader.get_batch(wanted.tolist()).asnumpy())
        return batch if len(wanted) == len(owner) else batch[position], stamps_s[owner]

    def close(self) -> None:
        """Free the decoder."""
        self._reader = None


class PyAVFrames:
    """Pictures by decoding from the start, skipping what cannot be decoded; holds two frames at a time."""

    def __init__(
        self, path: Path, start: ClipStart, *, size: tuple[int, int], period_s: float, crop: PictureCrop | None = None
    ) -> None:
        self._path, self._start, self._size, self._period_s = path, start, size, period_s
        self._scaler = PictureScaler(size, start.quarter_turns, crop=crop)
        self._container: Any = None
        self._restart()

    def _restart(self) -> None:
        self.close()
        self._container = open_media(self._path)
        self._frames = self._stamped_frames()
        self._shown: tuple[float, VideoFrame] | None = None
        self._next: tuple[float, VideoFrame] | None = next(self._frames, None)
        self._picture: np.ndarray | None = None

    def _stamped_frames(self) -> Iterator[tuple[float, VideoFrame]]:
        stream = video_stream(self._container)
        if stream is None:
            raise MediaError(f"{self._path}: no video stream (or no decoder for it)")
        last_s = -np.inf
        for frame in decoded(self._container, stream):
            at_s = stamp_s(frame, stream, self._container)
            # a frame without a time follows its predecessor; one that runs backwards has no place on the clock
            at_s = last_s + self._period_s if at_s is None else at_s - self._start.zero_s
            if at_s > last_s and np.isfinite(at_s):
                last_s = at_s
                yield at_s, frame

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
        """Close the file."""
        if self._container is not None:
            self._container.close()
            self._container = None


class PictureScaler:
    """Turns decoded frames upright, crops and scales them, with the filters that decord uses."""

    def __init__(self, size: tuple[int, int], quarter_turns: int, *, crop: PictureCrop | None = None) -> None:
        self._size, self._quarter_turns, self._crop = size, quarter_turns, crop
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
        steps = (*turns, *self._crop_step(frame), ("scale", f"{width}:{height}"), ("format", "rgb24"))
        nodes = [source, *(graph.add(name, arguments) for name, arguments in steps), graph.add("buffersink")]
        graph.link_nodes(*nodes)
        graph.configure()
        return graph

    def _crop_step(self, frame: VideoFrame) -> tuple[tuple[str, str], ...]:
        if self._crop is None:
            return ()
        upright = (frame.height, frame.width) if self._quarter_turns % 2 else (frame.width, frame.height)
        x, y, width, height = self._crop.pixels(*upright)
        # exact: not moved to the next pixel that has a colour of its own, which could show the other half's edge
        return (("crop", f"w={width}:h={height}:x={x}:y={y}:exact=1"),)
