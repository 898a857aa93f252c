"""What fine-tuning learns per segment: (N, C + 1) targets, background in front."""

from typing import Literal

import numpy as np
import torch
from torch.nn import functional

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


def class_targets(actions: np.ndarray) -> np.ndarray:
    """Return (N, C + 1) float32 with background in front, from (N, C) bool.

    A segment with several actions shares its mass among them, so every row sums to one; a segment without any is
    background.
    """
    both = _with_background(actions).astype(np.float32)
    shared: np.ndarray = both / both.sum(axis=1, keepdims=True)
    return shared


def action_loss(logits: torch.Tensor, targets: torch.Tensor, *, kind: str) -> torch.Tensor:
    """Return the mean loss of (B, C + 1) logits against `class_targets`.

    `softmax` is the cross-entropy over background and classes (the paper); `sigmoid` a binary cross-entropy per
    column, for labels that overlap.
    """
    if kind == "softmax":
        return functional.cross_entropy(logits, targets)
    return functional.binary_cross_entropy_with_logits(logits, (targets > 0).float(), reduction="none").sum(1).mean()


def sampling_weights(targets: np.ndarray) -> np.ndarray:
    """Return (N,) float64 probabilities that draw every class, background included, about equally often.

    A class of n segments is drawn in proportion to sqrt(n): half-way, on a log scale, between the data and
    perfect balance, so that a class of three examples is not learned by heart.
    """
    present = targets > 0
    per_class = 1.0 / np.sqrt(np.maximum(present.sum(axis=0), 1))
    weights = (present * per_class).max(axis=1)
    return np.asarray(weights / weights.sum())
