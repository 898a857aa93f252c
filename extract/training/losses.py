"""Losses of fine-tuning, one value per segment or per group of segments: the caller weighs and averages them."""

from typing import Literal

import torch
from torch.nn import functional

from talstack.io.errors import InputError


def action_loss(
    logits: torch.Tensor,
    targets: torch.Tensor,
    *,
    kind: Literal["softmax", "focal"],
    gamma: float = 2.0,
    smoothing: float = 0.0,
) -> torch.Tensor:
    """Return the loss of every segment, (B,) float32.

    - `softmax`: cross-entropy against soft targets.
    - `focal`: per column |y - p|^gamma times the binary cross-entropy of target y and probability p = sigmoid(logit),
      summed over the columns. For y of 0 or 1 this is the focal loss of Lin et al. (ICCV 2017) without its alpha; for
      y between, its continuation by Li et al. (Quality Focal Loss, NeurIPS 2020), which is least at p = y. Gamma 0
      is plain binary cross-entropy.

    Args:
        logits: (B, C + 1), background in front.
        targets: (B, C + 1) in [0, 1]; rows sum to one for `softmax`.
        gamma: how little the focal loss counts what is right already, >= 0.
        smoothing: share s of every target spread over all classes (`softmax`), or evenly over yes and no (`focal`:
            y becomes (1 - s) y + s / 2).

    Raises:
        InputError: another kind, or shapes that differ.
    """
    if logits.shape != targets.shape or logits.ndim != 2:
        raise InputError(f"action loss: logits {tuple(logits.shape)} and targets {tuple(targets.shape)}; both (B, C+1)")
    logits, targets = logits.float(), targets.float()
    if kind == "softmax":
        return functional.cross_entropy(logits, targets, reduction="none", label_smoothing=smoothing)
    if kind != "focal":
        raise InputError(f"action loss of kind {kind!r}: expected softmax or focal")
    targets = (1 - smoothing) * targets + smoothing / 2
    plain = functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    # the floor keeps the slope of a gamma below 1 finite where a segment is right to the last bit
    distance = (targets - logits.sigmoid()).abs().clamp(min=1e-6)
    return (distance**gamma * plain).sum(dim=1)


def scene_loss(scene_logits: torch.Tensor, scenes: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """Return the cross-entropy of every group's mean logits, (G,) float32 with G = groups.max() + 1.

    Logits are averaged, not log-probabilities: the mean over the log-probabilities would be the mean of the segments'
    own losses and ask each of them to show the scene, while a segment of flat logits abstains from a mean of logits.
    A group whose scene is unknown has a loss of zero, with a gradient of zero; so has a number that no row bears.

    Args:
        scene_logits: (B, K).
        scenes: (B, K); rows sum to one, or are zero where the scene is unknown. A group's target is the mean of its
            rows, so one that is known in part (mixed with an unknown one) counts in part.
        groups: (B,) int64, the group of every row, in any order.
    """
    if scene_logits.shape != scenes.shape or groups.shape != scenes.shape[:1]:
        shapes = [tuple(t.shape) for t in (scene_logits, scenes, groups)]
        raise InputError(f"scene loss: logits, scenes and groups are {shapes}; expected (B, K), (B, K) and (B,)")
    num_groups = int(groups.max()) + 1
    # a product with the membership, not index_add: that one adds in another order each time on a GPU
    member = (groups == torch.arange(num_groups, device=groups.device)[:, None]).float()
    member = (member / member.sum(dim=1, keepdim=True).clamp(min=1))[:, :, None]
    logits = (member * scene_logits.float()).sum(dim=1)
    targets = (member * scenes.float()).sum(dim=1)
    return -(targets * logits.log_softmax(dim=1)).sum(dim=1)
