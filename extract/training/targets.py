"""Targets and losses of fine-tuning."""

import numpy as np
import torch
from torch.nn import functional


def class_targets(actions: np.ndarray) -> np.ndarray:
    """Return (N, C + 1) float32 with background in front, from (N, C) bool.

    A segment with several actions shares its mass among them, so every row sums to one; a segment without any is
    background.
    """
    background = ~actions.any(axis=1, keepdims=True)
    both = np.concatenate([background, actions], axis=1).astype(np.float32)
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
