import numpy as np
import polars as pl
import pytest

from talstack.evaluate.scene import evaluate_scene_models, evaluate_scenes, top_k_accuracy
from talstack.io.errors import InputError
from talstack.io.predictions import ModelKey, scene_rows

SCENES = ("kitchen", "street", "park")


def probs(**rows):
    return pl.DataFrame([(r, *p) for r, p in rows.items()], schema=["recording", *SCENES], orient="row")


def truth(**scenes):
    return pl.DataFrame(
        {"recording": list(scenes), "scene": list(scenes.values())}, schema_overrides={"scene": pl.String}
    )


def test_top_1_and_top_5_of_seven_classes():
    values = np.array([[7, 6, 5, 4, 3, 2, 1], [7, 6, 5, 4, 3, 2, 1], [1, 2, 3, 4, 5, 6, 7]])
    targets = np.array([0, 5, 2])
    assert top_k_accuracy(values, targets, k=1) == pytest.approx(1 / 3)
    assert top_k_accuracy(values, targets, k=5) == pytest.approx(2 / 3)
    assert top_k_accuracy(values, targets, k=6) == 1.0


def test_equal_probabilities_go_to_the_earlier_class():
    assert top_k_accuracy(np.array([[0.5, 0.5]]), np.array([0]), k=1) == 1.0
    assert top_k_accuracy(np.array([[0.5, 0.5]]), np.array([1]), k=1) == 0.0


def test_tables_are_joined_on_the_recording():
    found = probs(b=(0.1, 0.8, 0.1), a=(0.9, 0.1, 0.0))
    result = evaluate_scenes(found, truth(a="kitchen", b="street"), scenes=SCENES)
    assert (result.top1, result.top5, result.num_recordings) == (1.0, 1.0, 2)
    # columns are taken by name, not by position
    assert (
        evaluate_scenes(
            found.select("park", "recording", "street", "kitchen"), truth(a="kitchen", b="street"), scenes=SCENES
        ).top1
        == 1.0
    )


def test_a_recording_without_prediction_is_wrong_and_listed():
    result = evaluate_scenes(probs(a=(0.9, 0.1, 0.0)), truth(a="kitchen", b="street", c=None), scenes=SCENES)
    assert (result.top1, result.num_recordings, result.missing) == (0.5, 2, ("b",))
    nothing = evaluate_scenes(probs(z=(1, 0, 0)), truth(a="kitchen"), scenes=SCENES)
    assert (nothing.top1, nothing.to_json()["ignored"]) == (0.0, {"recording without a known scene": 1})


@pytest.mark.parametrize(
    ("found", "known", "message"),
    [
        (probs(a=(1, 0, 0)).drop("park"), truth(a="park"), "missing column 'park'"),
        (pl.concat([probs(a=(1, 0, 0))] * 2), truth(a="park"), "'a' appears more than once"),
        (probs(a=(1.0, 0.0, float("nan"))), truth(a="park"), "'a' has a value that is not finite"),
        (probs(a=(1.0, 0.0, None)), truth(a="park"), "'a' has a value that is not finite"),
        (probs(a=(1, 0, 0)), truth(a="moon"), "'a' has unknown scene 'moon'"),
        (probs(a=(1, 0, 0)), truth(a=None), "none has a known scene"),
    ],
)
def test_refuses(found, known, message):
    with pytest.raises(InputError, match=message):
        evaluate_scenes(found, known, scenes=SCENES)


def test_refuses_arrays_that_do_not_fit():
    with pytest.raises(InputError, match="expected probs"):
        top_k_accuracy(np.zeros((2, 3)), np.zeros(3, dtype=int), k=1)
    with pytest.raises(InputError, match=r"targets in 0\.\.2"):
        top_k_accuracy(np.zeros((1, 3)), np.array([3]), k=1)


def test_confusion_and_recall_follow_the_scene_list_and_count_missing_predictions():
    known = truth(a="street", b="street", c="kitchen", d="street", e=None)
    found = probs(c=(0.9, 0.1, 0.0), b=(0.0, 0.1, 0.9), a=(0.2, 0.8, 0.0), e=(1.0, 0.0, 0.0))
    result = evaluate_scenes(found, known, scenes=SCENES)
    assert result.confusion.rows() == [
        ("kitchen", "kitchen", 1),
        ("street", "street", 1),
        ("street", "park", 1),
        ("street", None, 1),
    ]
    assert result.recall.rows() == [("kitchen", 1, 1, 1.0), ("street", 3, 1, pytest.approx(1 / 3))]
    assert result.to_json()["confusion"][3] == {"scene": "street", "predicted": None, "count": 1}
    again = evaluate_scenes(found.reverse(), known.reverse(), scenes=SCENES)
    assert again.to_json() == result.to_json()
    assert result.confusion["count"].sum() == result.num_recordings


def test_confusion_without_any_prediction():
    result = evaluate_scenes(probs(z=(1, 0, 0)), truth(a="kitchen"), scenes=SCENES)
    assert result.confusion.rows() == [("kitchen", None, 1)]
    assert result.recall.rows() == [("kitchen", 1, 0, 0.0)]


def scene_head(view, head, valid, *rows):
    return scene_rows(
        ModelKey(view, "rgb", head), ["a", "b", "c"], np.array(rows, dtype=float), valid=np.array(valid),
        fold=np.array([0, 1, -1]), classes=SCENES,
    )  # fmt: skip


def test_every_scene_head_is_scored_on_what_it_predicts():
    right, wrong = (0.2, 0.7, 0.1), (0.7, 0.2, 0.1)
    table = pl.concat(
        [
            scene_head("pano", "scene-linear", [True, True, True], right, right, wrong),
            scene_head("ego", "scene-gbm", [True, False, False], right, (np.nan,) * 3, (np.nan,) * 3),
            scene_head("ego", "activity-gbm", [True, True, True], right, right, right),
            scene_head("side", "scene-gbm", [False] * 3, *[(np.nan,) * 3] * 3),
        ]
    )
    known = truth(a="street", b="street", c="street")
    found = evaluate_scene_models(table, known, scenes=SCENES)
    assert found.rows() == [
        ("ego", "rgb", "scene-gbm", 3, 1, 1.0, 1.0),
        ("pano", "rgb", "scene-linear", 3, 3, pytest.approx(2 / 3), 1.0),
        ("side", "rgb", "scene-gbm", 3, 0, None, None),
    ]
    some = evaluate_scene_models(table.reverse(), known.filter(pl.col("recording") != "c"), scenes=SCENES)
    assert some.filter(pl.col("view") == "pano")["top1"].to_list() == [1.0]
    with pytest.raises(InputError, match="unknown scene 'moon'"):
        evaluate_scene_models(table, truth(a="moon"), scenes=SCENES)
