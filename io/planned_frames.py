"""Pictures out of a clip of which only those packets are decoded that the pictures asked for rest on.

A picture that nothing is predicted from is decoded only where it is asked for itself, and a group of pictures only up
to the last one asked for. Neither changes a pixel of the others.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from av.video.frame import VideoFrame

from talstack.io.frame_decoders import EPSILON_S, DamageError, PyAVFrames
from talstack.io.packet_index import PacketIndex
from talstack.io.painting import Canvas
from talstack.io.picture_crop import Drawing
from talstack.io.streams import ClipStart, decoded_strictly

# stamps of packets and frames are the same numbers, but for rounding
SAME_S = 1e-6
# without it in pictures that others refer to, errors would add up until the next key frame
FAST = {"skip_loop_filter": "noref"}


class PlannedFrames(PyAVFrames):
    """Pictures by decoding forwards what is needed; stops at the first thing that is wrong; holds one frame."""

    def __init__(
        self,
        path: Path,
        start: ClipStart,
        *,
        drawings: Sequence[Drawing],
        index: PacketIndex,
        num_threads: int = 1,
        fast_within_s: float | None = None,
        progress: Callable[[], None] = lambda: None,
    ) -> None:
        """Open the clip.

        Args:
            path, start, drawings: as for PyAVFrames.
            index: the clip's packets.
            num_threads: of the decoder; 0: as many as there are cores.
            fast_within_s, progress: see FrameReader.

        Raises:
            DamageError: frames cannot be told by their packets.
        """
        if index.doubt:
            raise DamageError(index.doubt)
        self._index, self._fast_within_s = index, fast_within_s
        self._place = np.argsort(index.order_s, kind="stable")
        self._group = np.cumsum(index.entry) if index.obstacle is None else np.zeros(len(index.order_s), dtype=int)
        super().__init__(
            path, start, drawings=drawings, period_s=index.period_s, strict=True, num_threads=num_threads,
            progress=progress,
        )  # fmt: skip

    def _first(self) -> None:
        self._reached = 0
        self._needed = np.ones(len(self._place), dtype=bool)

    def _decoded(self, stream: Any) -> Iterator[Any]:
        if self._fast_within_s is not None:
            stream.codec_context.options = FAST
        return decoded_strictly(self._container, stream, num_threads=self._num_threads, needed=self._take)

    def _take(self, place: int) -> bool:
        self._progress()
        self._reached = place + 1
        if place >= len(self._needed):
            raise DamageError("the file grew while it was read")
        return bool(self._needed[place])

    def read(self, times_s: np.ndarray, wanted: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
        """Return the drawings and the stamps of the frames shown at the times; see PyAVFrames.

        Raises:
            DamageError: one of the frames, or what it rests on, is damaged or missing.
        """
        stamps_s = self._index.stamps_s
        rows = np.clip(np.searchsorted(stamps_s, times_s + EPSILON_S, side="right") - 1, 0, None)
        rows = self._nearby(rows)
        if len(rows) and self._shown is not None and stamps_s[rows[0]] < self._shown[0] - SAME_S:
            self._restart()
        self._plan(rows)
        canvas = Canvas(self._drawings, wanted)
        for i, row in enumerate(rows):
            canvas.put(i, self._frame_at(float(stamps_s[row])), self._painter)
        return canvas.pixels, stamps_s[rows]

    def _nearby(self, rows: np.ndarray) -> np.ndarray:
        """Return the rows of the nearest frames that are decoded anyway, where they are near enough."""
        if self._fast_within_s is None or not len(rows):
            return rows
        stamps_s, kept = self._index.stamps_s, np.flatnonzero(~self._index.spare[self._place])
        after = np.searchsorted(kept, rows).clip(0, len(kept) - 1)
        around = np.stack([kept[(after - 1).clip(0)], kept[after]])
        nearest = np.argmin(abs(stamps_s[around] - stamps_s[rows]), axis=0)
        moved = np.take_along_axis(around, nearest[None], axis=0)[0]
        if self._shown is not None:
            # not back to before the frame at hand: that would start from the beginning
            moved = np.maximum(moved, np.searchsorted(stamps_s, self._shown[0] - SAME_S))
        return np.where(abs(stamps_s[moved] - stamps_s[rows]) <= self._fast_within_s + SAME_S, moved, rows)

    def _plan(self, rows: np.ndarray) -> None:
        """Set which of the packets up to the last wanted one are needed."""
        wanted = np.unique(self._place[rows])
        if not len(wanted) or wanted[-1] < self._reached:
            return
        places = np.arange(self._reached, wanted[-1] + 1)
        following = wanted[np.searchsorted(wanted, places)]
        # a spare frame after the last one asked for may be asked for next time
        idle = self._index.spare[places] & (self._index.order_s[places] <= self._index.stamps_s[rows[-1]])
        self._needed[places] = (self._group[following] == self._group[places]) & (~idle | (following == places))

    def _frame_at(self, stamp_s: float) -> VideoFrame:
        while self._shown is None or self._shown[0] < stamp_s - SAME_S:
            self._shown = next(self._frames, None)
            if self._shown is None:
                raise DamageError(f"no frame at {stamp_s:.3f} s")
        at_s, frame = self._shown
        if at_s > stamp_s + SAME_S or frame.is_corrupt:
            raise DamageError(f"no whole frame at {stamp_s:.3f} s")
        return frame
