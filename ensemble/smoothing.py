"""Temporal smoothing with a length of its own for every curve."""

import numpy as np

REACH = 4.0  # the kernel is cut at this many standard deviations


def smooth(values: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    """Return every curve convolved with a Gaussian; the first and last value go on beyond the ends.

    Args:
        values: (S, K) float64.
        sigma: (K,) standard deviations in segments; 0 leaves a curve as it is.
    """
    reach = int(np.ceil(REACH * sigma.max(initial=0.0)))
    if reach == 0:
        return values
    offsets = np.arange(-reach, reach + 1)[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        kernel = np.exp(-0.5 * np.square(offsets / sigma))
    kernel = np.where(sigma > 0, kernel, offsets == 0)
    kernel /= kernel.sum(axis=0)
    padded = np.pad(values, ((reach, reach), (0, 0)), mode="edge")
    smoothed = np.zeros_like(values)
    for row, weights in enumerate(kernel):
        smoothed += weights * padded[row : row + len(values)]
    return smoothed


def class_lengths(typical_s: np.ndarray, power: float) -> np.ndarray:
    """Return how much longer than the common length each class is smoothed, (C,): 1 in the middle of the classes.

    Args:
        typical_s: (C,) median duration of every class's training instances, seconds.
        power: 0 smooths all alike, 1 in proportion to the duration.
    """
    lengths: np.ndarray = (typical_s / np.exp(np.log(typical_s).mean())) ** power
    return lengths
