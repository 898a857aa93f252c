"""Batches of frames, made ahead in threads while the network computes."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import joblib
import numpy as np
import torch

from talstack.extract.training.augment import AugmentPlan, plan_augmentation
from talstack.extract.training.config import FinetuneConfig
from talstack.extract.training.dataset import TrainingSet
from talstack.extract.training.mirror import MirrorMap, mirrorable
from talstack.extract.training.processes import ALONE, Processes
from talstack.extract.training.sampler import BatchSampler
from talstack.io.errors import ConfigError

MAX_THREADS = 4  # more only wait for each other: copying frames is bound by memory
_DRAW, _AUGMENT = 1, 2  # streams of random numbers


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """B segments of a global batch.

    Attributes:
        pixels: (B, T, S, S, 3) uint8.
        targets: (B, C + 1) float32, before mirroring and mixing.
        scenes: (B, K) float32.
        groups: (B,) int64; a group's segments are of one recording and view.
        plan: what is done to the pixels.
        first_row: place of the first segment in the global batch.
        num_known: groups of the global batch with a known scene, at least 1.
    """

    pixels: torch.Tensor
    targets: torch.Tensor
    scenes: torch.Tensor
    groups: torch.Tensor
    plan: AugmentPlan
    first_row: int
    num_known: int


class BatchLoader:
    """The batches of a training, or one process's parts of them; each a pure function of (seed, epoch, step)."""

    def __init__(
        self, data: TrainingSet, config: FinetuneConfig, mirror: MirrorMap, processes: Processes = ALONE
    ) -> None:
        num_groups, parts = config.batch_size // config.segments_per_recording, processes.world * config.accumulate
        if num_groups % parts:
            raise ConfigError(
                f"finetune: batch_size {config.batch_size} holds {num_groups} groups of segments_per_recording "
                f"{config.segments_per_recording}; they cannot be shared evenly among {processes.world} processes x "
                f"accumulate {config.accumulate}"
            )
        self.data, self.config = data, config
        self.sampler = BatchSampler(
            data.targets, data.frames.block, batch_size=config.batch_size,
            segments_per_recording=config.segments_per_recording, balance=config.balance, seed=config.seed,
        )  # fmt: skip
        rows = np.arange(config.batch_size).reshape(parts, -1)
        self._parts = [rows[processes.rank * config.accumulate + i] for i in range(config.accumulate)]
        self._mirrorable = mirrorable(data.targets, mirror)
        self._pin = processes.device.type == "cuda"
        self._threads = max(1, min(MAX_THREADS, joblib.cpu_count() // processes.world // 2))

    @property
    def steps_per_epoch(self) -> int:
        """Steps that see about as many segments as there are."""
        return self.sampler.steps_per_epoch

    def epoch(self, epoch: int, *, first_step: int = 0) -> Iterator[list[Batch]]:
        """Yield this process's parts of every batch of an epoch, from `first_step` on."""
        steps = iter(range(first_step, self.steps_per_epoch))
        pool = ThreadPoolExecutor(self._threads)
        ahead: deque[Future[list[Batch]]] = deque()
        try:
            for step in steps:
                ahead.append(pool.submit(self.batches, epoch, step))
                if len(ahead) > self._threads:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)

    def batches(self, epoch: int, step: int) -> list[Batch]:
        """Return this process's parts of one batch."""
        data = self.data
        rows, groups = self.sampler.batch(epoch, step)
        num_frames, size = data.frames.frame_shape[:2]
        drawn = self._generator(_DRAW, epoch, step).integers(0, data.frames.draws, size=(len(rows), num_frames))
        firsts = np.unique(groups, return_index=True)[1]
        num_known = max(1, int((data.scenes[rows[firsts]].sum(axis=1) > 0).sum()))
        made = []
        for part, plan in zip(self._parts, self._plans(rows, groups, size, (epoch, step)), strict=True):
            pixels = torch.empty((len(part), *data.frames.frame_shape), dtype=torch.uint8, pin_memory=self._pin)
            data.frames.read_into(pixels.numpy(), rows[part], drawn[part])
            made.append(
                Batch(
                    pixels, torch.from_numpy(data.targets[rows[part]]), torch.from_numpy(data.scenes[rows[part]]),
                    torch.from_numpy(groups[part] - groups[part[0]]), plan, int(part[0]), num_known,
                )
            )  # fmt: skip
        return made

    def _plans(self, rows: np.ndarray, groups: np.ndarray, size: int, when: tuple[int, int]) -> list[AugmentPlan]:
        """Return the plan of every part. Without mixing, how a segment is changed does not depend on the parts."""
        data, config = self.data, self.config

        def plan(part: np.ndarray, rng: np.random.Generator) -> AugmentPlan:
            return plan_augmentation(
                config, rng, size=size, groups=groups[part] - groups[part[0]],
                panoramic=data.panoramic[rows[part]], mirrorable=self._mirrorable[rows[part]],
            )  # fmt: skip

        if config.mixup or config.cutmix:  # partners are found within a part
            return [plan(part, self._generator(_AUGMENT, *when, int(part[0]))) for part in self._parts]
        whole = plan(np.arange(len(rows)), self._generator(_AUGMENT, *when))
        return [_part_of(whole, part) for part in self._parts]

    def _generator(self, *stream: int) -> np.random.Generator:
        return np.random.default_rng([self.config.seed, *stream])


def _part_of(plan: AugmentPlan, part: np.ndarray) -> AugmentPlan:
    """Return the plan of some of the rows, none of which has a partner."""
    rows = {name: getattr(plan, name)[part] for name in ("rows", "cols", "gain", "bias", "mirrored", "share")}
    return replace(plan, **rows, partner=np.arange(len(part)), box=None)
