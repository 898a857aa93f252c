"""Suppression against a plain loop, and the rules that the loop itself stands for."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from talstack.ensemble import nms
from talstack.ensemble.nms import METHODS, suppress, top_k
from talstack.io.errors import InputError

proposals = st.lists(
    st.tuples(
        st.integers(0, 40).map(lambda n: n / 4),  # coarse values, so that ties and equal intervals occur
        st.integers(1, 20).map(lambda n: n / 4),
        st.integers(0, 10).map(lambda n: n / 10),
        st.integers(0, 3),
    ),
    max_size=40,
)


def tiou(a: np.ndarray, b: np.ndarray) -> float:
    inner = max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
    return inner / ((a[1] - a[0]) + (b[1] - b[0]) - inner)


def loop(intervals, scores, groups, *, method, threshold, sigma, min_score) -> dict[int, float]:
    """Return {row: score}, one proposal at a time."""
    kept: dict[int, float] = {}
    for group in set(groups.tolist()):
        left = {int(row): float(scores[row]) for row in np.flatnonzero(groups == group) if scores[row] >= min_score}
        while left:
            best = max(left, key=lambda row: (left[row], -row))
            kept[best] = left.pop(best)
            for row in list(left):
                t = tiou(intervals[row], intervals[best])
                weight = {
                    "hard": 0.0 if t >= threshold else 1.0,
                    "linear": 1.0 - t if t >= threshold else 1.0,
                    "gaussian": math.exp(-t * t / sigma),
                }[method]
                left[row] *= weight
                if weight == 0 or left[row] < min_score:
                    del left[row]
    return kept


@given(
    rows=proposals,
    method=st.sampled_from(METHODS),
    threshold=st.sampled_from([0.25, 0.5, 1.0]),
    sigma=st.sampled_from([0.1, 0.5]),
    min_score=st.sampled_from([0.0, 0.15]),
)
@settings(max_examples=200, deadline=None)
def test_equals_a_plain_loop(rows, method, threshold, sigma, min_score) -> None:
    table = np.array(rows, dtype=np.float64).reshape(-1, 4)
    intervals = np.stack([table[:, 0], table[:, 0] + table[:, 1]], axis=1)
    arguments = {"method": method, "threshold": threshold, "sigma": sigma, "min_score": min_score}
    kept, decayed = suppress(intervals, table[:, 2], table[:, 3].astype(int), **arguments)
    expected = loop(intervals, table[:, 2], table[:, 3].astype(int), **arguments)
    assert kept.tolist() == sorted(expected)
    np.testing.assert_allclose(decayed, [expected[row] for row in kept.tolist()], rtol=1e-9)


@pytest.mark.parametrize("way", ["pairs", "one by one", "pairs, then one by one", "in portions"])
@pytest.mark.parametrize("method", METHODS)
def test_many_groups_of_different_sizes_equal_the_loop(way, method, monkeypatch) -> None:
    monkeypatch.setattr(nms, "CROWDED", 0 if way == "one by one" else 10**9)
    monkeypatch.setattr(nms, "LEAST_PROGRESS", 0.4 if way == "pairs, then one by one" else 0.0)
    monkeypatch.setattr(nms, "MAX_PAIRS", 500 if way == "in portions" else 1 << 22)
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(60), rng.integers(1, 50, 60))
    rng.shuffle(groups)
    start = rng.random(len(groups)) * 30
    intervals = np.stack([start, start + rng.uniform(0.2, 6, len(groups))], axis=1)
    scores = rng.random(len(groups))
    arguments = {"method": method, "threshold": 0.5, "sigma": 0.5, "min_score": 0.05}
    kept, decayed = suppress(intervals, scores, groups, **arguments)
    expected = loop(intervals, scores, groups, **arguments)
    assert kept.tolist() == sorted(expected)
    np.testing.assert_allclose(decayed, [expected[row] for row in kept.tolist()])


def test_first_of_equal_scores_is_taken() -> None:
    kept, _ = suppress(np.array([[0, 2], [0.1, 2.1]]), np.array([0.5, 0.5]), np.array([0, 0]), method="hard")
    assert kept.tolist() == [0]


def test_groups_do_not_compete() -> None:
    intervals = np.array([[0.0, 2.0], [0.0, 2.0]])
    kept, decayed = suppress(intervals, np.array([0.9, 0.5]), np.array([0, 1]), method="hard")
    assert kept.tolist() == [0, 1]
    assert decayed.tolist() == [0.9, 0.5]


def test_gaussian_weight_is_the_published_one() -> None:
    _, decayed = suppress(np.array([[0, 3.0], [1.0, 4.0]]), np.array([0.9, 0.8]), np.array([0, 0]), sigma=0.5)
    assert decayed[1] == pytest.approx(0.8 * math.exp(-(0.5**2) / 0.5))


def test_nothing_in_nothing_out() -> None:
    kept, decayed = suppress(np.zeros((0, 2)), np.zeros(0), np.zeros(0, dtype=int))
    assert len(kept) == len(decayed) == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scores": np.array([0.5])}, "expected one of each per interval"),
        ({"scores": np.array([0.5, np.nan])}, "row 1 has score nan"),
        ({"scores": np.array([-0.1, 0.2])}, "row 0 has score -0.1"),
        ({"intervals": np.array([[0.0, 1.0], [3.0, 2.0]])}, r"row 1 is \[3.0, 2.0\]"),
        ({"method": "greedy"}, "expected one of hard, linear, gaussian"),
        ({"sigma": 0.0}, "sigma must be positive"),
    ],
)
def test_bad_input_is_named(changes, message) -> None:
    arguments = {"intervals": np.array([[0.0, 1.0], [1.0, 2.0]]), "scores": np.array([0.5, 0.5])} | changes
    with pytest.raises(InputError, match=message):
        suppress(groups=np.array([0, 0]), **arguments)


def test_top_k_keeps_the_first_best_of_every_group() -> None:
    scores = np.array([0.1, 0.9, 0.9, 0.2, 0.8])
    assert top_k(scores, np.array([0, 0, 0, 1, 0]), 2).tolist() == [1, 2, 3]
    assert top_k(scores, np.array([0, 0, 0, 1, 0]), 1).tolist() == [1, 3]
