"""Batch norm in fine-tuning: which layers follow the data, and statistics over all processes."""

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm

from talstack.io.errors import ConfigError

BatchNormMode = Literal["train", "partial", "frozen"]


def set_batch_norm_mode(model: nn.Module, mode: BatchNormMode) -> None:
    """Keep the statistics of frozen layers as they are; call it after every model.train(), which wakes them.

    Args:
        model: its layers are taken in the order in which they were made.
        mode: "train" freezes none, "partial" all but the first (as TSN and TSM do: the first follows the new kind of
            pictures, the others' statistics are better than those of small batches), "frozen" all.

    Raises:
        ConfigError: another mode.
    """
    for layer in _frozen(model, mode):
        layer.eval()


def freeze_batch_norm_parameters(model: nn.Module, mode: BatchNormMode) -> None:
    """Exclude scale and shift of the layers that `set_batch_norm_mode` freezes from training; once, beforehand.

    Raises:
        ConfigError: another mode.
    """
    for layer in _frozen(model, mode):
        layer.requires_grad_(False)


def convert_batch_norm(model: nn.Module) -> nn.Module:
    """Return the network with batch norms whose statistics are over all processes; names of its state stay.

    On a GPU they are torch's SyncBatchNorm, elsewhere `SyncedBatchNorm2d`, put in place. Without a process group
    either is plain batch norm.
    """
    if any(parameter.is_cuda for parameter in model.parameters()):
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        return converted
    for layer in model.modules():
        if type(layer) is nn.BatchNorm2d:
            layer.__class__ = SyncedBatchNorm2d  # it has no attributes of its own, and so keeps state, hooks and mode
    return model


class SyncedBatchNorm2d(nn.BatchNorm2d):
    """Batch norm over the batches of all processes, of any size; torch's SyncBatchNorm knows GPUs alone.

    The gradient is that of the sum of the processes' losses.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (B, C, H, W) normalised by the statistics of all processes in training, else by the running ones."""
        if not self.training or _num_processes() == 1:
            return super().forward(x)
        values = x.float()
        own_var, own_mean = torch.var_mean(values, dim=(0, 2, 3), correction=0)
        own_count = own_mean.new_full((1,), values.numel() / values.shape[1])
        total = _SumOverProcesses.apply(torch.cat([own_count, own_count * own_mean]))
        count, mean = total[0].detach(), total[1:] / total[0].detach()
        # spread about the common mean, in a second round: differences of squares would lose digits
        var = _SumOverProcesses.apply(own_count * (own_var + (own_mean - mean) ** 2)) / count
        self._follow(mean.detach(), var.detach() * count / (count - 1).clamp(min=1))
        scale = torch.rsqrt(var + self.eps)
        if self.weight is not None:
            scale = scale * self.weight
        shift = -mean * scale if self.bias is None else self.bias - mean * scale
        return torch.addcmul(shift[:, None, None], values, scale[:, None, None]).to(x.dtype)

    @torch.no_grad()
    def _follow(self, mean: torch.Tensor, var: torch.Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked += 1
        momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(var, momentum)


def _num_processes() -> int:
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


class _SumOverProcesses(torch.autograd.Function):
    """The sum of a tensor over all processes; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor) -> torch.Tensor:
        total = tensor.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return _SumOverProcesses.apply(grad)


def _frozen(model: nn.Module, mode: BatchNormMode) -> Iterator[nn.Module]:
    if mode not in ("train", "partial", "frozen"):
        raise ConfigError(f"batch_norm {mode!r}: expected train, partial or frozen")
    layers = [layer for layer in model.modules() if isinstance(layer, _BatchNorm)]
    return iter({"train": [], "partial": layers[1:], "frozen": layers}[mode])
