"""Tuning picks what scores, and corrects what is systematically off."""

import os
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from threadpoolctl import threadpool_info

from talstack.ensemble.config import EnsembleConfig
from talstack.ensemble.decode import Curves, Decoder
from talstack.ensemble.durations import ClassDurations
from talstack.ensemble.tune import (
    Problem,
    boundary_bias,
    first_settings,
    is_search,
    nested_average_map,
    solve_each,
    tune,
)
from talstack.io.detections import DETECTION_SCHEMA
from talstack.io.errors import ConfigError, LeakError
from talstack.io.grid import SegmentGrid
from talstack.io.manifest import SCHEMAS
from talstack.io.predictions import SegmentIndex

ONE = EnsembleConfig(
    score=("plain",), refine=(False,), hmm=(False,), proposals=("both",), smoothing_s=(0.0,), smoothing_power=(0.0,),
    gap_s=(0.0,), margin=(0.2,), contrast_weight=(1.0,), nms_sigma=(0.5,),
)  # fmt: skip
NUM_RECORDINGS = 6
OVERLAPPING = {"a": [(3.0, 8.0), (20.0, 24.0), (40.0, 46.0)], "b": [(6.0, 11.0), (22.0, 27.0), (43.0, 49.0)]}


def recordings_like(
    known: dict[str, list[tuple[float, float]]], *, num: int = NUM_RECORDINGS, late_s: float = 0.0, noise: float = 0.0
) -> Problem:
    """Return recordings with these instances, each a little later than the one before, whose curves lag behind."""
    grid, rng = SegmentGrid(60.0, 0.5), np.random.default_rng(0)
    names = tuple(f"r{number}" for number in range(num))
    columns, rows = [[] for _ in known], []
    for number, name in enumerate(names):
        for column, (label, intervals) in zip(columns, known.items(), strict=True):
            distance = np.full(len(grid), -np.inf)
            for start, end in np.array(intervals) + 0.17 * number:
                times = grid.centres_s - late_s
                distance = np.maximum(distance, np.minimum(times - start, end - times))
                rows.append((name, start, end, label))
            logit = np.clip(8 * distance, -50, 50) + noise * rng.normal(size=len(grid))
            column.append(1 / (1 + np.exp(-logit)))
    action = np.stack([np.concatenate(column) for column in columns], axis=1)
    instances = pl.DataFrame(rows, schema=SCHEMAS["instances"], orient="row")
    decoder = Decoder(tuple(known), dict.fromkeys(names, grid), ClassDurations.unknown(len(known)))
    curves = Curves(SegmentIndex(names, (len(grid),) * num), action, action.max(axis=1))
    return Problem.of(decoder, curves, instances, {name: row % 3 for row, name in enumerate(names)}, off_limits=())


def test_class_runs_are_chosen_where_actions_overlap() -> None:
    tuned = tune(recordings_like(OVERLAPPING), config=replace(ONE, proposals=("activity", "class")))
    assert tuned.settings.proposals == "class"
    assert tuned.average_map == pytest.approx(1.0)
    assert tuned.first_average_map < 0.9


@pytest.mark.parametrize(
    ("num", "jobs", "threads"), [(3, 2, [1, 1, 2]), (1, 4, [4]), (3, 16, [5, 5, 5]), (4, 2, [1] * 4), (2, 1, [1, 1])]
)
def test_the_last_systems_share_what_threads_there_are(num: int, jobs: int, threads: list[int]) -> None:
    problems = {f"s{n}": recordings_like(OVERLAPPING, num=2) for n in range(num)}
    found = solve_each(problems, lambda name, one: (name, one.threads, os.getpid()), jobs=jobs, search=False)
    assert found == {f"s{n}": (f"s{n}", threads[n], os.getpid()) for n in range(num)}


def test_searches_run_in_processes_of_their_own() -> None:
    problems = {f"s{n}": recordings_like(OVERLAPPING, num=2) for n in range(3)}
    found = solve_each(problems, lambda name, one: (name, one.threads, os.getpid()), jobs=2, search=True)
    assert list(found) == list(problems)
    assert [one[:2] for one in found.values()] == [(name, 1) for name in problems]
    assert os.getpid() not in {pid for _, _, pid in found.values()}
    alone = solve_each(problems, lambda name, one: os.getpid(), jobs=1, search=True)
    assert set(alone.values()) == {os.getpid()}


