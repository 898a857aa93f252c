"""The sound of a clip, as one row of samples or as left and right, on the clip's clock."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import numpy as np

from talstack.io.errors import InputError, MediaError
from talstack.io.streams import audio_stream, clip_start, decoded, open_media, stamp_s

# how far a frame may lie from where its predecessors end before the clock is set anew; containers round stamps
# to milliseconds, and a real gap is at least one frame of sound (20 ms and more)
JITTER_S = 0.05
# stamps that lead further past the file's claimed end than this are taken for damage
OVERRUN_S = 10.0
UNKNOWN_LENGTH_S = 6 * 3600.0


@dataclass(frozen=True, slots=True, eq=False)
class Audio:
    """Sound.

    Attributes:
        samples: (n,) float32 in [-1, 1], or (2, n) left and right where asked for; zero where the file has a gap.
        rate: samples per second.
        start_s: where sample 0 lies on the clip's clock, seconds; negative where the sound starts before the
            picture.
        num_channels: of the file; below 2 left and right are the same and say nothing about direction.
    """

    samples: np.ndarray
    rate: int
    start_s: float
    num_channels: int = 1


@dataclass(slots=True)
class _Run:
    """Frames that follow each other without a gap, in one format; `pieces` are (n,), or (2, n) in stereo."""

    start_s: float
    kind: tuple[Any, ...]
    resampler: Any
    num_channels: int
    stereo: bool
    heard_s: float = 0.0
    pieces: list[np.ndarray] = field(default_factory=list)

    @property
    def end_s(self) -> float:
        return self.start_s + self.heard_s

    def add(self, frame: Any | None) -> None:
        """Resample a frame onto the end of the run; None flushes what the resampler holds back."""
        if frame is not None:
            self.heard_s += frame.samples / frame.sample_rate
            frame.pts = None
        for piece in self.resampler.resample(frame):
            channels = piece.to_ndarray()
            # every layout with more than one channel begins with front left and front right
            self.pieces.append(
                channels[[0, min(1, len(channels) - 1)]] if self.stereo else channels.mean(axis=0, dtype=np.float32)
            )


def read_audio(path: Path, *, rate: int, stereo: bool = False, progress: Callable[[], None] = lambda: None) -> Audio:
    """Return the clip's sound: its channels averaged, or left and right in two rows.

    A file with one channel has it in both rows; of more than two, front left and front right are taken.

    Packets that cannot be decoded and gaps in the timestamps become zeros, so that the clock stays right. `progress` is
    called at every frame of sound.

    Raises:
        MediaError: the file cannot be opened, has no sound, or none of it can be decoded.
    """
    if rate < 1:
        raise InputError(f"{path}: the sampling rate must be a positive number of samples per second, got {rate}")
    path = Path(path)
    with open_media(path) as container:
        stream = audio_stream(container)
        if stream is None:
            raise MediaError(f"{path}: no audio stream (or no decoder for it)")
        runs = list(_runs(container, stream, rate, stereo=stereo, progress=progress))
    if not runs:
        raise MediaError(f"{path}: no sound can be decoded")
    num_channels = max(run.num_channels for run in runs)
    return Audio(_join(runs, rate), rate, runs[0].start_s - _zero_s(path, runs[0].start_s), num_channels)


def _zero_s(path: Path, first_sound_s: float) -> float:
    """Return the stamp of the clip's second 0: its first picture, or its first sound where no picture decodes."""
    try:
        return clip_start(path).zero_s
    except MediaError:
        return first_sound_s


def _runs(container: Any, stream: Any, rate: int, *, stereo: bool, progress: Callable[[], None]) -> Iterator[_Run]:
    """Yield the stretches of sound without a gap."""
    length_s = container.duration / av.time_base + OVERRUN_S if container.duration else UNKNOWN_LENGTH_S
    run: _Run | None = None
    first_s: float | None = None
    for frame in decoded(container, stream):
        progress()
        at_s = stamp_s(frame, stream, container)
        expected_s = run.end_s if run else 0.0
        if at_s is None or (first_s is not None and at_s - first_s > length_s):
            at_s = expected_s
        if run and at_s < expected_s - JITTER_S:
            continue  # time runs backwards: this moment is already filled
        first_s = at_s if first_s is None else first_s
        kind = (frame.format.name, frame.layout.name, frame.sample_rate)
        if run is None or at_s > expected_s + JITTER_S or kind != run.kind:
            if run:
                run.add(None)
                yield run
            resampler = av.AudioResampler(format="fltp", layout=frame.layout, rate=rate)
            run = _Run(at_s, kind, resampler, frame.layout.nb_channels, stereo)
        run.add(frame)
    if run:
        run.add(None)
        yield run


def _join(runs: list[_Run], rate: int) -> np.ndarray:
    """Return the runs laid out in time, (n,) or (2, n) float32."""
    rows = (2,) if runs[0].stereo else ()
    placed = []
    for run in runs:
        samples = np.concatenate(run.pieces, axis=-1) if run.pieces else np.zeros((*rows, 0), dtype=np.float32)
        placed.append((round((run.start_s - runs[0].start_s) * rate), samples))
    joined = np.zeros((*rows, max(start + s.shape[-1] for start, s in placed)), dtype=np.float32)
    for start, samples in placed:
        joined[..., start : start + samples.shape[-1]] = samples
    return np.clip(np.nan_to_num(joined), -1.0, 1.0)
