"""The logistic solver against scikit-learn."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from talstack.heads.solver import Axes, Rows, logistic_path


@pytest.fixture
def rows() -> np.ndarray:
    rng = np.random.default_rng(0)
    mixed = rng.normal(size=(400, 10)) @ rng.normal(size=(10, 30)) + 0.1 * rng.normal(size=(400, 30))
    return ((mixed - mixed.mean(axis=0)) / mixed.std(axis=0)).astype(np.float32)


def test_one_vs_rest_equals_scikit_learn_class_by_class(rows: np.ndarray) -> None:
    rng = np.random.default_rng(1)
    targets = rows @ rng.normal(size=(30, 3)) + rng.normal(size=(400, 3)) > [0.0, 3.0, 8.0]
    axes = Axes.of(rows, floor=0.0)
    for l2, found in zip(
        (0.1, 0.01),
        logistic_path(Rows.all_of(rows @ axes.vectors, targets), (0.1, 0.01), link="sigmoid", tolerance=1e-6),
        strict=True,
    ):
        for column in range(3):
            model = LogisticRegression(C=1 / (l2 * 400), tol=1e-8, max_iter=5000).fit(rows, targets[:, column])
            expected = model.decision_function(rows)
            np.testing.assert_allclose(found.logits(rows @ axes.vectors)[:, column], expected, atol=0.01)


def test_softmax_equals_scikit_learn(rows: np.ndarray) -> None:
    rng = np.random.default_rng(2)
    labels = (rows @ rng.normal(size=(30, 3))).argmax(axis=1)
    axes = Axes.of(rows, floor=0.0)
    problem = Rows.all_of(rows @ axes.vectors, labels[:, None] == np.arange(3))
    (found,) = logistic_path(problem, [0.01], link="softmax", tolerance=1e-6)
    model = LogisticRegression(C=1 / (0.01 * 400), tol=1e-8, max_iter=5000).fit(rows, labels)
    logits = found.logits(rows @ axes.vectors)
    expected = model.decision_function(rows)
    np.testing.assert_allclose(logits - logits[:, :1], expected - expected[:, :1], atol=0.02)


def test_row_weights_count_like_repeated_rows(rows: np.ndarray) -> None:
    targets = rows[:, :1] + 0.3 * rows[:, 5:6] > 0.2
    twice = np.where(targets, 2.0, 1.0).astype(np.float32)
    problem = Rows.all_of(rows, targets, twice / twice.mean())
    (weighted,) = logistic_path(problem, [0.05], link="sigmoid", tolerance=1e-6)
    again = Rows.all_of(np.concatenate([rows, rows[targets[:, 0]]]), np.concatenate([targets, targets[targets[:, 0]]]))
    (repeated,) = logistic_path(again, [0.05], link="sigmoid", tolerance=1e-6)
    np.testing.assert_allclose(weighted.logits(rows), repeated.logits(rows), atol=0.01)


def test_rows_of_some_slices_and_columns_are_a_problem_of_their_own(rows: np.ndarray) -> None:
    targets = rows @ np.random.default_rng(1).normal(size=(30, 3)) + 1.0 > [0.0, 3.0, 8.0]
    whole = Rows.all_of(rows, targets)
    some = whole.only([slice(10, 100), slice(250, 400)])
    keep = np.r_[10:100, 250:400]
    assert some.num_rows == 240 and (some.num_positives == targets[keep].sum(axis=0)).all()
    (found,) = logistic_path(some, [0.1], link="sigmoid", columns=np.array([2, 0]), tolerance=1e-6)
    (alone,) = logistic_path(Rows.all_of(rows[keep], targets[keep][:, [2, 0]]), [0.1], link="sigmoid", tolerance=1e-6)
    np.testing.assert_allclose(found.logits(rows), alone.logits(rows), atol=1e-3)


def test_axes_are_orthonormal_and_sorted(rows: np.ndarray) -> None:
    axes = Axes.of(rows, floor=0.5)
    kept = axes.vectors.shape[1]
    assert 1 <= kept < 30 and (np.diff(axes.energies) <= 0).all() and axes.energies.min() > 0.5
    np.testing.assert_allclose(axes.vectors.T @ axes.vectors, np.eye(kept), atol=1e-5)


def test_axes_of_few_wide_rows_are_those_of_their_covariance(rows: np.ndarray) -> None:
    wide = np.concatenate([rows[:12], rows[12:24]], axis=1)
    axes = Axes.of(wide, floor=0.0)
    expected = np.linalg.eigvalsh(wide.T.astype(np.float64) @ wide / 12)[::-1][: len(axes.energies)]
    np.testing.assert_allclose(axes.energies, expected, rtol=1e-4)
    np.testing.assert_allclose(axes.vectors.T @ axes.vectors, np.eye(len(axes.energies)), atol=1e-4)
    np.testing.assert_allclose(wide @ axes.vectors @ axes.vectors.T, wide, atol=1e-3)


def test_a_few_axes_of_many_are_orthonormal_and_hold_nearly_all_that_as_many_can() -> None:
    rng = np.random.default_rng(4)
    sizes = 0.97 ** np.arange(300)
    wide = ((rng.normal(size=(900, 300)) * sizes) @ np.linalg.qr(rng.normal(size=(300, 300)))[0]).astype(np.float32)
    exact, few = Axes.of(wide, floor=0.0), Axes.of(wide, floor=0.0, most=60)
    assert few.vectors.shape == (300, 60) and (np.diff(few.energies) <= 0).all()
    np.testing.assert_allclose(few.vectors.T @ few.vectors, np.eye(60), atol=1e-5)
    assert few.energies.sum() > 0.99 * exact.energies[:60].sum()
    np.testing.assert_allclose(few.rest, (np.square(wide).sum() / 900 - few.energies.sum()) / 240, rtol=1e-4)
    np.testing.assert_allclose(exact.leading(60).rest, exact.energies[60:].sum() / 240, rtol=1e-3)
    assert Axes.of(wide, floor=0.0, most=200).vectors.shape == (300, 200)  # too many for that: exact ones


@pytest.mark.parametrize("num_axes", [3, 12])
def test_axes_that_precondition_leave_nothing_out(num_axes: int) -> None:
    rng = np.random.default_rng(3)
    rows = (rng.normal(size=(5000, 12)) @ rng.normal(size=(12, 12))).astype(np.float32)
    targets = rows @ rng.normal(size=(12, 3)) + rng.normal(size=(5000, 3)) > 0
    scale = np.where(np.arange(12) < 6, 0.3, 1.0).astype(np.float32)
    every = Axes.of(rows * scale, floor=0.0)
    axes = every.leading(num_axes)
    for link, classes in (("sigmoid", targets), ("softmax", np.eye(3, dtype=bool)[targets.argmax(axis=1)])):
        rotated = Rows.all_of(rows * scale @ every.vectors, classes)
        problems = (rotated, Rows.all_of(rows, classes, axes=axes, scale=scale))
        parts = (problem.only([slice(0, 2500), slice(3000, 5000)]) for problem in problems)
        along, as_they_are = (next(logistic_path(part, [0.01], link=link, tolerance=1e-6)) for part in parts)
        np.testing.assert_allclose(as_they_are.weights, every.vectors @ along.weights, atol=2e-3)
        np.testing.assert_allclose(as_they_are.bias, along.bias, atol=2e-3)
