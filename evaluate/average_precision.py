"""Average precision from the true positives' places: of all classes at once, weighted, or normalised.

Recall only rises at a true positive and precision only falls between two of them, so the area under the
interpolated precision-recall curve is the sum over true positives of the best precision from there on, per instance.

Normalised precision replaces a class's number of true positives, recall * (its number of instances), by recall * N
with one N for all classes, so that AP does not depend on how many instances a class has (Hoiem, Chodpathumwan, Dai:
Diagnosing Error in Object Detectors, ECCV 2012). DETAD takes N = the average number of instances of a class.
"""

from collections.abc import Sequence

import numpy as np

from talstack.evaluate.matching import Matched

WEIGHTS_PER_BLOCK = 4_000_000  # bounds the working memory of a bootstrap


def average_precisions(matched: Matched, weights: np.ndarray | None = None) -> np.ndarray:
    """Return the AP of every class at every threshold, for one or several weightings of the recordings.

    A recording of weight w counts as w recordings with the same detections and instances.

    Args:
        matched: detections and instances, C classes, R recordings, K thresholds.
        weights: (B, R) >= 0, one row per weighting; default: one row of ones.

    Returns:
        (B, C, K) float64; NaN for a class without an instance of positive weight.
    """
    if weights is None:
        return _unweighted(matched)[None]
    weights = np.asarray(weights, dtype=np.float64)
    classes = np.arange(len(matched.classes))
    first, past = (np.searchsorted(matched.detections.label, classes, side=side) for side in ("left", "right"))
    ap = np.empty((len(weights), classes.size, len(matched.hits)))
    for index in classes:
        recording = matched.detections.recording[first[index] : past[index]]
        positions = [_between(hits.detection, first[index], past[index]) for hits in matched.hits]
        count = weights[:, matched.instances.recording[matched.instances.label == index]].sum(axis=1)
        rows_per_block = max(1, WEIGHTS_PER_BLOCK // max(1, recording.size))
        for low in range(0, len(weights), rows_per_block):
            block = slice(low, low + rows_per_block)
            ap[block, index] = _interpolated_ap(weights[block], recording, positions, count[block])
    return ap


def _unweighted(matched: Matched) -> np.ndarray:
    """Return (C, K): all classes at once."""
    labels = matched.detections.label
    first = np.searchsorted(labels, np.arange(len(matched.classes)))
    num_instances = np.bincount(matched.instances.label, minlength=len(matched.classes))
    ap = np.empty((num_instances.size, len(matched.hits)))
    for place, hits in enumerate(matched.hits):
        hit_label = labels[hits.detection]
        false_before = false_before_hits(hit_label, hits.detection, first=first)
        precision = precision_at_hits(hit_label, false_before, num_instances=num_instances)
        ap[:, place] = areas_under_precision(hit_label, precision, num_instances=num_instances)
    return ap


def _between(ascending: np.ndarray, first: int, past: int) -> np.ndarray:
    """Return the values in [first, past), counted from `first`."""
    low, high = np.searchsorted(ascending, (first, past))
    return ascending[low:high] - first


def _interpolated_ap(
    weights: np.ndarray, recording: np.ndarray, positions: Sequence[np.ndarray], count: np.ndarray
) -> np.ndarray:
    """Return (B, K): the AP of one class.

    Args:
        weights: (B, R).
        recording: (n,) recording of each detection of the class, by rank.
        positions: ranks of the true positives, ascending, one array per threshold.
        count: (B,) weight of the class's instances.
    """
    weight = weights[:, recording]
    walked = np.cumsum(weight, axis=1)
    ap = np.empty((len(weights), len(positions)))
    with np.errstate(invalid="ignore", divide="ignore"):
        for place, ranks in enumerate(positions):
            gained = weight[:, ranks]
            precision = np.nan_to_num(np.cumsum(gained, axis=1) / walked[:, ranks], nan=0.0)
            best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
            ap[:, place] = (best * gained).sum(axis=1) / count
    return ap


def false_before_hits(hit_label: np.ndarray, places: np.ndarray, *, first: np.ndarray) -> np.ndarray:
    """Return the number of false positives of its class ranked before each true positive, (h,) int64.

    Args:
        hit_label: (h,) int64, class of each true positive, ascending.
        places: (h,) int64, their places among all detections, which stand by class, within a class by rank.
        first: (C,) int64, place of each class's first detection.
    """
    return places - first[hit_label] - (nth_in_class(hit_label) - 1)


def nth_in_class(hit_label: np.ndarray) -> np.ndarray:
    """Return 1, 2, 3, ... within each class, (h,) int64, of ascending classes >= 0."""
    before = np.append(0, np.cumsum(np.bincount(hit_label)))
    return np.arange(1, hit_label.size + 1) - before[hit_label]


def precision_at_hits(
    hit_label: np.ndarray, false_before: np.ndarray, *, num_instances: np.ndarray, norm: float | None = None
) -> np.ndarray:
    """Return the precision at each true positive, (h,) float64.

    Args:
        hit_label, false_before: as `false_before_hits` returns them.
        num_instances: (C,) number of instances of each class.
        norm: N of the normalised precision; None gives the ordinary one.
    """
    found = nth_in_class(hit_label).astype(np.float64)
    if norm is not None:
        found *= norm / num_instances[hit_label]
    return found / (found + false_before)


def areas_under_precision(hit_label: np.ndarray, precision: np.ndarray, *, num_instances: np.ndarray) -> np.ndarray:
    """Return each class's area under its interpolated precision-recall curve, (C,) float64; NaN without an instance.

    Recall rises by one instance at each true positive, where the interpolated precision is the best from there on.

    Args:
        hit_label: (h,) int64, class of each true positive, ascending, within a class by rank.
        precision: (h,) float64, at each of them.
        num_instances: (C,) number of instances of each class.
    """
    # numpy orders complex numbers by their real part first, so the running maximum starts anew at each class
    keys = -hit_label + 1j * precision
    best = np.maximum.accumulate(keys[::-1])[::-1].imag
    with np.errstate(invalid="ignore"):
        return np.bincount(hit_label, weights=best, minlength=num_instances.size) / num_instances
