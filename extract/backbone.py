"""The backbone: a torchvision ResNet with temporal shift, an action classifier and a scene classifier.

Frames go in as (B, T, 3, H, W) normalised float; the feature of a segment is the pooled last stage averaged over
its T frames.
"""

from typing import NamedTuple

import torch
import torchvision
from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet

from talstack.extract.shift import TemporalShift
from talstack.io.errors import ConfigError, MissingInputError

ARCHS = ("resnet18_narrow", "resnet18", "resnet50")
PIXEL_MEAN = (0.485, 0.456, 0.406)  # ImageNet's, as torchvision's weights expect, of RGB in [0, 1]
PIXEL_STD = (0.229, 0.224, 0.225)


def pick_device() -> torch.device:
    """Return the GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class BackboneOutput(NamedTuple):
    """features (B, D), logits (B, C + 1) with background first, scene_logits (B, K)."""

    features: torch.Tensor
    logits: torch.Tensor
    scene_logits: torch.Tensor


class TSMBackbone(nn.Module):
    """TSM over fixed-length segments with an explicit background class and the scene as auxiliary output.

    Attributes:
        num_frames: T.
        feature_dim: D.
        modality: what its frames are: "rgb", or "rgbdiff" for stacked differences (`talstack.extract.motion`).
    """

    def __init__(
        self, arch: str, *, num_frames: int, num_actions: int, num_scenes: int, shift: bool = True,
        fold_div: int = 8, dropout: float = 0.5, imagenet: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.num_frames, self.modality = num_frames, "rgb"
        self.net = _build_resnet(arch, imagenet=imagenet)
        self.feature_dim = int(self.net.fc.in_features)
        self.net.fc = nn.Identity()
        if shift:
            insert_shift(self.net, num_frames, fold_div=fold_div)
        self.dropout = nn.Dropout(dropout)
        self.action = nn.Linear(self.feature_dim, num_actions + 1)
        self.scene = nn.Linear(self.feature_dim, max(num_scenes, 1))

    def forward(self, frames: torch.Tensor) -> BackboneOutput:
        """Return the features and logits of (B, T, 3, H, W) normalised frames."""
        batch, num_frames = frames.shape[:2]
        flat = frames.reshape(batch * num_frames, *frames.shape[2:]).contiguous(memory_format=torch.channels_last)
        pooled = self.net(flat).view(batch, num_frames, self.feature_dim).mean(dim=1)
        dropped = self.dropout(pooled)
        return BackboneOutput(pooled, self.action(dropped), self.scene(dropped))


def insert_shift(net: ResNet, num_frames: int, *, fold_div: int = 8) -> None:
    """Put a temporal shift before the first convolution of every residual block, in place.

    In a network whose layer3 has 23 or more blocks (ResNet-101) only every second block shifts. The shortcut is
    never shifted.
    """
    every = 2 if len(net.layer3) >= 23 else 1
    for stage in (net.layer1, net.layer2, net.layer3, net.layer4):
        for i, block in enumerate(stage):
            if i % every == 0:
                block.conv1 = TemporalShift(block.conv1, num_frames, fold_div=fold_div)


def normalise(pixels: torch.Tensor) -> torch.Tensor:
    """Return (..., 3, H, W) float32 from (..., H, W, 3) uint8 RGB, standardised as the backbone expects."""
    mean = torch.tensor(PIXEL_MEAN, device=pixels.device) * 255
    std = torch.tensor(PIXEL_STD, device=pixels.device) * 255
    return ((pixels.float() - mean) / std).movedim(-1, -3)


def _build_resnet(arch: str, *, imagenet: bool) -> ResNet:
    if arch not in ARCHS:
        raise ConfigError(f"arch {arch!r}: expected one of {', '.join(ARCHS)}")
    if arch == "resnet18_narrow":
        if imagenet:
            raise ConfigError("arch 'resnet18_narrow' has no ImageNet weights; use resnet18 or resnet50")
        return _narrow_resnet18(32)
    weights = torchvision.models.get_model_weights(arch).DEFAULT if imagenet else None
    try:
        return torchvision.models.get_model(arch, weights=weights)
    except OSError as error:  # URLError is one
        file = "the file" if weights is None else weights.url.rsplit("/", 1)[-1]
        raise MissingInputError(
            f"ImageNet weights of {arch} could not be loaded ({error}); put {file} into "
            f"{torch.hub.get_dir()}/checkpoints, or set finetune.imagenet = false"
        ) from error


def _narrow_resnet18(width: int) -> ResNet:
    """Return a ResNet-18 whose stages have `width`, 2, 4 and 8 times it channels instead of 64 to 512."""
    net = ResNet(BasicBlock, [2, 2, 2, 2])
    net.inplanes = width
    net.conv1 = nn.Conv2d(3, width, kernel_size=7, stride=2, padding=3, bias=False)
    net.bn1 = nn.BatchNorm2d(width)
    for i, stride in enumerate((1, 2, 2, 2)):
        setattr(net, f"layer{i + 1}", net._make_layer(BasicBlock, width * 2**i, 2, stride=stride))
    net.fc = nn.Linear(width * 8, 1)
    for module in (m for m in net.modules() if isinstance(m, nn.Conv2d)):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return net
