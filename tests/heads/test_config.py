"""Settings of the heads."""

import pytest

from talstack.heads.config import HeadsConfig
from talstack.io.config import build
from talstack.io.errors import ConfigError


def test_settings_come_from_a_table() -> None:
    config = build(HeadsConfig, {"learners": ["linear"], "context": [], "linear_l2": [1]}, where="[heads]")
    assert config.learners == ("linear",) and config.context == () and config.linear_l2 == (1.0,)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"learners": ()}, "learners: expected some of linear, gbm"),
        ({"learners": ("forest",)}, "learners"),
        ({"learners": ("gbm", "gbm")}, "each once"),
        ({"fit_splits": ("train", "test")}, "test is for evaluation"),
        ({"context": (4, 2)}, "context: expected ascending"),
        ({"context": (0,)}, "context"),
        ({"context_s": (1.0, 0.0)}, "context_s: expected seconds"),
        ({"context_statistics": ("median",)}, "context_statistics: expected some of level"),
        ({"context_neighbours": -1}, "context_neighbours: expected at least 0"),
        ({"linear_context_gain": (0.0,)}, "linear_context_gain"),
        ({"linear_l2": (0.0,)}, "linear_l2"),
        ({"inner_folds": 1}, "inner_folds: expected at least 2"),
        ({"gbm_columns": 0.0}, "gbm_columns"),
        ({"clip": 0.0}, "clip"),
        ({"linear_whitening": 2.0}, "linear_whitening"),
    ],
)
def test_values_out_of_range_are_refused(values: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        HeadsConfig(**values)
