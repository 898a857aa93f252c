"""Media files: what is in them, and the pictures and the sound at given times.

Clip time: second 0 is the clip's first video frame, so a file whose clock starts elsewhere is nothing special, and
its sound lies on the same clock. Frame times come from the stream's timestamps, never from index and frame rate.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import av
import numpy as np

from talstack.io.audio_track import Audio, read_audio
from talstack.io.damage import suspect_stamps
from talstack.io.decord_frames import DecordFrames, DecordUnusableError, load_decord
from talstack.io.errors import InputError, MediaError
from talstack.io.frame_decoders import EPSILON_S, DamageError, PyAVFrames
from talstack.io.packet_index import DAMAGED, index_clip
from talstack.io.picture_crop import WHOLE, Drawing, PictureCrop
from talstack.io.planned_frames import PlannedFrames
from talstack.io.streams import (
    audio_stream,
    clip_start,
    frame_period_s,
    open_media,
    packets,
    stamp_s,
    video_stream,
)

__all__ = ["Audio", "ClipInfo", "FrameReader", "Frames", "Pictures", "decoder_versions", "probe", "read_audio"]

# counts changes in which frames are read, and which of them are held to be concealed
READING_VERSION = "2"


@dataclass(frozen=True, slots=True)
class ClipInfo:
    """What a media file contains.

    Attributes:
        duration_s: length in seconds, as the file claims it; a damaged file may hold less.
        fps: average frames per second; 0 without picture or where the file does not say.
        width, height: of the picture as displayed, after rotation, pixels; 0 without picture.
        has_audio, has_video: whether there is a stream and a decoder for it.
    """

    duration_s: float
    fps: float
    width: int
    height: int
    has_audio: bool
    has_video: bool


def probe(path: Path) -> ClipInfo:
    """Return what the file contains; decodes one frame.

    Raises:
        MediaError: it cannot be opened, has neither picture nor sound, or none of its frames can be decoded.
    """
    with open_media(path) as container:
        video, audio = video_stream(container), audio_stream(container)
        if video is None and audio is None:
            raise MediaError(f"{path}: neither a video nor an audio stream that can be decoded")
        duration_s = _duration_s(container, video or audio)
        if video is None:
            return ClipInfo(duration_s, 0.0, 0, 0, has_audio=True, has_video=False)
        fps = float(video.average_rate or video.guessed_rate or 0)
    start = clip_start(path)
    return ClipInfo(duration_s, fps, start.width, start.height, has_audio=audio is not None, has_video=True)


def _duration_s(container: Any, stream: Any) -> float:
    """Return the stream's length: what it says, what the container says, or its packets counted."""
    if stream.duration and stream.duration > 0:
        return float(stream.duration * stream.time_base)
    if container.duration and container.duration > 0:
        start_s = max(0.0, float((stream.start_time or 0) * stream.time_base))
        return max(container.duration / av.time_base - start_s, 0.0) or container.duration / av.time_base
    stamps = [s for p in packets(container, stream) if (s := stamp_s(p, stream, container)) is not None]
    period_s = frame_period_s(stream) if stream.type == "video" else 0.0
    return max(stamps) - min(stamps) + period_s if stamps else 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Frames:
    """The pictures shown at n times.

    Attributes:
        pixels: (n, H, W, 3) uint8 RGB; zero where not valid.
        valid: (n,) bool; False outside the clip and where the frame could not be decoded.
        concealed: (n,) bool; there is a picture, but it rests on data that the decoder could not read (see
            talstack.io.damage). Decord does not tell: False.
        times_s: (n,) float64 timestamps of the frames on the clip's clock; NaN where not valid.
    """

    pixels: np.ndarray
    valid: np.ndarray
    concealed: np.ndarray
    times_s: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class Pictures:
    """Several drawings of the pictures shown at n times.

    Attributes:
        pixels: per drawing (how often it was wanted, H, W, 3) uint8 RGB, in the order of the times; zero where not
            valid.
        valid, concealed, times_s: as `Frames`, (n,).
    """

    pixels: tuple[np.ndarray, ...]
    valid: np.ndarray
    concealed: np.ndarray
    times_s: np.ndarray


