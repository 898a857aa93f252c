"""The backbone's network as a short list of steps, batch norm folded into the convolutions.

What the runtimes are made from: read off the very module that was trained, by tracing it (torch.fx), so that a
network and its fast forms cannot drift apart.
"""

import operator
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import torch
from torch import fx, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_weights

from talstack.extract.image_networks import SameConv2d
from talstack.extract.shift import TemporalShift
from talstack.io.errors import ModelError

Kind: TypeAlias = Literal["input", "conv", "relu", "relu6", "max_pool", "add", "mean"]
ADDITIONS = (operator.add, operator.iadd, torch.add)
POOLINGS = (nn.AdaptiveAvgPool2d, functional.adaptive_avg_pool2d)
PASSED_OVER = (nn.Identity, nn.Dropout, torch.flatten)


@dataclass(frozen=True, slots=True, eq=False)
class Convolution:
    """A convolution with its batch norm folded in.

    Attributes:
        weight: (O, I / groups, kh, kw) float32.
        bias: (O,) float32.
        stride, padding, dilation: (vertical, horizontal).
        groups: as torch has it.
        fold: so many channels come from the next frame, and as many from the one before; 0 without a temporal shift.
        causal: so many from the one before, and none from the next.
        same: padded as TensorFlow's "SAME" (`talstack.extract.image_networks.SameConv2d`), whatever `padding` is.
    """

    weight: torch.Tensor
    bias: torch.Tensor
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    fold: int
    causal: bool = False
    same: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """One operation.

    Attributes:
        kind: "mean" is the average over the picture, (N, D); the last step is one.
        inputs: positions of the steps whose output it takes.
        convolution: of a "conv".
        window: kernel size, stride and padding of a "max_pool".
    """

    kind: Kind
    inputs: tuple[int, ...] = ()
    convolution: Convolution | None = None
    window: tuple[int, int, int] | None = None


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, TemporalShift | SameConv2d) or super().is_leaf_module(m, module_qualified_name)


def fold_network(net: nn.Module) -> tuple[Step, ...]:
    """Return the steps of a network in evaluation mode, in an order in which they can be run.

    Raises:
        ModelError: an operation that has no step; the message names it.
    """
    if net.training:
        raise ModelError("only a network in evaluation mode can be folded; call eval() first")
    modules = dict(net.named_modules())
    graph = _Tracer().trace(net)
    steps: list[Step] = []
    place: dict[fx.Node, int] = {}  # which step gives a node's value
    for node in graph.nodes:
        if node.op == "output":
            return _checked(steps, place[node.args[0]])
        inputs = tuple(place[source] for source in node.all_input_nodes)
        made = _step(modules[str(node.target)] if node.op == "call_module" else node.target, inputs, node=node)
        if isinstance(made, nn.BatchNorm2d):
            _fold_norm(steps, inputs[0], made, node=node)
        if not isinstance(made, Step):
            place[node] = inputs[0]
            continue
        place[node] = len(steps)
        steps.append(made)
    raise ModelError("the network has no output")


def _step(what: Any, inputs: tuple[int, ...], *, node: fx.Node) -> Step | nn.BatchNorm2d | None:
    """Return the node's step, its batch norm, or None where its input passes unchanged."""
    if node.op == "placeholder":
        return Step("input")
    if isinstance(what, TemporalShift | nn.Conv2d):
        return Step("conv", inputs, _convolution(what))
    if isinstance(what, nn.BatchNorm2d):
        return what
    if isinstance(what, nn.ReLU | nn.ReLU6):
        return Step("relu6" if isinstance(what, nn.ReLU6) else "relu", inputs)
    if isinstance(what, nn.MaxPool2d) and what.dilation == 1 and not what.ceil_mode:
        kernel, stride, padding = (
            v if isinstance(v, int) else v[0] for v in (what.kernel_size, what.stride, what.padding)
        )
        return Step("max_pool", inputs, window=(kernel, stride, padding))
    if what in ADDITIONS and len(inputs) == 2:
        return Step("add", inputs)
    if isinstance(what, POOLINGS[0]) or what is POOLINGS[1]:
        return Step("mean", inputs)
    if isinstance(what, PASSED_OVER[:2]) or what is PASSED_OVER[2]:
        return None
    raise ModelError(f"{node.name} ({what}) cannot be folded; use runtime = eager")


def _convolution(module: TemporalShift | nn.Conv2d) -> Convolution:
    conv = module.net if isinstance(module, TemporalShift) else module
    if not isinstance(conv, nn.Conv2d) or isinstance(conv.padding, str):
        raise ModelError(f"{conv} cannot be folded; use runtime = eager")
    shift = module if isinstance(module, TemporalShift) else None
    fold, causal = (conv.in_channels // shift.fold_div, shift.causal) if shift else (0, False)
    if fold and conv.groups > 1:
        raise ModelError(f"{conv}: a grouped convolution behind a temporal shift cannot be folded; use runtime = eager")
    bias = conv.weight.detach().new_zeros(conv.out_channels) if conv.bias is None else conv.bias.detach()
    stride, padding, dilation = (_pair(value) for value in (conv.stride, conv.padding, conv.dilation))
    same = isinstance(conv, SameConv2d)
    return Convolution(conv.weight.detach(), bias, stride, padding, dilation, conv.groups, fold, causal, same)


def _pair(value: tuple[int, ...]) -> tuple[int, int]:
    return (value[0], value[1])


def _fold_norm(steps: list[Step], source: int, norm: nn.BatchNorm2d, *, node: fx.Node) -> None:
    """Fold the batch norm into the convolution before it, in place."""
    step = steps[source]
    mean, variance = norm.running_mean, norm.running_var
    if step.convolution is None or len(node.all_input_nodes[0].users) != 1 or mean is None or variance is None:
        raise ModelError(f"{node.name}: a batch norm without statistics, or not behind a convolution of its own")
    conv = step.convolution
    weight, bias = fuse_conv_bn_weights(
        nn.Parameter(conv.weight), nn.Parameter(conv.bias), mean, variance, norm.eps, norm.weight, norm.bias
    )
    channels_last = weight.detach().contiguous(memory_format=torch.channels_last)
    folded = replace(conv, weight=channels_last, bias=bias.detach())
    steps[source] = Step("conv", step.inputs, folded)


def _checked(steps: list[Step], output: int) -> tuple[Step, ...]:
    if output != len(steps) - 1 or steps[-1].kind != "mean":
        raise ModelError("a network must end in an average over the picture to be folded; use runtime = eager")
    return tuple(steps)
