"""How far a mAP, or the difference of two, could be luck: a bootstrap over recordings.

Recordings are what was sampled, and detections of one recording stand or fall together: so whole recordings are
drawn with replacement (Efron and Tibshirani, An Introduction to the Bootstrap, 1993), and mAP is computed anew from
each draw. Matching happens within a recording, so it is done once; a draw only weights it. mAP of a draw averages
over the classes that occur in it, as the definition says. Two systems are compared on the same draws (paired).

mAP of few recordings is higher on average than that of many (fewer false positives compete in each class, and the
interpolation takes the better side of every accident), and a draw, which holds only some of the recordings, is
higher again. The bare percentiles of the draws are therefore off. Here the draws are moved so that their mean is
the estimate, and widened for the number of recordings (the narrowness bias, Hesterberg, What Teachers Should Know
About the Bootstrap, The American Statistician 69, 2015). An interval speaks of the mAP to be expected on another set
of as many recordings. `benchmarks/bootstrap.py` prints how often it holds, beside the bare percentiles.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import polars as pl
from scipy.special import ndtri, stdtrit

from talstack.evaluate.average_precision import average_precisions
from talstack.evaluate.map import match_for_map
from talstack.evaluate.matching import Matched
from talstack.io.detections import validate_detections
from talstack.io.errors import InputError

NUM_DRAWS = 1000
LEVEL = 0.95
MIN_DRAWS = 100
VALIDATION: dict[str, Any] = {"where": "detections", "allow_negative": True}


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate and its bootstrap interval."""

    estimate: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class MapIntervals:
    """mAP with its uncertainty, fractions from 0 to 1.

    Attributes:
        tiou: the K thresholds.
        map: mAP at each of them.
        average_map: their mean.
        level: share of the draws inside an interval.
        num_draws: draws that were used; one without any instance has no mAP.
        num_recordings: recordings drawn from, and in every draw.
    """

    tiou: tuple[float, ...]
    map: tuple[Interval, ...]
    average_map: Interval
    level: float
    num_draws: int
    num_recordings: int

    def to_json(self) -> dict[str, Any]:
        """Return the result as plain values."""
        return asdict(self)


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """Run A against run B on the same draws of recordings.

    Attributes:
        a, b: each one's own mAP.
        difference: A's mAP minus B's at each threshold.
        average_difference: the same of the average mAP.
        p_value: two-sided, for "the average mAP of A and B is the same": twice the share of the (moved and
            widened) draws on the other side of zero, at least 2 / (draws + 1).
        share_a_better: share of these draws in which A's average mAP is higher (half of the even ones).
        classes: table (label, num_instances, a, b, difference, low, high) of AP averaged over thresholds.
    """

    a: MapIntervals
    b: MapIntervals
    difference: tuple[Interval, ...]
    average_difference: Interval
    p_value: float
    share_a_better: float
    classes: pl.DataFrame

    @property
    def verdict(self) -> str:
        """Who is better: "a", "b", or "undecided" where the interval holds zero and p is above 1 - level."""
        if self.average_difference.low > 0:
            return "a"
        return "b" if self.average_difference.high < 0 else "undecided"

    def to_json(self) -> dict[str, Any]:
        """Return the result as plain values; classes as a list of rows."""
        return {
            "verdict": self.verdict,
            "a": self.a.to_json(),
            "b": self.b.to_json(),
            "difference": [asdict(interval) for interval in self.difference],
            "average_difference": asdict(self.average_difference),
            "p_value": self.p_value,
            "share_a_better": self.share_a_better,
            "classes": self.classes.to_dicts(),
        }


def draw_weights(num_recordings: int, num_draws: int, seed: int) -> np.ndarray:
    """Return how often each recording is in each draw, (num_draws, num_recordings) int64; rows sum to the latter."""
    shares = np.full(num_recordings, 1 / num_recordings)
    return np.random.default_rng(seed).multinomial(num_recordings, shares, size=num_draws)


