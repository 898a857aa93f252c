"""Non-maximum suppression of scored intervals: hard, linear and Gaussian Soft-NMS (Bodla et al., ICCV 2017).

Proposals compete within their group (one class of one recording). Within a group the highest score is taken, the
first in input order on ties, and the scores of the rest are multiplied by a weight that depends on their tIoU with
it; what falls below `min_score`, or gets weight 0, is dropped.

The walk need not be one proposal at a time. A proposal's score is only ever lowered by one that it overlaps, so
one that is ahead of all that it overlaps is taken next among them whatever happens elsewhere: all of these are taken
at once, in one step over the list of overlapping pairs. Where nearly everything overlaps, a step would take one
proposal and look at all pairs. Such groups are walked one proposal at a time, but laid side by side in padded
arrays, so that one step takes the next proposal of all groups of about the same size.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from talstack.io.errors import InputError
from talstack.io.intervals import aligned_tiou, validate_intervals

Method = Literal["hard", "linear", "gaussian"]
METHODS: tuple[Method, ...] = ("hard", "linear", "gaussian")
BLOCK_ELEMENTS = 1 << 18  # of one padded array; a handful of them stay within a few MB of cache
MAX_PAIRS = 1 << 22  # of overlapping proposals held at once
CROWDED = 75  # overlapping pairs per proposal from which a group is quicker walked one by one
LEAST_PROGRESS = 1 / 64  # share of the pairs that a step must settle to be worth its look at all of them


def suppress(
    intervals: np.ndarray,
    scores: np.ndarray,
    groups: np.ndarray,
    *,
    method: Method = "gaussian",
    threshold: float = 0.5,
    sigma: float = 0.5,
    min_score: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Return which proposals stay and their decayed scores.

    Args:
        intervals: (n, 2) seconds.
        scores: (n,) non-negative.
        groups: (n,) int; proposals of different groups do not compete.
        method: weight at tIoU t: hard 0 where t >= threshold; linear 1 - t where t >= threshold; gaussian
            exp(-t^2 / sigma) for every t.
        min_score: what is below it, at first or after decay, is dropped.

    Returns:
        (k,) int64 rows of the input, ascending, and their (k,) float64 scores.

    Raises:
        InputError: bad intervals, a score that is negative or not finite, lengths that differ, an unknown method,
            a sigma that is not positive.
    """
    intervals = validate_intervals(intervals, what="proposals")
    scores, groups = np.asarray(scores, dtype=np.float64), np.asarray(groups, dtype=np.int64)
    _check(intervals, scores, groups, method=method, sigma=sigma)
    rule = _Rule(method, threshold, sigma, min_score)
    decayed = np.full(len(scores), -1.0)
    crowded, sparse = _by_density(intervals, groups, np.flatnonzero(scores >= min_score))
    decayed[crowded] = _suppress_blocks(intervals[crowded], scores[crowded], groups[crowded], rule)
    for rows in sparse:
        decayed[rows] = _suppress_pairs(intervals[rows], scores[rows], groups[rows], rule)
    kept = np.flatnonzero(decayed >= 0)
    return kept, decayed[kept]


def top_k(scores: np.ndarray, groups: np.ndarray, k: int) -> np.ndarray:
    """Return the rows of the k highest scores of every group, (m,) int64 ascending; the first ones on ties."""
    order = np.lexsort((-np.asarray(scores), groups))
    rank = _rank_in_group(np.asarray(groups)[order])
    return np.sort(order[rank < k])


def _check(intervals: np.ndarray, scores: np.ndarray, groups: np.ndarray, *, method: str, sigma: float) -> None:
    if scores.shape != (len(intervals),) or groups.shape != (len(intervals),):
        raise InputError(
            f"proposals: {len(intervals)} intervals, but scores {scores.shape} and groups {groups.shape}; "
            "expected one of each per interval"
        )
    if not np.isfinite(scores).all() or (scores < 0).any():
        row = int(np.argmin(np.where(np.isfinite(scores), scores, -np.inf)))
        raise InputError(f"proposals: row {row} has score {scores[row]}; scores must be finite and not negative")
    if method not in METHODS:
        raise InputError(f"suppression method {method!r}; expected one of {', '.join(METHODS)}")
    if not sigma > 0:
        raise InputError(f"suppression sigma must be positive, got {sigma!r}")


