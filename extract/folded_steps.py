"""Folded steps run by torch: activation and addition inside the convolutions, everything channels_last.

torch's CPU builds with oneDNN have operators that apply an addition, a ReLU or a ReLU6 to a convolution's output while
it is still in the cache (those that torch.compile uses), and cuDNN has the same for a ReLU on a GPU; elsewhere it is
done in separate operations.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch.nn import functional

from talstack.extract.folding import Convolution, Step
from talstack.extract.image_networks import same_padding
from talstack.extract.shift import shift_frames

# activation -> its name among the fused operators, and its arguments
FUSED_NAMES: dict[str, tuple[str | None, list[float]]] = {
    "": (None, []), "relu": ("relu", []), "relu6": ("hardtanh", [0.0, 6.0]),
}  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class FusedStep:
    """A step, or a convolution with what follows it.

    Attributes:
        place: number of its output among the unfused steps.
        step: what to do; its inputs are places.
        addend: place of what is added to a convolution's output, or None.
        activation: "relu" or "relu6" where one comes last, else "".
        free: places that nothing needs any more afterwards.
    """

    place: int
    step: Step
    addend: int | None = None
    activation: str = ""
    free: tuple[int, ...] = ()


def fuse_steps(steps: Sequence[Step]) -> tuple[FusedStep, ...]:
    """Return the steps with conv, addition and activation as one where they follow each other, in output order."""
    uses = Counter(source for step in steps for source in step.inputs)
    fused: dict[int, FusedStep] = {}

    def own(place: int) -> FusedStep | None:
        """Return the convolution whose output is this place's alone and still bare of an activation."""
        found = fused.get(place)
        bare = found is not None and found.step.kind == "conv" and not found.activation
        return found if bare and uses[place] == 1 else None

    for place, step in enumerate(steps):
        made = FusedStep(place, step)
        if step.kind in ("relu", "relu6") and (conv := own(step.inputs[0])):
            # the fused addition knows no ReLU6
            if conv.addend is None or step.kind == "relu":
                made = replace(fused.pop(conv.place), place=place, activation=step.kind)
        elif step.kind == "add":
            convs = [found for found in map(own, step.inputs) if found and found.addend is None]
            if convs:
                left, right = step.inputs
                other = right if left == convs[0].place else left
                made = replace(fused.pop(convs[0].place), place=place, addend=other)
        fused[place] = made
    return _with_frees([fused[place] for place in sorted(fused)])


def move_steps(steps: Sequence[FusedStep], device: torch.device, dtype: torch.dtype) -> tuple[FusedStep, ...]:
    """Return the steps with their weights on a device, in another type."""
    return tuple(replace(one, step=_moved(one.step, device, dtype)) for one in steps)


def _moved(step: Step, device: torch.device, dtype: torch.dtype) -> Step:
    if step.convolution is None:
        return step
    conv = step.convolution
    weight = conv.weight.to(device, dtype, memory_format=torch.channels_last)
    return replace(step, convolution=replace(conv, weight=weight, bias=conv.bias.to(device, dtype)))


def _inputs(fused: FusedStep) -> tuple[int, ...]:
    return fused.step.inputs if fused.addend is None else (*fused.step.inputs, fused.addend)


def _with_frees(fused: list[FusedStep]) -> tuple[FusedStep, ...]:
    last = {source: at for at, one in enumerate(fused) for source in _inputs(one)}
    return tuple(
        replace(one, free=tuple({source for source in _inputs(one) if last[source] == at}))
        for at, one in enumerate(fused)
    )


def run_steps(steps: Sequence[FusedStep], frames: torch.Tensor, *, num_frames: int) -> torch.Tensor:
    """Return the pooled last stage (N, D) of frames (N, 3, H, W), N = B * num_frames, channels_last."""
    values: dict[int, torch.Tensor] = {}
    result = frames
    for fused in steps:
        inputs = [values[source] for source in fused.step.inputs]
        if fused.step.kind == "input":
            result = frames
        elif fused.step.convolution is not None:
            addend = None if fused.addend is None else values[fused.addend]
            result = _convolve(inputs[0], fused, addend, num_frames=num_frames)
        else:
            result = _apply(fused.step, inputs)
        values[fused.place] = result
        for source in fused.free:
            del values[source]
    return result


