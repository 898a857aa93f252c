"""What a clip's video packets say without being decoded: their stamps, key frames, and which ones others need."""

from array import array
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from av.packet import Packet

from talstack.io.nal_units import PictureKind, nal_format, picture_kind
from talstack.io.streams import (
    ClipStart,
    StartSearch,
    frame_period_s,
    needed_video,
    no_frame,
    open_media,
    packets,
    stamp_s,
)

DAMAGED = "damaged packets"


@dataclass(frozen=True, slots=True, eq=False)
class PacketIndex:
    """The m video packets of a clip; a packet without a stamp counts, but has no place in `stamps_s`.

    Attributes:
        stamps_s: (m,) float64 ascending, on the clip's clock.
        period_s: typical time between two frames.
        end_s: until when the last frame answers, on the clip's clock.
        obstacle: why counting frames is not safe in this clip (see `_obstacle`), or None where it is.
        order_s: (m,) float64 the stamps in the order of decoding, on the clip's clock; NaN where there is none.
        entry: (m,) bool, in the order of decoding: a key frame, as the file and its own header say.
        spare: (m,) bool, in the order of decoding: no other picture is predicted from this one.
        doubt: why a frame cannot be told by its packet's stamp, or None where it can.
    """

    stamps_s: np.ndarray
    period_s: float
    end_s: float
    obstacle: str | None
    order_s: np.ndarray
    entry: np.ndarray
    spare: np.ndarray
    doubt: str | None


def index_clip(path: Path, progress: Callable[[], None] = lambda: None) -> tuple[ClipStart, PacketIndex]:
    """Return where the clip's clock starts, and its packets; one walk over the file.

    Args:
        progress: called at every packet.

    Raises:
        MediaError: the file cannot be opened, has no picture, or no frame of it can be decoded.
    """
    notes = _PacketNotes()
    start = None
    with open_media(path) as container:
        stream = needed_video(container, path)
        search, form = StartSearch(container, stream), nal_format(stream.codec_context)
        for packet in packets(container, stream):
            progress()
            if start is None:
                start = search.look(packet)
            if packet.size:
                notes.add(packet, stamp_s(packet, stream, container), picture_kind(packet, form))
        period_s, format_name = frame_period_s(stream), container.format.name
    if start is None:
        raise no_frame(path)
    return start, notes.index(start, period_s, format_name)


class _PacketNotes:
    """Gathers what the packets say, in a few bytes each."""

    def __init__(self) -> None:
        self._stamps = array("d")
        self._keys, self._spare, self._layers, self._entries = (array("b") for _ in range(4))
        self._discarded = self._corrupt = False
        self._last = (-np.inf, 0.0)

    def add(self, packet: Packet, at_s: float | None, kind: PictureKind) -> None:
        self._stamps.append(np.nan if at_s is None else at_s)
        self._keys.append(packet.is_keyframe)
        self._spare.append(kind.spare)
        self._layers.append(kind.layer)
        self._entries.append(kind.entry and packet.is_keyframe)
        self._discarded = self._discarded or packet.is_discard
        self._corrupt = self._corrupt or packet.is_corrupt
        if at_s is not None:
            self._last = max(self._last, (at_s, float((packet.duration or 0) * (packet.time_base or 0))))

    def index(self, start: ClipStart, period_s: float, format_name: str) -> PacketIndex:
        order_s = np.array(self._stamps, dtype=np.float64) - start.zero_s
        ascending = np.unique(order_s[np.isfinite(order_s)])
        if format_name == "avi" and len(ascending):
            ascending -= ascending[0]  # decoding times count packets, and the decoder's delay is not part of the clip
        if len(ascending) > 1:
            period_s = float(np.median(np.diff(ascending)))
        end_s = (ascending[-1] if len(ascending) else 0.0) + max(1.5 * period_s, self._last[1])
        layers = np.array(self._layers, dtype=np.int8)
        spare = np.array(self._spare, dtype=bool) & (layers == layers.max(initial=0))
        keys, entries = np.array(self._keys, dtype=bool), np.array(self._entries, dtype=bool)
        doubt = self._doubt(format_name, order_s, start.first_s - start.zero_s)
        obstacle = doubt or _obstacle(format_name, order_s, keys)
        return PacketIndex(ascending, period_s, float(end_s), obstacle, order_s, entries, spare, doubt)

    def _doubt(self, format_name: str, order_s: np.ndarray, first_s: float) -> str | None:
        if self._discarded:
            return "packets that are not shown"
        if self._corrupt:
            return DAMAGED
        if format_name == "avi":
            return "container avi has no presentation times"
        if not len(order_s) or not np.isfinite(order_s).all():
            return "packets without a presentation time"
        if len(np.unique(order_s)) < len(order_s):
            return "packets that share a presentation time"
        return "the first frames cannot be decoded" if order_s.min() < first_s else None


def _obstacle(format_name: str, order_s: np.ndarray, keys: np.ndarray) -> str | None:
    """Return why a reader that seeks by counting frames would give wrong pictures, or None.

    Such a reader (decord) takes the i-th packet for the i-th frame in time, and the i-th key frame for the place
    to start from. Measured with decord2 3.4: in MPEG-TS, AVI with B-frames, files with edit lists, and wherever a
    group of pictures is open (the default of x265, and MPEG-4 with B-frames), it returned frames up to 30 away
    from the one asked for, without an error.
    """
    if not {"mp4", "matroska"} & set(format_name.split(",")):
        return f"container {format_name} cannot be entered at an exact frame"
    key = np.flatnonzero(keys)
    if not len(key) or key[0] != 0:
        return "no key frame at the start"
    before = np.concatenate([[-np.inf], np.maximum.accumulate(order_s)[:-1]])
    from_here = np.minimum.accumulate(order_s[::-1])[::-1]
    if (before[key] > order_s[key]).any() or (from_here[key] < order_s[key]).any():
        return "open groups of pictures"
    return None
