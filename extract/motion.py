"""The backbone on stacked frame differences: its input, and how it starts from weights for RGB.

After Wang et al., Temporal Segment Networks, ECCV 2016; which frames are taken is in `talstack.extract.rgbdiff`.
"""

import copy

import torch
from torch import nn

from talstack.extract.architectures import IMAGENET, Normalisation
from talstack.extract.backbone import TSMBackbone
from talstack.extract.rgbdiff import NUM_CHANNELS, NUM_DIFFERENCES, NUM_FRAMES
from talstack.io.errors import InputError


def motion_backbone(model: TSMBackbone) -> TSMBackbone:
    """Return a copy of a backbone over RGB whose first convolution takes the 15 channels of `differences`.

    Raises:
        InputError: its first layer is not a convolution over three channels.
    """
    adapted = copy.deepcopy(model)
    names = [name for name, module in adapted.net.named_modules() if isinstance(module, nn.Conv2d)]
    parent, _, last = names[0].rpartition(".")
    holder = adapted.net.get_submodule(parent)
    setattr(holder, last, adapt_first_conv(getattr(holder, last)))
    adapted.modality = "rgbdiff"
    return adapted


def differences(pixels: torch.Tensor, normalisation: Normalisation = IMAGENET) -> torch.Tensor:
    """Return the stacked differences, (n, T, 15, H, W) float32, of frames standardised as the backbone expects.

    Channel 3 k + c is colour c of frame k + 1 minus frame k. The mean falls out; what is left is divided by the
    colours' standard deviation.

    Args:
        pixels: (n, T, 6, H, W, 3) uint8 RGB.

    Raises:
        InputError: another shape or type.
    """
    if pixels.ndim != 6 or pixels.shape[2] != NUM_FRAMES or pixels.shape[-1] != 3 or pixels.dtype != torch.uint8:
        raise InputError(
            f"rgbdiff: pixels must be (n, T, {NUM_FRAMES}, H, W, 3) uint8, got {tuple(pixels.shape)} {pixels.dtype}"
        )
    frames = pixels.to(torch.int16)
    # 16 bits hold a difference exactly, and a constant video gives exact zeros
    steps = (frames[:, :, 1:] - frames[:, :, :-1]).movedim(-1, 3).flatten(2, 3).float()
    std = torch.tensor(normalisation.std, device=pixels.device).repeat(NUM_DIFFERENCES) * 255
    return steps / std[:, None, None]


def adapt_first_conv(conv: nn.Conv2d, num_channels: int = NUM_CHANNELS) -> nn.Conv2d:
    """Return a convolution over `num_channels` inputs that starts from one over RGB.

    Cross-modality initialisation (section 3.2 of the paper): the weights are averaged over the three colours, and the
    average stands at every new channel, unscaled; the rest of the layer is the same.

    Raises:
        InputError: the layer does not take three ungrouped channels, or `num_channels` is below 1.
    """
    if conv.in_channels != 3 or conv.groups != 1:
        raise InputError(
            f"first convolution: expected 3 input channels in one group, got {conv.in_channels} in {conv.groups}"
        )
    if num_channels < 1:
        raise InputError(f"first convolution: expected at least 1 new input channel, got {num_channels}")
    adapted = copy.deepcopy(conv)
    adapted.in_channels = num_channels
    mean = conv.weight.detach().mean(dim=1, keepdim=True)
    adapted.weight = nn.Parameter(mean.repeat(1, num_channels, 1, 1))
    return adapted
