"""Intervals by a hidden Markov model with explicit durations (hidden semi-Markov model), one per curve.

Every curve is either off or on. On lasts for a duration drawn from the class's own distribution, log-normal as its
training instances are, off for as long as it likes. A segment speaks for on with `weight` times (logit of its
probability - logit of the level): neighbouring segments say much the same, so a weight below 1 keeps them from
outvoting the durations. The likeliest path (Viterbi) is found for all curves of many recordings at once.

Only stretches where a run may pay are searched. Off costs nothing, so a run has no place on the best path unless what
its segments say outweighs its duration's log-probability; a segment that lies in no such run is off for sure, and the
paths on either side of it do not depend on each other. What is found is what a search of everything would find.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import log_ndtr

from talstack.ensemble.design import logits

LEAST_SPREAD = 0.2  # of log durations: a few instances of equal length do not forbid another length
LONGEST = 2.0  # a run lasts at most this many times the longest training instance of its class
MAX_SEGMENTS = 240  # and at most this many segments: work grows with it
NEVER = -1e9
ALIKE = 1.3  # stretches are searched together up to this ratio of their lengths, and 4 segments more
CELLS = 1 << 16  # segments of the stretches that are searched together, at most
ROUNDING = 1e-6  # of sums of evidence


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
    values: Sequence[np.ndarray], durations: Durations, *, levels: Sequence[float], weight: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return the runs on the likeliest path of every curve at every level, by recording, level, curve and time.

    Args:
        values: per recording (S, K) probabilities.
        levels: probabilities that speak neither for on nor for off.
        weight: how much a segment's logit counts.

    Returns:
        (n,) int64 position of the recording, of the level and of the curve, and (n, 2) int64 segments [first, past).
    """
    if not len(values) or not len(levels):
        nothing = np.zeros(0, dtype=np.int64)
        return nothing, nothing, nothing, np.zeros((0, 2), dtype=np.int64)
    neutral = logits(np.array(levels))
    evidence = [weight * (curves.T - at) for curves in map(logits, values) for at in neutral]
    together = np.concatenate([own.ravel() for own in evidence])
    stretches = _Stretches.of(evidence, durations)
    found = [_trace_back(_longest_paths(together, part, durations), part) for part in stretches.alike()]
    runs = np.concatenate([np.zeros((0, 4), dtype=np.int64), *found])
    runs = runs[np.lexsort((runs[:, 2], runs[:, 1], runs[:, 0]))]
    owner, level = np.divmod(runs[:, 0], len(levels))
    return owner, level, runs[:, 1], runs[:, 2:]


