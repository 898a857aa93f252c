"""Which frames of a damaged clip cannot be trusted although the decoder gives a picture for them.

A decoder fills what it cannot decode with what lay there before, and PyAV does not say in which frames. So a second
reading lets the decoder refuse instead: a refused packet is a damaged picture, and so is, unless nothing is predicted
from it, all that follows up to the next key frame. Damage that still decodes cannot be seen: in a test clip with
flipped bits three frames before the first refused one differed from the original by 3 of 255 in the mean.
Where that goes unnoticed for long, even the pictures may differ from one reading to the next.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from av.error import FFmpegError
from av.packet import Packet

from talstack.io.packet_index import PacketIndex
from talstack.io.streams import STRICT, ClipStart, needed_video, open_media, packets, stamp_s


def suspect_stamps(
    path: Path, start: ClipStart, index: PacketIndex, progress: Callable[[], None] = lambda: None
) -> np.ndarray:
    """Return (k,) float64 ascending, the stamps on the clip's clock of pictures that rest on damaged data.

    Args:
        path, start, index: of the clip.
        progress: called at every packet.

    Raises:
        MediaError: the clip cannot be opened.
    """
    found: list[float] = []
    with open_media(path) as container:
        stream = needed_video(container, path)
        stream.thread_type = "NONE"
        stream.codec_context.options = STRICT
        trial = _Trial(stream)
        for place, packet in enumerate(packets(container, stream)):
            progress()
            at_s = stamp_s(packet, stream, container)
            spare = place < len(index.spare) and bool(index.spare[place])
            if packet.size and trial.suspects(packet, at_s, spare=spare) and at_s is not None:
                found.append(at_s - start.zero_s)
    return np.unique(found)


class _Trial:
    """Decodes packets in turn and judges their pictures."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._broken = True  # nothing is certain before the first key frame
        self._entered_s = -np.inf

    def suspects(self, packet: Packet, at_s: float | None, *, spare: bool) -> bool:
        """Return whether the packet's picture rests on damaged data."""
        if packet.is_keyframe:
            if self._broken:
                self._stream.codec_context.flush_buffers()
                self._entered_s = -np.inf if at_s is None else at_s
            self._broken = False
        # pictures shown before the key frame they follow are predicted from the group before it
        if self._broken or (at_s is not None and at_s < self._entered_s):
            return True
        bad = packet.is_corrupt or _is_refused(packet)
        self._broken = bad and not spare
        return bad


def _is_refused(packet: Packet) -> bool:
    try:
        packet.decode()
    except FFmpegError:
        return True
    return False
