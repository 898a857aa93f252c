"""The temporal shift (Lin, Gan, Han: TSM, ICCV 2019): neighbouring frames exchange a quarter of their channels."""

import torch
from torch import nn


def temporal_shift(x: torch.Tensor, num_frames: int, *, fold_div: int = 8) -> torch.Tensor:
    """Return the activations with some channels moved by one time step.

    With fold = C // fold_div, channels [0:fold] take the NEXT time step's value, [fold:2 * fold] the PREVIOUS
    one's, zeros at the ends; the other channels stay.

    Args:
        x: (B * T, C, H, W), the T frames of a segment one after the other.
        num_frames: T.
    """
    return shift_frames(x, num_frames, fold=x.shape[1] // fold_div)


def shift_frames(x: torch.Tensor, num_frames: int, *, fold: int) -> torch.Tensor:
    """Return (B * T, C, H, W): `fold` channels from the next frame, the next `fold` from the one before."""
    batch, channels, height, width = x.shape
    frames = x.view(batch // num_frames, num_frames, channels, height, width)
    # clone + two slice copies: the cheapest of the plain forms in both memory formats (benchmarks/shift.py)
    shifted = frames.clone()
    shifted[:, :-1, :fold] = frames[:, 1:, :fold]
    shifted[:, -1, :fold] = 0
    shifted[:, 1:, fold : 2 * fold] = frames[:, :-1, fold : 2 * fold]
    shifted[:, 0, fold : 2 * fold] = 0
    return shifted.view(batch, channels, height, width)


class TemporalShift(nn.Module):
    """A layer behind a temporal shift; wraps the first convolution of a residual block."""

    def __init__(self, net: nn.Module, num_frames: int, *, fold_div: int = 8) -> None:
        super().__init__()
        self.net, self.num_frames, self.fold_div = net, num_frames, fold_div

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Shift (B * T, C, H, W), then apply the layer."""
        out: torch.Tensor = self.net(temporal_shift(x, self.num_frames, fold_div=self.fold_div))
        return out
