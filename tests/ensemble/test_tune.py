"""Tuning picks what scores, and corrects what is systematically off."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from talstack.ensemble.config import EnsembleConfig
from talstack.ensemble.decode import Curves, Decoder
from talstack.ensemble.durations import ClassDurations
from talstack.ensemble.tune import boundary_bias, first_settings, tune
from talstack.io.detections import DETECTION_SCHEMA
from talstack.io.errors import ConfigError
from talstack.io.grid import SegmentGrid
from talstack.io.manifest import SCHEMAS
from talstack.io.predictions import SegmentIndex

ONE = EnsembleConfig(
    proposals=("both",), smoothing_s=(0.0,), margin=(0.2,), contrast_weight=(1.0,), nms_sigma=(0.5,)
)  # fmt: skip


def scene(known: dict[str, list[tuple[float, float]]], *, late_s: float = 0.0):
    """Return decoder, curves and instances of one recording whose curves lag behind by `late_s`."""
    grid = SegmentGrid(60.0, 0.5)
    columns = []
    for intervals in known.values():
        distance = np.full(len(grid), -np.inf)
        for start, end in intervals:
            times = grid.centres_s - late_s
            distance = np.maximum(distance, np.minimum(times - start, end - times))
        columns.append(1 / (1 + np.exp(-np.clip(8 * distance, -50, 50))))
    action = np.stack(columns, axis=1)
    rows = [("r", start, end, label) for label, intervals in known.items() for start, end in intervals]
    instances = pl.DataFrame(rows, schema=SCHEMAS["instances"], orient="row")
    decoder = Decoder(tuple(known), {"r": grid}, ClassDurations.unknown(len(known)))
    return decoder, Curves(SegmentIndex(("r",), (len(grid),)), action, action.max(axis=1)), instances


OVERLAPPING = {"a": [(3.0, 8.0), (20.0, 24.0), (40.0, 46.0)], "b": [(6.0, 11.0), (22.0, 27.0), (43.0, 49.0)]}


def test_class_runs_are_chosen_where_actions_overlap() -> None:
    decoder, curves, instances = scene(OVERLAPPING)
    settings, score = tune(
        decoder, curves, instances, config=replace(ONE, proposals=("activity", "class"))
    )  # fmt: skip
    assert settings.proposals == "class"
    assert score == pytest.approx(1.0)


def test_systematic_delay_is_corrected() -> None:
    decoder, curves, instances = scene(OVERLAPPING, late_s=0.3)
    settings, score = tune(decoder, curves, instances, config=replace(ONE, proposals=("class",)))
    assert settings.start_shift_s == pytest.approx(-0.3, abs=0.08)
    assert settings.end_shift_s == pytest.approx(-0.3, abs=0.08)
    assert score == pytest.approx(1.0)
    still, _ = tune(*scene(OVERLAPPING), config=replace(ONE, proposals=("class",)))
    assert abs(still.start_shift_s) < 0.05


def test_nothing_to_tune_on_gives_the_first_candidates() -> None:
    decoder, curves, instances = scene(OVERLAPPING)
    config = EnsembleConfig(margin=(0.3, 0.1), nms_sigma=(0.7,), max_detections=5)
    settings, score = tune(decoder, curves, instances.clear(), config=config)
    assert score is None
    assert settings == first_settings(config)
    assert (settings.margin, settings.nms_sigma, settings.max_detections) == (0.3, 0.7, 5)


def test_silent_system_can_be_tuned() -> None:
    decoder, curves, instances = scene(OVERLAPPING)
    silent = Curves(curves.index, np.zeros_like(curves.action), np.zeros_like(curves.activity))
    settings, score = tune(decoder, silent, instances, config=EnsembleConfig())
    assert score == 0.0
    assert settings == first_settings(EnsembleConfig())


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
        ({"view_dropout": 1.0}, "0 <= chance < 1"),
        ({"proposals": ("runs",)}, "expected both, activity or class, got 'runs'"),
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
