"""The shared logistic regression against scikit-learn and at its limits."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from talstack.ensemble.hierarchical import Penalty, fit_path


@pytest.fixture
def data() -> tuple[np.ndarray, np.ndarray]:
    """Return (C, N, F) features and (C, N) targets; all classes follow nearly the same rule."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(4, 400, 3)).astype(np.float32)
    features[..., 2] = 0.7 * features[..., 1] + 0.3 * features[..., 2]
    weights = np.array([1.5, -1.0, 0.5]) + rng.normal(0, 0.2, (4, 3))
    logit = np.einsum("cnf,cf->cn", features, weights) - 1.0
    return features, rng.random(logit.shape) < 1 / (1 + np.exp(-logit))


def fit(features, targets, shared, deviation):
    return next(fit_path(features, targets, [Penalty(shared, deviation)], tolerance=1e-8, max_iterations=1000))


def test_rigid_classes_are_one_regression(data) -> None:
    features, targets = data
    solution = fit(features, targets, 2.0, 1e7)
    np.testing.assert_allclose(solution.weights, np.tile(solution.weights[0], (4, 1)), atol=1e-3)


def test_free_classes_are_separate_regressions(data) -> None:
    features, targets = data
    solution = fit(features, targets, 1e7, 2.0)
    for c in range(4):
        alone = LogisticRegression(C=1 / 2.0, tol=1e-8, max_iter=1000).fit(features[c], targets[c])
        np.testing.assert_allclose(solution.weights[c], alone.coef_[0], atol=0.01)
        assert solution.bias[c] == pytest.approx(alone.intercept_[0], abs=0.02)


def test_gradient_vanishes_at_the_solution(data) -> None:
    features, targets = data
    shared, deviation = 3.0, 20.0
    solution = fit(features, targets, shared, deviation)
    residual = solution.probs(features).T - targets
    by_class = np.einsum("cnf,cn->cf", features, residual)
    # at the optimum: by_class = -deviation * d_c and sum = -shared * u, with w_c = u + d_c
    d = -by_class / deviation
    u = -by_class.sum(axis=0) / shared
    np.testing.assert_allclose(u + d, solution.weights, atol=5e-3)


def test_a_weight_of_two_is_the_row_twice_and_none_leaves_it_out(data) -> None:
    features, targets = data
    weights = np.ones(targets.shape, dtype=np.float32)
    weights[:, :100], weights[:, 300:] = 2.0, 0.0
    penalties, settings = [Penalty(2.0, 5.0)], {"tolerance": 1e-8, "max_iterations": 1000}
    weighted = next(fit_path(features, targets, penalties, row_weights=weights, **settings))
    rows = np.concatenate([np.arange(100), np.arange(300)])
    repeated = next(fit_path(features[:, rows], targets[:, rows], penalties, **settings))
    np.testing.assert_allclose(weighted.weights, repeated.weights, atol=2e-3)
    np.testing.assert_allclose(weighted.bias, repeated.bias, atol=2e-3)
    other = next(fit_path(features, targets, penalties, **settings))
    assert np.abs(other.weights - repeated.weights).max() > 0.01


def test_rows_that_have_a_weight_may_be_given_alone(data) -> None:
    features, targets = data
    weights = (np.random.default_rng(0).random(targets.shape) < 0.5) * np.float32(2.0)
    whole = next(fit_path(features, targets, [Penalty(2.0, 5.0)], row_weights=weights))
    parts = [own[kept] for own, kept in zip(features, weights > 0, strict=True)]
    alone = next(fit_path(parts, targets, [Penalty(2.0, 5.0)], row_weights=weights))
    np.testing.assert_array_equal(alone.weights, whole.weights)
    np.testing.assert_array_equal(alone.bias, whole.bias)


def test_path_ends_where_a_fresh_start_does(data) -> None:
    features, targets = data
    penalties = [Penalty(100.0, 1000.0), Penalty(1.0, 10.0)]
    warm = list(fit_path(features, targets, penalties, tolerance=1e-7))[-1]
    fresh = list(fit_path(features, targets, penalties[1:], tolerance=1e-7))[-1]
    np.testing.assert_allclose(warm.weights, fresh.weights, atol=2e-3)


def test_class_without_positives_stays_improbable() -> None:
    rng = np.random.default_rng(1)
    features = rng.normal(size=(2, 200, 2)).astype(np.float32)
    targets = np.stack([features[0, :, 0] > 0, np.zeros(200, dtype=bool)])
    solution = fit(features, targets, 1.0, 10.0)
    assert solution.probs(features)[:, 1].max() < 0.1
