import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from talstack.io.errors import InputError
from talstack.io.grid import SegmentGrid


@pytest.mark.parametrize(
    ("duration_s", "segment_s", "expected"),
    [(10.0, 1.0, 10), (10.4, 1.0, 10), (10.5, 1.0, 11), (30.0, 0.1, 300), (0.2, 1.0, 1), (68.8333, 0.25, 275)],
)
def test_last_segment_is_kept_if_half_covered(duration_s: float, segment_s: float, expected: int) -> None:
    assert len(SegmentGrid(duration_s, segment_s)) == expected


@pytest.mark.parametrize("duration_s", [0.0, -1.0, float("nan"), float("inf")])
def test_impossible_durations_are_refused(duration_s: float) -> None:
    with pytest.raises(InputError, match="duration_s must be a positive"):
        SegmentGrid(duration_s, 1.0)


@given(st.floats(0.5, 500), st.sampled_from([0.1, 0.25, 0.3, 1.0, 2.0]))
def test_index_and_seconds_are_inverse(duration_s: float, segment_s: float) -> None:
    grid = SegmentGrid(duration_s, segment_s)
    assert np.array_equal(grid.index_at(grid.centres_s), np.arange(len(grid)))
    assert np.array_equal(grid.index_at(grid.edges_s[:, 0]), np.arange(len(grid)))


def test_coverage_is_the_covered_fraction() -> None:
    coverage = SegmentGrid(4.0, 1.0).coverage(np.array([[0.5, 2.25]]))
    assert np.allclose(coverage, [[0.5, 1.0, 0.25, 0.0]])


def test_sample_times_are_the_middles_of_equal_parts() -> None:
    times = SegmentGrid(2.0, 1.0).sample_times_s(4)
    assert np.allclose(times, [[0.125, 0.375, 0.625, 0.875], [1.125, 1.375, 1.625, 1.875]])
