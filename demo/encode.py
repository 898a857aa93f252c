"""Writing frames and sound as an mp4 file (H.264 + AAC) through PyAV.

One encoder thread and no clock in the file: the same frames give the same bytes with the same FFmpeg.
"""

from collections.abc import Iterable
from fractions import Fraction
from itertools import chain
from pathlib import Path

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.container import OutputContainer
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter

from talstack.io.errors import InputError
from talstack.io.files import atomic_path

AAC_FRAME = 1024  # samples that one AAC packet holds
AAC_BITS_PER_S = 64000
# Macroblock trees off: with them the bytes depend on memory that nothing has written. Measured with x264 core 165:
# 40 runs over one clip gave 19 different files at 112 pixels width, 3 at 192 and 1 at 128; without, always 1.
H264_OPTIONS = {"preset": "veryfast", "crf": "20", "mbtree": "0"}
KEYFRAME_EVERY_S = 2.0


def write_video(
    path: Path,
    frames: Iterable[np.ndarray],
    *,
    fps: int | Fraction,
    audio: np.ndarray | None = None,
    audio_rate: int = 16000,
) -> int:
    """Write an mp4 file atomically and return the number of frames in it.

    Args:
        path: the file; its folder is made.
        frames: (H, W, 3) uint8 RGB, all of one size, H and W even (yuv420p). Frame i is shown at i / fps.
        fps: constant frame rate.
        audio: (n,) float32 mono in [-1, 1], starting with the first frame; None writes no sound track.
        audio_rate: samples per second.

    Raises:
        InputError: no frames, or a frame or sound of another shape or type; nothing is left at `path`.
    """
    source = iter(frames)
    first = next(source, None)
    if first is None:
        raise InputError(f"{path}: no frames to write; a video needs at least one")
    if first.ndim != 3 or first.shape[2] != 3 or first.shape[0] % 2 or first.shape[1] % 2:
        raise InputError(f"{path}: frame 0 has shape {first.shape}; expected (H, W, 3) with even H and W")
    if audio is not None and audio.ndim != 1:
        raise InputError(f"{path}: sound has shape {audio.shape}; expected (n,) mono")
    with atomic_path(path) as temporary, av.open(str(temporary), "w", format="mp4") as container:
        return _mux(container, path, chain([first], source), Fraction(fps), audio, audio_rate)


def _mux(
    container: OutputContainer,
    path: Path,
    frames: Iterable[np.ndarray],
    fps: Fraction,
    audio: np.ndarray | None,
    audio_rate: int,
) -> int:
    video = container.add_stream("libx264", rate=fps, options=H264_OPTIONS)
    video.pix_fmt = "yuv420p"
    video.gop_size = max(1, round(KEYFRAME_EVERY_S * fps))
    video.thread_count = 1  # how frames are spread over threads would show in the bytes
    sound = None if audio is None else _Sound(container, audio, audio_rate)
    reformatter = VideoReformatter()
    num_frames = 0
    size: tuple[int, ...] | None = None
    for pixels in frames:
        if size is None:
            size = pixels.shape
            video.height, video.width = size[:2]
        if pixels.shape != size or pixels.dtype != np.uint8:
            raise InputError(
                f"{path}: frame {num_frames} is {pixels.dtype} {pixels.shape}; expected uint8 {size} like the first"
            )
        frame = reformatter.reformat(VideoFrame.from_ndarray(pixels, format="rgb24"), format="yuv420p")
        frame.pts, frame.time_base = num_frames, 1 / fps
        container.mux(video.encode(frame))
        num_frames += 1
        if sound is not None:
            sound.write_until(num_frames / fps)
    container.mux(video.encode(None))
    if sound is not None:
        sound.finish()
    return num_frames


class _Sound:
    """The sound track; it keeps up with the picture, so that the muxer need not hold a whole track to interleave."""

    def __init__(self, container: OutputContainer, audio: np.ndarray, rate: int) -> None:
        self._container = container
        self._samples = np.ascontiguousarray(np.clip(audio, -1.0, 1.0), dtype=np.float32)[None, :]
        self._rate = rate
        self._start = 0
        self._stream = container.add_stream("aac", rate=rate, layout="mono")
        self._stream.bit_rate = AAC_BITS_PER_S

    def write_until(self, time_s: Fraction) -> None:
        """Encode the sound before time_s, or all of it where it is shorter; whole packets."""
        stop = min(self._samples.shape[1], int(time_s * self._rate))
        while self._start < stop:
            self._encode(self._samples[:, self._start : self._start + AAC_FRAME])

    def finish(self) -> None:
        """Encode what is left, and the encoder's last packets."""
        self.write_until(Fraction(self._samples.shape[1], self._rate))
        self._container.mux(self._stream.encode(None))

    def _encode(self, samples: np.ndarray) -> None:
        frame = AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = self._rate, self._start, Fraction(1, self._rate)
        self._container.mux(self._stream.encode(frame))
        self._start += samples.shape[1]
