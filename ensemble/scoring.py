"""The score of a proposal: how well it stands out, or the precision to be expected of it.

The plain score is the mean class probability times the contrast of the proposal's curve: mean inside minus mean in a
margin on either side. Ranking by contrast keeps a short run on top of a peak from outranking the full extent of the
action (32 against 67 mAP in a peer's measurement on mhad).

The fitted score is learned on out-of-fold proposals: a logistic regression from probability, contrast with the
surroundings, steepness of the ends, rivalling classes and the deviation from the class's usual duration to the
share of the target's tIoU thresholds that the proposal reaches. `Isotonic` then maps the scores that survive
suppression to the precision observed at such scores.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import expit

from talstack.ensemble.curves import RowMeans
from talstack.ensemble.proposals import Proposals

MARGINS = (0.15, 0.5)  # surroundings that a proposal is contrasted with, as a share of its length
LEAST_ROWS = 60
STEPS = 30  # Newton steps at most
FEATURES = 14
DEVIATION = slice(9, 11)  # the columns that depend on the refined ends


def plain_scores(means: RowMeans, found: Proposals, *, margin: float, contrast_weight: float) -> np.ndarray:
    """Return the class probability times contrast ** contrast_weight of every proposal's run, (n,)."""
    contrast = means.contrast(found.runs.intervals, found.runs.curve, margin)
    return means.inside(found.runs.intervals, found.label + 1) * contrast**contrast_weight


def with_deviation(features: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    """Return what the fitted score is made of, (n, FEATURES) float64.

    Args:
        features: `run_features` of the proposals.
        deviation: (n,) standard deviations that the log of the refined duration lies from the class's mean.
    """
    features = features.copy()
    features[:, DEVIATION] = np.column_stack([deviation, np.square(np.clip(deviation, -4, 4))])
    return features


def run_features(means: RowMeans, found: Proposals) -> np.ndarray:
    """Return what the fitted score is made of as far as refinement changes nothing there, else 0, (n, FEATURES)."""
    intervals, label = found.runs.intervals, found.label
    nothing = np.zeros(len(label), dtype=np.int64)
    every = means.inside(intervals, slice(1, None))
    own = every[np.arange(len(label)), label]
    every[np.arange(len(label)), label] = 0.0
    edge_s = 0.5 * means.segment_s
    steps = [
        means.logits_at(intervals[:, [side]] + inward * edge_s, label + 1)
        - means.logits_at(intervals[:, [side]] - inward * edge_s, label + 1)
        for side, inward in ((0, 1.0), (1, -1.0))
    ]
    columns = [_log(own), _log(every.max(axis=1, initial=0.0)), _log(means.inside(intervals, nothing))]
    for margin in MARGINS:
        columns += [
            _log(means.contrast(intervals, label + 1, margin)),
            _log(means.contrast(intervals, nothing, margin)),
        ]
    columns += [np.minimum(*steps)[:, 0], np.maximum(*steps)[:, 0], *[np.zeros(len(label))] * 2]
    columns += [np.log(found.runs.level / (1 - found.runs.level)), found.runs.curve == 0, found.runs.markov]
    return np.stack(columns, axis=1).astype(np.float64)


@dataclass(frozen=True, slots=True, eq=False)
class Scorer:
    """A logistic regression; `mean`, `scale` and `weights` are (F,), on standardised features."""

    mean: np.ndarray
    scale: np.ndarray
    weights: np.ndarray
    bias: float

    @classmethod
    def fit(cls, features: np.ndarray, quality: np.ndarray, *, l2: float) -> "Scorer | None":
        """Return the regression of quality, (n,) in [0, 1]; None where there is too little to learn from."""
        if len(features) < LEAST_ROWS or not quality.any():
            return None
        mean, scale = features.mean(axis=0), features.std(axis=0)
        scale = np.where(scale > 1e-9, scale, 1.0)
        design = np.column_stack([(features - mean) / scale, np.ones(len(features))])
        penalty = np.diag([l2] * features.shape[1] + [1e-6])
        solution = np.zeros(design.shape[1])
        solution[-1] = np.log(quality.mean() / (1.0 - min(quality.mean(), 1 - 1e-6)))
        for _ in range(STEPS):
            probs = expit(design @ solution)
            gradient = design.T @ (quality - probs) - penalty @ solution
            curvature = design.T @ (design * (probs * (1 - probs))[:, None]) + penalty
            step = np.linalg.solve(curvature, gradient)
            solution = solution + step * min(1.0, 4.0 / max(float(np.abs(step).max()), 1e-9))
            if np.abs(step).max() < 1e-6:
                break
        return cls(mean, scale, solution[:-1], float(solution[-1]))

    def scores(self, features: np.ndarray) -> np.ndarray:
        """Return the expected quality of each row, (n,)."""
        scores: np.ndarray = expit(((features - self.mean) / self.scale) @ self.weights + self.bias)
        return scores

    def to_json(self) -> dict[str, Any]:
        """Return the numbers as plain values."""
        return {
            "mean": self.mean.tolist(), "scale": self.scale.tolist(), "weights": self.weights.tolist(),
            "bias": self.bias,
        }  # fmt: skip

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Scorer":
        """Return the regression that `to_json` gave."""
        arrays = {name: np.asarray(values[name], dtype=np.float64) for name in ("mean", "scale", "weights")}
        return cls(**arrays, bias=float(values["bias"]))


def _log(values: np.ndarray) -> np.ndarray:
    logs: np.ndarray = np.log(np.maximum(values, 1e-3))
    return logs
