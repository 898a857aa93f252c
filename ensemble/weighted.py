"""The simple combiners: the plain mean of the models, and the weighted ensemble with one weight per model.

Weights are non-negative and sum to one. They are found by greedy selection with replacement (Caruana et al.,
ICML 2004): round by round the model joins whose addition to the running sum scores best; a model's weight is its
share of the picks. A missing model's weight falls to those that are present.
"""

from collections.abc import Callable
from typing import Literal

import numpy as np

from talstack.ensemble.curves import Curves
from talstack.ensemble.evidence import Evidence
from talstack.io.errors import InputError

Metric = Literal["ap", "log_loss"]


def mean_of(probs: np.ndarray, *, weights: np.ndarray | None = None, fallback: np.ndarray | float = 0.0) -> np.ndarray:
    """Return the weighted mean over the first axis of the models that are present (not NaN), float32.

    Args:
        probs: (M, ...).
        weights: (M,) non-negative; None for equal ones. Where all present models have weight 0, they count equally.
        fallback: what to give where no model is present.
    """
    present = ~np.isnan(probs)
    shares = np.ones(len(probs)) if weights is None else np.asarray(weights, dtype=np.float64)
    share = present * shares.reshape(-1, *[1] * (probs.ndim - 1))
    share = np.where(share.sum(axis=0) > 0, share, present)
    total = share.sum(axis=0)
    summed = (np.where(present, probs, 0.0) * share).sum(axis=0)
    return np.where(total > 0, summed / np.maximum(total, 1e-12), fallback).astype(np.float32)


def combine(evidence: Evidence, weights: np.ndarray | None = None) -> Curves:
    """Return the weighted mean of the models of `evidence`, the plain mean without weights.

    A segment that no model predicts has probability 0 throughout.
    """
    action = mean_of(evidence.action_probs, weights=weights)
    return Curves(evidence.index, action, mean_of(evidence.activity_probs, weights=weights))


def greedy_weights(evidence: Evidence, targets: np.ndarray, *, rounds: int, metric: Metric = "ap") -> np.ndarray:
    """Return one weight per model, (M,) float64, found on the segments of `evidence`.

    Args:
        targets: (N, C) bool.
        rounds: how many models are picked; the best-scoring number of picks counts.
        metric: mean over classes of the segments' average precision, or the log-loss.

    Raises:
        InputError: fewer than one round.
    """
    if rounds < 1:
        raise InputError(f"weighted ensemble: rounds must be at least 1, got {rounds}")
    score = _SCORES[metric]
    # a missing model counts as the mean of the others, so that its absence neither helps nor harms it
    mean = mean_of(evidence.action_probs)
    probs = np.where(np.isnan(evidence.action_probs), mean, evidence.action_probs)
    picks = np.zeros(len(probs), dtype=np.int64)
    total = np.zeros_like(mean)
    best_score, best_picks = -np.inf, picks
    for count in range(1, rounds + 1):
        scores = [score((total + p) / count, targets) for p in probs]
        chosen = int(np.argmax(scores))
        total = total + probs[chosen]
        picks = picks + (np.arange(len(probs)) == chosen)
        if scores[chosen] > best_score:
            best_score, best_picks = scores[chosen], picks
    return best_picks / best_picks.sum()


def segment_ap(probs: np.ndarray, targets: np.ndarray) -> float:
    """Return the mean over classes of the average precision of ranking segments; 0 without any positive.

    Args:
        probs: (N, C).
        targets: (N, C) bool.
    """
    counts = targets.sum(axis=0)
    if not counts.any():
        return 0.0
    order = np.argsort(-np.ascontiguousarray(probs.T), axis=1)  # rows lie together: faster than by column
    hits = np.take_along_axis(targets.T, order, axis=1)
    precision = np.cumsum(hits, axis=1, dtype=np.float32) / np.arange(1, len(probs) + 1, dtype=np.float32)
    ap = (precision * hits).sum(axis=1, dtype=np.float64) / np.maximum(counts, 1)
    return float(ap[counts > 0].mean())


def negative_log_loss(probs: np.ndarray, targets: np.ndarray) -> float:
    """Return minus the log-loss of (N, C) probabilities, summed over classes, averaged over segments."""
    right = np.where(targets, probs, 1.0 - probs)
    return float(np.log(np.clip(right, 1e-4, 1.0)).sum(axis=1).mean())


_SCORES: dict[Metric, Callable[[np.ndarray, np.ndarray], float]] = {"ap": segment_ap, "log_loss": negative_log_loss}
