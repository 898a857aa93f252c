"""Scores that mean something: the precision to be expected of a detection with this score.

Isotonic regression from score to observed precision, over blocks of some detections each, with straight lines between
the blocks' centres: a map that only rises, so that it changes no ranking and no mAP.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import isotonic_regression

BLOCK = 25  # detections per block: fewer make the map jump with every accident
LEAST_STEP = 1e-6  # between neighbouring knots: equal scores would be ranked by name


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """A rising line through the knots (score, precision), both (k,) float64."""

    score: np.ndarray
    precision: np.ndarray

    @classmethod
    def fit(cls, scores: np.ndarray, quality: np.ndarray) -> "Calibration | None":
        """Return the map from scores to the quality observed there; None with less than two blocks.

        Args:
            scores: (n,) of detections that nothing was fitted to.
            quality: (n,) in [0, 1]: 1 for a hit, 0 for a miss, a share for a hit at some of several thresholds.
        """
        order = np.argsort(-scores, kind="stable")
        blocks = np.array_split(order, len(order) // BLOCK) if len(order) >= 2 * BLOCK else []
        if len(blocks) < 2:
            return None
        blocks = blocks[::-1]
        size = np.array([len(block) for block in blocks], dtype=np.float64)
        centre = np.array([scores[block].mean() for block in blocks])
        rising = isotonic_regression(np.array([quality[block].mean() for block in blocks]), weights=size).x
        centre, first = np.unique(centre, return_index=True)
        rising = rising[first] * (1 - 2e-3) + 1e-3  # room for the steps, and for scores beyond either end
        knots = np.concatenate([[0.0], centre, [max(1.0, centre[-1] + 1e-3)]])
        precision = np.concatenate([[0.0], rising, [1.0]])
        return cls(knots, np.maximum.accumulate(precision + LEAST_STEP * np.arange(len(precision))))

    def apply(self, scores: np.ndarray) -> np.ndarray:
        """Return the precision to be expected at these scores, (n,)."""
        return np.interp(scores, self.score, self.precision)

    def to_json(self) -> dict[str, Any]:
        """Return the knots as plain lists."""
        return {"score": self.score.tolist(), "precision": self.precision.tolist()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Calibration":
        """Return the map that `to_json` gave."""
        return cls(**{name: np.asarray(value, dtype=np.float64) for name, value in values.items()})
