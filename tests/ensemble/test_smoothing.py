"""Smoothing with a length per curve."""

import numpy as np
from scipy.ndimage import gaussian_filter1d

from talstack.ensemble.smoothing import class_lengths, smooth


def test_every_curve_is_smoothed_with_its_own_length() -> None:
    values = np.random.default_rng(0).random((50, 3))
    smoothed = smooth(values, np.array([0.0, 1.0, 2.5]))
    np.testing.assert_array_equal(smoothed[:, 0], values[:, 0])
    for column, sigma in ((1, 1.0), (2, 2.5)):
        expected = gaussian_filter1d(values[:, column], sigma, mode="nearest")
        np.testing.assert_allclose(smoothed[:, column], expected, atol=2e-4)


def test_constant_stays_constant_up_to_the_ends() -> None:
    np.testing.assert_allclose(smooth(np.full((5, 1), 0.3), np.array([4.0])), 0.3)


def test_no_length_leaves_the_curves_alone() -> None:
    values = np.random.default_rng(0).random((4, 2))
    assert smooth(values, np.zeros(2)) is values


def test_longer_classes_are_smoothed_more() -> None:
    np.testing.assert_allclose(class_lengths(np.array([1.0, 4.0]), 1.0), [0.5, 2.0])
    np.testing.assert_allclose(class_lengths(np.array([1.0, 4.0]), 0.0), 1.0)
