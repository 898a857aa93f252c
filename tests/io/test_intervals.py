import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from talstack.io.intervals import merge_intervals

QUARTERS = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 9)), max_size=12)


@given(QUARTERS)
def test_merged_intervals_cover_the_same_moments_once(drawn: list[tuple[int, int]]) -> None:
    intervals = np.array([(start / 4, (start + length) / 4) for start, length in drawn]).reshape(-1, 2)
    merged = merge_intervals(intervals)
    moments = np.arange(0, 50, 0.25) + 0.125

    def covering(rows: np.ndarray) -> np.ndarray:
        return ((rows[:, :1] <= moments) & (moments < rows[:, 1:])).sum(axis=0)

    assert np.array_equal(covering(merged), covering(intervals) > 0)
    assert (merged[1:, 0] > merged[:-1, 1]).all(), "ascending, and apart"
