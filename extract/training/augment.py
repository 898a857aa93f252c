"""Augmentation of a batch: planned row by row in numpy, applied as one gather of uint8 pixels on the device.

A segment's frames are all treated alike, so that only the actions move. What is mixed is whole groups of segments of
one recording and view with whole other groups, so that the scene of a group stays one.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import betaincinv

from talstack.extract.backbone import normalise
from talstack.extract.training.config import FinetuneConfig
from talstack.io.errors import InputError

# one column each in the uniform variates of a row; those after MIRROR are used by the first row of a group
DOWN, ACROSS, GAIN, BIAS, YAW, MIRROR, ORDER, KIND, SHARE, BOX_Y, BOX_X = range(11)
CHUNK = 2**20  # pixel values that are worked on at a time, about 4 MiB of float32: what a processor's cache holds
GPU_CHUNK = 2**25  # few launches count for more there


@dataclass(frozen=True, slots=True, eq=False)
class AugmentPlan:
    """What is done to each of B segments of H x W pixels.

    Attributes:
        rows, cols: (B, H) and (B, W) int64, the source row and column of every row and column shown.
        gain, bias: (B,) float32, pixel p becomes gain * (p - 128) + 128 + bias, clipped to [0, 255].
        mirrored: (B,) bool, left and right changed places; so must the classes (`mirror_targets`).
        partner: (B,) int64, the row that each is mixed with, itself where nothing is mixed.
        share: (B,) float32, of the row itself in the mixed targets; the rest is its partner's.
        box: (B, 4) int64, the pixels y0:y1, x0:x1 that show the partner (cutmix). Rows without such pixels are
            blended by `share` (mixup). None: no cutmix.
    """

    rows: np.ndarray
    cols: np.ndarray
    gain: np.ndarray
    bias: np.ndarray
    mirrored: np.ndarray
    partner: np.ndarray
    share: np.ndarray
    box: np.ndarray | None

    @property
    def mixes(self) -> bool:
        """Whether any row is mixed with another."""
        return bool((self.partner != np.arange(len(self.partner))).any())


def plan_augmentation(
    config: FinetuneConfig,
    rng: np.random.Generator,
    *,
    size: int,
    groups: np.ndarray,
    panoramic: np.ndarray,
    mirrorable: np.ndarray,
) -> AugmentPlan:
    """Return a random plan for B segments; what a row's own picture goes through depends on no other row.

    Panoramas are turned by any angle where `config.yaw`, else moved by the jitter, and wrap around; other pictures
    repeat their edge. Where mixup and cutmix are both on, each group gets one of them at even odds.

    Args:
        size: H = W in pixels.
        groups: (B,) int64, rows of one recording and view bear the same number.
        panoramic: (B,) bool, the picture goes around: its left edge continues its right one.
        mirrorable: (B,) bool, the segment's classes allow mirroring; nothing is mirrored where flip is "never".

    Raises:
        InputError: the arrays differ in length.
    """
    if not len(groups) == len(panoramic) == len(mirrorable):
        raise InputError(
            f"augmentation: {len(groups)} groups, {len(panoramic)} panoramic and {len(mirrorable)} mirrorable flags; "
            "expected one each per row"
        )
    drawn = rng.random((len(groups), BOX_X + 1))
    mirrored = (config.flip != "never") & np.asarray(mirrorable, dtype=bool) & (drawn[:, MIRROR] < 0.5)
    rows, cols = _source_pixels(config, drawn, size=size, panoramic=np.asarray(panoramic, dtype=bool))
    partner, share, box = _mixing(config, drawn, groups=groups, size=size)
    return AugmentPlan(
        rows=rows,
        cols=np.where(mirrored[:, None], cols[:, ::-1], cols),
        gain=(1 + config.jitter * (2 * drawn[:, GAIN] - 1)).astype(np.float32),
        bias=(128 * config.jitter * (2 * drawn[:, BIAS] - 1)).astype(np.float32),
        mirrored=mirrored,
        partner=partner,
        share=share,
        box=box,
    )


def apply_augmentation(
    pixels: torch.Tensor,
    plan: AugmentPlan,
    *,
    normalise: Callable[[torch.Tensor], torch.Tensor] = normalise,
) -> torch.Tensor:
    """Return (B, T, 3, H, W) float32 on the pixels' device; channels lie last in memory.

    Beside the result it needs a few chunks of memory, whatever the batch.

    Args:
        pixels: (B, T, H, W, 3) uint8.
        normalise: the backbone's, (..., H, W, 3) to (..., 3, H, W); linear in each channel.

    Raises:
        InputError: the plan is for pictures of another number or size.
    """
    batch, num_frames, height, width, channels = pixels.shape
    if (batch, height, width) != (len(plan.rows), plan.rows.shape[1], plan.cols.shape[1]):
        planned = (len(plan.rows), plan.rows.shape[1], plan.cols.shape[1])
        raise InputError(f"augmentation: pixels {tuple(pixels.shape)}, planned for B, H, W = {planned}")
    ends = pixels.new_tensor([[0], [255]]).repeat(1, channels)[:, None, None, :]
    black, white = normalise(ends)[:, :, 0, 0].float()
    scale, offset = ((white - black) / 255).repeat(width), black.repeat(width)
    out = torch.empty((batch, num_frames, height, width * channels), device=pixels.device)
    limit = CHUNK if pixels.device.type == "cpu" else GPU_CHUNK
    at_once = max(1, limit // (num_frames * height * width * channels))
    for start in range(0, batch, at_once):
        chosen = np.arange(start, min(start + at_once, batch))
        shown = _shown(pixels, plan, chosen)
        if plan.mixes:
            shown = _shown(pixels, plan, plan.partner[chosen]).lerp_(shown, _own_share(pixels, plan, chosen))
        torch.addcmul(offset, shown, scale, out=out[start : start + len(chosen)])
    return out.view(batch, num_frames, height, width, channels).movedim(-1, -3)


def mix_targets(targets: torch.Tensor, plan: AugmentPlan) -> torch.Tensor:
    """Return the (B, K) targets of the mixed pictures; mirror them first (`mirror_targets`)."""
    if not plan.mixes:
        return targets
    share = torch.from_numpy(plan.share).to(targets)[:, None]
    return share * targets + (1 - share) * targets[torch.from_numpy(plan.partner).to(targets.device)]


def _source_pixels(
    config: FinetuneConfig, drawn: np.ndarray, *, size: int, panoramic: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the (B, H) rows and (B, W) columns that a random shift, or a turn of the panorama, shows."""
    reach = max(1, int(config.jitter * size)) if config.jitter > 0 else 0
    down, across = (np.floor(drawn[:, [DOWN, ACROSS]] * (2 * reach + 1)).astype(np.int64) - reach).T
    places = np.arange(size)
    turn = np.floor(drawn[:, YAW] * size).astype(np.int64) if config.yaw else across
    clamped = np.clip(places + across[:, None], 0, size - 1)
    wrapped = (places + turn[:, None]) % size
    return np.clip(places + down[:, None], 0, size - 1), np.where(panoramic[:, None], wrapped, clamped)


