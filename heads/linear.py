"""The linear learner: logistic regression, its penalty chosen on inner folds by recording."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import expit, softmax

from talstack.heads.arrays import read_arrays, write_arrays
from talstack.heads.config import HeadsConfig
from talstack.heads.solver import Link, Weights, logistic_path
from talstack.heads.targets import ClassColumns

CLASS_WEIGHT_POWER = {"none": 0.0, "sqrt": 0.5, "balanced": 1.0}
_FEWEST_INNER_RECORDINGS = 4  # with fewer, inner folds say nothing: the middle penalty is taken


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
        learned = targets[:, columns.learned]
        l2s = sorted(config.linear_l2, reverse=True)
        l2 = l2s[0] if len(l2s) == 1 else _choose_l2(rows, learned, l2s, groups=groups, link=link, config=config)
        # the path down to the chosen penalty ends at the same optimum, sooner
        *_, solution = _solve(rows, learned, [value for value in l2s if value >= l2], link, config)
        return cls(link, columns, solution, l2)

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
    """Return an inner fold for every row, (N,) int64; rows of one recording share it."""
    names, codes = np.unique(groups, return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(names))
    fold_of_name = np.empty(len(names), dtype=np.int64)
    fold_of_name[order] = np.arange(len(names)) % num_folds
    return fold_of_name[codes]


def _choose_l2(
    rows: np.ndarray, targets: np.ndarray, l2s: Sequence[float], *, groups: np.ndarray, link: Link, config: HeadsConfig
) -> float:
    """Return the penalty with the least log-loss on held-out inner folds."""
    if len(np.unique(groups)) < _FEWEST_INNER_RECORDINGS or not targets.shape[1]:
        return l2s[len(l2s) // 2]
    folds = inner_folds(groups, config.inner_folds, config.seed)
    losses = np.zeros(len(l2s))
    for fold in range(config.inner_folds):
        held_out = folds == fold
        columns = ClassColumns.of(targets[~held_out])
        solutions = _solve(rows[~held_out], targets[~held_out][:, columns.learned], l2s, link, config)
        for i, solution in enumerate(solutions):
            probs = columns.expand(_probs(solution.logits(rows[held_out]), link), link)
            losses[i] += _log_loss(probs, targets[held_out], link)
    return l2s[int(losses.argmin())]


def _solve(
    rows: np.ndarray, targets: np.ndarray, l2s: Sequence[float], link: Link, config: HeadsConfig
) -> list[Weights]:
    """Return a solution per penalty; class weights are undone in the bias, so that probabilities stay honest."""
    if not targets.shape[1]:
        return [Weights(np.zeros((rows.shape[1], 0), np.float32), np.zeros(0, np.float32))] * len(l2s)
    rate = targets.mean(axis=0, dtype=np.float64)
    power = CLASS_WEIGHT_POWER[config.class_weight]
    if not power:
        return list(logistic_path(rows, targets, l2s, link=link))
    if link == "softmax":
        ratio = (rate.max() / rate) ** power
        weights = np.broadcast_to((targets * ratio).sum(axis=1, keepdims=True), targets.shape)
    else:
        ratio = ((1 - rate) / rate) ** power
        weights = np.where(targets, ratio, 1.0)
    weights = (weights / weights.mean(axis=0)).astype(np.float32)
    shift = np.log(ratio).astype(np.float32)
    return [
        Weights(found.weights, found.bias - shift)
        for found in logistic_path(rows, targets, l2s, link=link, row_weights=weights)
    ]


def _probs(logits: np.ndarray, link: Link) -> np.ndarray:
    return np.asarray(expit(logits) if link == "sigmoid" else softmax(logits, axis=1))


def _log_loss(probs: np.ndarray, targets: np.ndarray, link: Link) -> float:
    """Return the summed log-loss."""
    clipped = np.clip(probs.astype(np.float64), 1e-7, 1 - 1e-7)
    losses = -np.log(clipped[targets]).sum()
    return float(losses - np.log1p(-clipped[~targets]).sum()) if link == "sigmoid" else float(losses)
