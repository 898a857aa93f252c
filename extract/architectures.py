"""Which networks a backbone can be, and how each wants its pixels. Needs no torch."""

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

Arch: TypeAlias = Literal[
    "resnet18_narrow", "resnet18", "resnet34", "resnet50", "resnet101",
    "resnext50_32x4d", "resnext101_32x8d", "mobilenet_v2", "efficientnet_lite0",
]  # fmt: skip
ARCHS: tuple[str, ...] = get_args(Arch)
ARCH_HELP = (
    "resnet18_narrow (a quarter of resnet18's work, for CPUs), resnet18, resnet34, resnet50, resnet101, "
    "resnext50_32x4d, resnext101_32x8d, mobilenet_v2 or efficientnet_lite0"
)


@dataclass(frozen=True, slots=True)
class Normalisation:
    """Mean and standard deviation of each colour of RGB in [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


IMAGENET = Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # as torchvision's weights expect
PIXEL_MEAN, PIXEL_STD = IMAGENET.mean, IMAGENET.std
# (level - 127) / 128, what TensorFlow's EfficientNet-Lite was trained on (docs/decisions/0014-backbones.md)
EFFICIENTNET_LITE = Normalisation((127 / 255,) * 3, (128 / 255,) * 3)


def normalisation_of(arch: str) -> Normalisation:
    """Return how a network's published weights want their pixels."""
    return EFFICIENTNET_LITE if arch == "efficientnet_lite0" else IMAGENET
