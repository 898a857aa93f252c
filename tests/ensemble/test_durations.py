"""Durations of classes, from few instances."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from talstack.ensemble.durations import LEAST_SPREAD, ClassDurations
from talstack.io.manifest import SCHEMAS


def with_instances(manifest, rows):
    return replace(manifest, instances=pl.DataFrame(rows, schema=SCHEMAS["instances"], orient="row"))


def test_many_instances_speak_for_themselves_and_few_lean_on_the_rest(world) -> None:
    manifest, _ = world
    lengths = np.exp(np.random.default_rng(0).normal(np.log(4.0), 0.4, 400))
    rows = [("rec00", 0.0, float(length), "pour") for length in lengths] + [("rec00", 0.0, 16.0, "wave")]
    durations = ClassDurations.of(with_instances(manifest, rows), ["rec00"])
    assert durations.log_mean[0] == pytest.approx(np.log(4.0), abs=0.05)
    assert durations.log_spread[0] == pytest.approx(0.4, abs=0.05)
    assert np.log(4.0) < durations.log_mean[1] < np.log(8.0)
    assert durations.log_mean[2] == pytest.approx(durations.log_mean[0], abs=0.05)  # no instance: as all classes
    assert durations.limits_s[1].tolist() == [16.0, 16.0]


def test_deviation_is_in_standard_deviations_of_the_log() -> None:
    durations = ClassDurations(np.tile([1.0, 9.0], (2, 1)), np.log([2.0, 4.0]), np.array([0.5, 0.25]))
    deviation = durations.deviation(np.array([0, 1]), np.array([2.0 * np.exp(0.5), 4.0 * np.exp(-0.5)]))
    assert deviation == pytest.approx([1.0, -2.0])


def test_equal_instances_leave_some_spread_and_none_at_all_no_limit(world) -> None:
    manifest, _ = world
    rows = [("rec00", 0.0, 5.0, "pour")] * 50
    durations = ClassDurations.of(with_instances(manifest, rows), ["rec00"])
    assert durations.log_spread[0] == LEAST_SPREAD
    unknown = ClassDurations.of(with_instances(manifest, rows), ["rec01"])
    assert unknown.limits_s[0].tolist() == [0.0, np.inf]