@dataclass(frozen=True, slots=True, eq=False)
class _Stretches:
    """Parts of curves that are searched, each by itself; arrays (n,).

    Attributes:
        owner, curve: position of the recording and level, column of the curve.
        first, num: where the stretch begins in its recording, and how many segments it has.
        opens, closes: whether it begins, ends, with the recording, beyond which a run may go on.
        at: where its evidence begins in that of all owners, laid end to end.
    """

    owner: np.ndarray
    curve: np.ndarray
    first: np.ndarray
    num: np.ndarray
    opens: np.ndarray
    closes: np.ndarray
    at: np.ndarray

    @classmethod
    def of(cls, evidence: list[np.ndarray], durations: Durations) -> "_Stretches":
        """Return the stretches of every owner's (K, S) evidence that may hold a run, by length."""
        parts, offset = [], 0
        for owner, own in enumerate(evidence):
            steps = own.shape[1]
            on = np.zeros((len(own), steps + 2), dtype=np.int8)
            on[:, 1:-1] = _may_be_on(own, durations)
            edge = np.diff(on, axis=1)
            curve, first = np.nonzero(edge == 1)
            past = np.nonzero(edge == -1)[1]  # in the same order: starts and ends alternate along a curve
            whose = np.full(len(curve), owner)
            parts.append((whose, curve, first, past - first, first == 0, past == steps, offset + curve * steps + first))
            offset += own.size
        every = cls(*(np.concatenate(part) for part in zip(*parts, strict=True)))
        return every.rows(np.argsort(every.num, kind="stable"))

    def rows(self, keep: np.ndarray | slice) -> "_Stretches":
        """Return some of the stretches."""
        return _Stretches(*(getattr(self, name)[keep] for name in _Stretches.__slots__))

    def alike(self) -> Iterator["_Stretches"]:
        """Yield them in parts of about the same length, of at most `CELLS` segments."""
        start = 0
        while start < len(self.num):
            longest = int(self.num[start] * ALIKE) + 4
            past = int(np.searchsorted(self.num, longest, side="right"))
            past = min(past, start + max(1, CELLS // longest))
            yield self.rows(slice(start, past))
            start = past


def _may_be_on(evidence: np.ndarray, durations: Durations) -> np.ndarray:
    """Return which of the (K, S) segments lie in a run that pays, or may go on beyond the recording and pay."""
    sums = np.zeros((len(evidence), evidence.shape[1] + 1))
    np.cumsum(evidence, axis=1, out=sums[:, 1:])
    lowest = np.minimum.accumulate(sums[:, :-1], axis=1)  # before any segment up to this one
    highest = np.maximum.accumulate(sums[:, :0:-1], axis=1)[:, ::-1]  # after this one or any later
    least, at_edge = (-part.max(axis=0)[:, None] - ROUNDING for part in (durations.exactly, durations.at_least))
    inside = highest - lowest > least
    return np.asarray(inside | (highest - sums[:, :1] > at_edge) | (sums[:, -1:] - lowest > at_edge))


def _longest_paths(evidence: np.ndarray, part: _Stretches, durations: Durations) -> np.ndarray:
    """Return how long the run is that the best path ends with after each segment, (T + 1, n); 0 where it is off.

    Args:
        evidence: of all owners, end to end.
    """
    steps, most = int(part.num.max()), len(durations.exactly)
    inside = np.minimum(part.at + np.arange(steps)[:, None], len(evidence) - 1)
    own = evidence[inside]
    # time comes last, backwards: what a step reads then lies together, and as the durations do
    gain = np.zeros((len(part.num), steps + 1))  # best path so far less what all segments on would be
    exactly, at_least = (table.T[part.curve, :steps] for table in (durations.exactly, durations.at_least))
    length = np.zeros((steps + 1, len(part.num)), dtype=np.int16)
    scores, every = np.empty((len(part.num), min(most, steps))), np.arange(len(part.num))
    for t in range(1, steps + 1):
        longest, now = min(t, most), steps - t
        before = gain[:, now + 1 : now + 1 + longest]  # a run of d = 1..longest segments begins at t - d
        score = np.add(before, exactly[:, :longest], out=scores[:, :longest])
        ends = np.flatnonzero(part.closes & (part.num == t))
        score[ends] = before[ends] + at_least[ends, :longest]
        if t <= most:
            opens = part.opens
            score[opens, -1] = before[opens, -1] + at_least[opens, longest - 1]
        pick = score.argmax(axis=1)
        on = score[every, pick]
        off = before[:, 0] - own[t - 1]
        length[t] = np.where(on > off, pick + 1, 0)
        gain[:, now] = np.maximum(on, off)
    return length


def _trace_back(length: np.ndarray, part: _Stretches) -> np.ndarray:
    """Return the runs of the best paths, (n, 4): owner, curve, first segment and past the last one."""
    steps = np.arange(len(length))[:, None]
    last_on = np.maximum.accumulate(np.where(length > 0, steps, 0), axis=0)  # at or before each segment
    rows, at = np.arange(len(part.num)), part.num
    found = [np.zeros((0, 4), dtype=np.int64)]
    while len(rows):
        at = last_on[at, rows]
        rows, at = rows[at > 0], at[at > 0]
        first = at - length[at, rows]
        own = part.first[rows]
        found.append(np.stack([part.owner[rows], part.curve[rows], own + first, own + at], axis=1))
        at = first
    return np.concatenate(found)
