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
LINEAR = DesignSettings(pooled=False, components=5, context=CONTEXT, clip=4.0, rotate=True, whitening=0.0, squares=1.0)
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
    settings = replace(LINEAR, whitening=1.0, clip=50.0)
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


def test_context_columns_are_told_from_own_ones(group: GroupFeatures) -> None:
    """Nothing but them, and their squares, changes with the neighbours."""
    settings = replace(LINEAR, context=Context(windows=(2,), position=True), context_components=2, squares=0.5)
    design = Design.fit(group, settings)
    rows, _ = design.rows(group)
    alone, _ = design.rows(keep(group, "r3"))
    own = group.rows_of(["r3"])
    short = replace(
        keep(group, "r3"), index=SegmentIndex(("r3",), (20,)), features=group.features[own][:20],
        valid=group.valid[own][:20], log_probs=group.log_probs[own][:20],
        scene_log_probs=group.scene_log_probs[own][:20],
    )  # fmt: skip
    cut, _ = design.rows(short)
    context = design.context_columns
    assert rows.shape[1] == len(context) == 2 * 4 + 3 + 3 + 2 * 4 + 3 and context.sum() == 2 * (2 * 3 + 3)
    changed = np.abs(cut[19] - alone[19]) > 1e-4
    np.testing.assert_array_equal(changed & ~context, np.zeros(len(context), dtype=bool))
    assert changed[context].sum() > 8


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
