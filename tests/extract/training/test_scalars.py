from pathlib import Path

import pytest

from talstack.extract.training.scalars import Scalars


def test_curves_can_be_read_by_tensorboard_and_unknown_values_are_left_out(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    scalars = Scalars(tmp_path, step=1)
    scalars.write(1, {"loss": 2.0, "mAP": None})
    scalars.write(2, {"loss": 1.0, "mAP": 0.5})
    scalars.close()
    events = accumulator.EventAccumulator(str(tmp_path)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 2.0), (2, 1.0)]
    assert [event.step for event in events.Scalars("mAP")] == [2]


def test_without_tensorboard_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("talstack.extract.training.scalars.find_spec", lambda name: None)
    scalars = Scalars(tmp_path)
    scalars.write(1, {"loss": 2.0})
    scalars.close()
    assert list(tmp_path.iterdir()) == []
