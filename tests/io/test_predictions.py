"""What boundary heads say, read from the long table."""

import numpy as np
import polars as pl
import pytest

from talstack.io.errors import InputError
from talstack.io.predictions import (
    ModelKey,
    SegmentIndex,
    boundary_classes,
    boundary_curves,
    by_model,
    folds_in,
    segment_rows,
)

KEY = ModelKey("front", "rgb", "boundary-linear")
INDEX = SegmentIndex(("a", "b"), (2, 1))


def test_boundary_curves_share_a_segments_probability_out_over_its_parts() -> None:
    probs = np.array([[0.6, 0.4, 0.3, 0.3, 0.0, 0.1], [0.2, 0.0, 0.0, 0.1, 0.0, 0.0], [np.nan] * 6])
    table = segment_rows(
        KEY, INDEX, probs, valid=np.array([True, True, False]), fold=np.zeros(3, int), classes=boundary_classes(2)
    )
    curves = boundary_curves(table.sample(fraction=1.0, shuffle=True, seed=0), KEY, index=INDEX, segment_s=2.0)
    np.testing.assert_allclose(curves.start[:2], [0.6, 0.2], rtol=1e-6)
    np.testing.assert_allclose(curves.end[:2], [0.4, 0.0], atol=1e-6)
    np.testing.assert_allclose(curves.start_offset_s[:2], [1.0, 1.5], rtol=1e-6)
    assert curves.end_offset_s[0] == pytest.approx(1.5)
    np.testing.assert_allclose(curves.start_parts[:2], [[0.3, 0.3], [0.0, 0.2]], rtol=1e-6)
    np.testing.assert_allclose(curves.end_parts[:2], [[0.0, 0.4], [0.0, 0.0]], atol=1e-6)
    for curve in curves:
        assert np.isnan(curve[2]).all(), "no valid prediction there"


@pytest.mark.parametrize("kind", [pl.String, pl.Categorical])
def test_every_recording_and_fold_is_found_once_in_whatever_order_rows_are(kind: type[pl.DataType]) -> None:
    names, folds = ["b", "a", "b", "c", "c", "a", "b"], [1, None, 1, 2, 0, None, 1]
    table = pl.DataFrame({"recording": names, "fold": folds}, schema={"recording": pl.String, "fold": pl.Int32})
    assert folds_in(table.cast({"recording": kind})) == [("a", None), ("b", 1), ("c", 0), ("c", 2)]


def test_other_heads_have_no_boundaries() -> None:
    table = segment_rows(
        KEY, INDEX, np.zeros((3, 2)), valid=np.ones(3, bool), fold=np.zeros(3, int), classes=("wave", "jump")
    )
    with pytest.raises(InputError, match="not those of a boundary head"):
        boundary_curves(table, KEY, index=INDEX, segment_s=1.0)
    with pytest.raises(InputError, match="front/rgb/boundary-gbm"):
        boundary_curves(table, ModelKey("front", "rgb", "boundary-gbm"), index=INDEX, segment_s=1.0)


def test_rows_come_apart_by_model_whatever_their_order() -> None:
    other = ModelKey("back", "rgb", "action-gbm")
    fold = np.zeros(INDEX.num_rows, dtype=np.int64)
    valid = np.ones(INDEX.num_rows, dtype=bool)
    tables = {
        key: segment_rows(
            key,
            INDEX,
            np.full((INDEX.num_rows, 500), value),
            valid=valid,
            fold=fold,
            classes=[f"c{i}" for i in range(500)],
        )
        for key, value in ((KEY, 0.25), (other, 0.75))
    }
    together = pl.concat(tables.values())
    for table in (together, pl.concat([together, tables[KEY]]), together.sample(fraction=1.0, shuffle=True, seed=0)):
        found = by_model(table)
        assert list(found) == [other, KEY]
        assert sum(rows.height for rows in found.values()) == table.height
        assert found[KEY]["prob"].unique().to_list() == [0.25] and found[other]["prob"].unique().to_list() == [0.75]
    assert by_model(together.clear()) == {}
