"""Weights of the models found by minimising the log-loss directly, for all classes or one set per class.

The log-loss of a mixture is convex in its weights. They are the softmax of free parameters, which keeps them
positive with sum one, and L-BFGS finds them. A pull towards prior weights (the cross-entropy with the prior, times a
strength) stands for what few rows cannot tell: the overall weights are pulled towards equal ones, those of a class
towards the overall ones.
"""

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

from talstack.ensemble.evidence import Evidence
from talstack.ensemble.weighted import filled_probs

CLIP = 1e-4  # as the log-loss that the weights are judged by


def direct_weights(evidence: Evidence, targets: np.ndarray, *, pull: float, by_class: bool) -> np.ndarray:
    """Return weights of least log-loss, non-negative with sum one over the models: (M,), or (M, C) by class.

    Args:
        evidence: M models over N segments; a missing model counts as the mean of the others.
        targets: (N, C) bool.
        pull: strength towards the prior weights, in segments that carry an action.
        by_class: one set of weights per class.
    """
    probs = filled_probs(evidence).astype(np.float64)
    equal = np.full(len(probs), 1.0 / len(probs))
    overall = simplex_weights(probs.reshape(len(probs), -1), targets.ravel(), prior=equal, pull=pull)
    if not by_class:
        return overall
    columns = [
        simplex_weights(probs[:, :, c], targets[:, c], prior=overall, pull=pull) for c in range(targets.shape[1])
    ]
    return np.stack(columns, axis=1)


def simplex_weights(probs: np.ndarray, targets: np.ndarray, *, prior: np.ndarray, pull: float) -> np.ndarray:
    """Return the weights (M,) that minimise the summed log-loss of weights @ probs + pull x cross-entropy with prior.

    Args:
        probs: (M, N) float64 in [0, 1].
        targets: (N,) bool.
        prior: (M,) positive, sum one.
    """
    prior = np.maximum(prior, 1e-6)
    prior = prior / prior.sum()
    kept = np.clip(probs, CLIP, 1.0 - CLIP)
    right = np.where(targets, kept, 1.0 - kept)  # weights @ right is the probability of what was the case
    scale = 1.0 / max(int(targets.sum()), 1)

    def loss(params: np.ndarray) -> tuple[float, np.ndarray]:
        weights = softmax(params)
        mixed = weights @ right
        by_weight = right @ (1.0 / mixed)
        value = -np.log(mixed).sum() - pull * (prior @ log_softmax(params))
        gradient = -weights * (by_weight - weights @ by_weight) - pull * (prior - weights)
        return float(value) * scale, gradient * scale

    result = minimize(loss, np.log(prior), jac=True, method="L-BFGS-B", options={"maxiter": 300, "gtol": 1e-6})
    return np.asarray(softmax(result.x))
