"""Weights of least log-loss."""

import numpy as np
import pytest
from scipy.optimize import minimize

from talstack.ensemble.direct import direct_weights, simplex_weights
from talstack.ensemble.weighted import combine, negative_log_loss

EQUAL = np.full(3, 1 / 3)


@pytest.fixture
def split_sight() -> tuple[np.ndarray, np.ndarray]:
    """Return probabilities of one model that knows class 0, one that knows class 1, one that guesses; targets."""
    rng = np.random.default_rng(0)
    targets = rng.random((800, 2)) < 0.25
    signal = np.zeros((3, 800, 2))
    signal[0, :, 0], signal[1, :, 1] = 4 * targets[:, 0], 4 * targets[:, 1]
    return 1 / (1 + np.exp(-(signal + rng.normal(0, 1, signal.shape) - 2))), targets


def test_weights_are_those_that_a_general_solver_finds(split_sight) -> None:
    probs, targets = split_sight
    flat, truth = probs.reshape(3, -1), targets.ravel()

    def loss(weights: np.ndarray) -> float:
        mixed = weights @ np.clip(flat, 1e-4, 1 - 1e-4)
        return -np.log(np.where(truth, mixed, 1 - mixed)).sum() - 5.0 * EQUAL @ np.log(weights)

    bounds, whole = [(1e-6, 1)] * 3, {"type": "eq", "fun": lambda weights: weights.sum() - 1}
    expected = minimize(loss, EQUAL, method="SLSQP", bounds=bounds, constraints=[whole]).x
    found = simplex_weights(flat, truth, prior=EQUAL, pull=5.0)
    np.testing.assert_allclose(found, expected, atol=2e-3)
    assert found.sum() == pytest.approx(1.0)


def test_each_class_takes_its_own_model(evidence_of, split_sight) -> None:
    probs, targets = split_sight
    weights = direct_weights(evidence_of(probs), targets, pull=1.0, by_class=True)
    assert weights.shape == (3, 2)
    np.testing.assert_allclose(weights.sum(axis=0), 1.0)
    assert (weights >= 0).all()
    assert weights[0, 0] > 0.8
    assert weights[1, 1] > 0.8
    overall = direct_weights(evidence_of(probs), targets, pull=1.0, by_class=False)
    by_class = combine(evidence_of(probs), weights).action
    assert negative_log_loss(by_class, targets) > negative_log_loss(
        combine(evidence_of(probs), overall).action, targets
    )
    np.testing.assert_allclose(by_class[:, 0], probs[:, :, 0].T @ weights[:, 0], atol=1e-5)


def test_strong_pull_leaves_equal_weights_and_a_class_without_positives_the_overall_ones(
    evidence_of, split_sight
) -> None:
    probs, targets = split_sight
    rigid = direct_weights(evidence_of(probs), targets, pull=1e7, by_class=False)
    np.testing.assert_allclose(rigid, EQUAL, atol=1e-3)
    np.testing.assert_allclose(
        simplex_weights(probs[:, :0, 0], targets[:0, 0], prior=np.array([0.5, 0.3, 0.2]), pull=1.0), [0.5, 0.3, 0.2]
    )


def test_missing_model_passes_its_weight_on_by_class(evidence_of, split_sight) -> None:
    probs, targets = split_sight
    probs[0, :100] = np.nan
    weights = direct_weights(evidence_of(probs), targets, pull=1.0, by_class=True)
    action = combine(evidence_of(probs), weights).action
    expected = weights[1:] / weights[1:].sum(axis=0)
    np.testing.assert_allclose(action[0], (probs[1:, 0] * expected).sum(axis=0), atol=1e-5)