def _apply(step: Step, inputs: list[torch.Tensor]) -> torch.Tensor:
    if step.window is not None:
        kernel, stride, padding = step.window
        return functional.max_pool2d(inputs[0], kernel, stride, padding)
    if step.kind == "add":
        return inputs[0] + inputs[1]
    if step.kind == "mean":
        return inputs[0].mean(dim=(2, 3))
    return functional.relu6(inputs[0]) if step.kind == "relu6" else functional.relu(inputs[0])


def _convolve(x: torch.Tensor, fused: FusedStep, addend: torch.Tensor | None, *, num_frames: int) -> torch.Tensor:
    conv = fused.step.convolution
    assert conv is not None  # noqa: S101 - the caller has looked
    if conv.fold:
        x = shift_frames(x, num_frames, fold=conv.fold, causal=conv.causal)
    padding = conv.padding
    if conv.same:
        x, padding = functional.pad(x, same_padding(x, conv.weight, conv.stride)), (0, 0)
    if x.is_cuda and fused.activation == "relu" and HAS_CUDNN:
        return _on_gpu(x, replace(conv, padding=padding), addend)
    if x.is_cuda or not HAS_FUSED:
        return _plain(x, replace(conv, padding=padding), addend, fused.activation)
    shape = (list(padding), list(conv.stride), list(conv.dilation), conv.groups)
    kind, scalars = FUSED_NAMES[fused.activation]
    if addend is None:
        return torch.ops.mkldnn._convolution_pointwise(
            x, conv.weight, conv.bias, *shape, kind or "none", scalars, ""
        )  # fmt: skip
    return torch.ops.mkldnn._convolution_pointwise.binary(
        x, addend, conv.weight, conv.bias, *shape, "add", 1.0, kind, scalars, ""
    )


def _on_gpu(x: torch.Tensor, conv: Convolution, addend: torch.Tensor | None) -> torch.Tensor:
    shape = (conv.stride, conv.padding, conv.dilation, conv.groups)
    if addend is None:
        return torch.cudnn_convolution_relu(x, conv.weight, conv.bias, *shape)
    return torch.cudnn_convolution_add_relu(x, conv.weight, addend, 1.0, conv.bias, *shape)


def _plain(x: torch.Tensor, conv: Convolution, addend: torch.Tensor | None, activation: str) -> torch.Tensor:
    made = functional.conv2d(x, conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups)
    made = made if addend is None else made.add_(addend)
    if not activation:
        return made
    return made.relu_() if activation == "relu" else functional.relu6(made, inplace=True)


def _has_fused() -> bool:
    """Return whether this torch has the fused operators, and they do what they are taken for."""
    x, weight = torch.ones(1, 1, 1, 1), -2 * torch.ones(1, 1, 1, 1)
    shape = ([0, 0], [1, 1], [1, 1], 1)
    try:
        operator = torch.ops.mkldnn._convolution_pointwise
        alone = operator(x, weight, None, *shape, "relu", [], "")
        capped = operator(-9 * x, weight, None, *shape, *FUSED_NAMES["relu6"], "")
        added = operator.binary(x, 5 * x, weight, None, *shape, "add", 1.0, "relu", [], "")
        bare = operator.binary(x, x, weight, None, *shape, "add", 1.0, None, [], "")
    except (AttributeError, RuntimeError, NotImplementedError, TypeError):
        return False
    return (alone.item(), capped.item(), added.item(), bare.item()) == (0, 6, 3, -1)


HAS_FUSED = _has_fused()
HAS_CUDNN = torch.version.cuda is not None and hasattr(torch, "cudnn_convolution_add_relu")
