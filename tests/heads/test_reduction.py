"""Scaling and principal components."""

import numpy as np
import pytest

from talstack.heads import reduction as module
from talstack.heads.reduction import Reduction, Scaler


@pytest.fixture
def features() -> np.ndarray:
    """Return 3000 rows of 600 columns with 20 strong directions, far from zero mean."""
    rng = np.random.default_rng(0)
    strong = rng.normal(size=(3000, 20)) * np.geomspace(10, 2, 20) @ rng.normal(size=(20, 600)) / 5
    return (strong + 0.5 * rng.normal(size=(3000, 600)) + 7).astype(np.float16)


def test_a_scaler_of_blocks_is_the_scaler_of_all_rows(features: np.ndarray) -> None:
    rows = np.flatnonzero(np.arange(3000) % 3)
    scaler = Scaler.of(features, 4.0, where=rows)
    np.testing.assert_allclose(scaler.mean, features[rows].mean(axis=0, dtype=np.float64), rtol=1e-5)
    np.testing.assert_allclose(scaler.std, features[rows].std(axis=0, dtype=np.float64), rtol=1e-4)


def test_constant_columns_become_zero_and_others_are_cut() -> None:
    rows = np.full((5, 2), 7.0, np.float32)
    rows[:, 1] = np.arange(5)
    scaler = Scaler.of(rows, 4.0)
    assert (scaler(rows)[:, 0] == 0).all()
    assert (scaler(np.array([[9.0, 2.0]]))[:, 0] == 0).all() and np.abs(scaler(rows * 1000)).max() <= 4


def test_leading_axes_are_those_of_the_whole_decomposition(
    features: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = np.arange(3000)
    quick = Reduction.of(features, rows, components=8)
    monkeypatch.setattr(module, "_WIDE", 10_000)
    exact = Reduction.of(features, rows, components=8)
    np.testing.assert_allclose(quick.energies, exact.energies, rtol=1e-3)
    agreement = np.abs(np.sum(quick(features) * exact(features), axis=0)) / len(features)
    np.testing.assert_allclose(agreement, 1.0, atol=1e-2)


def test_only_the_given_rows_are_looked_at(features: np.ndarray) -> None:
    wild = features.copy()
    wild[::2] = 60000.0
    rows = np.arange(1, 3000, 2)
    one, two = (Reduction.of(given, rows, components=8) for given in (features, wild))
    for name, array in one.arrays().items():
        np.testing.assert_array_equal(array, two.arrays()[name])


def test_leading_components_are_the_first_ones(features: np.ndarray) -> None:
    whole = Reduction.of(features, np.arange(3000), components=8)
    np.testing.assert_allclose(whole.leading(3)(features[:50]), whole(features[:50])[:, :3], atol=1e-5)
    again = Reduction.from_arrays(whole.arrays())
    np.testing.assert_array_equal(again(features[:50]), whole(features[:50]))


def test_narrow_features_stay_as_they_are_unless_they_are_to_be_rotated(features: np.ndarray) -> None:
    narrow = features[:, :6]
    plain = Reduction.of(narrow, np.arange(3000), components=8, rotate=False)
    assert plain.axes is None and plain(narrow).shape == (3000, 6)
    turned = Reduction.of(narrow, np.arange(3000), components=8)(narrow)
    np.testing.assert_allclose(turned.T @ turned / 3000, np.eye(6), atol=1e-2)