def test_the_matrix_library_has_one_thread_in_every_process() -> None:
    problems = {f"s{n}": recordings_like(OVERLAPPING, num=2) for n in range(2)}

    def threads(name: str, problem: Problem) -> set[int]:
        return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}

    for jobs in (1, 2):
        assert solve_each(problems, threads, jobs=jobs, search=True) == {"s0": {1}, "s1": {1}}


def test_systems_are_tuned_alike_in_other_processes() -> None:
    problems = {f"s{n}": recordings_like(OVERLAPPING, late_s=0.1 * n) for n in range(3)}
    config = replace(ONE, proposals=("activity", "class"))
    found = solve_each(problems, lambda name, one: tune(one, config=config), jobs=2, search=True)
    for name, problem in problems.items():
        expected = tune(problem, config=config)
        assert (found[name].settings, found[name].average_map) == (expected.settings, expected.average_map)
        assert found[name].fitted.to_json() == expected.fitted.to_json()


def test_a_choice_of_one_is_no_search() -> None:
    assert not is_search(ONE)
    assert is_search(EnsembleConfig())
    assert not is_search(replace(ONE, gap_s=(0.5, 0.5)))
    margins = replace(ONE, margin=(0.2, 0.5), smoothing_power=(0.0, 1.0), score=("fitted",))
    assert not is_search(margins), "what matters to nothing is no choice"
    assert is_search(replace(margins, score=("plain",)))
    assert is_search(replace(margins, smoothing_s=(0.5,)))


def test_systematic_delay_is_corrected() -> None:
    tuned = tune(recordings_like(OVERLAPPING, late_s=0.3), config=replace(ONE, proposals=("class",)))
    assert tuned.settings.start_shift_s == pytest.approx(-0.3, abs=0.08)
    assert tuned.settings.end_shift_s == pytest.approx(-0.3, abs=0.08)
    assert tuned.average_map == pytest.approx(1.0)
    still = tune(recordings_like(OVERLAPPING), config=replace(ONE, proposals=("class",)))
    assert abs(still.settings.start_shift_s) < 0.05


def test_refined_ends_correct_a_delay_as_well() -> None:
    problem = recordings_like(OVERLAPPING, late_s=0.3)
    tuned = tune(problem, config=replace(ONE, proposals=("class",), refine=(True,)))
    assert len(tuned.fitted.edges) == 2
    assert tuned.settings.start_shift_s == 0.0
    assert tuned.average_map > 0.95


def test_gain_that_luck_explains_changes_nothing() -> None:
    problem = recordings_like(OVERLAPPING, noise=6.0)
    config = replace(EnsembleConfig(), score=("plain",), refine=(False,), hmm=(False,))
    greedy, careful = (tune(problem, config=config, confidence=confidence) for confidence in (0.0, 0.999))
    assert greedy.settings != first_settings(config)
    assert greedy.average_map > greedy.first_average_map
    assert careful.settings == first_settings(config)


def test_one_recording_keeps_the_first_candidates() -> None:
    problem = recordings_like(OVERLAPPING, num=1)
    assert tune(problem, config=replace(ONE, proposals=("activity", "class"))).settings.proposals == "activity"


def test_candidates_that_change_nothing_are_not_tried() -> None:
    problem = recordings_like(OVERLAPPING)
    plain = tune(problem, config=replace(ONE, margin=(0.2, 0.3, 0.4)))
    fitted = tune(problem, config=replace(ONE, margin=(0.2, 0.3, 0.4), score=("fitted",)))
    assert plain.num_tried - fitted.num_tried == 2
    powers = tune(problem, config=replace(ONE, smoothing_power=(0.0, 1.0)))
    assert powers.num_tried == tune(problem, config=ONE).num_tried, "nothing is smoothed"


def test_nested_score_comes_from_settings_that_have_not_seen_the_recordings() -> None:
    problem = recordings_like(OVERLAPPING, noise=2.0)
    config = replace(ONE, proposals=("activity", "class"))
    nested, tuned = nested_average_map(problem, config=config), tune(problem, config=config)
    assert tuned.first_average_map < nested <= tuned.average_map
    assert nested_average_map(recordings_like(OVERLAPPING, num=2), config=config) is None


