"""The temporal shift (Lin, Gan, Han: TSM, ICCV 2019): neighbouring frames exchange some of their channels."""

from typing import Any, NamedTuple

import torch
from torch import nn


class ShiftPart(NamedTuple):
    """Channels [first, past) of frame t are those of frame t + step."""

    first: int
    past: int
    step: int


def shift_parts(num_channels: int, fold: int, *, causal: bool = False) -> tuple[ShiftPart, ...]:
    """Return what becomes of a frame's channels, in their order; together the parts are all of them.

    Offline, the first `fold` channels come from the next frame and as many from the one before; causal, only the first
    `fold`, from the one before.
    """
    moved = (ShiftPart(0, fold, -1),) if causal else (ShiftPart(0, fold, 1), ShiftPart(fold, 2 * fold, -1))
    parts = (*moved, ShiftPart(moved[-1].past, num_channels, 0))
    return tuple(part for part in parts if part.first < part.past)


def temporal_shift(x: torch.Tensor, num_frames: int, *, fold_div: int = 8, causal: bool = False) -> torch.Tensor:
    """Return the activations with some channels moved by one time step.

    With fold = C // fold_div, channels [0:fold] take the NEXT time step's value, [fold:2 * fold] the PREVIOUS
    one's, zeros at the ends; the other channels stay. Causal: [0:fold] take the previous one's, all others stay.

    Args:
        x: (B * T, C, H, W), the T frames of a segment one after the other.
        num_frames: T.
    """
    fold = x.shape[1] // fold_div
    if not (x.requires_grad and torch.is_grad_enabled()):
        return shift_frames(x, num_frames, fold=fold, causal=causal)
    shifted: torch.Tensor = _Shift.apply(x, num_frames, fold, causal, False)
    return shifted


def shift_frames(
    x: torch.Tensor, num_frames: int, *, fold: int, causal: bool = False, backwards: bool = False
) -> torch.Tensor:
    """Return (B * T, C, H, W) shifted, outside autograd; `backwards` moves every part the other way."""
    batch, channels, height, width = x.shape
    frames = x.view(batch // num_frames, num_frames, channels, height, width)
    if torch.compiler.is_compiling():  # inductor of torch 2.14 makes wrong code of slice copies in a frozen network
        return _concatenated(frames, shift_parts(channels, fold, causal=causal), backwards).flatten(0, 1)
    # clone + slice copies: the cheapest of the plain forms in both memory formats (benchmarks/shift_cost.py)
    shifted = frames.clone()
    for first, past, step in shift_parts(channels, fold, causal=causal):
        part = slice(first, past)
        if (-step if backwards else step) > 0:
            shifted[:, :-1, part] = frames[:, 1:, part]
            shifted[:, -1, part] = 0
        elif step:
            shifted[:, 1:, part] = frames[:, :-1, part]
            shifted[:, 0, part] = 0
    return shifted.view(batch, channels, height, width)


def _concatenated(frames: torch.Tensor, parts: tuple[ShiftPart, ...], backwards: bool) -> torch.Tensor:
    """Return (B, T, C, H, W) shifted, without writing into a tensor."""
    moved = []
    for first, past, step in parts:
        part, ahead = frames[:, :, first:past], -step if backwards else step
        nothing = torch.zeros_like(part[:, :1])
        if ahead > 0:
            part = torch.cat([part[:, 1:], nothing], dim=1)
        elif ahead:
            part = torch.cat([nothing, part[:, :-1]], dim=1)
        moved.append(part)
    return torch.cat(moved, dim=2)


class _Shift(torch.autograd.Function):
    """The shift with its gradient: the opposite shift, instead of what autograd makes of each slice copy."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, num_frames: int, fold: int, causal: bool, backwards: bool) -> torch.Tensor:
        ctx.how = num_frames, fold, causal, backwards
        return shift_frames(x, num_frames, fold=fold, causal=causal, backwards=backwards)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        num_frames, fold, causal, backwards = ctx.how
        moved = _Shift.apply(grad, num_frames, fold, causal, not backwards)
        return moved, None, None, None, None


class TemporalShift(nn.Module):
    """A layer behind a temporal shift; wraps the first convolution of a residual block."""

    def __init__(self, net: nn.Module, num_frames: int, *, fold_div: int = 8, causal: bool = False) -> None:
        super().__init__()
        self.net, self.num_frames, self.fold_div, self.causal = net, num_frames, fold_div, causal

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Shift (B * T, C, H, W), then apply the layer."""
        out: torch.Tensor = self.net(temporal_shift(x, self.num_frames, fold_div=self.fold_div, causal=self.causal))
        return out
