import numpy as np
import polars as pl
import pytest

from talstack.ensemble.boundaries import boundary_votes
from talstack.io.predictions import ModelKey, SegmentIndex, boundary_classes, segment_rows

INDEX = SegmentIndex(("r0", "r1"), (4, 3))
CLASSES = boundary_classes(2)


def rows_of(view: str, start: np.ndarray, *, first_half: float, valid: np.ndarray | None = None) -> pl.DataFrame:
    """Return a head whose starts have these probabilities and lie in the first half with this share; no ends."""
    probs = np.zeros((7, len(CLASSES)), np.float32)
    probs[:, CLASSES.index("start")] = start
    probs[:, CLASSES.index("start 1/2")] = start * first_half
    probs[:, CLASSES.index("start 2/2")] = start * (1 - first_half)
    valid = np.ones(7, bool) if valid is None else valid
    key = ModelKey(view, "rgb", "boundary-linear")
    return segment_rows(key, INDEX, probs, valid=valid, fold=np.zeros(7, np.int64), classes=CLASSES)


def test_heads_are_averaged_where_they_are_valid_and_offsets_count_by_probability() -> None:
    valid = np.array([1, 1, 1, 1, 0, 0, 0], bool)
    start = np.array([0.0, 0.9, 0.0, 0.0, 0.0, 0.6, 0.0], np.float32)
    table = pl.concat(
        [rows_of("a", start, first_half=1.0), rows_of("b", start / 3, first_half=0.0, valid=valid)]
    )  # fmt: skip
    votes = boundary_votes(table, INDEX, 2.0)
    np.testing.assert_allclose(votes["r0"].start_prob, [0, 0.6, 0, 0], atol=1e-6)
    assert votes["r0"].start_offset_s[1] == pytest.approx(-0.5 * 0.75 + 0.5 * 0.25)
    np.testing.assert_allclose(votes["r1"].start_prob, [0, 0.6, 0], atol=1e-6)
    assert votes["r1"].start_offset_s[1] == pytest.approx(-0.5)
    assert not votes["r1"].end_prob.any()


def test_without_boundary_heads_there_is_nothing() -> None:
    other = rows_of("a", np.zeros(7, np.float32), first_half=1.0).with_columns(head=pl.lit("action-linear"))
    assert boundary_votes(other, INDEX, 2.0) == {}