class FrameReader:
    """Reads the frames of one clip, forwards; a context manager.

    As long as nothing is wrong with the clip, only what the frames asked for rest on is decoded. At the first damage
    the clip is read again in order, with one thread, so that the pictures do not depend on their number; what cannot
    be decoded is then skipped. Going forwards is cheap, going back starts again.
    """

    def __init__(
        self,
        path: Path,
        *,
        size: tuple[int, int] | None = None,
        crop: PictureCrop | None = None,
        drawings: Sequence[Drawing] = (),
        num_threads: int = 1,
        use_decord: bool = False,
        fast_within_s: float | None = None,
        progress: Callable[[], None] = lambda: None,
    ) -> None:
        """Open the clip.

        Args:
            path: the media file.
            size: (height, width) to scale to; None keeps the size of the picture, or of its crop.
            crop: the part of the picture to draw; decord cannot.
            drawings: several sizes and crops instead, for `pictures_at`; decord cannot.
            num_threads: decoding threads (0: as many as there are cores), in undamaged clips of H.264 and HEVC and
                with decord; others have one. Pictures do not depend on them, but where damage passes unnoticed.
            use_decord: read with decord where its way of counting frames is safe.
            fast_within_s: None gives exactly the frames shown. A number lets another frame, up to so many seconds
                away, stand for one that no other is predicted from, so that hardly any of these has to be decoded
                where it is half the sampling period; those that have to be are left without the loop filter.
                `times_s` are those of the frames really used. Changes nothing in damaged clips, in codecs other than
                H.264 and HEVC, and with decord.
            progress: called at every packet or frame: looking through a long clip, or reading a damaged one again,
                takes minutes.

        Raises:
            MediaError: it cannot be opened, has no picture, or no frame of it can be decoded.
        """
        self._path = Path(path)
        self._progress = progress
        self._start, self._index = index_clip(self._path, progress)
        self._drawings = tuple(drawings) or (self._drawing(size, crop),)
        if fast_within_s is not None and not fast_within_s >= 0:
            raise InputError(f"{path}: fast_within_s must be at least 0 seconds, got {fast_within_s}")
        self._num_threads, self._fast_within_s = num_threads, fast_within_s
        self._note: str | None = None
        self._suspect_s = np.empty(0)
        self._decoder: DecordFrames | PyAVFrames | None = None
        self._decoder = self._open_decord() if use_decord else self._open_pyav()

    def _drawing(self, size: tuple[int, int] | None, crop: PictureCrop | None) -> Drawing:
        _, _, width, height = (crop or WHOLE).pixels(self._start.width, self._start.height)
        try:
            return Drawing(size or (height, width), crop)
        except InputError as error:
            raise InputError(f"{self._path}: {error}") from error

    def _open_decord(self) -> DecordFrames | PyAVFrames:
        try:
            if len(self._drawings) > 1 or self._drawings[0].crop:
                raise DecordUnusableError("decord cannot crop, nor draw several sizes")
            return DecordFrames(
                self._path, self._index, size=self._drawings[0].size, num_threads=self._num_threads
            )  # fmt: skip
        except DecordUnusableError as error:
            self._note = str(error)
            return self._open_pyav()

    def _open_pyav(self) -> PyAVFrames:
        index = self._index
        try:
            if index.doubt == DAMAGED:
                raise DamageError(DAMAGED)
            # in other codecs nothing can be left out, and a packet may hold no picture to be shown
            if index.doubt is None and index.entry.any():
                return PlannedFrames(
                    self._path, self._start, drawings=self._drawings, index=index, num_threads=self._num_threads,
                    fast_within_s=self._fast_within_s, progress=self._progress,
                )  # fmt: skip
            return self._plain(strict=True)
        except DamageError as error:
            return self._tolerate(str(error))

    def _tolerate(self, damage: str) -> PyAVFrames:
        self._note = damage
        self._suspect_s = suspect_stamps(self._path, self._start, self._index, self._progress)
        return self._plain(strict=False)

    def _plain(self, *, strict: bool) -> PyAVFrames:
        return PyAVFrames(
            self._path, self._start, drawings=self._drawings, period_s=self._index.period_s, strict=strict,
            progress=self._progress,
        )  # fmt: skip

    @property
    def name(self) -> str:
        """Which decoder serves: "decord" or "pyav"."""
        return "decord" if isinstance(self._decoder, DecordFrames) else "pyav"

    @property
    def note(self) -> str | None:
        """What is damaged, or why decord does not serve although asked for, or None."""
        return self._note

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the (first) drawing."""
        return self._drawings[0].size

    def frames_at(self, times_s: np.ndarray) -> Frames:
        """Return the frames shown at the times.

        The frame shown at t is the last one with a timestamp <= t (1 ms of tolerance), or the first one for t less
        than a frame period before it. In a gap of a variable frame rate the frame before it stays on the screen.

        Args:
            times_s: (n,) ascending, seconds on the clip's clock.

        Raises:
            InputError: the times are not finite or not ascending.
        """
        found = self.pictures_at(times_s)
        return Frames(found.pixels[0], found.valid, found.concealed, found.times_s)

    def pictures_at(self, times_s: np.ndarray, wanted: np.ndarray | None = None) -> Pictures:
        """Return the drawings of the frames shown at the times; each frame is decoded once for all of them.

        Args:
            times_s: as for `frames_at`.
            wanted: (n, K) bool, which of the K drawings to make of each; None: all.

        Raises:
            InputError: the times are not finite or not ascending.
        """
        times_s = np.asarray(times_s, dtype=np.float64)
        if times_s.ndim != 1 or not np.isfinite(times_s).all() or (np.diff(times_s) < 0).any():
            raise InputError(f"{self._path}: times must be one row of ascending, finite seconds, got {times_s!r}")
        if wanted is None:
            wanted = np.ones((len(times_s), len(self._drawings)), dtype=bool)
        inside = (times_s >= -self._index.period_s) & (times_s <= self._index.end_s)
        shown_s = np.full(len(times_s), np.nan)
        drawn: list[np.ndarray] = []
        if inside.any():
            drawn, found_s = self._read(times_s[inside], wanted[inside])
            shown_s[inside] = np.where(self._answers(times_s[inside], found_s), found_s, np.nan)
        valid = np.isfinite(shown_s)
        pixels = tuple(
            _only_valid(drawn[number] if drawn else None, valid[wanted[:, number]], inside[wanted[:, number]], one)
            for number, one in enumerate(self._drawings)
        )
        return Pictures(pixels, valid, np.isin(shown_s, self._suspect_s), shown_s)

    def _read(self, times_s: np.ndarray, wanted: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
        if self._decoder is None:
            raise MediaError(f"{self._path}: the reader is closed")
        try:
            return self._decoder.read(times_s, wanted)
        except DecordUnusableError as error:
            self.close()
            self._note = str(error)
            self._decoder = self._open_pyav()
        except DamageError as error:
            self.close()
            self._decoder = self._tolerate(str(error))
        return self._read(times_s, wanted)

    def _answers(self, times_s: np.ndarray, shown_s: np.ndarray) -> np.ndarray:
        """Return whether the frame found is the one shown: no frame that should follow it was lost."""
        if isinstance(self._decoder, PlannedFrames):
            return np.isfinite(shown_s)
        stamps_s = self._index.stamps_s
        due = np.searchsorted(stamps_s, times_s + EPSILON_S, side="right")
        lost = due > np.searchsorted(stamps_s, np.nan_to_num(shown_s) + EPSILON_S, side="right")
        near = times_s - shown_s <= 1.5 * self._index.period_s + EPSILON_S
        return np.isfinite(shown_s) & (near | ~lost)

    def close(self) -> None:
        """Free the decoder and the file."""
        if self._decoder is not None:
            self._decoder.close()
            self._decoder = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _only_valid(drawn: np.ndarray | None, valid: np.ndarray, inside: np.ndarray, drawing: Drawing) -> np.ndarray:
    """Return the pixels of all rows, zero where not valid, of those that lie inside the clip."""
    if drawn is not None and valid.all():
        return drawn
    pixels = np.zeros((len(valid), *drawing.size, 3), dtype=np.uint8)
    if drawn is not None:
        pixels[valid] = drawn[valid[inside]]
    return pixels


def decoder_versions(*, use_decord: bool = False) -> dict[str, str]:
    """Return the versions that decide what pixels and samples a file gives; for fingerprints."""
    versions = {name: ".".join(map(str, av.library_versions[name])) for name in ("libavcodec", "libswscale")}
    versions |= {"pyav": av.__version__, "reading": READING_VERSION}
    if use_decord:
        try:
            versions["decord"] = str(load_decord().__version__)
        except DecordUnusableError:
            versions["decord"] = "absent"
    return versions
