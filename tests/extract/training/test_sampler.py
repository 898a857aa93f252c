from typing import Any

import numpy as np
import pytest

from talstack.extract.training.sampler import BatchSampler
from talstack.io.errors import InputError

COUNTS = np.array([600, 150, 30, 6])


def sampler_of(targets: np.ndarray, units: np.ndarray, **settings: Any) -> BatchSampler:
    settings = {"batch_size": 32, "segments_per_recording": 4, "balance": 0.5, "seed": 0} | settings
    return BatchSampler(targets, units, **settings)


def skewed() -> tuple[np.ndarray, np.ndarray]:
    """Return one-hot targets by `COUNTS` and a fresh order of 20 units."""
    rng = np.random.default_rng(3)
    classes = rng.permutation(np.repeat(np.arange(4), COUNTS))
    return np.eye(4, dtype=np.float32)[classes], rng.integers(0, 20, len(classes))


@pytest.mark.parametrize("balance", [0.0, 0.5, 1.0])
def test_anchors_follow_the_stated_rule(balance: float) -> None:
    targets, units = skewed()
    sampler = sampler_of(targets, units, batch_size=400, segments_per_recording=1, balance=balance)
    rows = np.concatenate([sampler.batch(0, step)[0] for step in range(100)])
    expected = COUNTS ** (1 - balance) / (COUNTS ** (1 - balance)).sum()
    np.testing.assert_allclose(targets[rows].mean(axis=0), expected, atol=0.012)  # five standard errors
    if balance == 0:
        assert np.bincount(rows, minlength=len(targets)).max() < 100, "segments, not only classes, come evenly"


def test_the_others_of_a_group_are_balanced_inside_its_unit() -> None:
    targets = np.eye(2, dtype=np.float32)[np.repeat([0, 1], [900, 100])]
    share = {}
    for balance in (0.0, 1.0):
        sampler = sampler_of(targets, np.zeros(1000, np.int64), balance=balance)
        others = np.concatenate([sampler.batch(0, step)[0].reshape(8, 4)[:, 1:].ravel() for step in range(400)])
        share[balance] = targets[others, 1].mean()
    assert share[0.0] == pytest.approx(0.1, abs=0.02)
    assert share[1.0] == pytest.approx(0.5, abs=0.03)


def test_all_classes_of_a_segment_count() -> None:
    targets = np.zeros((200, 3), np.float32)
    targets[:100, 0] = 1
    targets[100:, 1], targets[199, 1:] = 1, 0.5  # the only segment of class 2 shows class 1 too
    sampler = sampler_of(targets, np.arange(200), batch_size=400, segments_per_recording=1, balance=1.0)
    rows = np.concatenate([sampler.batch(0, step)[0] for step in range(50)])
    once = 1 / 3 + 1 / 3 * 0.5 / 99.5  # all of class 2's draws, and its part of class 1's
    assert (rows == 199).mean() == pytest.approx(once, abs=0.02)


def test_targets_that_do_not_sum_to_one_are_drawn_as_they_come_at_balance_zero() -> None:
    targets = np.array([[1, 0, 0]] * 50 + [[0, 1, 1]] * 50, dtype=np.float32)
    sampler = sampler_of(targets, np.arange(100), batch_size=400, segments_per_recording=1, balance=0.0)
    rows = np.concatenate([sampler.batch(0, step)[0] for step in range(50)])
    assert (rows < 50).mean() == pytest.approx(0.5, abs=0.02)


def test_a_group_is_of_one_unit_and_repeats_no_segment() -> None:
    targets, units = skewed()
    sampler = sampler_of(targets, units * 7 - 3)
    for step in range(50):
        rows, groups = sampler.batch(1, step)
        assert rows.dtype == groups.dtype == np.int64 and rows.shape == (32,)
        assert groups.tolist() == np.repeat(np.arange(8), 4).tolist()
        for group in rows.reshape(8, 4):
            assert len(set(units[group])) == 1
            assert len(set(group)) == 4


def test_a_unit_smaller_than_a_group_repeats_all_of_its_segments() -> None:
    targets = np.ones((3, 1), np.float32)
    sampler = sampler_of(targets, np.array([5, 9, 5]), batch_size=4, balance=0.0)
    seen = {tuple(sorted(sampler.batch(0, step)[0].tolist())) for step in range(60)}
    assert seen == {(0, 0, 2, 2), (1, 1, 1, 1)}


def test_a_batch_depends_on_seed_epoch_and_step_alone() -> None:
    targets, units = skewed()
    first, second = sampler_of(targets, units), sampler_of(targets, units)
    first.batch(0, 0)
    np.testing.assert_array_equal(first.batch(2, 5)[0], second.batch(2, 5)[0])
    others = [second.batch(2, 6), second.batch(5, 2), sampler_of(targets, units, seed=1).batch(2, 5)]
    assert all((rows != first.batch(2, 5)[0]).any() for rows, _ in others)


def test_an_epoch_has_a_step_per_batch_of_segments_and_at_least_one() -> None:
    targets, units = skewed()
    assert sampler_of(targets, units).steps_per_epoch == 786 // 32
    assert sampler_of(targets[:5], units[:5]).steps_per_epoch == 1


def test_what_cannot_be_sampled_is_refused() -> None:
    targets, units = skewed()
    with pytest.raises(InputError, match="N > 0"):
        sampler_of(targets[:0], units[:0])
    with pytest.raises(InputError, match="batch_size 6 must be a multiple of segments_per_recording 4"):
        sampler_of(targets, units, batch_size=6)
    with pytest.raises(InputError, match="balance must lie in"):
        sampler_of(targets, units, balance=1.5)
    targets[17] = 0
    with pytest.raises(InputError, match="row 17 are negative or all zero"):
        sampler_of(targets, units)
