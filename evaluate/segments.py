"""Average precision over segments: a quick metric for heads, before there are intervals.

Not interpolated (scikit-learn's definition) and not comparable with the mAP of detections.
"""

import numpy as np

from talstack.io.errors import InputError


def segment_average_precision(
    probs: np.ndarray, targets: np.ndarray, valid: np.ndarray | None = None
) -> tuple[np.ndarray, float]:
    """Return (AP of each class, mean over the classes that occur).

    Args:
        probs: (N, C) float, one row per segment; finite where valid.
        targets: (N, C) bool, whether the class happens in the segment.
        valid: (N,) bool, segments to count; default all.

    Returns:
        (C,) float64, NaN for a class without a positive segment, and the mean of the others.

    Raises:
        InputError: shapes that do not fit, a valid value that is not finite, or no class that occurs.
    """
    probs, targets = np.asarray(probs, dtype=np.float64), np.asarray(targets, dtype=bool)
    valid = np.ones(len(probs), dtype=bool) if valid is None else np.asarray(valid, dtype=bool)
    if probs.ndim != 2 or targets.shape != probs.shape or valid.shape != probs.shape[:1]:
        raise InputError(
            "segment AP: expected probs and targets (N, C) and valid (N,), "
            f"got {probs.shape}, {targets.shape}, {valid.shape}"
        )
    probs, targets = probs[valid], targets[valid]
    if not np.isfinite(probs).all():
        raise InputError("segment AP: probs of valid segments must be finite; mask the others with `valid`")
    from sklearn.metrics import average_precision_score  # a second that a command spends before it fits anything, else

    occurring = np.flatnonzero(targets.any(axis=0))
    if not occurring.size:
        raise InputError("segment AP: no class occurs in the valid segments, so there is nothing to average")
    ap = np.full(probs.shape[1], np.nan)
    for index in occurring:
        ap[index] = average_precision_score(targets[:, index], probs[:, index])
    return ap, float(np.nanmean(ap))
