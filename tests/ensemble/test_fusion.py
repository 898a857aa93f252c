"""Fusion of several models' intervals, against figures worked out by hand."""

import numpy as np
import polars as pl
import pytest

from talstack.ensemble.fusion import fuse_detections
from talstack.io.detections import DETECTION_SCHEMA
from talstack.io.errors import InputError


def table(*rows: tuple[str, float, float, str, float]) -> pl.DataFrame:
    return pl.DataFrame(list(rows), schema=DETECTION_SCHEMA, orient="row")


def test_overlapping_intervals_are_averaged_by_score() -> None:
    fused = fuse_detections([table(("r", 0.0, 4.0, "a", 0.9)), table(("r", 0.6, 4.6, "a", 0.3))])
    assert fused.row(0) == ("r", pytest.approx(0.15), pytest.approx(4.15), "a", pytest.approx(0.6))


def test_weights_say_how_much_a_model_counts() -> None:
    tables = [table(("r", 0.0, 4.0, "a", 0.4)), table(("r", 1.0, 5.0, "a", 0.4))]
    fused = fuse_detections(tables, weights=[3.0, 1.0])
    assert fused.row(0) == ("r", pytest.approx(0.25), pytest.approx(4.25), "a", pytest.approx(0.4))


def test_interval_that_one_model_of_three_finds_counts_a_third() -> None:
    fused = fuse_detections([table(("r", 0.0, 4.0, "a", 0.9)), table(), table()])
    assert fused.row(0) == ("r", 0.0, 4.0, "a", pytest.approx(0.3))


def test_classes_recordings_and_distant_intervals_are_not_fused() -> None:
    first = table(("r", 0.0, 4.0, "a", 0.9), ("q", 0.0, 4.0, "a", 0.9))
    second = table(("r", 0.0, 4.0, "b", 0.8), ("r", 3.0, 9.0, "a", 0.7))
    assert fuse_detections([first, second]).height == 4


def test_model_speaks_once_in_a_cluster() -> None:
    doubled = table(("r", 0.0, 4.0, "a", 0.8), ("r", 1.0, 5.0, "a", 0.4))
    fused = fuse_detections([doubled, table(("r", 0.0, 4.0, "a", 0.4))])
    assert fused.rows() == [("r", 0.0, 4.0, "a", pytest.approx(0.6))]


def test_order_of_rows_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    start = rng.random(60) * 30
    rows = [("r", s, s + 2 + w, "a", p) for s, w, p in zip(start, rng.random(60), rng.random(60), strict=True)]
    one, two = table(*rows[:30]), table(*rows[30:])
    fused = fuse_detections([one, two])
    shuffled = fuse_detections([one.sample(fraction=1.0, shuffle=True, seed=1), two.reverse()])
    np.testing.assert_allclose(fused.drop("recording", "label"), shuffled.drop("recording", "label"))
    assert fused.height < 60


@pytest.mark.parametrize("weights", [[1.0], [1.0, 0.0]])
def test_wrong_weights_are_refused(weights) -> None:
    with pytest.raises(InputError, match="fusion of 2 tables: expected as many weights, all positive"):
        fuse_detections([table(), table()], weights=weights)


def test_nothing_in_nothing_out() -> None:
    assert fuse_detections([table(), table()]).is_empty()
