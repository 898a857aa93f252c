"""The design matrix."""

from dataclasses import replace

import numpy as np
import pytest

from talstack.heads.design import Design, DesignSettings, Scaler, pool_rows
from talstack.heads.features import GroupFeatures
from talstack.io.predictions import SegmentIndex

LINEAR = DesignSettings(pooled=False, components=5, windows=(2,), clip=4.0, rotate=True, whitening=0.0, squares=True)
TREES = DesignSettings(pooled=False, components=50, windows=(2,), clip=4.0)
SCENE = DesignSettings(pooled=True, components=5, windows=(), clip=4.0, rotate=True)


def keep(group: GroupFeatures, *names: str) -> GroupFeatures:
    return group.subset(np.isin(group.recordings, names))


@pytest.mark.parametrize("settings", [LINEAR, TREES, SCENE])
def test_rows_follow_from_the_fitted_design_alone(group: GroupFeatures, settings: DesignSettings) -> None:
    design = Design.fit(keep(group, "r0", "r1", "r2"), settings)
    rows, valid = design.rows(group)
    assert valid.all() and rows.dtype == np.float32
    alone, _ = design.rows(keep(group, "r6"))
    own = group.recordings.index("r6")
    np.testing.assert_allclose(
        alone, rows[own : own + 1] if settings.pooled else rows[group.rows_of(["r6"])], atol=1e-4
    )
    again = Design.from_arrays(design.arrays(), settings)
    np.testing.assert_array_equal(again.rows(group)[0], rows)


def test_shapes(group: GroupFeatures) -> None:
    assert Design.fit(group, LINEAR).rows(group)[0].shape == (400, 5 * 4 * 2)
    assert Design.fit(group, TREES).rows(group)[0].shape == (400, 12 * 4)
    assert Design.fit(group, SCENE).rows(group)[0].shape == (10, 5 * 3)


def test_training_columns_are_standard_where_all_components_count_the_same(group: GroupFeatures) -> None:
    settings = replace(LINEAR, whitening=1.0, clip=50.0)
    rows, _ = Design.fit(group, settings).rows(group)
    np.testing.assert_allclose(rows.mean(axis=0), 0.0, atol=1e-3)
    np.testing.assert_allclose(rows.std(axis=0), 1.0, atol=1e-2)


def test_without_whitening_components_keep_their_proportions(group: GroupFeatures) -> None:
    rows, _ = Design.fit(group, replace(LINEAR, windows=(), squares=False)).rows(group)
    spread = rows.std(axis=0)
    assert (np.diff(spread) < 0).all() and spread[0] > 1.1 * spread[-1]


def test_invalid_rows_are_masked_and_fit_nothing(group: GroupFeatures) -> None:
    valid = group.valid.copy()
    valid[5:15] = False
    wild = group.features.copy()
    wild[5:15] = 60000.0
    masked, clean = replace(group, valid=valid), Design.fit(replace(group, valid=valid), LINEAR)
    spoiled = replace(masked, features=wild)
    rows, there = Design.fit(spoiled, LINEAR).rows(spoiled)
    assert not there[5:15].any() and (rows[5:15] == 0).all()
    np.testing.assert_allclose(rows, clean.rows(masked)[0], atol=1e-5)


def test_own_log_probabilities_are_columns(group: GroupFeatures) -> None:
    informed = replace(group, log_probs=np.log(np.random.default_rng(0).dirichlet([1, 1, 1], 400)).astype(np.float32))
    assert Design.fit(informed, LINEAR).rows(informed)[0].shape == (400, (5 + 3) * 4 * 2)


def test_constant_columns_become_zero() -> None:
    rows = np.full((5, 2), 7.0, np.float32)
    rows[:, 1] = np.arange(5)
    scaler = Scaler.of(rows, 4.0)
    assert (scaler(rows)[:, 0] == 0).all()
    assert (scaler(np.array([[9.0, 2.0]]))[:, 0] == 0).all() and np.abs(scaler(rows * 1000)).max() <= 4


def test_pooling_takes_valid_rows_of_the_own_recording() -> None:
    rows = np.array([[1.0], [3.0], [99.0], [5.0]], np.float32)
    valid = np.array([True, True, False, False])
    pooled, there = pool_rows(rows, valid, index=SegmentIndex(("a", "b"), (3, 1)))
    np.testing.assert_allclose(pooled[0], [2.0, 3.0, 1.0])
    assert there.tolist() == [True, False]