def bootstrap_map(
    matched: Matched,
    *,
    recordings: Iterable[str] = (),
    num_draws: int = NUM_DRAWS,
    level: float = LEVEL,
    seed: int = 0,
) -> MapIntervals:
    """Return the mAP of matched detections with its intervals; the same seed gives the same intervals.

    Args:
        matched: detections and instances.
        recordings: recordings to draw from beside those with an instance: those of the ground truth that have
            none. Detections on any other recording are false positives in every draw.
        num_draws: how many, at least 2 / (1 - level) - 1.
        level: share of the draws inside an interval.
        seed: of the draws.

    Raises:
        InputError: fewer than 2 recordings, too few draws, or a level outside (0, 1).
    """
    weights, num_drawn = _weights(matched, recordings, num_draws=num_draws, level=level, seed=seed)
    maps = _maps(average_precisions(matched, weights))
    return _map_intervals(matched, average_precisions(matched)[0], maps, num_drawn, level=level)


def compare_detections(
    first: pl.DataFrame,
    second: pl.DataFrame,
    instances: pl.DataFrame,
    *,
    tiou_thresholds: Sequence[float],
    recordings: Iterable[str] = (),
    num_draws: int = NUM_DRAWS,
    level: float = LEVEL,
    seed: int = 0,
) -> Comparison:
    """Return whether the detections `first` (A) beat `second` (B), by a paired bootstrap over recordings.

    Args:
        first, second: tables (recording, start_s, end_s, label, score).
        instances: table (recording, start_s, end_s, label).
        tiou_thresholds: each in (0, 1].
        recordings, num_draws, level, seed: as `bootstrap_map`.

    Raises:
        InputError: as `evaluate_detections` and `bootstrap_map`.
    """
    names = {name for table in (first, second) for name in validate_detections(table, **VALIDATION)["recording"]}
    recordings = set(recordings)
    listed = names | recordings  # the same weights fit both
    pair = [match_for_map(table, instances, tiou_thresholds, recordings=listed)[0] for table in (first, second)]
    weights, num_drawn = _weights(pair[0], recordings, num_draws=num_draws, level=level, seed=seed)
    ap_a, ap_b = (average_precisions(matched)[0] for matched in pair)
    drawn_a, drawn_b = (average_precisions(matched, weights) for matched in pair)
    maps_a, maps_b = _maps(drawn_a), _maps(drawn_b)
    gap = (ap_a - ap_b).mean().reshape(1)
    gaps = _spread(gap, (maps_a - maps_b).mean(axis=1, keepdims=True), num_drawn, level)
    return Comparison(
        a=_map_intervals(pair[0], ap_a, maps_a, num_drawn, level=level),
        b=_map_intervals(pair[1], ap_b, maps_b, num_drawn, level=level),
        difference=_intervals((ap_a - ap_b).mean(axis=0), maps_a - maps_b, num_drawn, level=level),
        average_difference=_quantiles(gap, gaps, level)[0],
        p_value=_p_value(gaps),
        share_a_better=float((gaps > 0).mean() + (gaps == 0).mean() / 2),
        classes=_class_table(pair[0], (ap_a, ap_b), drawn_a - drawn_b, num_drawn, level=level),
    )


def _weights(
    matched: Matched, recordings: Iterable[str], *, num_draws: int, level: float, seed: int
) -> tuple[np.ndarray, int]:
    """Return the weight of every recording in every draw, (B, R), and how many recordings are drawn from."""
    is_drawn = np.isin(matched.recordings, list(recordings))
    is_drawn[matched.instances.recording] = True
    num_drawn = int(is_drawn.sum())
    if num_drawn < 2:
        raise InputError("bootstrap: only one recording, so there is nothing to draw; an interval needs several")
    if not 0 < level < 1:
        raise InputError(f"bootstrap: expected a level in (0, 1), got {level}")
    fewest = max(MIN_DRAWS, math.ceil(2 / (1 - level) - 1e-9) - 1)
    if num_draws < fewest:
        raise InputError(f"bootstrap: level {level} needs at least {fewest} draws, got {num_draws}")
    weights = np.ones((num_draws, len(matched.recordings)))
    weights[:, is_drawn] = draw_weights(num_drawn, num_draws, seed)
    return weights, num_drawn


