"""Media containers through PyAV: opening them, reading past damage, and where a clip's clock starts.

Stamps are presentation times in seconds on the container's own clock. A clip's second 0 is its first video frame
(its first sound where there is no picture), so clip time is stamp minus `ClipStart.zero_s`.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import av
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from talstack.io.errors import MediaError

# a demuxer that fails this often in a row without giving a packet has nothing more to give
MAX_READ_ERRORS = 16
DEFAULT_PERIOD_S = 1 / 25
# the decoder refuses a picture rather than to conceal what is missing in it
STRICT = {"err_detect": "explode"}

Frame = TypeVar("Frame", VideoFrame, AudioFrame)


@dataclass(frozen=True, slots=True)
class ClipStart:
    """What the first decodable frame says about a clip.

    Attributes:
        zero_s: stamp of the clip's second 0.
        first_s: stamp of the first frame that can be decoded; later than `zero_s` where the start is damaged.
        width, height: of the picture as displayed, after rotation, pixels.
        quarter_turns: how often the stored picture is turned counter-clockwise for display, 0 to 3.
    """

    zero_s: float
    first_s: float
    width: int
    height: int
    quarter_turns: int


def open_media(path: Path) -> InputContainer:
    """Return the opened container; use it in a `with` statement.

    Raises:
        MediaError: it cannot be opened; the message gives the path and the reason.
    """
    try:
        if os.stat(path).st_size == 0:
            raise MediaError(f"{path}: cannot be opened: the file is empty")
        # metadata in a wrong encoding must not cost the clip; only local files, whatever a playlist may say
        return av.open(os.path.abspath(path), metadata_errors="ignore", options={"protocol_whitelist": "file"})
    except (FFmpegError, OSError, ValueError) as error:
        if isinstance(error, MediaError):
            raise
        reason = getattr(error, "strerror", None) or str(error)
        raise MediaError(f"{path}: cannot be opened: {reason}") from error


def video_stream(container: InputContainer) -> VideoStream | None:
    """Return the stream that a player would show, or None; a cover picture is not a video."""
    stream = container.streams.best("video")
    if not isinstance(stream, VideoStream) or not _has_decoder(stream):
        return None
    return None if stream.disposition & Disposition.attached_pic else stream


def audio_stream(container: InputContainer) -> AudioStream | None:
    """Return the stream that a player would play, or None."""
    stream = container.streams.best("audio")
    return stream if isinstance(stream, AudioStream) and _has_decoder(stream) else None


def _has_decoder(stream: Any) -> bool:
    return stream.codec_context is not None


def packets(container: InputContainer, stream: Any) -> Iterator[Packet]:
    """Yield the stream's packets and the empty one that flushes the decoder; unreadable stretches are passed over."""
    failures = 0
    while failures < MAX_READ_ERRORS:
        try:
            for packet in container.demux(stream):
                failures = 0
                yield packet
            return
        except FFmpegError:
            failures += 1


def decoded(container: InputContainer, stream: Any) -> Iterator[Any]:
    """Yield the stream's frames in the order of display, as many as can be recovered.

    A packet that the decoder refuses is skipped and decoding goes on, as the ffmpeg command does. One thread:
    with several the pictures after a damaged place are not the same on every run.
    """
    stream.thread_type = "NONE"
    for packet in packets(container, stream):
        try:
            frames = packet.decode()
        except FFmpegError:
            continue  # the frames that are missing show as a gap in the stamps
        yield from frames


def decoded_strictly(
    container: InputContainer, stream: Any, *, num_threads: int = 1, needed: Callable[[int], bool] | None = None
) -> Iterator[Any]:
    """Yield the stream's frames in the order of display up to the first thing that is wrong.

    Args:
        num_threads: of the decoder, each with frames of its own; 0: as many as there are cores. Threads within a
            frame would not report what goes wrong.
        needed: whether the i-th packet is to be decoded; None: all are.

    Raises:
        FFmpegError: a packet cannot be read or is not decoded whole.
    """
    stream.thread_type = "NONE" if num_threads == 1 else "FRAME"
    stream.codec_context.thread_count = num_threads
    stream.codec_context.options = {**stream.codec_context.options, **STRICT}
    for place, packet in enumerate(container.demux(stream)):
        if needed is None or not packet.size or needed(place):
            yield from packet.decode()


def stamp_s(item: Any, stream: Any, container: InputContainer) -> float | None:
    """Return when a packet or frame is presented, or None where the file does not say.

    AVI stores no presentation times; its decoding times count the frames in the order of display.
    """
    ticks = item.dts if container.format.name == "avi" else item.pts
    return None if ticks is None else float(ticks * stream.time_base)


def clip_start(path: Path) -> ClipStart:
    """Return where the clip's clock starts and how large its picture is.

    Raises:
        MediaError: the file cannot be opened, has no picture, or no frame of it can be decoded.
    """
    with open_media(path) as container:
        stream = needed_video(container, path)
        search = StartSearch(container, stream)
        for packet in packets(container, stream):
            if (start := search.look(packet)) is not None:
                return start
        raise no_frame(path)


def needed_video(container: InputContainer, path: Path) -> VideoStream:
    """Return the stream that a player would show.

    Raises:
        MediaError: there is none.
    """
    stream = video_stream(container)
    if stream is None:
        raise MediaError(f"{path}: no video stream (or no decoder for it)")
    return stream


def no_frame(path: Path) -> MediaError:
    """Return the error of a clip whose picture cannot be decoded at all."""
    return MediaError(f"{path}: no frame of the video stream can be decoded")


class StartSearch:
    """Looks for the first picture while its user walks over the packets."""

    def __init__(self, container: InputContainer, stream: VideoStream) -> None:
        stream.thread_type = "NONE"
        # only the picture's stamp and shape are looked at
        stream.codec_context.options = {"skip_loop_filter": "all", "skip_idct": "all"}
        self._container, self._stream = container, stream
        self._stamps: list[float] = []

    def look(self, packet: Packet) -> ClipStart | None:
        """Return the clip's start once a packet gives a picture."""
        at_s = stamp_s(packet, self._stream, self._container)
        if at_s is not None and not packet.is_discard:
            self._stamps.append(at_s)
        try:
            frames: list[Any] = packet.decode()
        except FFmpegError:
            return None
        if not frames:
            return None
        first_s = stamp_s(frames[0], self._stream, self._container)
        first_s = min(self._stamps, default=0.0) if first_s is None else first_s
        return _start(frames[0], first_s, self._stamps, avi=self._container.format.name == "avi")


def _start(frame: Any, first_s: float, packet_stamps: list[float], *, avi: bool) -> ClipStart:
    # earlier packets that gave no picture are a damaged start: the clock runs from the first of them. In AVI
    # decoding times run ahead of the display by the decoder's delay, so there the first picture counts.
    zero_s = first_s if avi else min([first_s, *packet_stamps])
    turns = round(frame.rotation / 90) % 4
    width, height = (frame.height, frame.width) if turns % 2 else (frame.width, frame.height)
    return ClipStart(zero_s, first_s, width, height, turns)


def frame_period_s(stream: Any) -> float:
    """Return the nominal time between two frames."""
    rate = stream.average_rate or stream.guessed_rate
    return float(1 / rate) if rate else DEFAULT_PERIOD_S
