"""One feature file of another program, read as rows in time and held against the length of its recording."""

import pickle
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from talstack.extract.recipes import CODE_VERSION
from talstack.extract.row_pooling import Between, Pool, Rows, row_times_s
from talstack.io.errors import InputError
from talstack.io.feature_files import (
    TORCH_SUFFIXES,
    FeatureFile,
    check_numbers,
    pick_key,
    read_array,
    read_times_s,
    read_valid,
)

Layout = Literal["TxC", "CxT"]
LENGTH_SLACK = 0.02  # files may be this much longer than the recording: padding, and durations that are rounded
SLACK_STEPS = 2
TRANSPOSED_FROM, TRANSPOSED_BELOW = 0.8, 0.5  # covered the other way round, and as it stands


@dataclass(frozen=True, slots=True)
class ImportSettings:
    """How rows of a feature file lie in time, and how they are pooled.

    Attributes:
        stride_frames: frames from one row to the next (ActionFormer's feat_stride, OpenTAD's feature_stride); None
            where the files hold times.
        fps: of the frames; None where the files hold times.
        window_frames: frames that a row is made of (num_frames; twice offset_frames); None: the stride.
        layout: TxC has a row per step, CxT a column.
        pool, between: see `talstack.extract.row_pooling.pool_rows`.
    """

    stride_frames: float | None = None
    fps: float | None = None
    window_frames: float | None = None
    layout: Layout = "TxC"
    pool: Pool = "mean"
    between: Between = "linear"

    def __post_init__(self) -> None:
        for name in ("stride_frames", "fps", "window_frames"):
            value = getattr(self, name)
            if value is not None and not (np.isfinite(value) and value > 0):
                raise InputError(f"{name}: expected a positive number, got {value}")

    @property
    def recipe(self) -> dict[str, Any]:
        """What decides the numbers, for the fingerprint."""
        return {"kind": "external", "import": asdict(self), "code": CODE_VERSION}


@dataclass(frozen=True, slots=True)
class Piece:
    """One file of a recording, where it begins on the recording's clock, and how long its clip is (seconds)."""

    file: FeatureFile
    offset_s: float
    span_s: float


class UnreadableError(InputError):
    """One file's own fault: it is recorded, and the others go on."""


def read_rows(piece: Piece, settings: ImportSettings) -> Rows:
    """Return the rows of one file, on its clip's clock.

    Raises:
        UnreadableError: damaged, a pickle, not (T, C), or what lies beside it does not fit.
        InputError: it is whole, but contradicts the settings or the length of the media.
    """
    file, fps = piece.file, settings.fps
    window_s = settings.window_frames / fps if settings.window_frames and fps else None
    try:
        array = _read_torch(file) if file.path.suffix in TORCH_SUFFIXES else read_array(file)
        array = _two_axes(array, file.name)
        values = array if settings.layout == "TxC" else array.T
        times_s = read_times_s(file, len(values), window_s=window_s)
        with np.errstate(over="ignore"):  # beyond float32 is infinity, and that is a missing row
            values = np.where(read_valid(file, len(values))[:, None], values.astype(np.float32), np.nan)
    except InputError as error:
        raise UnreadableError(str(error)) from error
    if times_s is not None:
        step_s = float(np.median(np.diff(times_s))) if len(times_s) > 1 else window_s or piece.span_s
        _check_end(piece, float(times_s[-1]), step_s)
        return Rows(values, times_s, max(step_s, window_s or 0.0) / 2, step_s)
    if settings.stride_frames is None or fps is None:
        raise InputError(f"{file.name}: the file holds no times of its rows; give --stride and --fps")
    window_frames = settings.window_frames or settings.stride_frames
    _check_length(piece, array.shape, settings=settings)
    times_s = row_times_s(len(values), stride_frames=settings.stride_frames, window_frames=window_frames, fps=fps)
    reach_s = max(window_frames, settings.stride_frames) / fps / 2
    return Rows(values, times_s, reach_s, settings.stride_frames / fps)


def _two_axes(array: np.ndarray, name: str) -> np.ndarray:
    """Return the array without leading and trailing axes of one: (1, T, C) and (T, C, 1, 1) are (T, C)."""
    shape = array.shape
    while array.ndim > 2 and array.shape[0] == 1:
        array = array[0]
    while array.ndim > 2 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim != 2 or 0 in array.shape:
        raise InputError(f"{name}: expected rows and channels, (T, C), got shape {shape}")
    return array


def _read_torch(file: FeatureFile) -> np.ndarray:
    """Return a tensor, or the one in a dict that `key` names; weights_only keeps pickled code from running."""
    import torch

    try:
        loaded = torch.load(file.path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{file.name}: not a file of plain tensors ({reason}); pickles are never loaded") from error
    if isinstance(loaded, dict):
        tensors = {str(key): value for key, value in loaded.items() if isinstance(value, torch.Tensor)}
        loaded = tensors[pick_key(list(tensors), file.key, file.name)]
    if isinstance(loaded, torch.Tensor):
        loaded = loaded.detach().to(torch.float32).numpy()
    return check_numbers(loaded, file.name)


def _check_end(piece: Piece, last_s: float, step_s: float) -> None:
    if last_s > piece.span_s + max(SLACK_STEPS * step_s, LENGTH_SLACK * piece.span_s):
        raise InputError(
            f"{piece.file.name}: its last row is at {last_s:.2f} s, but the media last {piece.span_s:.2f} s; "
            "are these the features of this recording?"
        )


def _check_length(piece: Piece, shape: tuple[int, ...], *, settings: ImportSettings) -> None:
    """Raise InputError where the rows cannot be those of this recording at this stride and rate."""
    stride, fps = settings.stride_frames or 0.0, settings.fps or 1.0
    window = settings.window_frames or stride
    num_rows, num_other = shape if settings.layout == "TxC" else shape[::-1]
    tolerance_s = max(SLACK_STEPS * stride / fps, LENGTH_SLACK * piece.span_s)

    def covered_s(count: int) -> float:
        return ((count - 1) * stride + window) / fps

    too_long = (num_rows - 1) * stride / fps > piece.span_s + tolerance_s
    fits_as_is = not too_long and covered_s(num_rows) >= TRANSPOSED_BELOW * piece.span_s
    other_fits = TRANSPOSED_FROM * piece.span_s <= covered_s(num_other) <= piece.span_s + tolerance_s + window / fps
    if not fits_as_is and other_fits:
        other = "CxT" if settings.layout == "TxC" else "TxC"
        raise InputError(
            f"{piece.file.name}: shape {shape} read as {settings.layout} gives {num_rows} rows, "
            f"{covered_s(num_rows):.1f} s of {piece.span_s:.1f} s, but the other way round it fits; "
            f"give --layout {other}"
        )
    if too_long:
        implied_fps = ((num_rows - 1) * stride + window) / piece.span_s
        raise InputError(
            f"{piece.file.name}: {num_rows} rows at a stride of {stride:g} frames and {fps:g} fps last "
            f"{covered_s(num_rows):.2f} s, but the media last {piece.span_s:.2f} s; they would fit at "
            f"{implied_fps:.2f} fps, or a stride of {stride * fps / implied_fps:.2f} frames; check --stride and --fps"
        )
