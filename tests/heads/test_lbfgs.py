"""Independent minimisations side by side."""

import numpy as np

from talstack.heads.lbfgs import minimise_columns


def test_every_column_reaches_its_own_minimum_and_converged_ones_drop_out() -> None:
    rng = np.random.default_rng(0)
    factors = rng.normal(size=(5, 20, 20))
    curvature = np.einsum("pij,pkj->pik", factors, factors) / 20 + np.eye(20) * np.logspace(-1, 1, 5)[:, None, None]
    targets = rng.normal(size=(20, 5))
    widths = []

    def objective(params: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        widths.append(len(columns))
        off = params - targets[:, columns]
        gradient = np.einsum("pij,jp->ip", curvature[columns], off)
        return 0.5 * (off * gradient).sum(axis=0), gradient

    found = minimise_columns(objective, np.zeros((20, 5)), tolerance=1e-6, max_iterations=500)
    np.testing.assert_allclose(found, targets, atol=1e-4)
    assert widths[0] == 5 and widths[-1] < 5


def test_overshooting_steps_are_shortened() -> None:
    def objective(params: np.ndarray, _: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.logaddexp(30 * params, -30 * params).sum(axis=0), 30 * np.tanh(30 * params)

    found = minimise_columns(objective, np.full((1, 3), [1.0, -2.0, 0.5]), tolerance=1e-5, max_iterations=200)
    np.testing.assert_allclose(found, 0.0, atol=1e-6)
