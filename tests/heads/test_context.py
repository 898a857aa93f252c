"""Context of neighbouring segments."""

import numpy as np

from talstack.heads.context import Context, context_rows
from talstack.io.predictions import SegmentIndex


def naive(rows: np.ndarray, valid: np.ndarray, counts: tuple[int, ...], windows: tuple[int, ...]) -> np.ndarray:
    out, start = [], 0
    for count in counts:
        part, good = rows[start : start + count], valid[start : start + count]
        for i in range(count):
            columns = [part[i]]
            for n in windows:
                sides = [range(max(i - n, 0), i), range(i + 1, min(i + n + 1, count))]
                means = []
                for side in sides:
                    own = [part[j] for j in side if good[j]]
                    means.append(np.mean(own, axis=0) if own else part[i])
                around = [part[j] for j in (*sides[0], i, *sides[1]) if good[j]]
                spread = np.std(around, axis=0) if around else np.zeros_like(part[i])
                highest = np.max(around, axis=0) if around else part[i]
                columns += [(means[0] + means[1]) / 2, (means[1] - means[0]) / 2, spread, highest]
            out.append(np.concatenate(columns))
        start += count
    return np.array(out)


def test_context_equals_the_plain_loop() -> None:
    rng = np.random.default_rng(1)
    counts, windows = (7, 1, 12), (1, 4)
    rows, valid = rng.normal(size=(20, 3)).astype(np.float32), rng.random(20) > 0.3
    index = SegmentIndex(("a", "b", "c"), counts)
    got = context_rows(rows, valid, index=index, context=Context(windows, ("level", "slope", "spread", "max")))
    assert got.shape == (20, 3 * 9) and got.dtype == np.float32
    np.testing.assert_allclose(got[valid], naive(rows, valid, counts, windows)[valid], atol=1e-5)


def test_neighbours_never_cross_recordings_and_invalid_ones_do_not_count() -> None:
    rows = np.zeros((6, 1), dtype=np.float32)
    rows[3:] = 100.0  # the second recording
    rows[1] = np.nan  # an invalid row may hold anything
    valid = np.array([True, False, True, True, True, True])
    got = context_rows(rows, valid, index=SegmentIndex(("a", "b"), (3, 3)), context=Context((2,)))
    assert (got[[0, 2]] == 0).all()
    np.testing.assert_allclose(got[3:], [[100.0, 100.0, 0.0, 0.0]] * 3)


def test_slope_is_largest_at_a_boundary() -> None:
    rows = np.repeat([0.0, 1.0], 10)[:, None].astype(np.float32)
    got = context_rows(rows, np.ones(20, dtype=bool), index=SegmentIndex(("a",), (20,)), context=Context((3,)))
    assert set(np.flatnonzero(got[:, 2] == got[:, 2].max())) <= {9, 10}


def test_no_windows_leave_the_rows_alone() -> None:
    rows = np.arange(4, dtype=np.float32)[:, None]
    got = context_rows(rows, np.ones(4, dtype=bool), index=SegmentIndex(("a",), (4,)), context=Context())
    np.testing.assert_array_equal(got, rows)


def test_neighbours_stand_side_by_side_and_a_missing_one_is_the_segment_itself() -> None:
    rows = np.arange(6, dtype=np.float32)[:, None]
    valid = np.array([True, True, True, True, False, True])
    got = context_rows(rows, valid, index=SegmentIndex(("a", "b"), (3, 3)), context=Context(neighbours=2))
    np.testing.assert_array_equal(
        got[[0, 1, 3, 5]], [[0, 0, 1, 0, 2], [1, 0, 2, 1, 1], [3, 3, 3, 3, 5], [5, 5, 5, 3, 5]]
    )


def test_position_tells_start_from_end() -> None:
    rows = np.zeros((5, 1), np.float32)
    context = Context(position=True)
    got = context_rows(rows, np.ones(5, bool), index=SegmentIndex(("a", "b"), (4, 1)), context=context)
    assert got.shape == (5, context.width(1)) == (5, 4)
    np.testing.assert_allclose(got[:4, 1], [0.125, 0.375, 0.625, 0.875])
    np.testing.assert_allclose(got[:4, 2], got[:4, 3][::-1])
    assert (np.diff(got[:4, 2]) > 0).all()
