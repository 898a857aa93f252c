"""The names that other programs give a network's weights, turned into torchvision's.

Layouts, told apart by their keys; prefixes such as "module." vary between releases and are stripped:

    tsm              the paper's authors (mit-han-lab): `base_model.layer1.0.conv1.net.weight`, `new_fc.*`; MobileNetV2
                     as one flat list per block, `features.2.conv.3.weight`
    mmaction2        `backbone.layer1.0.conv1.conv.net.weight`, `backbone.layer1.0.conv1.bn.*`, `cls_head.fc_cls.*`
    efficientnet     the package efficientnet_lite_pytorch: `_blocks.0._depthwise_conv.weight`, `_fc.*`
    torchvision      `layer1.0.conv1.weight`, `fc.*`; this project's own files are it behind a prefix

A convolution behind a temporal shift has `.net` in its name in the first two: the shift's layer stands around it.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

State: TypeAlias = Mapping[str, Any]

PREFIXES = ("module.", "base_model.", "backbone.", "model.", "net.", "cls_head.")
CLASSIFIERS = ("new_fc", "fc_cls", "action", "fc", "classifier.1", "classifier", "_fc")
OTHER_HEADS = ("scene",)
MM_STAGES = (1, 2, 4, 7, 11, 14, 17)  # number of each stage's first block among MobileNetV2's features
# position in a block of one flat list -> in torchvision's; a block that does not expand has five parts
FLAT = {"0": "0.0", "1": "0.1", "3": "1.0", "4": "1.1", "6": "2", "7": "3"}
FLAT_FIRST = {"0": "0.0", "1": "0.1", "3": "1", "4": "2"}
LITE = {"_expand_conv": "0.0", "_bn0": "0.1", "_depthwise_conv": "1.0", "_bn1": "1.1", "_project_conv": "2",
        "_bn2": "3"}  # fmt: skip
LITE_FIRST = {"_depthwise_conv": "0.0", "_bn1": "0.1", "_project_conv": "1", "_bn2": "2"}
LITE_ENDS = {"_conv_stem": "0.0", "_bn0": "0.1", "_conv_head": "17.0", "_bn1": "17.1"}


@dataclass(frozen=True, slots=True, eq=False)
class PlainState:
    """A network's weights under torchvision's names, without its classifier.

    Attributes:
        layout: whose file it was.
        net: {name: tensor}.
        classifier: (weight (classes, D), bias (classes,)), or None.
        shifted: names of the layers that stood behind a temporal shift.
        left_out: keys that are no part of the network.
    """

    layout: str
    net: dict[str, Any]
    classifier: tuple[Any, Any] | None
    shifted: frozenset[str]
    left_out: tuple[str, ...] = ()


def plain_state(state: State) -> PlainState:
    """Return the weights under torchvision's names; a name that no rule knows stays as it is."""
    stripped = {_strip(key): value for key, value in state.items()}
    head = next((name for name in CLASSIFIERS if f"{name}.weight" in stripped), None)
    classifier = (stripped.pop(f"{head}.weight"), stripped.pop(f"{head}.bias", None)) if head else None
    heads = tuple(f"{name}." for name in (*CLASSIFIERS, *OTHER_HEADS))
    left_out = tuple(key for key in stripped if key.startswith(heads))
    layout, rename = _layout(stripped, head)
    net, shifted = {}, set()
    for key in stripped.keys() - set(left_out):
        name = rename(key.replace(".net.", "."))
        net[name] = stripped[key]
        if ".net." in key:
            shifted.add(_shifted_layer(key, name))
    return PlainState(layout, net, classifier, frozenset(shifted) - {""}, left_out)


def _strip(key: str) -> str:
    while key.startswith(PREFIXES):
        key = key.partition(".")[2]
    return key


def _shifted_layer(key: str, name: str) -> str:
    """Return the layer that the shift stands around; "" for a further part of one that another key names."""
    before, _, behind = key.partition(".net.")
    if behind.startswith("bn."):
        return ""
    # "weight", or "conv.weight" of a convolution with its norm; all else is more than one convolution
    is_convolution = "." not in behind or behind.startswith("conv.")
    return name.rpartition(".")[0] if is_convolution else before


def _layout(stripped: State, head: str | None) -> tuple[str, Callable[[str], str]]:
    """Return the layout's name and what renames its keys."""
    if "conv1.conv.weight" in stripped:
        is_mobilenet = "conv2.conv.weight" in stripped
        return "mmaction2", _from_mmaction2_mobilenet if is_mobilenet else _from_mmaction2_resnet
    if "_conv_stem.weight" in stripped:
        return "efficientnet", _from_efficientnet
    if head == "action":
        return "talstack", str
    is_flat = "features.1.conv.3.weight" in stripped
    is_tsm = is_flat or head == "new_fc" or any(".net." in key for key in stripped)
    return "tsm" if is_tsm else "torchvision", _from_flat_mobilenet if is_flat else str


def _from_flat_mobilenet(key: str) -> str:
    found = re.fullmatch(r"features\.(\d+)\.conv\.(\d)\.(\w+)", key)
    if found is None:
        return key
    block, part, what = found.groups()
    return f"features.{block}.conv.{(FLAT_FIRST if block == '1' else FLAT).get(part, part)}.{what}"


def _from_mmaction2_resnet(key: str) -> str:
    if found := re.fullmatch(r"(layer\d\.\d+\.)?conv(\d)\.(conv|bn)\.(\w+)", key):
        return f"{found[1] or ''}{found[3]}{found[2]}.{found[4]}"
    if found := re.fullmatch(r"(layer\d\.\d+\.downsample)\.(conv|bn)\.(\w+)", key):
        return f"{found[1]}.{_second(found[2])}.{found[3]}"
    return key


def _from_mmaction2_mobilenet(key: str) -> str:
    if found := re.fullmatch(r"conv([12])\.(conv|bn)\.(\w+)", key):  # stem and head
        return f"features.{0 if found[1] == '1' else 18}.{_second(found[2])}.{found[3]}"
    found = re.fullmatch(r"layer(\d)\.(\d+)\.conv\.(\d)\.(conv|bn)\.(\w+)", key)
    if found is None:
        return key
    number = MM_STAGES[int(found[1]) - 1] + int(found[2])
    last = 1 if number == 1 else 2  # the projection, whose convolution and norm torchvision does not put together
    is_last = int(found[3]) >= last
    place = str(last + _second(found[4])) if is_last else f"{found[3]}.{_second(found[4])}"
    return f"features.{number}.conv.{place}.{found[5]}"


def _second(kind: str) -> int:
    """Return the place of a convolution's norm behind it."""
    return int(kind == "bn")


def _from_efficientnet(key: str) -> str:
    if found := re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", key):
        names = LITE_FIRST if found[1] == "0" else LITE
        return f"features.{int(found[1]) + 1}.conv.{names.get(found[2], found[2])}.{found[3]}"
    name, _, what = key.partition(".")
    return f"features.{LITE_ENDS[name]}.{what}" if name in LITE_ENDS else key
