"""The segment grid: the one place that converts between segment index and seconds.

Segments are fixed-length and non-overlapping: segment i covers [i * L, (i + 1) * L). The last one is kept if
the recording covers at least half of it.
"""

from dataclasses import dataclass

import numpy as np

from talstack.io.errors import InputError
from talstack.io.intervals import overlap_s


@dataclass(frozen=True, slots=True)
class SegmentGrid:
    """Fixed-length segments over one recording.

    Attributes:
        duration_s: length of the recording in seconds, > 0.
        segment_s: length L of a segment in seconds, > 0.
    """

    duration_s: float
    segment_s: float

    def __post_init__(self) -> None:
        for name in ("duration_s", "segment_s"):
            value = getattr(self, name)
            if not np.isfinite(value) or value <= 0:
                raise InputError(f"SegmentGrid: {name} must be a positive number of seconds, got {value!r}")

    def __len__(self) -> int:
        return self.num_segments

    @property
    def num_segments(self) -> int:
        """How many segments the recording has; at least one."""
        # 1e-6 absorbs the rounding of duration / L, so that 30 s at 0.1 s has 300 segments, not 299
        return max(1, int(np.floor(self.duration_s / self.segment_s + 0.5 + 1e-6)))

    @property
    def edges_s(self) -> np.ndarray:
        """The (S, 2) float64 start and end of every segment in seconds; the last end may pass the duration."""
        start = np.arange(self.num_segments, dtype=np.float64) * self.segment_s
        return np.stack([start, start + self.segment_s], axis=1)

    @property
    def centres_s(self) -> np.ndarray:
        """The (S,) float64 middle of every segment in seconds."""
        return (np.arange(self.num_segments, dtype=np.float64) + 0.5) * self.segment_s

    def index_at(self, times_s: np.ndarray) -> np.ndarray:
        """Return the (n,) int64 segment of each time; -1 before the first and S past the last."""
        index = np.floor(np.asarray(times_s, dtype=np.float64) / self.segment_s + 1e-9).astype(np.int64)
        return np.clip(index, -1, self.num_segments)

    def coverage(self, intervals_s: np.ndarray) -> np.ndarray:
        """Return the fraction of each segment that each interval covers, (n, S) float64 in [0, 1].

        Args:
            intervals_s: (n, 2), seconds.
        """
        if len(intervals_s) == 0:
            return np.zeros((0, self.num_segments))
        return overlap_s(np.asarray(intervals_s, dtype=np.float64), self.edges_s) / self.segment_s

    def sample_times_s(self, num_frames: int) -> np.ndarray:
        """Return the (S, T) float64 times at the middles of T equal parts of every segment, seconds.

        This is TSM's uniform test sampling laid on the clock instead of on frame indices.
        """
        offsets = (np.arange(num_frames, dtype=np.float64) + 0.5) / num_frames * self.segment_s
        return self.edges_s[:, :1] + offsets[None, :]
