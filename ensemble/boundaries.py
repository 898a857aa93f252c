"""What all boundary heads together say about every recording."""

from collections.abc import Sequence

import numpy as np
import polars as pl

from talstack.ensemble.refine import BoundaryVotes
from talstack.io.predictions import SegmentIndex, boundary_curves, by_model


def boundary_votes(table: pl.DataFrame, index: SegmentIndex, segment_s: float) -> dict[str, BoundaryVotes]:
    """Return the mean of the boundary heads' predictions by recording; nothing where the table has no such head.

    Each segment's mean is over the heads that are valid there, and the offsets count by their probabilities; where no
    head is valid the probabilities are zero.

    Args:
        table: out-of-fold predictions of the recordings of `index`.
        segment_s: length of a segment, seconds.
    """
    heads = [
        boundary_curves(rows, key, index=index, segment_s=segment_s)
        for key, rows in by_model(table).items()
        if key.task == "boundary"
    ]
    if not heads:
        return {}
    sides = [
        _mean([probs for probs, _ in pairs], [offset_s - segment_s / 2 for _, offset_s in pairs])
        for pairs in (
            [(head.start, head.start_offset_s) for head in heads],
            [(head.end, head.end_offset_s) for head in heads],
        )
    ]
    (start, start_s), (end, end_s) = sides
    return {name: BoundaryVotes(start[rows], end[rows], start_s[rows], end_s[rows]) for name, rows in index.slices()}


def _mean(probs: Sequence[np.ndarray], offsets_s: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return mean probability and mean offset, (N,) float64 each, of (N,) per head with NaN where it is not valid."""
    prob, offset_s = np.stack(probs).astype(np.float64), np.nan_to_num(np.stack(offsets_s).astype(np.float64))
    valid = np.isfinite(prob)
    prob = np.where(valid, prob, 0.0)
    mass = prob.sum(axis=0)
    return mass / np.maximum(valid.sum(axis=0), 1), (prob * offset_s).sum(axis=0) / np.maximum(mass, 1e-9)
