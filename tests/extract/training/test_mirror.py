from pathlib import Path

import numpy as np
import pytest
import torch

from talstack.extract.training.mirror import mirror_permutation, mirror_targets, mirrorable
from talstack.io.errors import InputError
from talstack.io.labels import BINEGO360_ACTIONS


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("swipe left", "swipe right"),
        ("Swipe_Left", "swipe-right"),
        ("SwipeLeft", "SwipeRight"),
        ("move leftwards", "move rightward"),
        ("raise left hand", "raise right hand"),
        ("lefthand wave", "righthand wave"),
        ("slide left to right", "slide right to left"),
        ("draw circle clockwise", "draw circle counter clockwise"),
        ("draw circle clockwise", "draw circle counter-clockwise"),
        ("draw circle clockwise", "draw circle counterclockwise"),
        ("turn anticlockwise", "turn clockwise"),
        ("turn Anti-Clockwise", "turn clockwise"),
        ("draw_circle_cw", "draw_circle_ccw"),
    ],
)
def test_labels_that_differ_in_their_side_change_places(one: str, other: str) -> None:
    mirror = mirror_permutation((one, "wave", other), "auto")
    assert mirror.columns.tolist() == [0, 3, 2, 1]
    assert mirror.allowed.all()


def test_words_that_only_contain_a_side_have_none() -> None:
    mirror = mirror_permutation(("copyright", "bright light", "leftover cooking", "upright", "cleft"), "auto")
    assert mirror.columns.tolist() == [0, 1, 2, 3, 4, 5]
    assert mirror.allowed.all()


@pytest.mark.parametrize("actions", [("turn left", "wave"), ("get it right", "left"), ("left", "right", "Right", "x")])
def test_a_side_without_a_single_counterpart_is_not_mirrored(actions: tuple[str, ...]) -> None:
    mirror = mirror_permutation(actions, "auto")
    assert mirror.columns.tolist() == list(range(len(actions) + 1))
    assert not mirror.allowed[1]
    always, never = mirror_permutation(actions, "always"), mirror_permutation(actions, "never")
    assert always.allowed.all() and not never.allowed.any()


def test_always_still_swaps_the_pairs() -> None:
    assert mirror_permutation(("left", "turn right", "right"), "always").columns.tolist() == [0, 3, 2, 1]


def test_the_published_actions_have_no_sides() -> None:
    mirror = mirror_permutation(BINEGO360_ACTIONS, "auto")
    assert mirror.columns.tolist() == list(range(35)) and mirror.allowed.all()


def test_real_gestures(shared_data: Path) -> None:
    actions = tuple((shared_data / "mhad" / "classes.txt").read_text(encoding="utf-8").split())
    mirror = mirror_permutation(actions, "auto")
    assert [actions[i - 1] for i in np.flatnonzero(~mirror.allowed)] == ["swipe_right"]
    moved = np.flatnonzero(mirror.columns != np.arange(len(actions) + 1))
    assert [actions[i - 1] for i in moved] == ["draw_circle_cw", "draw_circle_ccw"]


def test_a_segment_is_mirrored_only_if_all_its_classes_are() -> None:
    mirror = mirror_permutation(("turn left", "wave"), "auto")
    targets = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0.1, 0.9]], np.float32)
    assert mirrorable(targets, mirror).tolist() == [True, False, True, False]


def test_targets_of_mirrored_rows_change_sides() -> None:
    mirror = mirror_permutation(("left", "wave", "right"), "auto")
    targets = torch.tensor([[0.0, 0.7, 0.3, 0.0], [0.0, 0.7, 0.3, 0.0]])
    out = mirror_targets(targets, np.array([True, False]), mirror)
    assert out.tolist() == [pytest.approx([0, 0, 0.3, 0.7]), pytest.approx([0, 0.7, 0.3, 0])]
    with pytest.raises(InputError, match=r"shape \(2, 4\), expected \(3, 4\)"):
        mirror_targets(targets, np.zeros(3, dtype=bool), mirror)
