"""Intervals by a hidden Markov model with explicit durations (hidden semi-Markov model), one per curve.

Every curve is either off or on. On lasts for a duration drawn from the class's own distribution, log-normal as its
training instances are, off for as long as it likes. A segment speaks for on with `weight` times (logit of its
probability - logit of the level): neighbouring segments say much the same, so a weight below 1 keeps them from
outvoting the durations. The likeliest path (Viterbi) is found for all curves of many recordings at once.
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import log_ndtr

from talstack.ensemble.design import logits

LEAST_SPREAD = 0.2  # of log durations: a few instances of equal length do not forbid another length
LONGEST = 2.0  # a run lasts at most this many times the longest training instance of its class
MAX_SEGMENTS = 240  # and at most this many segments: work grows with it
NEVER = -1e9


@dataclass(frozen=True, slots=True, eq=False)
class Durations:
    """Durations of every curve in segments, as log-probabilities.

    Attributes:
        exactly: (D, K) float64, of a run of 1..D segments.
        at_least: (D, K) float64, of a run that goes on beyond the recording's end after 1..D segments.
    """

    exactly: np.ndarray
    at_least: np.ndarray

    @classmethod
    def log_normal(cls, mean: np.ndarray, spread: np.ndarray, longest: np.ndarray) -> "Durations":
        """Return the durations from each curve's log-normal.

        Args:
            mean, spread: (K,) of the log duration in segments.
            longest: (K,) longest training instance, segments.
        """
        num = int(np.clip(np.ceil(LONGEST * longest.max()), 1, MAX_SEGMENTS))
        length = np.arange(1, num + 1)[:, None]
        spread = np.maximum(spread, LEAST_SPREAD)
        edges = (np.log(np.concatenate([[[1e-9]], length + 0.5])) - mean) / spread
        below = np.exp(log_ndtr(edges))
        exactly = np.log(np.maximum(np.diff(below, axis=0), 1e-12))
        at_least = np.log(np.maximum(1.0 - below[:-1], 1e-12))
        too_long = length > np.maximum(np.ceil(LONGEST * longest), 1)
        return cls(np.where(too_long, NEVER, exactly), at_least)


def viterbi_runs(
    values: list[np.ndarray], durations: Durations, *, level: float, weight: float
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return each recording's runs on the likeliest path: (n,) int64 curve and (n, 2) int64 segments [first, past).

    Args:
        values: per recording (S, K) probabilities.
        level: probability that speaks neither for on nor for off.
        weight: how much a segment's logit counts.
    """
    if not values:
        return []
    num = np.array([len(v) for v in values])
    neutral = float(logits(np.array(level)))
    evidence = np.zeros((num.max(), len(values), values[0].shape[1]))
    for row, curve in enumerate(values):
        evidence[: num[row], row] = weight * (logits(curve) - neutral)
    best = _longest_paths(evidence, num, durations)
    return _trace_back(best, num)


def _longest_paths(evidence: np.ndarray, num: np.ndarray, durations: Durations) -> np.ndarray:
    """Return how long the run is that the best path ends with after each segment, (T + 1, R, K); 0 where it is off."""
    steps, num_recordings, num_curves = evidence.shape
    most = len(durations.exactly)
    # time comes last, backwards: what a step reads then lies together, and as the durations do
    gain = np.zeros((num_recordings, num_curves, steps + 1))  # best path so far less what all segments on would be
    exactly, at_least = (np.ascontiguousarray(part.T) for part in (durations.exactly, durations.at_least))
    length = np.zeros((steps + 1, num_recordings, num_curves), dtype=np.int16)
    scores = np.empty((num_recordings, num_curves, most))
    for t in range(1, steps + 1):
        longest, now = min(t, most), steps - t
        before = gain[:, :, now + 1 : now + 1 + longest]  # a run of d = 1..longest segments begins at t - d
        score = np.add(before, exactly[:, :longest], out=scores[:, :, :longest])
        ends = num == t
        if ends.any():
            score[ends] = before[ends] + at_least[:, :longest]
        if t <= most:
            score[:, :, -1] = before[:, :, -1] + at_least[:, longest - 1]
        pick = score.argmax(axis=2)
        on = np.take_along_axis(score, pick[:, :, None], axis=2)[:, :, 0]
        off = before[:, :, 0] - evidence[t - 1]
        length[t] = np.where(on > off, pick + 1, 0)
        gain[:, :, now] = np.maximum(on, off)
    return length


def _trace_back(length: np.ndarray, num: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    at = np.broadcast_to(num[:, None], length.shape[1:]).copy()
    rows, curves = (np.broadcast_to(axis, at.shape) for axis in np.ogrid[: at.shape[0], : at.shape[1]])
    found = []
    while (at > 0).any():
        last = np.where(at > 0, length[at, rows, curves], 0)
        run = last > 0
        found.append(np.stack([rows[run], curves[run], at[run] - last[run], at[run]], axis=1))
        at = np.maximum(at - np.maximum(last, 1), 0)
    runs = np.concatenate(found) if found else np.zeros((0, 4), dtype=np.int64)
    runs = runs[np.lexsort((runs[:, 2], runs[:, 1], runs[:, 0]))]
    bounds = np.searchsorted(runs[:, 0], np.arange(len(num) + 1))
    return [(runs[a:b, 1], runs[a:b, 2:]) for a, b in zip(bounds[:-1], bounds[1:], strict=True)]
