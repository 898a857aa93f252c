"""Average precision from the true positives' places alone, of all classes at once, ordinary or normalised.

Normalised precision replaces a class's number of true positives, recall * (its number of instances), by recall * N
with one N for all classes, so that AP does not depend on how many instances a class has (Hoiem, Chodpathumwan, Dai:
Diagnosing Error in Object Detectors, ECCV 2012). DETAD takes N = the average number of instances of a class.
"""

import numpy as np


def false_before_hits(label: np.ndarray, is_hit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the class of each true positive and the number of false positives of its class ranked before it.

    Args:
        label: (n,) int64 >= 0, class of each detection, ascending, within a class by rank.
        is_hit: (n,) bool.

    Returns:
        Two (h,) int64 arrays, in the order of the detections.
    """
    places = np.flatnonzero(is_hit)
    hit_label = label[places]
    rank = places - np.searchsorted(label, hit_label)
    return hit_label, rank - (nth_in_class(hit_label) - 1)


def nth_in_class(hit_label: np.ndarray) -> np.ndarray:
    """Return 1, 2, 3, ... within each class, (h,) int64, of ascending classes."""
    return np.arange(1, hit_label.size + 1) - np.searchsorted(hit_label, hit_label)


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
