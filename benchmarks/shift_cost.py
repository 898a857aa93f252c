"""What the temporal shift costs: a whole network with it in several forms, beside the same network without.

    .venv/bin/python benchmarks/shift_cost.py                        # ResNet-50, forward and forward + backward
    .venv/bin/python benchmarks/shift_cost.py --arch mobilenet_v2 --size 112

Prints, for both memory formats, each form's time as a multiple of the network's without a shift: the median of the
ratios within each round, so that what else the machine does falls out of them. On a GPU with --device cuda.
"""

import time
from collections.abc import Callable
from statistics import median

import click
import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.nn import functional

from talstack.extract.architectures import ARCHS
from talstack.extract.image_networks import build_image_network, insert_shift
from talstack.extract.shift import TemporalShift, shift_frames, temporal_shift

FOLD_DIV = 8
Form = Callable[[torch.Tensor, int], torch.Tensor]
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def plain_clone(x: torch.Tensor, num_frames: int) -> torch.Tensor:
    """Clone + slice copies, differentiated by autograd."""
    return shift_frames(x, num_frames, fold=x.shape[1] // FOLD_DIV)


def zeros_and_slices(x: torch.Tensor, num_frames: int) -> torch.Tensor:
    """Zeros + three slice copies, as the paper's authors have it."""
    frames, fold = x.unflatten(0, (-1, num_frames)), x.shape[1] // FOLD_DIV
    out = torch.zeros_like(frames)
    out[:, :-1, :fold] = frames[:, 1:, :fold]
    out[:, 1:, fold : 2 * fold] = frames[:, :-1, fold : 2 * fold]
    out[:, :, 2 * fold :] = frames[:, :, 2 * fold :]
    return out.flatten(0, 1)


def rolled(x: torch.Tensor, num_frames: int) -> torch.Tensor:
    """torch.roll of both groups, the ends zeroed, concatenated."""
    frames, fold = x.unflatten(0, (-1, num_frames)), x.shape[1] // FOLD_DIV
    later, earlier = frames[:, :, :fold].roll(-1, 1), frames[:, :, fold : 2 * fold].roll(1, 1)
    mask = torch.ones(num_frames, 1, 1, 1, device=x.device)
    mask[-1] = 0
    return torch.cat([later * mask, earlier * mask.flip(0), frames[:, :, 2 * fold :]], 2).flatten(0, 1)


def concatenated(x: torch.Tensor, num_frames: int) -> torch.Tensor:
    """Slices and zeros concatenated, over time and then over channels."""
    frames, fold = x.unflatten(0, (-1, num_frames)), x.shape[1] // FOLD_DIV
    nothing = torch.zeros_like(frames[:, :1, :fold])
    later = torch.cat([frames[:, 1:, :fold], nothing], 1)
    earlier = torch.cat([nothing, frames[:, :-1, fold : 2 * fold]], 1)
    return torch.cat([later, earlier, frames[:, :, 2 * fold :]], 2).flatten(0, 1)


def padded(x: torch.Tensor, num_frames: int) -> torch.Tensor:
    """Slices padded with zeros in time, concatenated over channels."""
    frames, fold = x.unflatten(0, (-1, num_frames)), x.shape[1] // FOLD_DIV
    later = functional.pad(frames[:, 1:, :fold], (0, 0, 0, 0, 0, 0, 0, 1))
    earlier = functional.pad(frames[:, :-1, fold : 2 * fold], (0, 0, 0, 0, 0, 0, 1, 0))
    return torch.cat([later, earlier, frames[:, :, 2 * fold :]], 2).flatten(0, 1)


class _SlicesOnce(torch.autograd.Function):
    """Every element is copied once, each part to its place; the gradient is the opposite shift."""

    @staticmethod
    def forward(ctx, x, num_frames, backwards):  # type: ignore[no-untyped-def]
        ctx.how = num_frames, backwards
        frames, fold = x.view(-1, num_frames, *x.shape[1:]), x.shape[1] // FOLD_DIV
        parts = [slice(0, fold), slice(fold, 2 * fold)]
        later, earlier = parts[::-1] if backwards else parts
        out = torch.empty_like(frames)
        out[:, :-1, later] = frames[:, 1:, later]
        out[:, -1, later] = 0
        out[:, 1:, earlier] = frames[:, :-1, earlier]
        out[:, 0, earlier] = 0
        out[:, :, 2 * fold :] = frames[:, :, 2 * fold :]
        return out.view(x.shape)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        num_frames, backwards = ctx.how
        return _SlicesOnce.apply(grad, num_frames, not backwards), None, None


def slices_once(x: torch.Tensor, num_frames: int) -> torch.Tensor:
    """Empty + three slice copies, with the opposite shift as gradient."""
    return _SlicesOnce.apply(x, num_frames, False)


class _InPlaceBack(torch.autograd.Function):
    """As the one in use, but the gradient is shifted where it lies (nothing else may hold it)."""

    @staticmethod
    def forward(ctx, x, num_frames):  # type: ignore[no-untyped-def]
        ctx.num_frames = num_frames
        return plain_clone(x, num_frames)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        frames, fold = grad.view(-1, ctx.num_frames, *grad.shape[1:]), grad.shape[1] // FOLD_DIV
        later, earlier = frames[:, :, :fold], frames[:, :, fold : 2 * fold]
        later[:, 1:] = later[:, :-1].clone()
        later[:, 0] = 0
        earlier[:, :-1] = earlier[:, 1:].clone()
        earlier[:, -1] = 0
        return grad, None


class SplitConvolution(nn.Module):
    """No shift at all: the sum of three convolutions, each over its channels of the frames they come from."""

    def __init__(self, conv: nn.Conv2d, num_frames: int) -> None:
        super().__init__()
        self.conv, self.num_frames = conv, num_frames

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the convolution of the shifted (B * T, C, H, W)."""
        fold, weight = x.shape[1] // FOLD_DIV, self.conv.weight
        stride, padding = self.conv.stride, self.conv.padding
        made = functional.conv2d(x[:, 2 * fold :], weight[:, 2 * fold :], None, stride, padding).unflatten(
            0, (-1, self.num_frames)
        )
        frames = x.unflatten(0, (-1, self.num_frames))
        later = functional.conv2d(frames[:, 1:, :fold].flatten(0, 1), weight[:, :fold], None, stride, padding)
        earlier = functional.conv2d(
            frames[:, :-1, fold : 2 * fold].flatten(0, 1), weight[:, fold : 2 * fold], None, stride, padding
        )  # fmt: skip
        made[:, :-1] += later.unflatten(0, (-1, self.num_frames - 1))
        made[:, 1:] += earlier.unflatten(0, (-1, self.num_frames - 1))
        return made.flatten(0, 1)


class Shifted(nn.Module):
    """A convolution behind a shift of some form."""

    def __init__(self, conv: nn.Module, num_frames: int, form: Form) -> None:
        super().__init__()
        self.conv, self.num_frames, self.form = conv, num_frames, form

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Shift, then apply the convolution."""
        return self.conv(self.form(x, self.num_frames))


FORMS: dict[str, Form] = {
    "clone + 2 slices, own gradient (used)": lambda x, t: temporal_shift(x, t, fold_div=FOLD_DIV),
    "clone + 2 slices": plain_clone,
    "the same, gradient in place": _InPlaceBack.apply,
    "3 slices, own gradient": slices_once,
    "zeros + 3 slices": zeros_and_slices,
    "roll": rolled,
    "cat": concatenated,
    "pad + cat": padded,
}
SPLIT = "split convolution"


def build(arch: str, num_frames: int, form: str | None) -> nn.Module:
    """Return the network, its shift in this form; None: without."""
    torch.manual_seed(0)
    net, _ = build_image_network(arch)
    if form is not None:
        insert_shift(net, num_frames, fold_div=FOLD_DIV)
        for holder in list(net.modules()):
            for name, child in list(holder.named_children()):
                if isinstance(child, TemporalShift):
                    conv = child.net
                    made = SplitConvolution(conv, num_frames) if form == SPLIT and isinstance(conv, nn.Conv2d) else None
                    setattr(holder, name, made or Shifted(conv, num_frames, FORMS[form]))
    return net


def timed(net: nn.Module, frames: torch.Tensor, *, backward: bool) -> float:
    """Return the seconds of one pass: the processor's, which other work disturbs less, or the clock's for a GPU."""
    clock = time.perf_counter if frames.is_cuda else time.process_time
    _wait(frames)
    start = clock()
    if backward:
        net(frames).square().mean().backward()
        net.zero_grad(set_to_none=True)
    else:
        with torch.inference_mode():
            net(frames)
    _wait(frames)
    return clock() - start


def _wait(frames: torch.Tensor) -> None:
    if frames.is_cuda:
        torch.cuda.synchronize()


def measure(
    arch: str, frames: torch.Tensor, num_frames: int, *, backward: bool, rounds: int, memory_format: torch.memory_format
) -> dict[str, float]:
    """Return each form's median ratio to the network without a shift."""
    nets = {
        form: build(arch, num_frames, form).to(frames.device).to(memory_format=memory_format).train(backward)
        for form in (None, *FORMS, SPLIT)
    }
    frames = frames.contiguous(memory_format=memory_format)
    spent: dict[str | None, list[float]] = {form: [] for form in nets}
    for number in range(rounds + 1):
        for form, net in nets.items():
            seconds = timed(net, frames, backward=backward)
            if number:  # the first warms up
                spent[form].append(seconds)
    return {
        form: median(own / without for own, without in zip(times, spent[None], strict=True))
        for form, times in spent.items()
        if form is not None
    }


@click.command()
@click.option("--arch", type=click.Choice(ARCHS), default="resnet50", show_default=True)
@click.option("--size", default=64, show_default=True, help="Pixels on each side.")
@click.option("--frames", "num_frames", default=8, show_default=True, help="T.")
@click.option("--segments", default=2, show_default=True)
@click.option("--rounds", default=7, show_default=True)
@click.option("--threads", default=1, show_default=True)
@click.option("--device", default="cpu", show_default=True)
def main(arch: str, size: int, num_frames: int, segments: int, rounds: int, threads: int, device: str) -> None:
    """Print what each form of the shift costs."""
    torch.set_num_threads(threads)
    title = f"{arch}, {segments} x {num_frames} frames of {size} px on {device}: time to the network without a shift"
    kinds = [(name, backward) for name in FORMATS for backward in (False, True)]
    names = [f"{name}, {'forward + backward' if backward else 'forward'}" for name, backward in kinds]
    table = Table("form", *names, title=title)
    frames = torch.randn(segments * num_frames, 3, size, size, device=device)
    found = [
        measure(arch, frames, num_frames, backward=backward, rounds=rounds, memory_format=FORMATS[name])
        for name, backward in kinds
    ]
    for form in (*FORMS, SPLIT):
        table.add_row(form, *(f"{column[form]:.3f}" for column in found))
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
