"""The design matrix."""

from dataclasses import replace

import numpy as np
import pytest

from talstack.heads.context import Context
from talstack.heads.design import Design, DesignSettings, pool_rows
from talstack.heads.features import GroupFeatures
from talstack.heads.reduction import Reduction
from talstack.io.predictions import SegmentIndex

CONTEXT = Context(windows=(2,))
LINEAR = DesignSettings(
    pooled=False, components=5, context=CONTEXT, clip=4.0, rotate=True, whitening=0.0, context_gain=0.5, squares=1.0
)
TREES = DesignSettings(pooled=False, components=50, context=CONTEXT, clip=4.0)
SCENE = DesignSettings(pooled=True, components=5, clip=4.0, rotate=True)


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
    settings = replace(LINEAR, whitening=1.0, clip=50.0, context_gain=1.0)
    rows, _ = Design.fit(group, settings).rows(group)
    np.testing.assert_allclose(rows.mean(axis=0), 0.0, atol=1e-3)
    np.testing.assert_allclose(rows.std(axis=0), 1.0, atol=1e-2)


def test_without_whitening_components_keep_their_proportions(group: GroupFeatures) -> None:
    rows, _ = Design.fit(group, replace(LINEAR, context=Context(), squares=0.0)).rows(group)
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


def test_gains_scale_context_and_squares(group: GroupFeatures) -> None:
    plain = replace(LINEAR, context_gain=1.0, context=Context(windows=(2,), position=True))
    rows, _ = Design.fit(group, plain).rows(group)
    scaled, _ = Design.fit(group, replace(plain, context_gain=0.25, squares=0.5)).rows(group)
    width = 5 * 4 + 3
    sizes = np.r_[np.ones(5), np.full(width - 5, 0.25)]
    np.testing.assert_allclose(scaled, rows * np.r_[sizes, sizes * 0.5], rtol=1e-5)


def test_components_made_before_give_the_same_rows(group: GroupFeatures) -> None:
    """Heads that share a reduction need fewer components than it holds, and never see the stored features."""
    reduction = Reduction.of(group.features, np.flatnonzero(group.valid), components=8)
    reduced = replace(group, features=reduction(group.features), reduction=reduction)
    direct, shared = Design.fit(group, LINEAR), Design.fit(reduced, LINEAR)
    np.testing.assert_allclose(shared.rows(reduced)[0], direct.rows(group)[0], atol=1e-4)
    np.testing.assert_allclose(shared.rows(group)[0], direct.rows(group)[0], atol=1e-4)


def test_pooling_takes_valid_rows_of_the_own_recording() -> None:
    rows = np.array([[1.0], [3.0], [99.0], [5.0]], np.float32)
    valid = np.array([True, True, False, False])
    pooled, there = pool_rows(rows, valid, index=SegmentIndex(("a", "b"), (3, 1)))
    np.testing.assert_allclose(pooled[0], [2.0, 3.0, 1.0])
    assert there.tolist() == [True, False]
