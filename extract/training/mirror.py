"""Which class a segment has when its picture is mirrored, told from the words of the class names.

`swipe left` becomes `swipe right`; `draw circle clockwise` becomes `draw circle counter clockwise`. Only whole words
count: `copyright` has no side.
"""

import re
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from talstack.io.errors import InputError

_PAIRS = (
    ("left", "right"), ("leftward", "rightward"), ("leftside", "rightside"), ("lefthand", "righthand"),
    ("lefthanded", "righthanded"), ("clockwise", "counterclockwise"),
)  # fmt: skip
OPPOSITE = {word: other for pair in _PAIRS for word, other in (pair, pair[::-1])}
SAME = {
    "anticlockwise": "counterclockwise", "cw": "clockwise", "ccw": "counterclockwise", "acw": "counterclockwise",
    "leftwards": "leftward", "rightwards": "rightward",
}  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class MirrorMap:
    """What mirroring does to classes, background in front.

    Attributes:
        columns: (C + 1,) int64, the class that a mirrored segment of each class has; its own inverse.
        allowed: (C + 1,) bool, segments of the class may be mirrored.
    """

    columns: np.ndarray
    allowed: np.ndarray


def mirror_permutation(actions: tuple[str, ...], mode: Literal["auto", "always", "never"]) -> MirrorMap:
    """Return what mirroring does to background and the actions.

    A label is split into words at spaces, underscores, hyphens and where small letters meet a capital; case does not
    count. Two labels that differ in their sides alone change places. A label with a side whose counterpart is not in
    the list, or is there twice, stays as it is, and `auto` does not allow it: right may mean correct, but who knows.
    `always` allows all, `never` none.
    """
    words = [_words(label) for label in actions]
    columns = np.arange(len(actions) + 1)
    allowed = np.full(len(actions) + 1, mode != "never")
    for i, label in enumerate(words):
        mirrored = tuple(OPPOSITE.get(word, word) for word in label)
        if mirrored == label:
            continue
        if words.count(label) == words.count(mirrored) == 1:
            columns[i + 1] = words.index(mirrored) + 1
        elif mode == "auto":
            allowed[i + 1] = False
    return MirrorMap(columns, allowed)


def mirrorable(targets: np.ndarray, mirror: MirrorMap) -> np.ndarray:
    """Return which segments may be mirrored, (N,) bool: those of which every class may, by (N, C + 1) targets."""
    return ~((targets > 0) & ~mirror.allowed).any(axis=1)


def mirror_targets(targets: torch.Tensor, mirrored: np.ndarray, mirror: MirrorMap) -> torch.Tensor:
    """Return the (B, C + 1) targets with the columns of the mirrored rows, (B,) bool, changed over.

    Raises:
        InputError: another number of rows or classes.
    """
    if targets.shape != (len(mirrored), len(mirror.columns)):
        expected = (len(mirrored), len(mirror.columns))
        raise InputError(f"mirroring: targets have shape {tuple(targets.shape)}, expected {expected}")
    swapped = targets[:, torch.from_numpy(mirror.columns).to(targets.device)]
    return torch.where(torch.from_numpy(mirrored).to(targets.device)[:, None], swapped, targets)


def _words(label: str) -> tuple[str, ...]:
    """Return the label's words, small, one spelling for each side."""
    parts = re.findall(r"[^\W_]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", label))
    joined = re.sub(r"\b(counter|anti) (?=clockwise\b)", r"\1", " ".join(parts).casefold())
    return tuple(SAME.get(word, word) for word in joined.split())
