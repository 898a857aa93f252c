"""External series (sensors, or features of any other program) pooled onto the segment grid by statistics."""

import zipfile
from pathlib import Path

import numpy as np

from talstack.io.errors import InputError, MissingInputError
from talstack.io.grid import SegmentGrid

STATISTICS = ("mean", "std", "min", "max", "mean difference")


def load_series(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return `values` (T, C) float64 and `times_s` (T,) float64, ascending, of an .npz file.

    Raises:
        MissingInputError: there is no such file.
        InputError: an array is missing, of the wrong shape, holds NaN, or the times do not ascend.
    """
    if not path.is_file():
        raise MissingInputError(f"{path}: no such feature file")
    try:
        with np.load(path, allow_pickle=False) as file:
            values, times_s = file["values"], file["times_s"]
    except (KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: expected an .npz with arrays `values` and `times_s`: {error}") from error
    if values.ndim != 2 or times_s.shape != (len(values),):
        raise InputError(f"{path}: expected values (T, C) and times_s (T,), got {values.shape} and {times_s.shape}")
    values, times_s = values.astype(np.float64), times_s.astype(np.float64)
    for name, array in (("values", values), ("times_s", times_s)):
        if not np.isfinite(array).all():
            row = int(np.argwhere(~np.isfinite(array))[0][0])
            raise InputError(f"{path}: {name} holds NaN or infinity, first in row {row}")
    if (np.diff(times_s) <= 0).any():
        raise InputError(f"{path}: times_s must ascend, row {int(np.argmax(np.diff(times_s) <= 0)) + 1} does not")
    return values, times_s


def pool_series(values: np.ndarray, times_s: np.ndarray, grid: SegmentGrid) -> tuple[np.ndarray, np.ndarray]:
    """Return the statistics of the samples in each segment, (S, 5 C) float32, and which segments have any, (S,) bool.

    Statistics are those of `STATISTICS`, each over all channels; the mean difference is between one sample and the
    next inside the segment, zero where there is only one.
    """
    segment = grid.index_at(times_s)
    inside = (segment >= 0) & (segment < len(grid))
    values, segment = values[inside], segment[inside]
    count = np.bincount(segment, minlength=len(grid))
    valid = count > 0
    features = np.zeros((len(grid), len(STATISTICS) * values.shape[1]), dtype=np.float32)
    if not valid.any():
        return features, valid
    starts = np.concatenate([[0], np.cumsum(count)[:-1]])[valid]
    n = count[valid][:, None]
    mean = np.add.reduceat(values, starts) / n
    variance = np.add.reduceat((values - np.repeat(mean, n[:, 0], axis=0)) ** 2, starts) / n
    last = starts + n[:, 0] - 1
    difference = (values[last] - values[starts]) / np.maximum(n - 1, 1)  # a mean of differences telescopes
    low, high = np.minimum.reduceat(values, starts), np.maximum.reduceat(values, starts)
    features[valid] = np.concatenate([mean, np.sqrt(variance), low, high, difference], axis=1)
    return features, valid
