from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from talstack.extract.external import load_series, pool_series
from talstack.io.errors import InputError, MissingInputError
from talstack.io.grid import SegmentGrid


@given(st.integers(0, 60), st.integers(1, 3), st.integers(0, 2**32 - 1))
def test_statistics_are_those_of_the_samples_inside(num_samples: int, channels: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    times = np.sort(rng.uniform(0, 6, num_samples))
    values = rng.normal(size=(num_samples, channels))
    grid = SegmentGrid(5.0, 1.0)
    features, valid = pool_series(values, times, grid)
    for i in range(len(grid)):
        inside = values[(times >= i) & (times < i + 1)]
        assert valid[i] == (len(inside) > 0)
        if len(inside):
            change = np.diff(inside, axis=0).mean(axis=0) if len(inside) > 1 else np.zeros(channels)
            statistics = [inside.mean(0), inside.std(0), inside.min(0), inside.max(0), change]
            assert np.allclose(features[i], np.concatenate(statistics), atol=1e-5)
        else:
            assert not features[i].any()


def test_bad_files_are_refused_with_the_row(tmp_path: Path) -> None:
    path = tmp_path / "s.npz"
    with pytest.raises(MissingInputError, match="no such feature file"):
        load_series(path)
    np.savez(path, values=np.zeros((3, 2)), times_s=np.array([0.0, 2.0, 1.0]))
    with pytest.raises(InputError, match="must ascend, row 2"):
        load_series(path)
    np.savez(path, values=np.array([[0.0], [np.nan]]), times_s=np.arange(2.0))
    with pytest.raises(InputError, match="values holds NaN or infinity, first in row 1"):
        load_series(path)
    np.savez(path, x=np.zeros(3))
    with pytest.raises(InputError, match="`values` and `times_s`"):
        load_series(path)
    path.write_bytes(b"not a zip")
    with pytest.raises(InputError, match="`values` and `times_s`"):
        load_series(path)
    np.savez(path, values=np.array([{}], dtype=object), times_s=np.zeros(1))
    with pytest.raises(InputError, match="`values` and `times_s`"):
        load_series(path)