def _mixing(
    config: FinetuneConfig, drawn: np.ndarray, *, groups: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Return partner (B,), share (B,) and box (B, 4) or None: every group is mixed with the next of a random ring."""
    names, first, group = np.unique(groups, return_index=True, return_inverse=True)
    if len(names) < 2 or not (config.mixup or config.cutmix):
        return np.arange(len(groups)), np.ones(len(groups), np.float32), None
    own = drawn[first]
    ring = np.argsort(own[:, ORDER])
    other = np.empty_like(ring)
    other[ring] = np.roll(ring, -1)
    by_group = np.argsort(group, kind="stable")
    sizes = np.bincount(group)
    starts = np.cumsum(sizes) - sizes
    rank = np.empty_like(by_group)
    rank[by_group] = np.arange(len(groups)) - starts[group[by_group]]
    partner = by_group[starts[other[group]] + rank % sizes[other[group]]]
    cut = own[:, KIND] < (0.5 if config.mixup and config.cutmix else float(config.cutmix > 0))
    alpha = np.where(cut, config.cutmix, config.mixup)
    share = betaincinv(alpha, alpha, own[:, SHARE])
    box = _boxes(own, share, size=size) * cut[:, None]
    area = (box[:, 1] - box[:, 0]) * (box[:, 3] - box[:, 2]) / size**2
    share = np.where(cut, 1 - area, share).astype(np.float32)
    return partner, share[group], box[group] if config.cutmix else None


def _boxes(drawn: np.ndarray, share: np.ndarray, *, size: int) -> np.ndarray:
    """Return (G, 4) int64 y0, y1, x0, x1: a square of area 1 - share about any point, cut at the picture's edges."""
    half = np.sqrt(1 - share) * size / 2
    edges = [centre * size + side * half for centre in (drawn[:, BOX_Y], drawn[:, BOX_X]) for side in (-1, 1)]
    return np.clip(np.rint(np.stack(edges, axis=1)), 0, size).astype(np.int64)


def _own_share(pixels: torch.Tensor, plan: AugmentPlan, chosen: np.ndarray) -> torch.Tensor:
    """Return what part of every pixel value is the row's own, float32 that broadcasts to (n, T, H, W * 3)."""
    blended = torch.from_numpy(plan.share[chosen]).to(pixels.device).view(-1, 1, 1)
    if plan.box is None:
        return blended[:, None]
    _, _, height, width, channels = pixels.shape
    y0, y1, x0, x1 = torch.from_numpy(plan.box[chosen].T.copy()).to(pixels.device)[:, :, None, None]
    down, across = (torch.arange(length, device=pixels.device) for length in (height, width))
    outside = (down[:, None] < y0) | (down[:, None] >= y1) | (across < x0) | (across >= x1)
    pasted = (y0 < y1) & (x0 < x1)
    return torch.where(pasted, outside.float(), blended)[:, None].repeat_interleave(channels, dim=-1)


def _shown(pixels: torch.Tensor, plan: AugmentPlan, chosen: np.ndarray) -> torch.Tensor:
    """Return rows moved, mirrored and changed in contrast, (n, T, H, W * 3) float32 in [0, 255]."""
    _, num_frames, height, width, channels = pixels.shape
    rows, cols, gain, bias, frames = (
        torch.from_numpy(values).to(pixels.device)
        for values in (
            plan.rows[chosen], plan.cols[chosen], plan.gain[chosen], plan.bias[chosen],
            chosen[:, None] * num_frames + np.arange(num_frames),
        )
    )  # fmt: skip
    source = (frames[:, :, None] * height + rows[:, None, :])[:, :, :, None] * width + cols[:, None, None, :]
    moved = pixels.reshape(-1, channels).index_select(0, source.view(-1))
    shown = moved.view(len(chosen), num_frames, height, width * channels).float()
    gain, bias = gain.view(-1, 1, 1, 1), bias.view(-1, 1, 1, 1)
    return shown.mul_(gain).add_(128 * (1 - gain) + bias).clamp_(0, 255)
