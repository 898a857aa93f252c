"""The hidden Markov model with durations against all paths, one by one."""

import itertools

import numpy as np
import pytest
from scipy.special import expit

from talstack.ensemble.design import CLIP
from talstack.ensemble.hmm import MAX_SEGMENTS, Durations, viterbi_runs

LIMITS = np.log([CLIP / (1 - CLIP), (1 - CLIP) / CLIP])  # of the logits that the model sees


def known_durations(num_curves: int, typical: float = 3.0) -> Durations:
    return Durations.log_normal(
        np.full(num_curves, np.log(typical)), np.full(num_curves, 0.3), np.full(num_curves, 2 * typical)
    )


def value_of(path: list[tuple[int, int]], evidence: np.ndarray, durations: Durations, curve: int) -> float:
    total = 0.0
    for first, past in path:
        table = durations.at_least if first == 0 or past == len(evidence) else durations.exactly
        total += evidence[first:past].sum() + table[past - first - 1, curve]
    return total


def all_paths(num: int):
    """Yield every set of runs of `num` segments; neighbours may touch."""
    for bounds in itertools.product((0, 1, 2), repeat=num):  # 0 off, 1 a run begins, 2 it goes on
        runs, valid = [], True
        for at, state in enumerate(bounds):
            if state == 1:
                runs.append([at, at + 1])
            elif state == 2:
                if at == 0 or bounds[at - 1] == 0:
                    valid = False
                    break
                runs[-1][1] = at + 1
        if valid:
            yield [tuple(run) for run in runs]


@pytest.mark.parametrize("seed", range(4))
def test_path_is_the_best_of_all(seed) -> None:
    rng = np.random.default_rng(seed)
    logit = rng.normal(0.0, 2.5, (7, 2))
    durations = known_durations(2)
    _, _, curve, segments = viterbi_runs([expit(logit)], durations, levels=[0.5], weight=0.8)
    for column in range(2):
        evidence = 0.8 * logit[:, column]
        found = [tuple(run) for run in segments[curve == column].tolist()]
        best = max(value_of(path, evidence, durations, column) for path in all_paths(7))
        assert value_of(found, evidence, durations, column) == pytest.approx(best, abs=1e-4)


def best_value(evidence: np.ndarray, durations: Durations, curve: int) -> float:
    """Return the value of the best path, over all segments and all durations, one by one."""
    best = [0.0]
    for past in range(1, len(evidence) + 1):
        values = [best[-1]]
        for first in range(max(0, past - len(durations.exactly)), past):
            values.append(best[first] + value_of([(first, past)], evidence, durations, curve))
        best.append(max(values))
    return best[-1]


@pytest.mark.parametrize("typical", [1.0, 4.0, 15.0])
def test_what_is_left_out_of_the_search_has_no_run(typical) -> None:
    rng = np.random.default_rng(int(typical))
    durations = known_durations(3, typical)
    logit = [rng.normal(-1.0, 2.0, (num, 3)) + 2.0 * np.sin(np.arange(num) / 5.0)[:, None] for num in (90, 31, 1, 64)]
    levels, num_runs = (0.3, 0.5), 0
    found = viterbi_runs([expit(values) for values in logit], durations, levels=levels, weight=0.7)
    for recording, values in enumerate(logit):
        level, curve, segments = (part[found[0] == recording] for part in found[1:])
        for number, column in itertools.product(range(len(levels)), range(3)):
            evidence = 0.7 * (np.clip(values[:, column], *LIMITS) - np.log(levels[number] / (1 - levels[number])))
            path = [tuple(run) for run in segments[(level == number) & (curve == column)].tolist()]
            value = value_of(path, evidence, durations, column)
            assert value == pytest.approx(best_value(evidence, durations, column), abs=1e-3)
            assert all(a[1] <= b[0] for a, b in itertools.pairwise(path))
            num_runs += len(path)
    assert num_runs > 20


def test_recordings_of_different_length_are_independent() -> None:
    rng = np.random.default_rng(0)
    values = [expit(rng.normal(0, 3, (num, 3))) for num in (5, 40, 17)]
    durations = known_durations(3)
    owner, _, curves, intervals = viterbi_runs(values, durations, levels=[0.4], weight=0.5)
    for recording, of_one in enumerate(values):
        curve, segments = curves[owner == recording], intervals[owner == recording]
        _, _, alone_curve, alone = viterbi_runs([of_one], durations, levels=[0.4], weight=0.5)
        assert (curve.tolist(), segments.tolist()) == (alone_curve.tolist(), alone.tolist())


def test_flicker_shorter_than_any_instance_is_passed_over() -> None:
    logit = np.full((30, 1), -3.0)
    logit[10:18] = 3.0
    logit[13] = -1.5
    logit[24] = 1.5
    _, _, _, segments = viterbi_runs([expit(logit)], known_durations(1, 8.0), levels=[0.5], weight=0.5)
    assert segments.tolist() == [[10, 18]]


def test_typical_duration_decides_where_the_curve_does_not() -> None:
    logit = np.full((20, 1), -4.0)
    logit[4:9], logit[9:12] = 4.0, 0.0
    ends = []
    for typical in (5.0, 9.0):  # the likeliest length is a little below
        _, _, _, segments = viterbi_runs([expit(logit)], known_durations(1, typical), levels=[0.5], weight=0.5)
        ends.append(segments.tolist())
    assert ends == [[[4, 9]], [[4, 12]]]


def test_long_classes_do_not_make_the_table_endless() -> None:
    durations = Durations.log_normal(np.array([3.0]), np.array([1.0]), np.array([1e6]))
    assert durations.exactly.shape == (MAX_SEGMENTS, 1)
    assert [len(part) for part in viterbi_runs([], durations, levels=[0.5], weight=1.0)] == [0] * 4
    assert [len(part) for part in viterbi_runs([np.ones((3, 1))], durations, levels=[], weight=1.0)] == [0] * 4
