"""Features of the stacker: windows, rivals, and what stands in for a missing model."""

import numpy as np
import pytest

from talstack.ensemble.design import Scaling, action_features, activity_features, logits, neighbour_means


def test_windows_average_both_sides_inside_the_recording() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(2, 9, 3)).astype(np.float32)
    values[1, 4:6] = np.nan
    near, far = neighbour_means(values, (2, 5))
    for model in range(2):
        for here in range(9):
            for got, (low, high) in ((near, (1, 2)), (far, (3, 5))):
                others = [t for t in range(9) if low <= abs(t - here) <= high]
                expected = np.nanmean(values[model, others], axis=0)
                np.testing.assert_allclose(got[model, here], expected, rtol=1e-4, atol=1e-5)


def test_windows_do_not_depend_on_whether_other_models_miss_a_segment() -> None:
    values = np.random.default_rng(0).normal(size=(2, 9, 3)).astype(np.float32)
    gap = values.copy()
    gap[1, 4] = np.nan
    for whole, with_gap in zip(neighbour_means(values, (1, 3)), neighbour_means(gap, (1, 3)), strict=True):
        np.testing.assert_allclose(whole[0], with_gap[0], rtol=1e-6)
        assert not np.isnan(whole).any()


def test_lonely_segment_stands_in_for_its_neighbours() -> None:
    values = np.array([[[0.7]]], dtype=np.float32)
    assert neighbour_means(values, (2,))[0].tolist() == values.tolist()


def test_kinds_are_own_windows_companion_rival() -> None:
    action = np.array([[[0.2, 0.9, 0.5]]], dtype=np.float32)
    features = action_features(action, np.array([[0.6]], dtype=np.float32), (2, 4))
    assert features.shape == (5, 1, 1, 3)
    np.testing.assert_allclose(features[0, 0, 0], logits(action[0, 0]))
    np.testing.assert_allclose(features[3, 0, 0], logits(np.full(3, 0.6)), rtol=1e-6)
    np.testing.assert_allclose(features[4, 0, 0], logits(np.array([0.9, 0.5, 0.9])), rtol=1e-6)


def test_single_class_has_no_rival() -> None:
    features = action_features(np.array([[[0.4]]]), np.array([[0.6]]), (1,))
    assert features[-1, 0, 0, 0] == pytest.approx(float(logits(np.zeros(1))[0]))


def test_activity_is_told_by_activity_heads_alone() -> None:
    rng = np.random.default_rng(0)
    activity = rng.random((2, 6)).astype(np.float32)
    one = activity_features(rng.random((2, 6, 3)), activity, (2, 4))
    other = activity_features(rng.random((2, 6, 3)), activity, (2, 4))
    assert one.shape == (2, 2, 6, 1)
    np.testing.assert_array_equal(one, other)


def test_missing_model_is_filled_by_those_present_and_flagged() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(3.0, 2.0, size=(2, 3, 50, 4)).astype(np.float32)
    scaling = Scaling.of(features)
    whole = scaling.apply(features)
    assert whole.shape == (4, 50, 2 * 3 + 3)
    np.testing.assert_allclose(whole[..., :6].mean(axis=(0, 1)), 0.0, atol=1e-5)
    np.testing.assert_allclose(whole[..., :6].std(axis=(0, 1)), 1.0, atol=1e-4)
    assert not whole[..., 6:].any()
    features[:, 1, :5] = np.nan
    features[:, :, 7] = np.nan
    filled = scaling.apply(features)
    np.testing.assert_allclose(filled[:, :5, 1], (whole[:, :5, 0] + whole[:, :5, 2]) / 2, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(filled[0, :5, 6:], np.tile([0.0, 1.0, 0.0], (5, 1)))
    np.testing.assert_array_equal(filled[:, 7, :6], 0.0)
    np.testing.assert_allclose(filled[:, 8:], whole[:, 8:], rtol=1e-6)


def test_scaling_ignores_what_is_missing() -> None:
    features = np.array([1.0, 3.0, np.nan, np.nan], dtype=np.float32).reshape(1, 1, 4, 1)
    scaling = Scaling.of(features)
    assert scaling.mean[0, 0] == pytest.approx(2.0)
    assert scaling.std[0, 0] == pytest.approx(1.0)
    constant = Scaling.of(np.full((1, 1, 4, 1), 5.0, dtype=np.float32))
    assert constant.std[0, 0] == 1.0
