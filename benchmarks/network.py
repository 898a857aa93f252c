"""The network that benchmarks compute with; needs no more than torch, torchvision and numpy."""

import torch
from torch import nn

from talstack.extract.backbone import TSMBackbone

FRAMES = 8


def make_model(arch: str, *, shift: bool = True, num_actions: int = 2) -> TSMBackbone:
    """Return a seeded network in evaluation mode whose batch norms do something; the same weights with and without."""
    torch.manual_seed(0)
    model = TSMBackbone(arch, num_frames=FRAMES, num_actions=num_actions, num_scenes=1, shift=shift).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None and module.running_var is not None:
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.normal_(module.bias, 0, 0.1)
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model