@dataclass(frozen=True, slots=True)
class _Rule:
    method: Method
    threshold: float
    sigma: float
    min_score: float

    def weight(self, tiou: np.ndarray) -> np.ndarray:
        """Return what a score is multiplied by."""
        if self.method == "gaussian":
            return np.exp(-np.square(tiou) / self.sigma)
        return np.where(tiou >= self.threshold, 1.0 - tiou if self.method == "linear" else 0.0, 1.0)


def _by_density(intervals: np.ndarray, groups: np.ndarray, live: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return the live rows of crowded groups, and those of the others in portions of about `MAX_PAIRS` pairs at most.

    All ascending; a group is never divided.
    """
    if not len(live):
        return live, []
    order, counts = _overlap_counts(intervals[live], groups[live])
    order = live[order]
    _, first, sizes = np.unique(groups[order], return_index=True, return_counts=True)
    pairs = np.add.reduceat(counts, first)
    crowded = pairs > CROWDED * sizes
    portion = np.where(crowded, -1, np.cumsum(np.where(crowded, 0, pairs)) // MAX_PAIRS)
    portion = np.repeat(portion, sizes)
    sparse = [np.sort(order[portion == number]) for number in np.unique(portion[portion >= 0])]
    return np.sort(order[portion < 0]), sparse


def _suppress_pairs(intervals: np.ndarray, scores: np.ndarray, groups: np.ndarray, rule: _Rule) -> np.ndarray:
    """Return the scores at which proposals are taken, (n,); -1 where they are dropped."""
    taken, current = np.full(len(scores), -1.0), scores.copy()
    alive = np.ones(len(scores), dtype=bool)
    low, high, weight = _weighted_pairs(intervals, groups, rule)
    while low.size:
        leads = alive.copy()
        # of two equal scores the first in input order goes ahead
        leads[np.where(current.take(high) > current.take(low), low, high)] = False
        low_leads, high_leads = leads.take(low), leads.take(high)
        settled = low_leads | high_leads
        hit = settled.nonzero()[0]
        if hit.size < LEAST_PROGRESS * low.size:
            break
        taken[leads] = current[leads]
        lowered = np.where(low_leads.take(hit), high.take(hit), low.take(hit))
        np.multiply.at(current, lowered, weight.take(hit))
        dropped = current < rule.min_score
        dropped[lowered[weight.take(hit) == 0]] = True
        alive &= ~(leads | dropped)
        left = (~settled & alive.take(low) & alive.take(high)).nonzero()[0]
        low, high, weight = low.take(left), high.take(left), weight.take(left)
    rest = np.flatnonzero(alive)
    if not low.size:
        taken[rest] = current[rest]
        return taken
    taken[rest] = _suppress_blocks(intervals[rest], current[rest], groups[rest], rule)
    return taken


def _suppress_blocks(intervals: np.ndarray, scores: np.ndarray, groups: np.ndarray, rule: _Rule) -> np.ndarray:
    """Return the same as `_suppress_pairs`, one proposal of every group after the other."""
    taken = np.full(len(scores), -1.0)
    for rows, real in _blocks(groups):
        final = _suppress_block(intervals[rows, 0], intervals[rows, 1], np.where(real, scores[rows], -1.0), rule)
        taken[rows[real]] = final[real]
    return taken


def _weighted_pairs(
    intervals: np.ndarray, groups: np.ndarray, rule: _Rule
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the pairs of one group that lower each other: (p,) rows, the earlier one first, and (p,) weights."""
    low, high, tiou = overlapping_pairs(intervals, groups)
    weight = rule.weight(tiou)
    lowers = weight < 1
    return low[lowers], high[lowers], weight[lowers]


def overlapping_pairs(intervals: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the pairs of one group that overlap: (p,) rows, the one earlier in input order first, and (p,) tIoU."""
    order, counts = _overlap_counts(intervals, groups)
    start, end = intervals[order].T
    first = np.repeat(np.arange(len(order)), counts)
    second = first + 1 + np.arange(first.size) - np.repeat(np.cumsum(counts) - counts, counts)
    tiou = aligned_tiou((start[first], end[first]), (start[second], end[second]))
    first, second = order[first], order[second]
    return np.minimum(first, second), np.maximum(first, second), tiou


def _overlap_counts(intervals: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the order by group and start, (n,), and how many of those that follow in its group each overlaps, (n,)."""
    order = np.lexsort((intervals[:, 0], groups))
    keys = np.empty(len(order), dtype=np.complex128)  # numpy orders complex numbers by group, then by seconds: exactly
    keys.real, keys.imag = groups[order], intervals[order, 0]
    ends = keys.copy()
    ends.imag = intervals[order, 1]
    return order, np.searchsorted(keys, ends, side="left") - np.arange(len(order)) - 1


def _rank_in_group(sorted_groups: np.ndarray) -> np.ndarray:
    """Return 0, 1, 2, ... within each run of equal values."""
    positions = np.arange(len(sorted_groups))
    first = np.concatenate([[True], sorted_groups[1:] != sorted_groups[:-1]])[: len(sorted_groups)]
    return positions - np.maximum.accumulate(np.where(first, positions, 0))


def _blocks(groups: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (G, P) row numbers, in input order within each group, and which of them are real, smallest groups first."""
    if len(groups) == 0:
        return
    order = np.argsort(groups, kind="stable")
    _, first, sizes = np.unique(groups[order], return_index=True, return_counts=True)
    by_size = np.argsort(sizes, kind="stable")
    done = 0
    while done < len(by_size):
        # widths within a block differ by at most a half, so at most a third of the padding is wasted
        limit = max(sizes[by_size[done]] * 3 // 2, 8)
        upto = int(np.searchsorted(sizes[by_size], limit, side="right"))
        block = by_size[done : min(upto, done + max(1, BLOCK_ELEMENTS // limit))]
        offsets = np.arange(sizes[block].max())
        real = offsets[None, :] < sizes[block][:, None]
        yield order[np.where(real, first[block][:, None] + offsets, 0)], real
        done += len(block)


def _suppress_block(start: np.ndarray, end: np.ndarray, scores: np.ndarray, rule: _Rule) -> np.ndarray:
    """Return the (G, P) scores at which each proposal was taken; -1 where it was dropped, or was -1."""
    taken = np.full(scores.shape, -1.0)
    current, length = scores, end - start
    groups = np.arange(len(scores))
    while len(groups):
        best = current.argmax(axis=1)
        rows = np.arange(len(groups))
        value = current[rows, best]
        on = value >= 0
        if not on.all():  # groups that are used up leave the block
            groups, current, best, value = groups[on], current[on], best[on], value[on]
            start, end, length = start[on], end[on], length[on]
            rows = np.arange(len(groups))
        taken[groups, best] = value
        weight = rule.weight(_tiou_with(start, end, length, best))
        decayed = current * weight
        current = np.where((current >= 0) & (weight > 0) & (decayed >= rule.min_score), decayed, -1.0)
        current[rows, best] = -1.0
    return taken


def _tiou_with(start: np.ndarray, end: np.ndarray, length: np.ndarray, best: np.ndarray) -> np.ndarray:
    """Return the (G, P) tIoU of every proposal with the chosen one of its group."""
    rows = np.arange(len(best))
    inner = np.minimum(end, end[rows, best][:, None]) - np.maximum(start, start[rows, best][:, None])
    inner = np.maximum(inner, 0.0)
    return inner / (length + length[rows, best][:, None] - inner)
