"""The processes of a distributed training, as `torchrun` starts them; alone, there is one."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
from torch import distributed, nn

from talstack.extract.backbone import pick_device
from talstack.io.errors import ConfigError

T = TypeVar("T")
PATIENCE = timedelta(days=2)  # the others wait while the first decodes the data set


@dataclass(frozen=True, slots=True)
class Processes:
    """Which process of how many this is, and the device it computes on."""

    rank: int = 0
    world: int = 1
    device: torch.device = torch.device("cpu")

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and reports."""
        return self.rank == 0

    def wait(self) -> None:
        """Wait until every process has come here."""
        if self.world > 1:
            distributed.barrier()

    def shared(self, value: T) -> T:
        """Return the first process's value."""
        if self.world == 1:
            return value
        values = [value]
        distributed.broadcast_object_list(values, src=0)
        return values[0]

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """Return the sum over all processes of a small tensor."""
        if self.world > 1:
            values = values.to(self.device)
            distributed.all_reduce(values)
        return values.cpu()

    def gather(self, array: torch.Tensor) -> list[torch.Tensor]:
        """Return a tensor of every process, in order of their ranks; shapes may differ in the first dimension."""
        if self.world == 1:
            return [array.cpu()]
        gathered: list[torch.Tensor] = [torch.empty(0)] * self.world
        distributed.all_gather_object(gathered, array.cpu())
        return gathered

    def wrap(self, model: nn.Module) -> nn.Module:
        """Return the model so that its gradients are averaged over the processes."""
        if self.world == 1:
            return model
        devices = [self.device] if self.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(model, device_ids=devices)


ALONE = Processes()


@contextmanager
def training_processes() -> Iterator[Processes]:
    """Join the processes that `torchrun` started; without it there is one, on the GPU where there is one.

    May be entered again within itself.

    Raises:
        ConfigError: more processes on this machine than it has GPUs.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield Processes(device=pick_device())
        return
    rank, local = int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK", "0"))
    num_gpus = torch.cuda.device_count()
    if num_gpus and local >= num_gpus:
        raise ConfigError(
            f"torchrun started process {local + 1} on a machine with {num_gpus} GPUs; lower --nproc-per-node"
        )
    device = torch.device("cuda", local) if num_gpus else torch.device("cpu")
    if distributed.is_initialized():
        yield Processes(rank, world, device)
        return
    if num_gpus:
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if num_gpus else "gloo", timeout=PATIENCE)
    try:
        yield Processes(rank, world, device)
    finally:
        distributed.destroy_process_group()