def test_two_groups_are_divided_so_that_most_recordings_are_learned_from() -> None:
    problem = recordings_like(OVERLAPPING)
    halves = {name: row % 2 for row, name in enumerate(problem.curves.index.recordings)}
    divided = Problem.of(problem.decoder, problem.curves, problem.instances, halves, off_limits=()).groups
    assert len(set(divided.values())) == NUM_RECORDINGS
    assert problem.groups == {name: row % 3 for row, name in enumerate(problem.curves.index.recordings)}


def test_nothing_to_tune_on_gives_the_first_candidates() -> None:
    problem = recordings_like(OVERLAPPING)
    config = EnsembleConfig(margin=(0.3, 0.1), nms_sigma=(0.7,), max_detections=5)
    tuned = tune(replace(problem, instances=problem.instances.clear()), config=config)
    assert tuned.average_map is None
    assert tuned.settings == first_settings(config)
    assert (tuned.settings.margin, tuned.settings.nms_sigma, tuned.settings.max_detections) == (0.3, 0.7, 5)


def test_tuning_on_a_recording_that_is_seen_or_scored_is_refused() -> None:
    problem = recordings_like(OVERLAPPING)
    name, groups = problem.curves.index.recordings[0], problem.groups
    with pytest.raises(LeakError, match=f"tuning of the intervals: 1 of .* recordings .* the first: {name}"):
        Problem.of(problem.decoder, problem.curves, problem.instances, groups, off_limits={name, "other"})


def test_silent_system_can_be_tuned() -> None:
    problem = recordings_like(OVERLAPPING)
    curves = problem.curves
    silent = Curves(curves.index, np.zeros_like(curves.action), np.zeros_like(curves.activity))
    tuned = tune(replace(problem, curves=silent), config=EnsembleConfig())
    assert tuned.average_map == 0.0
    assert tuned.settings == first_settings(EnsembleConfig())


def test_bias_is_the_median_over_matched_instances() -> None:
    instances = pl.DataFrame(
        [("r", 0.0, 4.0, "a"), ("r", 10.0, 14.0, "a"), ("r", 20.0, 24.0, "a"), ("q", 0.0, 4.0, "b")],
        schema=SCHEMAS["instances"],
        orient="row",
    )
    detections = pl.DataFrame(
        [
            ("r", 0.1, 4.2, "a", 0.9),
            ("r", 10.1, 14.2, "a", 0.8),
            ("r", 10.6, 14.9, "a", 0.1),  # a lower-scored one of the same instance
            ("r", 20.4, 24.8, "a", 0.5),
            ("r", 3.8, 9.0, "a", 0.95),  # matches nothing
        ],
        schema=DETECTION_SCHEMA,
        orient="row",
    )
    assert boundary_bias(detections, instances) == pytest.approx((0.1, 0.2))
    assert boundary_bias(detections.clear(), instances) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"margin": ()}, "ensemble.margin: expected at least one value"),
        ({"neighbours_s": (1.5, 0.5)}, "ascending seconds"),
        ({"neighbours_s": (0.0,)}, "ascending seconds"),
        ({"view_dropout": 1.0}, "ensemble.view_dropout: expected 0 <= share < 1"),
        ({"stack_mean": 1.0}, "ensemble.stack_mean: expected 0 <= share < 1"),
        ({"proposals": ("runs",)}, "expected both or activity or class, got 'runs'"),
        ({"score": ("best",)}, "ensemble.score: expected fitted or plain, got 'best'"),
        ({"gap_s": (-0.1,)}, "ensemble.gap_s: expected numbers from 0 on"),
        ({"hmm": ()}, "ensemble.hmm: expected at least one value"),
    ],
)
def test_settings_out_of_range_are_refused(changes, message) -> None:
    with pytest.raises(ConfigError, match=message):
        EnsembleConfig(**changes)


def test_neighbour_windows_are_seconds() -> None:
    config = EnsembleConfig(neighbours_s=(0.5, 1.5))
    assert config.neighbours(0.25) == (2, 6)
    assert config.neighbours(1.0) == (1, 2)
    assert config.neighbours(5.0) == (1,)
