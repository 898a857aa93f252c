"""Boundaries to sub-segment precision: what the curves around an end, and boundary heads, say about where it lies.

A threshold's crossing is biased in ways that the curve's shape around it gives away: a slow rise is crossed late by
a high threshold, a segment that an action covers by a third pulls less than one that it covers by half. `EdgeModel`
has learned from proposals on out-of-fold predictions how far the true start and end lie from where the run starts
and ends, given the logits of the activity and of the class in a window around it; and from boundary heads, where
there are any, how far off they place it and how sure they are.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from talstack.ensemble.curves import RowMeans

OFFSETS = np.arange(-2.0, 2.01, 0.5)  # where the curves are read, segments from the end
REACH = 1.5  # an end moves by at most this many segments
ROUNDS = 6  # of reweighting that leaves gross errors out of the fit
HUBER = 0.25  # segments; beyond, an error counts by its size, not its square
LEAST_ROWS = 40
CHUNK = 4096  # rows whose features are made at once: they stay in a core's cache
MAX_ROWS = 4000  # a seeded sample of them beyond: enough for two dozen weights


@dataclass(frozen=True, slots=True, eq=False)
class BoundaryVotes:
    """What boundary heads say about S segments of one recording, or of several laid end to end.

    Attributes:
        start_prob, end_prob: (S,) probability that a start, an end, lies in or next to the segment.
        start_offset_s, end_offset_s: (S,) where it lies, seconds after the segment's centre.
    """

    start_prob: np.ndarray
    end_prob: np.ndarray
    start_offset_s: np.ndarray
    end_offset_s: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class EdgeModel:
    """A linear model per side: segments that an end lies later than the run's.

    Attributes:
        mean, scale: (2, F) of the features of starts and ends.
        weights: (2, F), on standardised features.
        bias: (2,).
    """

    mean: np.ndarray
    scale: np.ndarray
    weights: np.ndarray
    bias: np.ndarray

    @classmethod
    def fit(cls, features: np.ndarray, late: np.ndarray, weights: np.ndarray, *, l2: float) -> "EdgeModel | None":
        """Return the model; None where there are too few rows to learn from.

        Args:
            features: (n, 2, F) of starts and ends.
            late: (n, 2) true end minus the run's, segments.
            weights: (n,) how much each row counts.
            l2: penalty, in rows.
        """
        if len(features) < LEAST_ROWS:
            return None
        if len(features) > MAX_ROWS:
            keep = np.random.default_rng(0).choice(len(features), MAX_ROWS, replace=False)
            features, late, weights = features[keep], late[keep], weights[keep]
        features = features.astype(np.float64)
        sides = [_huber_ridge(features[:, side], late[:, side], weights, l2=l2) for side in range(2)]
        return cls(*(np.stack(part) for part in zip(*sides, strict=True)))

    def move(self, intervals: np.ndarray, features: np.ndarray, segment_s: float) -> np.ndarray:
        """Return the (n, 2) intervals with their ends moved, seconds."""
        weights = self.weights / self.scale
        late = np.einsum("nsf,sf->ns", features, weights) + self.bias - (self.mean * weights).sum(axis=1)
        moved: np.ndarray = intervals + np.clip(late, -REACH, REACH) * segment_s
        return moved

    def to_json(self) -> dict[str, Any]:
        """Return the numbers as plain lists."""
        return {name: getattr(self, name).tolist() for name in ("mean", "scale", "weights", "bias")}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "EdgeModel":
        """Return the model that `to_json` gave."""
        return cls(**{name: np.asarray(value, dtype=np.float64) for name, value in values.items()})


def edge_features(
    means: RowMeans, intervals: np.ndarray, label: np.ndarray, level: np.ndarray, boundaries: BoundaryVotes | None
) -> np.ndarray:
    """Return what is known around the start and the end of each interval, (n, 2, F) float32.

    Logits of the activity and of the class on a window, from outside to inside; where in its segment the end lies;
    the run's level and length; how far off the boundary heads place the end, and how sure they are.

    Args:
        boundaries: of the segments that `means` reads.
    """
    num_features = 2 * len(OFFSETS) + 4 + (0 if boundaries is None else 2)
    features = np.empty((len(label), 2, num_features), dtype=np.float32)
    for start in range(0, len(label), CHUNK):
        part = slice(start, start + CHUNK)
        own = means.rows(part), intervals[part], label[part], level[part]
        _fill_edge_features(features[part], *own, boundaries)
    return features


def _fill_edge_features(
    features: np.ndarray,
    means: RowMeans,
    intervals: np.ndarray,
    label: np.ndarray,
    level: np.ndarray,
    boundaries: BoundaryVotes | None,
) -> None:
    segment_s, num = means.segment_s, len(OFFSETS)
    level, length = np.log(level / (1.0 - level)), np.log((intervals[:, 1] - intervals[:, 0]) / segment_s)
    for side, inward in enumerate((1.0, -1.0)):
        own, times_s = features[:, side], intervals[:, side]
        offsets = (inward * OFFSETS).tolist()
        own[:, :num] = means.logits_around(times_s, offsets, np.zeros(len(label), dtype=np.int64))
        own[:, num : 2 * num] = means.logits_around(times_s, offsets, label + 1)
        phase = 2 * np.pi * times_s / segment_s
        for column, values in enumerate((np.sin(phase), np.cos(phase), level, length), start=2 * num):
            own[:, column] = values
        if boundaries is not None:
            own[:, -2:] = _boundary_votes(times_s, side, means, boundaries)


def _boundary_votes(times_s: np.ndarray, side: int, means: RowMeans, boundaries: BoundaryVotes) -> np.ndarray:
    """Return (n, 2): how much later the boundary heads place the end, segments, and the votes behind that.

    Every segment votes for where it places the boundary, by its probability and by how near that is.
    """
    prob = boundaries.end_prob if side else boundaries.start_prob
    offset_s = boundaries.end_offset_s if side else boundaries.start_offset_s
    position = times_s / means.segment_s
    near = np.round(position - 0.5).astype(np.int64)[:, None] + np.arange(-3, 4)
    last = means.num_segments[:, None] - 1
    inside = (near >= 0) & (near <= last)
    near = np.clip(near, 0, last)
    rows = means.first[:, None] + near
    late = (near + 0.5) + offset_s[rows] / means.segment_s - position[:, None]
    votes = np.where(inside, prob[rows], 0.0) * np.exp(-0.5 * np.square(late / 0.75))
    total = votes.sum(axis=1)
    return np.stack([(votes * late).sum(axis=1) / np.maximum(total, 1e-3), total], axis=1)


def _huber_ridge(
    features: np.ndarray, target: np.ndarray, weights: np.ndarray, *, l2: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return mean, scale, weights and bias of a ridge regression with Huber's loss."""
    mean = np.average(features, axis=0, weights=weights)
    scale = np.sqrt(np.average(np.square(features - mean), axis=0, weights=weights))
    scale = np.where(scale > 1e-9, scale, 1.0)
    design = np.column_stack([(features - mean) / scale, np.ones(len(features))])
    penalty = np.diag([l2] * features.shape[1] + [0.0])
    target = np.clip(target, -REACH, REACH)
    solution = np.zeros(design.shape[1])
    row_weights = weights
    for _ in range(ROUNDS):
        weighted = design * row_weights[:, None]
        solution = np.linalg.solve(design.T @ weighted + penalty, weighted.T @ target)
        error = np.abs(target - design @ solution)
        row_weights = weights * np.minimum(1.0, HUBER / np.maximum(error, 1e-9))
    return mean, scale, solution[:-1], solution[-1]
