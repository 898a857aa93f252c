"""Media containers through PyAV: opening them, reading past damage, and where a clip's clock starts.

Stamps are presentation times in seconds on the container's own clock. A clip's second 0 is its first video frame
(its first sound where there is no picture), so clip time is stamp minus `ClipStart.zero_s`.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import av
import numpy as np
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


@dataclass(frozen=True, slots=True, eq=False)
class PacketIndex:
    """The stamps of a clip's video packets, found without decoding.

    Attributes:
        stamps_s: (m,) float64 ascending, on the clip's clock.
        period_s: typical time between two frames.
        end_s: until when the last frame answers, on the clip's clock.
        obstacle: why counting frames is not safe in this clip (see `_obstacle`), or None where it is.
    """

    stamps_s: np.ndarray
    period_s: float
    end_s: float
    obstacle: str | None


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
        stream = video_stream(container)
        if stream is None:
            raise MediaError(f"{path}: no video stream (or no decoder for it)")
        stream.thread_type = "NONE"
        packet_stamps: list[float] = []
        for packet in packets(container, stream):
            at_s = stamp_s(packet, stream, container)
            if at_s is not None and not packet.is_discard:
                packet_stamps.append(at_s)
            try:
                frames = packet.decode()
            except FFmpegError:
                continue
            for frame in frames:
                first_s = stamp_s(frame, stream, container)
                first_s = min(packet_stamps, default=0.0) if first_s is None else first_s
                return _start(frame, first_s, packet_stamps, avi=container.format.name == "avi")
        raise MediaError(f"{path}: no frame of the video stream can be decoded")


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


def index_packets(path: Path, start: ClipStart) -> PacketIndex:
    """Return the stamps of all video packets.

    Raises:
        MediaError: the file cannot be opened or has no picture.
    """
    stamps: list[float | None] = []
    keys: list[bool] = []
    discarded, last = False, (-np.inf, 0.0)
    with open_media(path) as container:
        stream = video_stream(container)
        if stream is None:
            raise MediaError(f"{path}: no video stream (or no decoder for it)")
        for packet in packets(container, stream):
            if packet.size == 0:
                continue
            at_s = stamp_s(packet, stream, container)
            stamps.append(at_s)
            keys.append(packet.is_keyframe)
            discarded = discarded or packet.is_discard
            if at_s is not None:
                last = max(last, (at_s, float((packet.duration or 0) * (stream.time_base or 0))))
        period_s, format_name = frame_period_s(stream), container.format.name
    known = np.array([s for s in stamps if s is not None], dtype=np.float64)
    ascending = np.unique(known) - start.zero_s
    if format_name == "avi" and len(ascending):
        ascending -= ascending[0]  # decoding times count packets, and the decoder's delay is not part of the clip
    if len(ascending) > 1:
        period_s = float(np.median(np.diff(ascending)))
    end_s = (ascending[-1] if len(ascending) else 0.0) + max(1.5 * period_s, last[1])
    obstacle = "packets that are not shown" if discarded else _obstacle(format_name, stamps, keys, start)
    return PacketIndex(ascending, period_s, float(end_s), obstacle)


def _obstacle(format_name: str, stamps: list[float | None], keys: list[bool], start: ClipStart) -> str | None:
    """Return why a reader that seeks by counting frames would give wrong pictures, or None.

    Such a reader (decord) takes the i-th packet for the i-th frame in time, and the i-th key frame for the place
    to start from. Measured with decord2 3.4: in MPEG-TS, AVI with B-frames, files with edit lists, and wherever a
    group of pictures is open (the default of x265, and MPEG-4 with B-frames), it returned frames up to 30 away
    from the one asked for, without an error.
    """
    if not {"mp4", "matroska"} & set(format_name.split(",")):
        return f"container {format_name} cannot be entered at an exact frame"
    if not stamps or any(s is None for s in stamps):
        return "packets without a presentation time"
    array = np.array(stamps, dtype=np.float64)
    if len(np.unique(array)) < len(array):
        return "packets that share a presentation time"
    if array.min() < start.first_s:
        return "the first frames cannot be decoded"
    key = np.flatnonzero(keys)
    if not len(key) or key[0] != 0:
        return "no key frame at the start"
    before = np.concatenate([[-np.inf], np.maximum.accumulate(array)[:-1]])
    from_here = np.minimum.accumulate(array[::-1])[::-1]
    if (before[key] > array[key]).any() or (from_here[key] < array[key]).any():
        return "open groups of pictures"
    return None
