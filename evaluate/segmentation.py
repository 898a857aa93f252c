"""Action segmentation: every frame has one label. Frame accuracy, edit score and segmental F1.

Source of the definitions: Lea et al., Temporal Convolutional Networks for Action Segmentation and Detection, CVPR
2017. A segment is a longest run of equal labels. Classes that stand for nothing in particular (background) can be
left out of edit score and F1; frame accuracy counts every frame. Results are fractions from 0 to 1; the paper reports
the mean over videos, in percent.
"""

from collections.abc import Collection

import numpy as np

from talstack.io.errors import InputError


def frame_accuracy(predicted: np.ndarray, labels: np.ndarray) -> float:
    """Return the share of frames whose label is right.

    Args:
        predicted, labels: (T,) int, one label per frame.

    Raises:
        InputError: no frame, or shapes that differ.
    """
    predicted, labels = _frames(predicted, labels)
    return float((predicted == labels).mean())


def edit_score(predicted: np.ndarray, labels: np.ndarray, *, background: Collection[int] = ()) -> float:
    """Return 1 - Levenshtein distance of the segments' labels / number of segments of the longer list.

    When things happen does not matter, only which and in what order. 1 where neither has a segment.

    Args:
        predicted, labels: (T,) int.
        background: labels whose segments do not count.

    Raises:
        InputError: as `frame_accuracy`.
    """
    predicted, labels = _frames(predicted, labels)
    one, two = (label_runs(frames, background=background)[1] for frames in (predicted, labels))
    longest = max(len(one), len(two))
    return 1.0 - _levenshtein(one, two) / longest if longest else 1.0


def segmental_f1(predicted: np.ndarray, labels: np.ndarray, *, tiou: float, background: Collection[int] = ()) -> float:
    """Return F1 of the predicted segments at one tIoU threshold.

    A predicted segment is compared with the true segment of its label that it overlaps most (the first on ties); it is
    right if their tIoU is at least the threshold and no earlier segment has taken that one. 1 where neither has a
    segment.

    Args:
        predicted, labels: (T,) int.
        tiou: threshold in (0, 1]; F1@10 is 0.1.
        background: labels whose segments do not count.

    Raises:
        InputError: as `frame_accuracy`, or a threshold outside (0, 1].
    """
    predicted, labels = _frames(predicted, labels)
    if not 0.0 < tiou <= 1.0:
        raise InputError(f"segmental F1: tiou must lie in (0, 1], got {tiou}")
    spans, names = label_runs(predicted, background=background)
    true_spans, true_names = label_runs(labels, background=background)
    if not len(names) and not len(true_names):
        return 1.0
    if not len(names) or not len(true_names):
        return 0.0
    overlap = _pairwise_tiou(spans, true_spans) * (names[:, None] == true_names)
    best = overlap.argmax(axis=1)
    close = overlap.max(axis=1) >= tiou
    num_right = len(np.unique(best[close]))  # later segments of one that is taken are wrong
    return 2.0 * num_right / (len(names) + len(true_names))


def label_runs(labels: np.ndarray, *, background: Collection[int] = ()) -> tuple[np.ndarray, np.ndarray]:
    """Return the segments of frame labels: (n, 2) int64 first and past-the-last frame, and (n,) labels.

    Args:
        labels: (T,) int.
        background: labels whose segments are left out.
    """
    first = np.flatnonzero(np.diff(labels, prepend=labels[0] - 1))
    spans = np.stack([first, np.append(first[1:], len(labels))], axis=1)
    names = labels[first]
    kept = ~np.isin(names, list(background))
    return spans[kept], names[kept]


def _pairwise_tiou(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    start = np.maximum(one[:, None, 0], two[None, :, 0])
    end = np.minimum(one[:, None, 1], two[None, :, 1])
    shared = np.maximum(end - start, 0)
    lengths = (one[:, 1] - one[:, 0])[:, None] + (two[:, 1] - two[:, 0])[None, :]
    return np.asarray(shared / (lengths - shared))


def _levenshtein(one: np.ndarray, two: np.ndarray) -> int:
    """Return how many insertions, deletions and replacements turn one list into the other."""
    row = list(range(len(two) + 1))
    for count, label in enumerate(one.tolist(), start=1):
        diagonal, row[0] = row[0], count
        for place, other in enumerate(two.tolist(), start=1):
            change = diagonal + (label != other)
            diagonal, row[place] = row[place], min(row[place] + 1, row[place - 1] + 1, change)
    return row[-1]


def _frames(predicted: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    predicted, labels = np.asarray(predicted), np.asarray(labels)
    if predicted.ndim != 1 or predicted.shape != labels.shape or not labels.size:
        raise InputError(
            f"segmentation: expected two label lists of one length >= 1, got shapes {predicted.shape}, {labels.shape}"
        )
    if any(array.dtype.kind not in "iu" for array in (predicted, labels)):
        raise InputError(f"segmentation: labels must be whole numbers, got {predicted.dtype} and {labels.dtype}")
    return predicted.astype(np.int64), labels.astype(np.int64)