def _maps(drawn: np.ndarray) -> np.ndarray:
    """Return mAP (B, K) of AP (B, C, K), over the classes of each draw; draws without any instance are left out."""
    drawn = drawn[~np.isnan(drawn).all(axis=(1, 2))]
    return np.nanmean(drawn, axis=1)


def _map_intervals(
    matched: Matched, ap: np.ndarray, maps: np.ndarray, num_recordings: int, *, level: float
) -> MapIntervals:
    average = _intervals(ap.mean().reshape(1), maps.mean(axis=1, keepdims=True), num_recordings, level=level)[0]
    return MapIntervals(
        tiou=tuple(matched.thresholds.tolist()),
        map=tuple(map(_inside, _intervals(ap.mean(axis=0), maps, num_recordings, level=level))),
        average_map=_inside(average),
        level=level,
        num_draws=len(maps),
        num_recordings=num_recordings,
    )


def _inside(interval: Interval) -> Interval:
    """Return the interval cut to [0, 1], which a widened one can leave."""
    return Interval(interval.estimate, max(interval.low, 0.0), min(interval.high, 1.0))


def _intervals(estimates: np.ndarray, draws: np.ndarray, num_recordings: int, *, level: float) -> tuple[Interval, ...]:
    """Return one interval per estimate, (K,), from its column of draws (B, K); NaN draws are left out."""
    return _quantiles(estimates, _spread(estimates, draws, num_recordings, level), level)


def _spread(estimates: np.ndarray, draws: np.ndarray, num_recordings: int, level: float) -> np.ndarray:
    """Return the draws (B, K) moved so that their mean is the estimate (K,), and widened.

    The variance of a draw is (n - 1) / n of what it should be, and n recordings tell a variance only as well as a
    t-distribution says; both vanish as n grows.
    """
    tail = (1 + level) / 2
    n = num_recordings
    widening = stdtrit(n - 1, tail) / ndtri(tail) * np.sqrt(n / (n - 1))
    return estimates + widening * (draws - np.nanmean(draws, axis=0))


def _quantiles(estimates: np.ndarray, spread: np.ndarray, level: float) -> tuple[Interval, ...]:
    """Return the intervals between two draws each, (K,); NaN draws are left out.

    The k-th smallest and k-th largest of n draws, k = (n + 1) (1 - level) / 2 rounded down, so that an interval leaves
    out zero exactly where the p-value is at most 1 - level.
    """
    ordered = np.sort(spread, axis=0)  # NaN last
    count = (~np.isnan(spread)).sum(axis=0)
    tail = np.maximum(np.floor((count + 1) * (1 - level) / 2 + 1e-9).astype(np.int64), 1)
    low, high = (np.take_along_axis(ordered, place[None], axis=0)[0] for place in (tail - 1, count - tail))
    return tuple(Interval(*row) for row in zip(estimates.tolist(), low.tolist(), high.tolist(), strict=True))


def _p_value(gaps: np.ndarray) -> float:
    """Return the two-sided p-value; the added one keeps a finite number of draws from claiming certainty."""
    other_side = min(int((gaps <= 0).sum()), int((gaps >= 0).sum()))
    return min(1.0, 2 * (other_side + 1) / (gaps.size + 1))


def _class_table(
    matched: Matched, ap: tuple[np.ndarray, np.ndarray], gaps: np.ndarray, num_recordings: int, *, level: float
) -> pl.DataFrame:
    a, b = (values.mean(axis=1) for values in ap)
    intervals = _intervals(a - b, gaps.mean(axis=2), num_recordings, level=level)
    return pl.DataFrame(
        {
            "label": matched.classes,
            "num_instances": np.bincount(matched.instances.label, minlength=len(matched.classes)),
            "a": a,
            "b": b,
            "difference": a - b,
            "low": [interval.low for interval in intervals],
            "high": [interval.high for interval in intervals],
        }
    )
