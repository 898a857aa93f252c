import numpy as np
import polars as pl
import pytest

from talstack.evaluate.scene import evaluate_scenes, top_k_accuracy
from talstack.io.errors import InputError

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
    assert (nothing.top1, nothing.to_json()["ignored"]) == (0.0, {"scene not in ground truth": 1})


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
