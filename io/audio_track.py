"""The sound of a clip as one row of samples, on the clip's clock."""

from collections.abc import Iterator
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
    """Mono sound.

    Attributes:
        samples: (n,) float32 in [-1, 1]; zero where the file has a gap.
        rate: samples per second.
        start_s: where sample 0 lies on the clip's clock, seconds; negative where the sound starts before the
            picture.
    """

    samples: np.ndarray
    rate: int
    start_s: float


@dataclass(slots=True)
class _Run:
    """Frames that follow each other without a gap, in one format."""

    start_s: float
    kind: tuple[Any, ...]
    resampler: Any
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
            self.pieces.append(piece.to_ndarray().mean(axis=0, dtype=np.float32))


def read_audio(path: Path, *, rate: int) -> Audio:
    """Return the clip's sound, its channels averaged.

    Packets that cannot be decoded and gaps in the timestamps become zeros, so that the clock stays right.

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
        runs = list(_runs(container, stream, rate))
    if not runs:
        raise MediaError(f"{path}: no sound can be decoded")
    return Audio(_join(runs, rate), rate, runs[0].start_s - _zero_s(path, runs[0].start_s))


def _zero_s(path: Path, first_sound_s: float) -> float:
    """Return the stamp of the clip's second 0: its first picture, or its first sound where no picture decodes."""
    try:
        return clip_start(path).zero_s
    except MediaError:
        return first_sound_s


def _runs(container: Any, stream: Any, rate: int) -> Iterator[_Run]:
    """Yield the stretches of sound without a gap."""
    length_s = container.duration / av.time_base + OVERRUN_S if container.duration else UNKNOWN_LENGTH_S
    run: _Run | None = None
    first_s: float | None = None
    for frame in decoded(container, stream):
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
            run = _Run(at_s, kind, av.AudioResampler(format="fltp", layout=frame.layout, rate=rate))
        run.add(frame)
    if run:
        run.add(None)
        yield run


def _join(runs: list[_Run], rate: int) -> np.ndarray:
    """Return the runs laid out in time, (n,) float32."""
    placed = []
    for run in runs:
        samples = np.concatenate(run.pieces) if run.pieces else np.zeros(0, dtype=np.float32)
        placed.append((round((run.start_s - runs[0].start_s) * rate), samples))
    joined = np.zeros(max(start + len(samples) for start, samples in placed), dtype=np.float32)
    for start, samples in placed:
        joined[start : start + len(samples)] = samples
    return np.clip(np.nan_to_num(joined), -1.0, 1.0)
