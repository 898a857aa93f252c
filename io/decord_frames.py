"""Pictures out of a clip by decord, where it can be relied on."""

import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from talstack.io.frame_decoders import EPSILON_S
from talstack.io.packet_index import PacketIndex


class DecordUnusableError(Exception):
    """Decord cannot serve this clip; the message says why. Never leaves io: the reader then turns to PyAV."""


@cache
def load_decord() -> Any:
    """Return the decord module with its log silenced.

    Raises:
        DecordUnusableError: it is not installed or does not load.
    """
    try:
        import decord  # noqa: PLC0415 - 0.1 s, and not every command reads video
    except (ImportError, OSError) as error:
        raise DecordUnusableError(f"decord does not load: {error}") from error
    decord.logging.set_level(decord.logging.QUIET)
    return decord


class DecordFrames:
    """Pictures by decord, which seeks by counting frames; only for clips where that is right."""

    def __init__(self, path: Path, index: PacketIndex, *, size: tuple[int, int], num_threads: int) -> None:
        if index.obstacle:
            raise DecordUnusableError(index.obstacle)
        module = load_decord()
        self._index, self._size = index, size
        self._errors = (
            module.DECORDError,
            module._ffi.base.DECORDLimitReachedError,
            RuntimeError,
            AssertionError,
            IndexError,
            ValueError,
        )
        self._reader: Any = None
        self._reader = self._guard(lambda: self._open(module, path, num_threads))

    def _open(self, module: Any, path: Path, num_threads: int) -> Any:
        height, width = self._size
        # fault_tol: raise as soon as one frame would be replaced by a copy of its neighbour (0 means never)
        reader = module.VideoReader(
            str(path.absolute()), width=width, height=height, num_threads=num_threads, fault_tol=1e-6
        )
        stamps_s = reader.get_frame_timestamp(list(range(len(reader))))[:, 0]
        if len(stamps_s) != len(self._index.stamps_s) or not np.allclose(
            stamps_s, self._index.stamps_s - self._index.stamps_s[0], atol=2e-3
        ):
            raise DecordUnusableError("decord and PyAV find different timestamps")
        return reader

    def _guard(self, action: Any) -> Any:
        try:
            return action()
        except self._errors as error:
            first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
            # without the time of day, which would make every run's notes differ
            raise DecordUnusableError(re.sub(r".*\.cc:\d+: ", "decord: ", first_line)) from error

    def read(self, times_s: np.ndarray, wanted: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
        """Return the one drawing and the stamps of the frames shown at the times; see PyAVFrames.

        Raises:
            DecordUnusableError: a frame could not be decoded.
        """
        stamps_s = self._index.stamps_s
        owner = np.clip(np.searchsorted(stamps_s, times_s + EPSILON_S, side="right") - 1, 0, None)
        drawn = owner[wanted[:, 0]]
        frames, position = np.unique(drawn, return_inverse=True)
        batch = self._guard(lambda: self._reader.get_batch(frames.tolist()).asnumpy())
        return [batch if len(frames) == len(drawn) else batch[position]], stamps_s[owner]

    def close(self) -> None:
        """Free the decoder."""
        self._reader = None
