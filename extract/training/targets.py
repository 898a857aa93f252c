"""What fine-tuning learns per segment: (N, C + 1) targets, background in front."""

from typing import Literal

import numpy as np

from talstack.io.errors import InputError
from talstack.io.manifest import Manifest
from talstack.io.predictions import SegmentIndex
from talstack.io.targets import segment_shares, segment_targets

TargetKind = Literal["multihot", "majority", "soft"]


def segment_targets_of(
    manifest: Manifest, index: SegmentIndex, segment_s: float, kind: TargetKind, *, exclusive: bool = True
) -> np.ndarray:
    """Return the targets of every segment, (N, C + 1) float32 in [0, 1]; columns: background, `manifest.actions`.

    - `multihot`: all actions that label the segment (`talstack.io.targets.segment_targets`) alike; background where
      none does.
    - `majority`: one class. Where actions label the segment, it is the one of them that covers most of it, so that an
      action shorter than half a segment is not lost to background. Where none does, it is the class that covers most,
      background included. Ties go to the lower class id. Of actions that overlap, only the one that covers more is
      learned: the other kinds keep both.
    - `soft`: every class by the share of the segment that it covers, background by the share that no action covers.

    Args:
        exclusive: rows sum to one, as a softmax needs: classes that share a segment share its mass. False: a sigmoid's
            targets. Every action has its own 1 (`multihot`, `majority`) or its own share (`soft`), and background has
            1 where no action has one, or the uncovered share.

    Raises:
        InputError: another kind.
    """
    if kind == "soft":
        values = segment_shares(manifest, index, segment_s)
    elif kind == "multihot":
        values = _with_background(segment_targets(manifest, index, segment_s))
    elif kind == "majority":
        values = _majority(segment_targets(manifest, index, segment_s), segment_shares(manifest, index, segment_s))
    else:
        raise InputError(f"targets of kind {kind!r}: expected multihot, majority or soft")
    if exclusive:
        values = values / values.sum(axis=1, keepdims=True)
    return values.astype(np.float32)


def _with_background(actions: np.ndarray) -> np.ndarray:
    return np.concatenate([~actions.any(axis=1, keepdims=True), actions], axis=1)


def _majority(actions: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Return (N, C + 1) one-hot float64, from the labels (N, C) bool and the shares (N, C + 1)."""
    labelled = _with_background(actions)
    labelled[~actions.any(axis=1)] = True  # none labels it: all may win
    best = np.where(labelled, shares, -1.0).argmax(axis=1)
    return np.eye(shares.shape[1])[best]
