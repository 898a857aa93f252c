"""Frame accuracy, edit score and segmental F1: by hand, and against published figures where the data are there."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from talstack.evaluate.segmentation import edit_score, frame_accuracy, label_runs, segmental_f1
from talstack.io.errors import InputError

TCN = Path(__file__).parents[3] / "shared" / "data" / "tcn"


def frames(text: str) -> np.ndarray:
    return np.array([int(c) for c in text])


def test_runs_are_the_longest_stretches_of_one_label() -> None:
    spans, names = label_runs(frames("0011120"))
    assert spans.tolist() == [[0, 2], [2, 5], [5, 6], [6, 7]]
    assert names.tolist() == [0, 1, 2, 0]
    assert label_runs(frames("0011120"), background=[0])[1].tolist() == [1, 2]


def test_frame_accuracy_counts_background_too() -> None:
    assert frame_accuracy(frames("0011"), frames("0111")) == 0.75


def test_edit_score_sees_order_but_not_time() -> None:
    assert edit_score(frames("0111120"), frames("0012220")) == 1.0
    assert edit_score(frames("012"), frames("021")) == pytest.approx(1 - 2 / 3)
    assert edit_score(frames("11111"), frames("01210")) == pytest.approx(1 - 4 / 5)
    assert edit_score(frames("11111"), frames("01210"), background=[0]) == pytest.approx(1 - 2 / 3)
    assert edit_score(frames("121"), frames("333")) == 0.0


def test_f1_asks_for_enough_overlap() -> None:
    predicted, labels = frames("0011110000"), frames("0111111000")  # tIoU 4 / 6
    assert segmental_f1(predicted, labels, tiou=0.66, background=[0]) == 1.0
    assert segmental_f1(predicted, labels, tiou=0.67, background=[0]) == 0.0
    # the background's own segments: 2/1 and 4/3 of the true ones, tIoU 1/2 and 3/4
    assert segmental_f1(predicted, labels, tiou=0.6) == pytest.approx(2 * 2 / 6)


def test_a_true_segment_is_found_once() -> None:
    predicted, labels = frames("1101100"), frames("1111100")
    assert segmental_f1(predicted, labels, tiou=0.1, background=[0]) == pytest.approx(2 / 3)


def test_wrong_label_is_no_hit_and_nothing_against_nothing_is_right() -> None:
    assert segmental_f1(frames("222"), frames("111"), tiou=0.1) == 0.0
    assert segmental_f1(frames("000"), frames("111"), tiou=0.1, background=[0]) == 0.0
    assert segmental_f1(frames("000"), frames("000"), tiou=0.1, background=[0]) == 1.0
    assert edit_score(frames("000"), frames("000"), background=[0]) == 1.0


def test_odd_input_is_refused() -> None:
    with pytest.raises(InputError, match="one length >= 1"):
        frame_accuracy(frames("01"), frames("011"))
    with pytest.raises(InputError, match="one length >= 1"):
        edit_score(np.zeros(0, int), np.zeros(0, int))
    with pytest.raises(InputError, match="whole numbers"):
        edit_score(np.array([0.5]), np.array([1]))
    with pytest.raises(InputError, match=r"\(0, 1\]"):
        segmental_f1(frames("01"), frames("01"), tiou=0.0)


@pytest.mark.skipif(not TCN.is_dir(), reason="needs the scores of the temporal models")
def test_figures_of_published_models_come_out() -> None:
    expected = json.loads((TCN / "expected.json").read_text())
    index = pl.read_csv(TCN / "index.csv", schema_overrides={"video": pl.String, "group": pl.String})
    checked = 0
    for dataset, figures in expected.items():
        for model, native in figures["native"].items():
            rows = []
            for path, models in index.filter(pl.col("dataset") == dataset).select("path", "models").iter_rows():
                if model not in models.split():
                    continue
                video = np.load(TCN / path)
                labels = video[f"native_labels_{model}"].astype(int)
                predicted = video[f"native_{model}"].argmax(axis=1)
                f1 = [segmental_f1(predicted, labels, tiou=t, background=[0]) for t in (0.1, 0.25, 0.5)]
                rows.append([frame_accuracy(predicted, labels), *f1])
            got = 100 * np.mean(rows, axis=0)
            want = [native[name] for name in ("accuracy", "f1_10", "f1_25", "f1_50")]
            np.testing.assert_allclose(got, want, atol=0.005, err_msg=f"{dataset} {model}")
            checked += 1
    assert checked == 8
