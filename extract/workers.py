"""How many worker processes, with how many threads each, on which devices: so that every core is used once."""

import os
from dataclasses import dataclass
from pathlib import Path

import joblib

# What a process takes with its libraries loaded, and per pixel of a batch (ResNet-50 in float32, whose first stages
# are the largest); measured by benchmarks/workers.py
PROCESS_BYTES = 800_000_000
BYTES_PER_PIXEL = 300
# processes that share a GPU, since decoding is what it waits for; measured in docs/decisions/0012-workers.md
PER_GPU, CORES_PER_PROCESS = 4, 4
HELD_BATCHES = 4  # of decoded pictures: one computed with, two waiting, one being read

_CGROUP = Path("/sys/fs/cgroup")
_MEMINFO = Path("/proc/meminfo")
_DEVICES = Path("/dev")


@dataclass(frozen=True, slots=True)
class Workers:
    """The worker processes of a run.

    Attributes:
        jobs: how many.
        threads: of each.
        devices: what CUDA_VISIBLE_DEVICES is in the first, second, ... (in turn); empty: left alone.
    """

    jobs: int
    threads: int = 1
    devices: tuple[str, ...] = ()

    def device(self, number: int) -> str | None:
        """Return the value of CUDA_VISIBLE_DEVICES of one worker, None where it is left alone."""
        return self.devices[number % len(self.devices)] if self.devices else None


def choose_workers(
    num_items: int, *, jobs: int = 0, num_gpus: int = 0, cores: int | None = None, process_bytes: int = 0,
    memory_bytes: int | None = None,
) -> Workers:  # fmt: skip
    """Return the workers for this many items.

    Without GPUs one process per core, fewer where there are fewer items or less memory; what cores are left over
    become threads. With GPUs up to `PER_GPU` processes each, as far as there are cores to decode for them.

    Args:
        jobs: how many processes; 0 chooses.
        num_gpus: how many GPUs the processes would use.
        cores: how many cores may be used; None asks (affinity and container limits count).
        process_bytes: what one process needs; 0 sets no bound.
        memory_bytes: what is free; None asks.
    """
    cores = int(joblib.cpu_count()) if cores is None else cores
    if not jobs:
        jobs = num_gpus * max(1, min(PER_GPU, cores // (num_gpus * CORES_PER_PROCESS))) if num_gpus else cores
        memory_bytes = available_bytes() if memory_bytes is None and process_bytes else memory_bytes
        if process_bytes and memory_bytes is not None:
            jobs = min(jobs, memory_bytes // process_bytes)
    jobs = max(1, min(jobs, num_items))
    devices = visible_devices(num_gpus) if num_gpus > 1 else ()
    return Workers(jobs, max(1, cores // jobs), devices)


def visible_devices(num_gpus: int) -> tuple[str, ...]:
    """Return the value of CUDA_VISIBLE_DEVICES that shows one GPU alone, for each of the GPUs that are visible here."""
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return tuple(named[:num_gpus]) if len(named) >= num_gpus else tuple(str(number) for number in range(num_gpus))


def process_bytes(*, pixels: int, pictures: int = 1) -> int:
    """Return about how much memory a process needs.

    Args:
        pixels: of a batch's frames.
        pictures: how many are decoded for each frame: six for rgbdiff, and for every piece of a view its own.
    """
    return PROCESS_BYTES + (BYTES_PER_PIXEL + HELD_BATCHES * 3 * pictures) * pixels


def available_bytes(*, meminfo: Path = _MEMINFO, cgroup: Path = _CGROUP) -> int | None:
    """Return how much memory is free on this machine or in this container; None where nothing says."""
    found = [value for value in (_meminfo_bytes(meminfo), _cgroup_bytes(cgroup)) if value is not None]
    return min(found, default=None)


def _meminfo_bytes(path: Path) -> int | None:
    try:
        for line in path.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None


def _cgroup_bytes(folder: Path) -> int | None:
    try:
        limit, used = ((folder / name).read_text().strip() for name in ("memory.max", "memory.current"))
        return None if limit == "max" else max(0, int(limit) - int(used))
    except (OSError, ValueError):
        return None


def count_gpus() -> int:
    """Return how many GPUs torch can use here; it is loaded only where there is a device file of one."""
    if not any(any(_DEVICES.glob(name)) for name in ("nvidia[0-9]*", "kfd", "dxg")):
        return 0
    import torch

    return int(torch.cuda.device_count())
