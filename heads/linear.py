"""The linear learner: logistic regression, its penalty chosen on inner folds by recording."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import expit, softmax

from talstack.heads.arrays import read_arrays, write_arrays
from talstack.heads.config import HeadsConfig
from talstack.heads.solver import TOLERANCE, Axes, Link, Weights, logistic_path
from talstack.heads.targets import ClassColumns

CLASS_WEIGHT_POWER = {"none": 0.0, "sqrt": 0.5, "balanced": 1.0}
_FEWEST_RECORDINGS = 4  # with fewer, inner folds say nothing: the middle penalty is taken
_AXIS_FLOOR = 1e-3  # axes with less energy than this share of the smallest penalty move a logit by about as little


@dataclass(frozen=True, slots=True, eq=False)
class LinearHead:
    """A fitted head: probabilities of its classes from rows of the design matrix.

    Attributes:
        link: softmax over the classes or one sigmoid each.
        columns: which classes were learned.
        solution: weights (D, learned) and bias.
        l2: the penalty taken.
    """

    link: Link
    columns: ClassColumns
    solution: Weights
    l2: float

    @classmethod
    def fit(
        cls, rows: np.ndarray, targets: np.ndarray, *, groups: np.ndarray, link: Link, config: HeadsConfig
    ) -> "LinearHead":
        """Return the head fitted on all rows.

        Args:
            rows: (N, D) float32 of the design matrix.
            targets: (N, C) bool.
            groups: (N,) int, the recording of each row: inner folds never split one.
        """
        columns = ClassColumns.of(targets)
        problem = _Problem.of(rows, targets[:, columns.learned], link, config)
        l2, start = problem.choose_l2(inner_folds(groups, config.inner_folds, config.seed), sorted(config.linear_l2))
        (found,) = problem.solve(slice(None), [l2], start=start)
        return cls(link, columns, Weights(problem.vectors @ found.weights, found.bias - problem.shift), l2)

    def predict_proba(self, rows: np.ndarray) -> np.ndarray:
        """Return (N, C) float32 probabilities."""
        return self.columns.expand(_probs(self.solution.logits(rows), self.link), self.link)

    @property
    def summary(self) -> dict[str, Any]:
        """What was chosen in fitting."""
        return {"l2": self.l2}

    def save(self, stem: Path) -> list[Path]:
        """Write `stem`.safetensors; return the files written."""
        arrays = {
            "weights": self.solution.weights,
            "bias": self.solution.bias,
            "learned": self.columns.learned,
            "constant": self.columns.constant,
        }
        return [write_arrays(stem.with_name(stem.name + ".safetensors"), arrays)]

    @classmethod
    def load(cls, stem: Path, *, link: Link, summary: dict[str, Any]) -> "LinearHead":
        """Read a head.

        Raises:
            ModelError: the file is missing, damaged or of another kind.
        """
        arrays = read_arrays(stem.with_name(stem.name + ".safetensors"), ("weights", "bias", "learned", "constant"))
        columns = ClassColumns(arrays["learned"], arrays["constant"])
        return cls(link, columns, Weights(arrays["weights"], arrays["bias"]), float(summary["l2"]))


def inner_folds(groups: np.ndarray, num_folds: int, seed: int) -> np.ndarray:
    """Return an inner fold for every row, (N,) int64; rows of one recording share it. All 0 for few recordings."""
    names, codes = np.unique(groups, return_inverse=True)
    if len(names) < _FEWEST_RECORDINGS:
        return np.zeros(len(groups), dtype=np.int64)
    order = np.random.default_rng(seed).permutation(len(names))
    fold_of_name = np.empty(len(names), dtype=np.int64)
    fold_of_name[order] = np.arange(len(names)) % num_folds
    return fold_of_name[codes]


@dataclass(frozen=True, slots=True, eq=False)
class _Problem:
    """Training rows along their principal axes, with targets and weights.

    Attributes:
        rows: (N, K) float32.
        vectors: (D, K), the axes.
        targets: (N, C) bool; no column is constant.
        row_weights: (N, C), or None where every row counts the same.
        shift: (C,) what weighting adds to the logits, to be taken off again, so that probabilities stay honest.
    """

    rows: np.ndarray
    vectors: np.ndarray
    targets: np.ndarray
    link: Link
    row_weights: np.ndarray | None
    shift: np.ndarray

    @classmethod
    def of(cls, rows: np.ndarray, targets: np.ndarray, link: Link, config: HeadsConfig) -> "_Problem":
        axes = Axes.of(rows, floor=_AXIS_FLOOR * min(config.linear_l2))
        weights, shift = _class_weights(targets, link, CLASS_WEIGHT_POWER[config.class_weight])
        return cls(rows @ axes.vectors, axes.vectors, targets, link, weights, shift)

    def solve(
        self,
        part: np.ndarray | slice,
        l2s: Sequence[float],
        *,
        start: Weights | None = None,
        tolerance: float = TOLERANCE,
    ) -> list[Weights]:
        """Return a solution per penalty on some of the rows; a class that is constant there keeps zero weights."""
        targets = self.targets[part]
        learned = np.flatnonzero(ClassColumns.of(targets).learned)
        weights = None if self.row_weights is None else self.row_weights[part][:, learned]
        size = (self.rows.shape[1], self.targets.shape[1])
        solutions = [Weights(np.zeros(size, np.float32), np.zeros(size[1], np.float32)) for _ in l2s]
        if not len(learned):
            return solutions
        path = logistic_path(
            self.rows[part], targets[:, learned], l2s, link=self.link, row_weights=weights,
            start=None if start is None else Weights(start.weights[:, learned], start.bias[learned]),
            tolerance=tolerance,
        )  # fmt: skip
        for solution, found in zip(solutions, path, strict=True):
            solution.weights[:, learned], solution.bias[learned] = found.weights, found.bias
        return solutions

    def choose_l2(self, folds: np.ndarray, l2s: Sequence[float]) -> tuple[float, Weights | None]:
        """Return the penalty with the least log-loss on held-out inner folds, and a guess at its solution.

        Args:
            folds: (N,) int, inner fold of each row.
            l2s: ascending.
        """
        if len(l2s) == 1 or folds.max() == 0:  # nothing to choose, or nothing to choose on
            return l2s[len(l2s) // 2], None
        losses = np.zeros(len(l2s))
        weights = np.zeros((len(l2s), self.rows.shape[1], self.targets.shape[1]), np.float32)
        bias = np.zeros((len(l2s), self.targets.shape[1]), np.float32)
        for fold in range(folds.max() + 1):
            held_out = folds == fold
            columns = ClassColumns.of(self.targets[~held_out])
            # the curve needs no full convergence: at three times the tolerance the same penalty wins
            solutions = self.solve(~held_out, l2s[::-1], tolerance=3 * TOLERANCE)[::-1]
            for i, found in enumerate(solutions):
                logits = (found.logits(self.rows[held_out]) - self.shift)[:, columns.learned]
                probs = columns.expand(_probs(logits, self.link), self.link)
                losses[i] += _log_loss(probs, self.targets[held_out], self.link)
                weights[i] += found.weights
                bias[i] += found.bias
        best, number = int(losses.argmin()), folds.max() + 1
        return l2s[best], Weights(weights[best] / number, bias[best] / number)


def _class_weights(targets: np.ndarray, link: Link, power: float) -> tuple[np.ndarray | None, np.ndarray]:
    """Return the weight of every row and class, (N, C), and what this adds to each class's logit, (C,)."""
    rate = targets.mean(axis=0, dtype=np.float64)
    if not power:
        return None, np.zeros(len(rate), np.float32)
    if link == "softmax":
        ratio = (rate.max(initial=0.0) / rate) ** power
        weights = np.broadcast_to((targets * ratio).sum(axis=1, keepdims=True), targets.shape)
    else:
        ratio = ((1 - rate) / rate) ** power
        weights = np.where(targets, ratio, 1.0)
    return (weights / weights.mean(axis=0)).astype(np.float32), np.log(ratio).astype(np.float32)


def _probs(logits: np.ndarray, link: Link) -> np.ndarray:
    if link == "sigmoid" or not logits.shape[1]:  # softmax over no class at all is an error in numpy
        return np.asarray(expit(logits))
    return np.asarray(softmax(logits, axis=1))


def _log_loss(probs: np.ndarray, targets: np.ndarray, link: Link) -> float:
    """Return the summed log-loss."""
    clipped = np.clip(probs.astype(np.float64), 1e-7, 1 - 1e-7)
    losses = -np.log(clipped[targets]).sum()
    return float(losses - np.log1p(-clipped[~targets]).sum()) if link == "sigmoid" else float(losses)
