"""Inner folds follow the outer ones."""

import numpy as np

from talstack.heads.inner_folds import inner_folds


def test_every_outer_fold_is_one_inner_fold_or_shares_one() -> None:
    outer = np.array([4, 1, 4, 2, 7, 1])
    assert inner_folds(outer, 4, seed=0).tolist() == [2, 0, 2, 1, 3, 0]
    assert inner_folds(outer, 3, seed=0).tolist() == [2, 0, 2, 1, 0, 0]


def test_recordings_of_one_outer_fold_are_dealt_out() -> None:
    dealt = inner_folds(np.full(7, 3), 3, seed=0)
    assert sorted(np.bincount(dealt)) == [2, 2, 3]
    assert (inner_folds(np.array([3, 3, 3]), 2, seed=0) == 0).all()
