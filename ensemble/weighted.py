"""The simple combiners: plain mean, weighted ensemble, confidence-weighted vote.

Weights are non-negative and sum to one. They are found by greedy selection with replacement (Caruana et al.,
ICML 2004): round by round the model joins whose addition to the running sum scores best; a model's weight is its
share of the picks. Repeated on random halves of the models and averaged (bagging, section 2.3 there), the picks
overfit less. `talstack.ensemble.direct` finds weights by their log-loss. A missing model's weight falls to those that
are present.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from talstack.ensemble.curves import Curves
from talstack.ensemble.evidence import Evidence
from talstack.io.errors import InputError
from talstack.io.predictions import ModelKey

Metric = Literal["ap", "log_loss"]
MAX_ROWS = 10_000  # evenly spread segments that models are selected on: all recordings are among them
LEAST_VOTE = 1e-3  # an unsure model still decides where it is alone


def mean_of(probs: np.ndarray, *, weights: np.ndarray | None = None, fallback: np.ndarray | float = 0.0) -> np.ndarray:
    """Return the weighted mean over the first axis of the models that are present (not NaN), float32.

    Args:
        probs: (M, ...).
        weights: non-negative, of a shape that fits to `probs` from the left or with axes of length 1; None for equal
            ones. Where all present models have weight 0, they count equally.
        fallback: what to give where no model is present.
    """
    present = ~np.isnan(probs)
    shares = np.ones(len(probs)) if weights is None else np.asarray(weights, dtype=np.float64)
    shares = shares.reshape(*shares.shape, *[1] * (probs.ndim - shares.ndim))
    if len(probs) and present.all():  # the same, model by model
        shares = np.broadcast_to(shares, (len(probs), *shares.shape[1:]))
        shares = np.where(shares.sum(axis=0) > 0, shares, 1.0)
        return (sum(map(np.multiply, probs, shares)) / shares.sum(axis=0)).astype(np.float32)
    share = present * shares
    share = np.where(share.sum(axis=0) > 0, share, present)
    total = share.sum(axis=0)
    summed = (np.where(present, probs, 0.0) * share).sum(axis=0)
    return np.where(total > 0, summed / np.maximum(total, 1e-12), fallback).astype(np.float32)


def combine(evidence: Evidence, weights: np.ndarray | None = None) -> Curves:
    """Return the weighted mean of the models of `evidence`, the plain mean without weights.

    A segment that no model predicts has probability 0 throughout.

    Args:
        weights: (M,), or (M, C) for weights by class; "any action" then takes their mean over the classes.
    """
    if weights is None or weights.ndim == 1:
        action_weights, activity_weights = weights, weights
    else:
        action_weights, activity_weights = weights[:, None, :], weights.mean(axis=1)
    action = mean_of(evidence.action_probs, weights=action_weights)
    return Curves(evidence.index, action, mean_of(evidence.activity_probs, weights=activity_weights))


@dataclass(frozen=True, slots=True, eq=False)
class ClassMean:
    """A weighted mean of M models, with weights of its own for each of C actions.

    Attributes:
        models, actions: what the weights are of.
        weights: (M, C).
    """

    models: tuple[ModelKey, ...]
    actions: tuple[str, ...]
    weights: np.ndarray

    def predict(self, evidence: Evidence) -> Curves:
        """Return the probabilities; models of `evidence` that it does not know are ignored, missing ones left out."""
        return combine(evidence.with_models(self.models), self.weights)

    def to_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        models = [[key.view, key.modality, key.head] for key in self.models]
        return {"models": models, "actions": list(self.actions), "weights": self.weights.tolist()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "ClassMean":
        """Return what `to_json` gave; KeyError, TypeError or ValueError where it is something else."""
        models = tuple(ModelKey(*names) for names in values["models"])
        weights = np.array(values["weights"], dtype=np.float64)
        if weights.shape != (len(models), len(values["actions"])):
            raise ValueError(f"weights have shape {weights.shape}")
        return cls(models, tuple(values["actions"]), weights)


def vote(evidence: Evidence) -> Curves:
    """Return the mean in which a model counts, segment by segment, as much as it is sure of its answer.

    A model's sureness is 1 - entropy / largest entropy of its distribution over the actions and "none of them"
    (for "any action": over yes and no), at least `LEAST_VOTE`. Nothing is learned.
    """
    probs = np.clip(evidence.action_probs, 0.0, 1.0).astype(np.float64)
    none = np.clip(1.0 - probs.sum(axis=2, keepdims=True), 1e-6, None)
    answers = np.concatenate([probs, none], axis=2)
    activity = np.clip(evidence.activity_probs, 0.0, 1.0).astype(np.float64)
    yes_no = np.stack([activity, 1.0 - activity], axis=2)
    action = mean_of(evidence.action_probs, weights=_sureness(answers)[:, :, None])
    return Curves(evidence.index, action, mean_of(evidence.activity_probs, weights=_sureness(yes_no)))


def _sureness(answers: np.ndarray) -> np.ndarray:
    """Return 1 - entropy / largest entropy of the (M, N, K) distributions, (M, N); `LEAST_VOTE` where missing."""
    shares = answers / answers.sum(axis=2, keepdims=True)
    entropy = -(shares * np.log(np.maximum(shares, 1e-12))).sum(axis=2)
    sure = 1.0 - entropy / np.log(answers.shape[2])
    return np.maximum(np.nan_to_num(sure), LEAST_VOTE)


def filled_probs(evidence: Evidence, step: int = 1) -> np.ndarray:
    """Return the (M, N, C) action probabilities of every `step`th segment, a missing model as the mean of the others.

    Its absence then neither helps nor harms it when weights are chosen.
    """
    probs = evidence.action_probs[:, ::step]
    missing = np.isnan(probs)
    return np.where(missing, mean_of(probs), probs) if missing.any() else probs


def greedy_weights(
    evidence: Evidence, targets: np.ndarray, *, rounds: int, metric: Metric = "ap", bags: int = 0, seed: int = 0
) -> np.ndarray:
    """Return one weight per model, (M,) float64, found on the segments of `evidence`.

    Args:
        targets: (N, C) bool.
        rounds: how many models are picked; the best-scoring number of picks counts.
        metric: mean over classes of the segments' average precision, or the log-loss.
        bags: random halves of the models whose weights are averaged; 0 for one selection among all.
        seed: of the halves.

    Raises:
        InputError: fewer than one round.
    """
    if rounds < 1:
        raise InputError(f"weighted ensemble: rounds must be at least 1, got {rounds}")
    step = -(-len(targets) // MAX_ROWS)  # rows next to each other say nearly the same
    probs, targets = filled_probs(evidence, step), targets[::step]
    # class by class in memory, as `segment_ap` ranks them
    probs, targets = np.ascontiguousarray(probs.swapaxes(1, 2)).swapaxes(1, 2), np.asfortranarray(targets)
    if bags < 1 or len(probs) < 4:  # halves of three models are single ones
        return _greedy(probs, targets, np.arange(len(probs)), rounds=rounds, metric=metric)
    rng = np.random.default_rng(seed)
    halves = [np.sort(rng.permutation(len(probs))[: (len(probs) + 1) // 2]) for _ in range(bags)]
    found = [_greedy(probs, targets, half, rounds=rounds, metric=metric) for half in halves]
    return np.asarray(np.mean(found, axis=0))


def _greedy(
    probs: np.ndarray, targets: np.ndarray, candidates: np.ndarray, *, rounds: int, metric: Metric
) -> np.ndarray:
    """Return the weights (M,) of a selection among some of the models."""
    score = _SCORES[metric]
    picks = np.zeros(len(probs), dtype=np.int64)
    total = np.zeros_like(probs[0])
    best_score, best_picks = -np.inf, picks
    for count in range(1, rounds + 1):
        scores = [score((total + probs[i]) / count, targets) for i in candidates]
        place = int(np.argmax(scores))
        chosen = candidates[place]
        total = total + probs[chosen]
        picks = picks + (np.arange(len(probs)) == chosen)
        if scores[place] > best_score:
            best_score, best_picks = scores[place], picks
    return best_picks / best_picks.sum()


def segment_ap(probs: np.ndarray, targets: np.ndarray) -> float:
    """Return the mean over classes of the average precision of ranking segments; 0 without any positive.

    Args:
        probs: (N, C), from 0 on.
        targets: (N, C) bool.
    """
    counts = targets.sum(axis=0)
    if not counts.any():
        return 0.0
    # Floats from 0 on are in the order of their bits. The last bit says what a segment is instead, so that sorting the
    # values sorts the answers along, several times faster than an order would be found; in a tie positives come last.
    keys = np.ascontiguousarray(probs.T, dtype=np.float32).view(np.uint32) & ~np.uint32(1)
    keys = np.sort(keys | ~targets.T, axis=1)[:, ::-1]
    classes, ranks = np.divmod(np.flatnonzero((keys & np.uint32(1)) == 0), keys.shape[1])
    found = np.arange(len(classes)) - (np.cumsum(counts) - counts)[classes] + 1
    ap = np.bincount(classes, weights=found / (ranks + 1), minlength=len(counts)) / np.maximum(counts, 1)
    return float(ap[counts > 0].mean())


def negative_log_loss(probs: np.ndarray, targets: np.ndarray) -> float:
    """Return minus the log-loss of (N, C) probabilities, summed over classes, averaged over segments."""
    right = np.where(targets, probs, 1.0 - probs)
    return float(np.log(np.clip(right, 1e-4, 1.0)).sum(axis=1).mean())


_SCORES: dict[Metric, Callable[[np.ndarray, np.ndarray], float]] = {"ap": segment_ap, "log_loss": negative_log_loss}
