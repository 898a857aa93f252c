"""Drawings of decoded frames: turned upright, cropped and scaled, each made once however often it is asked for."""

from collections.abc import Sequence
from typing import Any

import av.filter
import numpy as np
from av.video.frame import VideoFrame

from talstack.io.picture_crop import Drawing


class Painter:
    """Makes the drawings of frames; remembers those of the last one."""

    def __init__(self, drawings: Sequence[Drawing], quarter_turns: int) -> None:
        self._scalers = [PictureScaler(drawing, quarter_turns) for drawing in drawings]
        self._frame: VideoFrame | None = None
        self._made: dict[int, np.ndarray] = {}

    def forget(self) -> None:
        """Let go of the last frame."""
        self._frame, self._made = None, {}

    def draw(self, frame: VideoFrame, number: int) -> np.ndarray:
        """Return drawing `number` of a frame, (H, W, 3) uint8 RGB."""
        if frame is not self._frame:
            self._frame, self._made = frame, {}
        if number not in self._made:
            self._made[number] = self._scalers[number].draw(frame)
        return self._made[number]


class Canvas:
    """The drawings of n frames that are wanted.

    Attributes:
        pixels: per drawing (how often it is wanted, H, W, 3) uint8, zero where nothing was put.
    """

    def __init__(self, drawings: Sequence[Drawing], wanted: np.ndarray) -> None:
        """Make room for what `wanted`, (n, K) bool, asks for."""
        self._wanted, self._row = wanted, np.cumsum(wanted, axis=0) - 1
        counts = wanted.sum(axis=0)
        self.pixels = [np.zeros((n, *one.size, 3), np.uint8) for n, one in zip(counts, drawings, strict=True)]

    def put(self, row: int, frame: VideoFrame, painter: Painter) -> None:
        """Draw what is wanted of the row's frame."""
        for number in np.flatnonzero(self._wanted[row]):
            self.pixels[number][self._row[row, number]] = painter.draw(frame, int(number))


class PictureScaler:
    """Turns decoded frames upright, crops and scales them, with the filters that decord uses."""

    def __init__(self, drawing: Drawing, quarter_turns: int) -> None:
        self._drawing, self._quarter_turns = drawing, quarter_turns
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
        height, width = self._drawing.size
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
        if self._drawing.crop is None:
            return ()
        upright = (frame.height, frame.width) if self._quarter_turns % 2 else (frame.width, frame.height)
        x, y, width, height = self._drawing.crop.pixels(*upright)
        # exact: not moved to the next pixel that has a colour of its own, which could show the other half's edge
        return (("crop", f"w={width}:h={height}:x={x}:y={y}:exact=1"),)
